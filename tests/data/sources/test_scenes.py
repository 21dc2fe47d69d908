"""Generated scenes: deterministic, labelled exactly, not told apart by colour, reused on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weaktr.data import DataError, check, load_manifest, read_image, read_mask
from weaktr.data.sources.scene_drawing import CLASSES, NAMES, render_scene
from weaktr.data.sources.scenes import scenes

DRAWN = 120


@pytest.fixture(scope="module")
def drawn() -> list[tuple[np.ndarray, np.ndarray, tuple[int, ...]]]:
    return [render_scene(index) for index in range(DRAWN)]


def test_a_scene_depends_on_seed_split_and_index_alone() -> None:
    image, mask, labels = render_scene(7, seed=3, split="val")
    again, mask_again, labels_again = render_scene(7, seed=3, split="val")
    np.testing.assert_array_equal(image, again)
    np.testing.assert_array_equal(mask, mask_again)
    assert labels == labels_again
    for other in (
        render_scene(8, seed=3, split="val"),
        render_scene(7, seed=4, split="val"),
        render_scene(7, seed=3, split="train"),
    ):
        assert np.abs(image.astype(int) - other[0]).mean() > 10


@pytest.mark.parametrize("size", [16, 33, 64])
def test_shapes_and_types(size: int) -> None:
    image, mask, labels = render_scene(0, size=size)
    assert image.shape == (size, size, 3) and image.dtype == np.uint8
    assert mask.shape == (size, size) and mask.dtype == np.uint8
    assert labels == tuple(sorted(labels))


def test_labels_are_those_of_the_mask(drawn: list[tuple[np.ndarray, ...]]) -> None:
    for _, mask, labels in drawn:
        assert labels == tuple(label - 1 for label in np.unique(mask).tolist() if label)
        assert 1 <= len(labels) <= 3


def test_every_class_and_every_number_of_objects_occurs(
    drawn: list[tuple[np.ndarray, ...]],
) -> None:
    counts = np.bincount([label for *_, labels in drawn for label in labels], minlength=8)
    assert len(counts) == len(NAMES) == len(CLASSES)
    assert counts.min() > DRAWN * 0.1
    assert {len(labels) for *_, labels in drawn} == {1, 2, 3}


def test_objects_are_neither_specks_nor_the_whole_picture(
    drawn: list[tuple[np.ndarray, ...]],
) -> None:
    shares = [(mask == label + 1).mean() for _, mask, labels in drawn for label in labels]
    assert np.quantile(shares, 0.02) > 0.015
    assert max(shares) < 0.4


def test_the_mask_lies_on_the_object() -> None:
    """Textures have two colours: across the mask's edge pixels differ more than inside."""
    across, inside = [], []
    for index in range(60):
        image, mask, _ = render_scene(index)
        step = np.abs(np.diff(image.astype(float), axis=1)).mean(2)
        edge = np.diff(mask.astype(int), axis=1) != 0
        across.append(step[edge].mean())
        inside.append(step[~edge].mean())
    assert np.mean(across) > 1.5 * np.mean(inside)


def test_colour_tells_no_class(drawn: list[tuple[np.ndarray, ...]]) -> None:
    """The mean colours of classes lie closer than the objects of one class spread."""
    means = np.array(
        [
            [*image[mask == label + 1].mean(0), label]
            for image, mask, labels in drawn
            for label in labels
        ]
    )
    by_class = [means[means[:, 3] == label, :3] for label in range(len(NAMES))]
    between = np.std([colours.mean(0) for colours in by_class], axis=0).max()
    within = np.mean([colours.std(0) for colours in by_class])
    assert between < 0.5 * within


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"index": -1}, "index"),
        ({"index": 0, "size": 15}, "size"),
        ({"index": 0, "seed": -1}, "seed"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, int], named: str) -> None:
    with pytest.raises(ValueError, match=f"{named}: expected at least"):
        render_scene(**arguments)


def test_the_manifest_reads_back_what_was_drawn(tmp_path: Path) -> None:
    manifest = load_manifest("scenes", tmp_path, "val", count=5, size=32, seed=2)
    assert (manifest.name, manifest.split, len(manifest)) == ("scenes", "val", 5)
    assert manifest.classes.names == NAMES
    for index, sample in enumerate(manifest):
        image, mask, labels = render_scene(index, size=32, seed=2, split="val")
        np.testing.assert_array_equal(read_image(sample), image)
        np.testing.assert_array_equal(read_mask(sample, 9), mask)
        assert sample.labels == labels
        file, line = sample.source.rsplit(":", 1)
        assert Path(file).read_text().splitlines()[int(line) - 1].startswith(sample.name)
    assert [problem for problem in check(manifest) if problem.level == "error"] == []


def test_without_masks(tmp_path: Path) -> None:
    manifest = load_manifest("scenes", tmp_path, count=2, size=16, masks=False)
    assert all(sample.mask is None and sample.labels for sample in manifest)


def test_a_second_call_reuses_the_files_and_other_arguments_replace_them(tmp_path: Path) -> None:
    first = scenes(tmp_path, 3, size=16)
    file = first.samples[0].image
    before = file.stat().st_mtime_ns
    assert scenes(tmp_path, 3, size=16) == first
    assert file.stat().st_mtime_ns == before
    assert len(scenes(tmp_path, 2, size=16)) == 2
    assert sorted(path.name for path in file.parent.iterdir()) == ["000000.png", "000001.png"]
    assert [path.name for path in tmp_path.iterdir()] == ["train"]


def test_half_drawn_scenes_are_never_taken_for_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(index: int, **arguments: object) -> object:
        if index == 2:
            raise KeyboardInterrupt
        return render_scene(index, size=16)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("weaktr.data.sources.scenes.render_scene", render)
        scenes(tmp_path, 4, size=16)
    assert list(tmp_path.iterdir()) == []
    assert len(scenes(tmp_path, 4, size=16)) == 4


def test_a_foreign_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "holiday.png").write_bytes(b"precious")
    with pytest.raises(ValueError, match="was not drawn here"):
        scenes(tmp_path, 1, size=16)
    assert (tmp_path / "train" / "holiday.png").read_bytes() == b"precious"


@pytest.mark.parametrize("stamp", ["", "{", "[]", '{"name": "another program"}'])
def test_a_folder_with_another_stamp_is_left_alone(tmp_path: Path, stamp: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "scenes.json").write_text(stamp)
    with pytest.raises(ValueError, match="was not drawn here"):
        scenes(tmp_path, 1, size=16)
    assert (tmp_path / "train" / "scenes.json").read_text() == stamp


@pytest.mark.parametrize(
    "table",
    [
        "",
        "name\n000000.png\n",
        "name,labels\n000000.png\n",
        "name,labels\n000000.png,unicorn\n",
        "name,labels\n../../other.png,\n",
        "name,labels\n000001.png,\n",
        "name,labels\n\udcff,\n",
    ],
)
def test_labels_that_were_changed(tmp_path: Path, table: str) -> None:
    scenes(tmp_path, 1, size=16)
    (tmp_path / "train/labels.csv").write_bytes(table.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=r"labels\.csv: not as it was drawn"):
        scenes(tmp_path, 1, size=16)


def test_an_older_drawing_is_replaced(tmp_path: Path) -> None:
    scenes(tmp_path, 1, size=16)
    stamp = tmp_path / "train" / "scenes.json"
    stamp.write_text(json.dumps({**json.loads(stamp.read_text()), "version": 0}))
    scenes(tmp_path, 1, size=16)
    assert json.loads(stamp.read_text())["version"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count: expected at least 1"),
        ({"count": 10**9}, "count: expected at least 1 and at most 100000, got 1000000000"),
        ({"count": 1, "size": 10**9}, "size: expected at most 1024 pixels, got 1000000000"),
        ({"count": 1, "split": "../x"}, "split: exp"),
    ],
)
def test_bad_arguments_of_the_set(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        scenes(tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []
