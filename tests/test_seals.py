"""By what weaktr knows its own files."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from weaktr.data.masks import png_bytes
from weaktr.data.stored_maps import npz_of_cams
from weaktr.files import write_bytes
from weaktr.seals import BLANK, SAVED, is_saved, is_sealed, sealed, was_sealed

MASK = Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5))


@pytest.fixture
def png(tmp_path):
    path = tmp_path / "mask.png"
    path.write_bytes(png_bytes(MASK))
    return path


def test_a_png_is_whole_and_sealed(png):
    assert is_sealed(png)
    with Image.open(png) as picture:
        picture.verify()  # the check sums of all chunks
    with Image.open(png) as picture:
        assert picture.info["Software"].startswith("weaktr ")
        np.testing.assert_array_equal(np.asarray(picture), np.asarray(MASK))


def test_a_picture_that_keeps_the_remark_of_another_is_not_sealed(png):
    """As editors do that copy what a PNG says of its origin."""
    with Image.open(png) as picture:
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Software", picture.info["Software"])
        changed = picture.point(lambda value: 19 - value)
    changed.save(png, pnginfo=notes)
    assert not is_sealed(png) and was_sealed(png)


def test_a_png_that_somebody_saved_is_no_commands(png):
    content = png_bytes(MASK, SAVED)
    png.write_bytes(content)
    assert is_saved(png) and not is_sealed(png) and not was_sealed(png)
    with Image.open(png) as picture:
        picture.verify()
    png.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    assert not is_saved(png)


@pytest.mark.parametrize("place", [0, 20, 70, 100, -1])
def test_one_other_byte_breaks_a_seal(png, place):
    content = bytearray(png.read_bytes())
    content[place] ^= 1
    png.write_bytes(content)
    assert not is_sealed(png)


@pytest.mark.parametrize("content", [b"", bytes(300)])
def test_what_a_power_failure_leaves_counts_as_ours(png, content):
    png.write_bytes(content)
    assert is_sealed(png) and was_sealed(png)


def test_links_and_folders_are_not_sealed(png, tmp_path):
    (tmp_path / "link.png").symlink_to(png)
    assert not is_sealed(tmp_path / "link.png") and not is_sealed(tmp_path)


def test_an_archive_is_sealed_until_somebody_adds_to_it(tmp_path):
    path = tmp_path / "cams.npz"
    write_bytes(path, npz_of_cams(np.zeros((1, 4, 5), np.float32), [2]))
    assert is_sealed(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("notes.txt", "mine")
    assert not is_sealed(path)
    buffer = io.BytesIO()
    np.savez(buffer, cams=np.zeros(3))
    path.write_bytes(buffer.getvalue())
    assert not is_sealed(path)


def test_text_is_sealed_where_it_has_room(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(sealed(f"# {BLANK}\nname: demo\n".encode()))
    assert is_sealed(path) and path.read_text().endswith("\nname: demo\n")
    path.write_text(path.read_text().replace("demo", "mine"))
    assert not is_sealed(path)
