"""Photographs that a camera stored lying: what EXIF asks viewers to do with them."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageOps

from weaktr.data import DataError, Manifest, Sample, load_manifest, read_image, read_mask
from weaktr.data.check import check
from weaktr.data.classes import Classes
from weaktr.data.io import image_size, open_image
from weaktr.data.io import orientation as stored_orientation
from weaktr.data.photographs import read_photograph

ORIENTATIONS = range(1, 9)
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 10, 3), np.uint8)


def photo(path, orientation, pixels=PIXELS):
    """A photograph with this number, or these bytes, as its EXIF."""
    if not isinstance(orientation, bytes):
        exif = Image.Exif()
        exif[0x0112] = orientation
        orientation = exif.tobytes()
    Image.fromarray(pixels).save(path, exif=orientation)
    return Sample(path.stem, path, None, None, "list:1")


def entry(kind, count, value):
    """EXIF whose one entry, the orientation, is of any kind: 2 text, 3 short, 5 fraction..."""
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1)
    return head + struct.pack("<HHI4sI", 0x0112, kind, count, value, 0)


def as_viewers_show(path):
    with Image.open(path) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_pixels_are_as_stored_or_as_viewers_show_them(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    ignoring = photo(path, orientation)
    applying = replace(ignoring, exif="apply")
    with Image.open(path) as image:
        stored = np.asarray(image.convert("RGB"))
    shown = as_viewers_show(path)
    for sample, expected in ((ignoring, stored), (applying, shown)):
        np.testing.assert_array_equal(read_image(sample), expected)
        assert image_size(path, exif=sample.exif) == expected.shape[:2]
        photograph = read_photograph(sample, None)
        np.testing.assert_array_equal(photograph.pixels, expected)
        assert photograph.size == expected.shape[:2] and not photograph.is_reduced
    is_asked = orientation != 1
    assert (open_image(path, "", stored_orientation) != 1) is is_asked
    assert read_photograph(ignoring, None).exif == ("ignored" if is_asked else None)
    assert read_photograph(applying, None).exif == ("applied" if is_asked else None)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_tiff_is_always_read_as_viewers_show_it(tmp_path, orientation):
    sample = photo(tmp_path / "a.tif", orientation)
    shown = as_viewers_show(sample.image)
    for exif in ("ignore", "apply"):
        np.testing.assert_array_equal(read_image(replace(sample, exif=exif)), shown)
        assert image_size(sample.image, exif=exif) == shown.shape[:2]
    assert open_image(sample.image, "", stored_orientation) == 1


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("size", [(60, 100), (100, 100), (99, 100)])
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_reduced_photographs_are_turned_too(tmp_path, suffix, size, orientation):
    pixels = np.full((*size, 3), 128, np.uint8)
    pixels[: size[0] // 2, : size[1] // 3] = (255, 0, 0)
    sample = replace(photo(tmp_path / f"a.{suffix}", orientation, pixels), exif="apply")
    shown = as_viewers_show(sample.image)
    photograph = read_photograph(sample, 20)
    assert photograph.size == shown.shape[:2]
    small = Image.fromarray(shown).resize(photograph.pixels.shape[1::-1], Image.Resampling.BICUBIC)
    assert np.abs(photograph.pixels.astype(int) - np.asarray(small)).mean() < 3


@pytest.mark.parametrize(
    ("exif", "told"),
    [
        (entry(2, 2, b"6\0\0\0"), "'6'"),
        (entry(5, 1, struct.pack("<I", 8)), ""),  # the fraction is not in the file
        (entry(7, 4, b"\6\0\0\0"), r"b'\x06\x00\x00\x00'"),
        (entry(3, 1, struct.pack("<HH", 0, 0)), None),
        (entry(3, 1, struct.pack("<HH", 9, 0)), "9"),
        (entry(200, 1, b"\6\0\0\0"), None),
        (entry(3, 2**31, b"\6\0\0\0"), None),
        (b"Exif\0\0nonsense", None),
        (b"Exif\0\0", None),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")
def test_an_orientation_that_means_nothing_is_none(tmp_path, exif, told):
    sample = photo(tmp_path / "a.jpg", exif)
    assert open_image(sample.image, "", stored_orientation) == 1
    for chosen in ("ignore", "apply"):
        own = replace(sample, exif=chosen)
        assert read_image(own).shape == PIXELS.shape
        assert read_photograph(own, None).exif is None
    messages = [
        problem.message for problem in check(Manifest("own", "all", Classes(()), (sample,)))
    ]
    expected = (
        "EXIF has an orientation that means nothing: expected a whole number from 1 to 8, got "
    )
    assert len(messages) == (told is not None)
    assert all(message.startswith(expected + told) for message in messages)
    assert all("exif=apply" in message for message in messages)


def test_true_masks_are_of_the_turned_photograph(tmp_path):
    for name, shape in (("turned", (10, 6)), ("stored", (6, 10))):
        root = tmp_path / name
        for kind in ("images", "masks"):
            (root / kind).mkdir(parents=True)
        photo(root / "images" / "a.jpg", 6)
        Image.fromarray(np.ones(shape, np.uint8)).save(root / "masks" / "a.png")
        (root / "train.csv").write_text("image,labels\na.jpg,cat\n")
    (turned,) = load_manifest("folder", tmp_path / "turned", exif="apply").samples
    (stored,) = load_manifest("folder", tmp_path / "stored").samples
    assert read_mask(turned, 2).shape == (10, 6)
    assert read_mask(stored, 2).shape == (6, 10)
    with pytest.raises(DataError, match="differ in size: expected 10x6"):
        read_mask(replace(turned, exif="ignore"), 2)
    with pytest.raises(DataError, match="differ in size: expected 6x10"):
        read_mask(replace(stored, exif="apply"), 2)
    warnings = check(load_manifest("folder", tmp_path / "stored"))
    assert "EXIF asks viewers to turn the image" in warnings[0].message
    (only_one,) = check(load_manifest("folder", tmp_path / "turned", exif="apply"))
    assert "only one image" in only_one.message
    for name, wrong, right in (("turned", "ignore", "apply"), ("stored", "apply", "ignore")):
        problems = check(load_manifest("folder", tmp_path / name, exif=wrong))
        (size,) = [problem for problem in problems if problem.level == "error"]
        assert size.message.endswith(f"; with exif={right} they agree")


def test_manifests_keep_the_choice(tmp_path):
    photo(tmp_path / "a.jpg", 6)
    plain = load_manifest("images", tmp_path, "all")
    turned = load_manifest("images", tmp_path, "all", exif="apply")
    assert plain.fingerprint() != turned.fingerprint()
    for manifest in (plain, turned):
        manifest.save(tmp_path / "all.json")
        assert ("exif" in (tmp_path / "all.json").read_text()) == (manifest is turned)
        again = Manifest.load(tmp_path / "all.json")
        assert again == manifest and again.fingerprint() == manifest.fingerprint()
    with pytest.raises(ValueError, match="exif: expected one of ignore, apply; got 'yes'"):
        load_manifest("images", tmp_path, exif="yes")
    (tmp_path / "all.json").write_text(
        (tmp_path / "all.json").read_text().replace('"exif": "apply"', '"exif": "yes"')
    )
    with pytest.raises(ValueError, match=r"exif: expected one of ignore, apply"):
        Manifest.load(tmp_path / "all.json")
