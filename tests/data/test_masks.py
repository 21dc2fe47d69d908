"""Masks as files, and a folder of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from weaktr.contents import Contents
from weaktr.data.classes import palette
from weaktr.data.io import read_stored_labels
from weaktr.data.mask_index import MaskEntry, join_journals
from weaktr.data.masks import MaskFolder, RefinedMasks, write_mask

MASK = np.array([[0, 1, 20], [255, 5, 0]], np.uint8)


def test_masks_are_palette_pngs_in_voc_colours(tmp_path):
    path = tmp_path / "deep" / "mask.png"
    write_mask(path, MASK)
    np.testing.assert_array_equal(read_stored_labels(path), MASK)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        colours = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(colours, palette()[MASK])


@pytest.mark.parametrize("wrong", [MASK.astype(np.int64), MASK[None], MASK / 255])
def test_only_labels_are_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"labels: expected uint8 \[H, W\], got"):
        write_mask(tmp_path / "mask.png", wrong)
    assert not list(tmp_path.iterdir())


def test_masks_that_were_replaced_by_pictures_or_cut_off_are_named(tmp_path):
    masks = MaskFolder(tmp_path)
    masks.add("a", MASK)
    path = masks.path("a")
    path.write_bytes(path.read_bytes()[:-24])
    with pytest.raises(ValueError, match=r"a\.png: cannot be read as an image"):
        masks.read("a")
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(path)
    with pytest.raises(ValueError, match=r"a\.png: expected a mask of one channel"):
        masks.read("a")


def test_mask_folder_survives_a_half_written_line(tmp_path):
    masks = MaskFolder(tmp_path)
    masks.add("a/b", MASK)
    masks.add("c", MASK)
    content = masks.index.read_bytes()
    masks.index.write_bytes(content[:-9])
    again = MaskFolder(tmp_path)
    assert list(again.entries) == ["a/b"]
    again.add("c", MASK)
    assert masks.index.read_bytes() == content
    assert again.entries["c"].size == (2, 3)
    assert again.entries["c"].labels == (0, 1, 5, 20, 255)


def test_several_processes_fill_one_folder(tmp_path):
    def folder(process):
        known = {"contents": Contents(), "refined": True, "process": process}
        return RefinedMasks(tmp_path, **known)

    def written(masks, name, value):
        labels = np.full((3, 4), value, np.uint8)
        masks.record(masks.write(name, {"plain": labels, "refined": labels + 1}.__getitem__))

    first, third = folder(0), folder(2)
    written(first, "a", 1)
    written(third, "b", 2)
    third.record([MaskEntry("c", None, None, (3, 4), ())])
    third.flush()
    lines = [path.name for path in sorted(tmp_path.rglob("index*.jsonl"))]
    assert lines == ["index.2.jsonl", "index.jsonl"] * 2
    assert "b" not in first.masks and first.done("b") is None
    killed = folder(1)  # who comes before these are joined knows of all
    assert {"a", "b"} == killed.masks.entries.keys() == killed.before.entries.keys()
    (tmp_path / "index.2.jsonl").open("a").write('{"name": "half')
    first.join()
    assert first.done("b").file == "masks/b.png" and first.done("c").file is None
    assert first.before.read("b").max() == 2 and first.masks.read("b").max() == 3
    assert not list(tmp_path.rglob("index.2.jsonl"))
    again = folder(0)
    assert again.names == {"a", "b", "c"} and not again.masks.edited
    assert len((tmp_path / "index.jsonl").read_text().splitlines()) == 3


def test_a_newer_line_of_another_process_wins(tmp_path):
    masks = MaskFolder(tmp_path)
    masks.add("a", np.full((3, 4), 1, np.uint8))
    MaskFolder(tmp_path, process=1).add("a", np.full((3, 4), 2, np.uint8))
    assert MaskFolder(tmp_path).entries["a"].labels == (2,)
    join_journals(tmp_path)
    assert MaskFolder(tmp_path).entries["a"].labels == (2,)


@pytest.mark.parametrize("share", ["1" + "0" * 400, '"1e"', "[]", "{}"])
def test_a_damaged_line_is_named(tmp_path, share):
    masks = MaskFolder(tmp_path)
    masks.record(masks.write("a", MASK, predicted={1: 0.25}))
    masks.index.write_text(masks.index.read_text().replace("0.25", share))
    with pytest.raises(ValueError, match=r"index\.jsonl:1\): damaged .*remove this line") as caught:
        MaskFolder(tmp_path)
    assert "\n" not in str(caught.value)


def test_mask_folder_drops_what_its_digest_denies(tmp_path):
    masks = MaskFolder(tmp_path)
    masks.add("a", MASK)
    masks.add("b", MASK)
    masks.path("a").write_bytes(b"")
    masks.path("b").unlink()
    assert len(MaskFolder(tmp_path)) == 2
    assert len(MaskFolder(tmp_path, verify=True)) == 0
    with pytest.raises(ValueError, match="no mask of 'x'"):
        masks.read("x")


def test_an_image_without_a_class_has_a_line_and_no_mask(tmp_path):
    masks = MaskFolder(tmp_path)
    masks.record(MaskEntry("none", None, None, (3, 2), ()))
    masks.add("a", MASK)
    again = MaskFolder(tmp_path, verify=True)
    assert list(again.entries) == ["a"]
    assert list(again.without) == list(masks.without) == ["none"]
    assert "none" not in again


def test_labels_of_a_large_mask_are_counted_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("weaktr.data.masks.PIECE", 4)
    masks = MaskFolder(tmp_path)
    masks.add("a", MASK)
    masks.add("b", np.full((3, 5), 7, np.uint8))
    assert masks.entries["a"].labels == (0, 1, 5, 20, 255)
    assert masks.entries["b"].labels == (7,)


def test_a_hard_link_to_an_index_stays_as_it_is(tmp_path):
    MaskFolder(tmp_path / "masks").add("a", MASK)
    index, backup = tmp_path / "masks" / "index.jsonl", tmp_path / "backup.jsonl"
    backup.hardlink_to(index)
    before = backup.read_bytes()
    masks = MaskFolder(tmp_path / "masks")
    masks.add("b", MASK)
    masks.add("c", MASK)
    assert backup.read_bytes() == before
    assert MaskFolder(tmp_path / "masks").entries.keys() == {"a", "b", "c"}


def test_areas_follow_a_mask_that_somebody_changes_and_confidence_goes(tmp_path):
    masks = RefinedMasks(tmp_path, refined=True, contents=Contents())
    plain, refined = np.zeros((2, 4), np.uint8), np.array([[0, 0, 3, 3], [0, 0, 0, 255]], np.uint8)
    kinds = {"plain": plain, "refined": refined}
    masks.record(masks.write("a", kinds.__getitem__, confidence={0: 0.75, 3: 0.5}))
    again = RefinedMasks(tmp_path, refined=True, contents=Contents())
    entry, before = again.masks.entries["a"], again.before.entries["a"]
    assert entry.areas == {0: 0.625, 3: 0.25, 255: 0.125} and entry.confidence == {0: 0.75, 3: 0.5}
    assert before.areas == {0: 1.0} and before.confidence is None
    Image.fromarray(plain).save(again.masks.path("a"))
    (entry,) = MaskFolder(tmp_path, verify=True).entries.values()
    assert entry.labels == (0,) and entry.areas == {0: 1.0} and entry.confidence is None


def test_indices_of_older_versions_have_no_areas(tmp_path):
    MaskFolder(tmp_path).add("a", np.zeros((2, 2), np.uint8))
    row = json.loads((tmp_path / "index.jsonl").read_text())
    del row["areas"]
    (tmp_path / "index.jsonl").write_text(json.dumps(row) + "\n")
    assert MaskFolder(tmp_path, verify=True).entries["a"].areas is None
