"""Masks as files, and a folder of them."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from weaktr.data.classes import palette
from weaktr.data.masks import MaskFolder, read_mask_file, write_mask

MASK = np.array([[0, 1, 20], [255, 5, 0]], np.uint8)


def test_masks_are_palette_pngs_in_voc_colours(tmp_path):
    path = tmp_path / "deep" / "mask.png"
    write_mask(path, MASK)
    np.testing.assert_array_equal(read_mask_file(path), MASK)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        colours = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(colours, palette()[MASK])


@pytest.mark.parametrize("wrong", [MASK.astype(np.int64), MASK[None], MASK / 255])
def test_only_labels_are_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"labels: expected uint8 \[H, W\], got"):
        write_mask(tmp_path / "mask.png", wrong)
    assert not list(tmp_path.iterdir())


def test_colour_pictures_are_no_masks(tmp_path):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match=r"colour\.png: expected an 8-bit palette mask"):
        read_mask_file(tmp_path / "colour.png")


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


def test_mask_folder_fingerprint_follows_the_masks(tmp_path):
    one, two = MaskFolder(tmp_path / "1"), MaskFolder(tmp_path / "2")
    one.add("a", MASK)
    one.add("b", MASK)
    two.add("b", MASK)
    two.add("a", MASK)
    assert one.fingerprint() == two.fingerprint()
    two.add("a", MASK.T.copy())
    assert one.fingerprint() != two.fingerprint()
