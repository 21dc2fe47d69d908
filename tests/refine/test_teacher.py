"""Masks of a teacher: which regions are taken, which stay ours, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from weaktr.config import LabelConfig
from weaktr.data import DataError
from weaktr.data.masks import write_mask
from weaktr.refine import (
    Maps,
    among,
    choose_refiners,
    files_of,
    notes_of,
    paths_of,
    refine,
    teacher,
)
from weaktr.refine.teacher import agreements, teacher_refiner


def taught(folder, ours, theirs, *, least=0.5, file_labels=(0, 3, 7), **fields):
    """The refiner, and the maps that it makes of labels 0..2 (none, class 2 and class 6)."""
    if theirs is not None:
        write_mask(folder / "a.png", np.asarray(theirs, np.uint8))
    ours = torch.from_numpy(np.asarray(ours, np.uint8))
    refiner = teacher_refiner({"folder": str(folder), "least_agreement": least}, LabelConfig())
    given = {"name": "a", "size": tuple(ours.shape), "file_labels": file_labels} | fields
    (new,) = refiner([None], [Maps(ours, len(file_labels), **given)])
    return refiner, new


OURS = [
    [0, 0, 0, 0, 0, 0],
    [0, 1, 1, 0, 2, 2],
    [0, 1, 1, 0, 2, 2],
]


def test_regions_that_agree_are_the_teachers(tmp_path):
    theirs = [[3, 3, 3, 0, 0, 0], [0, 3, 3, 0, 7, 7], [0, 0, 3, 0, 7, 7]]
    _, new = taught(tmp_path, OURS, theirs)
    expected = [[1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 2, 2], [0, 0, 1, 0, 2, 2]]
    np.testing.assert_array_equal(new.labels, expected)
    np.testing.assert_allclose(new.agreement, [np.nan, 3 / 4, 1])


def test_a_class_that_the_labels_exclude_is_not_taken(tmp_path):
    theirs = [[5, 5, 0, 0, 0, 0], [5, 5, 3, 0, 7, 7], [0, 3, 3, 0, 7, 7]]
    refiner, new = taught(tmp_path, OURS, theirs)
    np.testing.assert_array_equal(new.labels, OURS)  # under class 4, ours: background and class 2
    assert "1 others are of classes that their images do not show" in notes_of([refiner])[0]


def test_a_region_that_hardly_meets_ours_stays_ours(tmp_path):
    theirs = [[0, 0, 0, 7, 7, 7], [0, 3, 3, 0, 7, 0], [0, 3, 3, 0, 0, 0]]
    _, new = taught(tmp_path, OURS, theirs)
    np.testing.assert_allclose(new.agreement, [np.nan, 1, 1 / 4])
    np.testing.assert_array_equal(new.labels, OURS)
    _, new = taught(tmp_path, OURS, theirs, least=0.25)
    expected = [[0, 0, 0, 2, 2, 2], [0, 1, 1, 0, 2, 0], [0, 1, 1, 0, 0, 0]]
    np.testing.assert_array_equal(new.labels, expected)


def test_a_class_that_the_teacher_misses_stays_ours(tmp_path):
    theirs = [[0, 0, 0, 0, 0, 0], [0, 3, 3, 0, 0, 0], [0, 3, 3, 0, 0, 0]]
    _, new = taught(tmp_path, OURS, theirs)
    np.testing.assert_array_equal(new.labels, OURS)
    assert new.agreement[2] == 0
    _, new = taught(tmp_path, OURS, theirs, least=0)
    assert not (new.labels == 2).any()


def test_ignored_pixels_stay_ours(tmp_path):
    theirs = np.full((3, 6), 255)
    theirs[1, 1:3] = 3
    _, new = taught(tmp_path, OURS, theirs)
    np.testing.assert_array_equal(new.labels, OURS)


def test_the_definition():
    rng = np.random.default_rng(0)
    for _ in range(20):
        theirs, ours = rng.integers(5, size=(7, 9)), rng.integers(4, size=(7, 9))
        found = agreements(torch.tensor(theirs), torch.tensor(ours), 4)
        for label in range(4):
            there, here = theirs == label, ours == label
            expected = (there & here).sum() / max(1, min(there.sum(), here.sum()))
            assert abs(float(found[label]) - expected) < 1e-6
    nothing = agreements(torch.zeros(2, 2), torch.zeros(2, 2), 2)
    assert nothing[0] == 1 and nothing[1].isnan()


def test_as_many_labels_as_there_may_be(tmp_path):
    labels = np.arange(255, dtype=np.uint8).reshape(15, 17)
    _, new = taught(tmp_path, labels, labels[::-1], least=0, file_labels=tuple(range(255)))
    np.testing.assert_array_equal(new.labels, labels[::-1])


def test_scores_are_exchanged(tmp_path):
    scores = torch.rand(3, 3, 6)
    theirs = [[0, 0, 0, 0, 0, 0], [3, 3, 3, 0, 7, 7], [0, 3, 3, 0, 7, 7]]
    _, new = taught(tmp_path, OURS, theirs, scores=scores)
    np.testing.assert_array_equal(new.scores[:2, 1, 0], scores[[1, 0], 1, 0])
    np.testing.assert_array_equal(new.scores[:, 0], scores[:, 0])


def test_without_background(tmp_path):
    """Labels of predictions that have no background in them."""
    ours, theirs = [[0, 0, 1], [0, 0, 1]], [[3, 3, 7], [3, 0, 7]]
    _, new = taught(tmp_path, ours, theirs, file_labels=(3, 7), has_background=False)
    np.testing.assert_array_equal(new.labels, ours)


def test_maps_that_are_smaller_than_the_photograph(tmp_path):
    theirs = np.kron(np.array([[3, 0], [0, 7]]), np.ones((50, 60))).astype(np.uint8)
    ours = np.kron(np.array([[1, 0], [0, 2]]), np.ones((4, 6))).astype(np.uint8)
    ours[0, 0] = 0
    _, new = taught(tmp_path, ours, theirs, size=(100, 120))
    assert new.labels[0, 0] == 1 and new.labels.shape == (8, 12)


@pytest.mark.parametrize("fault", ["size", "turned", "damaged", "coloured"])
def test_masks_that_cannot_be_used_are_named(tmp_path, fault):
    if fault == "damaged":
        (tmp_path / "a.png").write_bytes(b"no PNG")
    elif fault == "coloured":
        Image.new("RGB", (6, 3)).save(tmp_path / "a.png")
    size = {"size": (4, 4), "turned": (6, 3)}.get(fault)
    with pytest.raises(DataError, match=r"a\.png") as caught:
        taught(tmp_path, OURS, None if size is None else np.zeros(size))
    assert ("--exif" in str(caught.value)) == (fault == "turned")


def test_photographs_without_a_mask_are_counted(tmp_path):
    write_mask(tmp_path / "b.png", np.zeros((3, 6), np.uint8))
    refiner, new = taught(tmp_path, OURS, None)
    np.testing.assert_array_equal(new.labels, OURS)
    assert new.agreement is None
    assert notes_of([refiner]) == ["1 images have no teacher (a): their labels stay"]
    assert files_of([refiner], "a") == () and paths_of([refiner]) == [tmp_path]
    assert files_of([refiner], "b") == files_of([refiner], "images/b") == (tmp_path / "b.png",)


def test_the_worst_are_named_first(tmp_path):
    theirs = [[0, 0, 0, 7, 7, 7], [0, 3, 3, 0, 7, 0], [0, 3, 3, 0, 0, 0]]
    refiner, _ = taught(tmp_path, OURS, theirs)
    (note,) = notes_of([refiner])
    start = "teacher: 1 of 2 regions taken, mean agreement 0.62 (lowest: a 0.25, a 1.00)"
    assert note.startswith(start)


def test_few_agreements_wait_to_be_counted(tmp_path, monkeypatch):
    """However many photographs there are; those of a batch that comes again count once."""
    monkeypatch.setattr(teacher, "WAITING", 4)
    rng = np.random.default_rng(0)
    names = [f"{number:02}" for number in range(20)]
    for name in names:
        write_mask(tmp_path / f"{name}.png", rng.choice([0, 3, 5, 7], (4, 6)).astype(np.uint8))
    refiner = teacher_refiner({"folder": str(tmp_path), "least_agreement": 0.5}, LabelConfig())
    found, waiting = [], []
    for pair in zip(names[::2], names[1::2], strict=True):
        batch = [
            Maps(torch.from_numpy(rng.integers(3, size=(4, 6), dtype=np.uint8)), 3, name=name,
                 size=(4, 6), file_labels=(0, 3, 7))
            for name in pair
        ]  # fmt: skip
        for own in refiner([None] * 2, batch):
            found += [(float(one), own.name) for one in own.agreement[1:]]
        for other in (1, 2):  # as for stability
            refiner([None] * 2, [own._replace(labels=own.labels * 0 + other) for own in batch])
        waiting.append(len(refiner.tally.waiting))
    assert max(waiting) == 4
    (note,) = refiner.notes()
    values = [one for one, _ in found]
    lowest = ", ".join(f"{name} {one:.2f}" for one, name in sorted(found)[:5])
    assert note == (
        f"teacher: {sum(one >= 0.5 for one in values)} of 40 regions taken, mean agreement "
        f"{np.mean(values):.2f} (lowest: {lowest}); 20 others are of classes that their images do "
        "not show"
    )
    assert refiner.notes() == [note]


def test_agreement_is_kept_by_later_refiners(tmp_path):
    write_mask(tmp_path / "a.png", np.zeros((3, 6), np.uint8))
    crf = {"crf": {"start": "labels", "gaussian": [3, 3], "iterations": 1}}
    refiners = [{"teacher": {"folder": str(tmp_path)}}, crf]
    chosen = choose_refiners(LabelConfig(refiners=refiners))
    ours = torch.tensor(OURS, dtype=torch.uint8)
    maps = Maps(ours, 3, name="a", size=(3, 6), file_labels=(0, 3, 7))
    (new,) = refine(chosen, [torch.zeros(3, 6, 3, dtype=torch.uint8)], [maps])
    np.testing.assert_allclose(new.agreement, [np.nan, 0, 0])


@pytest.mark.parametrize("settings", [None, {}, {"folder": "nowhere"}, {"folder": "."}, {"x": 1}])
def test_settings_that_are_refused(tmp_path, monkeypatch, settings):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError):
        teacher_refiner(settings, LabelConfig())


def test_a_mask_of_one_photograph_of_a_run_is_not_that_of_another(tmp_path):
    """A list beside images/ names photographs with that folder, their masks without it."""
    write_mask(tmp_path / "b.png", np.zeros((2, 2), np.uint8))
    refiner = teacher_refiner({"folder": str(tmp_path)}, LabelConfig())
    assert among([refiner], ["images/b", "images/c"])[0].files("images/b")
    both = among([refiner], ["images/b", "b"])
    assert files_of(both, "images/b") == () and files_of(both, "b") == (tmp_path / "b.png",)
