"""Snapping to proposals: the rule pixel by pixel, other sizes, and what is said of faults."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.proposals import proposal
from weaktr.config import LabelConfig, PredictConfig, ProposalsConfig
from weaktr.data import DataError
from weaktr.data.photographs import enlarged
from weaktr.ops.dense_crf.presets import DenseCRF
from weaktr.refine import Maps, among, choose_refiners, notes_of, refine
from weaktr.refine.crf import CrfRefiner
from weaktr.refine.proposals import exchanged, proposals_refiner, taken_label


def snapped(folder, labels, masks, size=None, settings=None, **fields):
    """Labels uint8 [h, w] of one image after snapping to masks bool [H, W]."""
    labels = np.asarray(labels, np.uint8)
    (folder / "a.json").write_text(json.dumps([proposal(np.asarray(mask)) for mask in masks]))
    refiner = proposals_refiner({"file": str(folder)} | (settings or {}), LabelConfig())
    given = {"num_labels": 3, "name": "a", "size": size or labels.shape} | fields
    (new,) = refiner([None], [Maps(torch.from_numpy(labels), **given)])
    return new


def by_the_rule(labels, masks, majority=0.5, cover=0.85, least=0.2, background=False):
    """The rule in loops over pixels."""
    result = labels.copy()
    for mask in sorted(masks, key=lambda mask: -mask.sum()):
        inside = [int(label) for label, is_in in zip(labels.flat, mask.flat, strict=True) if is_in]
        if not inside:
            continue
        best = max((1, 2), key=lambda label: (inside.count(label), -label))
        share, total = inside.count(best) / len(inside), int((labels == best).sum())
        covers = total > 0 and share >= least and inside.count(best) >= cover * total
        if share > majority or covers:
            result[mask] = best
        elif background and inside.count(0) / len(inside) > majority:
            result[mask] = 0
    return result


@pytest.mark.parametrize("settings", [
    {}, {"majority": 0.3}, {"cover": 0.4, "least": 0.0}, {"background": True, "majority": 0.6},
], ids=str)  # fmt: skip
@pytest.mark.parametrize("seed", range(8))
def test_the_rule(tmp_path, seed, settings):
    rng = np.random.default_rng(seed)
    labels = np.zeros((9, 12), np.uint8)
    labels[rng.integers(4) :, rng.integers(6) :] = 1
    labels[: rng.integers(1, 5), : rng.integers(1, 9)] = 2
    masks = []
    for _ in range(7):
        mask, (top, left) = np.zeros(labels.shape, bool), rng.integers(8, size=2)
        mask[top : top + rng.integers(1, 7), left : left + rng.integers(1, 9)] = True
        masks.append(mask)
    masks.append(np.zeros(labels.shape, bool))  # an empty one
    masks = sorted(masks, key=lambda mask: -mask.sum())  # of equal areas the later one wins
    new = snapped(tmp_path, labels, masks, settings=settings)
    np.testing.assert_array_equal(new.labels, by_the_rule(labels, masks, **settings))
    assert new.labels.dtype == torch.uint8


def test_the_thresholds():
    settings = ProposalsConfig()

    def taken(counts, totals, **more):
        given = ProposalsConfig(**more) if more else settings
        return taken_label(np.array(counts), np.array(totals), given)

    assert taken([49, 51, 0], [500, 500, 0]) == 1  # more than half
    assert taken([50, 50, 0], [500, 500, 0]) is None
    assert taken([70, 30, 0], [500, 35, 0]) == 1  # covers 0.857 of the class
    assert taken([70, 30, 0], [500, 36, 0]) is None  # 0.833
    assert taken([90, 10, 0], [500, 10, 0]) is None  # a whole scene with a small object
    assert taken([90, 10, 0], [500, 10, 0], least=0.1) == 1
    assert taken([40, 20, 40], [500, 20, 400]) is None  # the class that most of it has decides
    assert taken([100, 0, 0], [500, 0, 0]) is None
    assert taken([100, 0, 0], [500, 0, 0], background=True) == 0
    assert taken([60, 40, 0], [500, 40, 0], background=True) == 1
    assert taken([0, 0, 0], [1, 1, 1]) is None
    assert taken_label(np.array([60, 40]), np.array([99, 99]), settings, first=0) == 0


def test_smaller_proposals_win(tmp_path):
    labels = np.zeros((6, 8), np.uint8)
    labels[:, 4:] = 1
    labels[2:4, 5:7] = 2
    large, small = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    large[:, 2:] = True
    small[1:4, 4:7] = True
    small[1, 4] = small[1, 6] = False
    expected = labels.copy()
    expected[large] = 1
    expected[small] = 2  # 4 of 7 pixels
    for masks in ([large, small], [small, large]):
        np.testing.assert_array_equal(snapped(tmp_path, labels, masks).labels, expected)


def test_proposals_are_of_the_file_where_the_maps_are_smaller(tmp_path):
    """As if the labels were enlarged first, which takes the nearest pixel, too."""
    size = (31, 47)
    labels = np.zeros((13, 20), np.uint8)
    labels[4:, 7:] = 1
    mask = np.zeros(size, bool)
    mask[8:30, 12:40] = True
    new = snapped(tmp_path, labels, [mask], size=size)
    rows = ((np.arange(13) + 0.5) * 31 / 13).astype(int)
    columns = ((np.arange(20) + 0.5) * 47 / 20).astype(int)
    expected = by_the_rule(labels, [mask[rows][:, columns]])
    np.testing.assert_array_equal(new.labels, expected)
    assert (enlarged(new.labels.numpy(), size)[mask] == 1).mean() > 0.9


def test_proposals_of_another_size_name_file_and_entry(tmp_path):
    mask = np.ones((3, 4), bool)
    with pytest.raises(DataError, match=r"a.json \(entry 0\): expected run lengths of size \[3, 5"):
        snapped(tmp_path, np.zeros((3, 5)), [mask])
    with pytest.raises(DataError, match=r"got \[3, 4\]; are they of the photograph as EXIF turns"):
        snapped(tmp_path, np.zeros((4, 3)), [mask])
    damaged = [proposal(mask), {"segmentation": {"size": [3, 4], "counts": [3, 4]}}]
    (tmp_path / "b.json").write_text(json.dumps(damaged))
    with pytest.raises(DataError, match=r"b.json \(entry 1\): expected run lengths whose sum is"):
        snapped(tmp_path, np.zeros((3, 4)), [mask], name="b")


def test_scores_of_changed_pixels_are_exchanged(tmp_path):
    scores = torch.rand(3, 6, 8).softmax(0)
    labels = scores.argmax(0).to(torch.uint8)
    after = torch.randint(3, (6, 8), dtype=torch.uint8)
    new = exchanged(scores, labels, after)
    for row in range(6):
        for column in range(8):
            expected = scores[:, row, column].clone()
            one, other = int(labels[row, column]), int(after[row, column])
            expected[[one, other]] = expected[[other, one]]
            assert torch.equal(new[:, row, column], expected)
    assert torch.equal(new.argmax(0), after.long())
    mask = np.ones((6, 8), bool)
    result = snapped(
        tmp_path, labels, [mask], scores=scores, confidence=scores.amax(0),
        settings={"majority": 0.0},
    )  # fmt: skip
    assert result.labels.unique().tolist() == [int(result.labels[0, 0])]
    assert torch.equal(result.scores, exchanged(scores, labels, result.labels))
    assert torch.equal(result.scores.amax(0), result.confidence)


def test_an_image_without_proposals_stays_and_is_told(tmp_path):
    maps = Maps(torch.ones(3, 4, dtype=torch.uint8), 2, name="b", size=(3, 4))
    (tmp_path / "a.json").write_text("[]")
    (refiner,) = choose_refiners(LabelConfig(refiners=({"proposals": {"file": str(tmp_path)}},)))
    assert refiner.notes() == []
    assert refine([refiner], [None], [maps]) == [maps]
    assert refine([refiner], [None], [maps._replace(name="a")]) == [maps._replace(name="a")]
    assert refiner.notes() == ["2 images have no proposals (a, b): their labels stay"]
    with pytest.raises(ValueError, match="maps: expected the name and the size"):
        refiner([None], [maps._replace(name=None)])


def test_proposals_that_may_be_of_two_photographs_are_of_none(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps([proposal(np.ones((3, 4), bool), image="a.jpg")]))
    settings = LabelConfig(refiners=({"proposals": {"file": str(tmp_path / "all.json")}},))
    labels = torch.ones(3, 4, dtype=torch.uint8)
    labels[0] = 0
    maps = [Maps(labels, 2, name=f"shop{k}/a", size=(3, 4)) for k in (1, 2)]
    one = among(choose_refiners(settings), ["shop1/a"])
    assert refine(one, [None], maps[:1])[0].labels.all() and notes_of(one) == []
    both = among(choose_refiners(settings), ["shop1/a", "shop2/a"])
    assert refine(both, [None, None], maps) == maps
    assert notes_of(both) == [
        "2 images have no proposals (shop1/a, shop2/a): their labels stay",
        "proposals of a may be of several photographs, so are of none: name photographs with their "
        "folders",
    ]


def test_label_0_need_not_be_the_background(tmp_path):
    """Among the labels that occur in a prediction."""
    labels = np.zeros((4, 5), np.uint8)
    labels[:, 3:] = 1
    mask = np.ones((4, 5), bool)
    assert not snapped(tmp_path, labels, [mask], has_background=False).labels.any()
    np.testing.assert_array_equal(snapped(tmp_path, labels, [mask]).labels, np.ones((4, 5)))


def test_before_a_crf(tmp_path):
    image = torch.randint(256, (6, 8, 3), dtype=torch.uint8)
    scores = torch.rand(2, 6, 8).softmax(0)
    maps = Maps(scores.argmax(0).to(torch.uint8), 2, scores, name="a", size=(6, 8))
    mask = np.zeros((6, 8), bool)
    mask[:3] = True
    (tmp_path / "a.json").write_text(json.dumps([proposal(mask)]))
    refiner = proposals_refiner({"file": str(tmp_path), "majority": 0.1}, PredictConfig())
    crf = DenseCRF(gaussian=(3, 3), iterations=2)
    (first,) = refiner([image], [maps])
    (after,) = refine([refiner, CrfRefiner(crf)], [image], [maps])
    assert first.labels[:3].all()
    assert torch.equal(after.scores, crf.refine_probabilities(image, first.scores))


def test_recipes_choose_it(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    (refiner,) = choose_refiners(
        LabelConfig(refiners=({"proposals": {"file": str(tmp_path), "cover": 0.9}},))
    )
    assert refiner.settings == ProposalsConfig(file=str(tmp_path), cover=0.9)
    assert refiner.files("a") == (Path(tmp_path / "a.json"),)
    for wrong, message in (
        (None, r"proposals: expected \{file: PATH\}"),
        ({"path": "x"}, r"proposals: unknown key 'path'"),
        ({"file": str(tmp_path), "cover": 2}, r"proposals: cover: expected a number from 0 to 1"),
        ({"file": str(tmp_path / "x")}, r"x: expected a JSON file of proposals"),
    ):
        with pytest.raises(ValueError, match=message):
            proposals_refiner(wrong, LabelConfig())
