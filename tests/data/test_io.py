"""Photographs and masks: whole, 8-bit and of the right size, or an error with file and line."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile, features

from tests.data.trees import SIZE, write_image, write_mask, write_png
from weaktr.data.io import (
    FORMATS,
    image_size,
    open_image,
    orientation,
    read_image,
    read_labels,
    read_mask,
    read_rgb,
)
from weaktr.data.manifest import Sample
from weaktr.data.mask_index import MaskEntry
from weaktr.data.masks import MaskFolder
from weaktr.data.photographs import read_photograph
from weaktr.data.problems import DataError

SOURCE = "list.txt:7"


def sample(image: Path, mask: Path | None = None, ids: tuple[int, ...] | None = None) -> Sample:
    return Sample("a", image, (0,), mask, SOURCE, ids)


def assert_fails(image: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_image(sample(image))
    assert f"{image} ({SOURCE})" in str(caught.value)


def test_image_as_stored(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png")
    pixels = read_image(sample(path))
    assert (pixels.shape, pixels.dtype) == ((*SIZE, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=turned)
    np.testing.assert_array_equal(read_image(sample(tmp_path / "turned.png")), pixels)
    assert open_image(tmp_path / "turned.png", "", orientation) == 6
    assert open_image(path, "", orientation) == 1


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1", "CMYK"])
def test_image_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode).save(path)
    pixels = read_image(sample(path))
    assert pixels.shape == (3, 5, 3)
    assert (pixels == 255).all()


def test_deep_images_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full(SIZE, 40000, np.uint16)).save(path)
    assert_fails(path, "8 bits a channel, got 16 bits")
    Image.fromarray(np.zeros(SIZE, np.float32)).save(tmp_path / "deep.tif")
    assert_fails(tmp_path / "deep.tif", "8 bits a channel, got 32 bits")


#: Data of 12 bits, two rows of four pixels: without their lower 8 bits nothing is above 15.
TWELVE_BITS = np.arange(0, 4080, 170).reshape(2, 4, 3)


def deep_png(path: Path, numbers: np.ndarray) -> Path:
    """A PNG of 16 bits; `numbers` [H, W, samples of a pixel] big-endian behind a filter's 0."""
    height, width, samples = numbers.shape
    colours = {2: 4, 3: 2, 4: 6}[samples]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in numbers)
    header = struct.pack(">IIBBBBB", width, height, 16, colours, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in parts
    )  # fmt: skip
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
    return path


def deep_tiff(path: Path, numbers: np.ndarray, *, planes: bool, packed: bool) -> Path:
    """A TIFF of 16 bits [H, W, 3]: pixels or planes one after another, raw or deflated.

    Source: Adobe, "TIFF Revision 6.0", 1992, sections 2 and 8.
    """
    height, width, samples = numbers.shape
    parts = [numbers[..., k] for k in range(samples)] if planes else [numbers]
    strips = [part.astype("<u2").tobytes() for part in parts]
    strips = [zlib.compress(strip) if packed else strip for strip in strips]
    directory = {256: width, 257: height, 258: 0, 259: 8 if packed else 1, 262: 2, 273: 0,
                 277: samples, 278: height, 279: 0, 284: 2 if planes else 1}  # fmt: skip
    start = 8 + 2 + 12 * len(directory) + 4
    lists = {258: [16] * samples, 273: [0] * len(strips), 279: [len(strip) for strip in strips]}
    first = start + sum(4 * len(numbers) for numbers in lists.values())
    lists[273] = [first + sum(lists[279][:k]) for k in range(len(strips))]
    entries, behind = b"", b""
    for tag, value in directory.items():
        values = lists.get(tag, [value])
        kind = 3 if tag == 258 else 4
        content = struct.pack(f"<{len(values)}{'H' if kind == 3 else 'I'}", *values)
        place = struct.pack("<I", start + len(behind)) if len(content) > 4 else content
        behind += content if len(content) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, len(values)) + place
    gap = b"\0" * (first - start - len(behind))
    count = struct.pack("<H", len(directory))
    path.write_bytes(
        b"II*\0" + struct.pack("<I", 8) + count + entries + b"\0" * 4 + behind + gap
        + b"".join(strips)
    )  # fmt: skip
    return path


@pytest.mark.parametrize("samples", [2, 3, 4], ids=["LA", "RGB", "RGBA"])
def test_deep_pngs_of_several_channels_are_refused(tmp_path: Path, samples: int) -> None:
    path = deep_png(tmp_path / "deep.png", TWELVE_BITS[..., [0, 1, 2, 2]][..., :samples])
    assert_fails(path, "8 bits a channel, got 16 bits")
    for look in (image_size, read_rgb):
        with pytest.raises(DataError, match="got 16 bits"):
            look(path)
    with pytest.raises(DataError, match="got 16 bits"):
        read_photograph(sample(path), None)


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_deep_tiffs_of_several_channels_are_refused(
    tmp_path: Path, planes: bool, packed: bool
) -> None:
    path = deep_tiff(tmp_path / "deep.tif", TWELVE_BITS, planes=planes, packed=packed)
    with Image.open(path) as image:
        assert (image.mode, image.size) == ("RGB", (4, 2))
        image.load()  # it is a sound TIFF
    assert_fails(path, "8 bits a channel, got 16 bits")


def test_few_bits_are_no_deep_image(tmp_path: Path) -> None:
    """Pillow calls a BMP of 5 and 6 bits a channel BGR;16, for its pixels have 16 in all."""
    header = struct.pack("<IiiHHIIiiII", 40, 2, 1, 1, 16, 3, 4, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    pixels = struct.pack("<HH", 0xF800, 0x07E0)
    start = 14 + len(header) + len(masks)
    content = struct.pack("<2sIHHI", b"BM", start + 4, 0, 0, start) + header + masks + pixels
    (tmp_path / "a.bmp").write_bytes(content)
    assert read_image(sample(tmp_path / "a.bmp")).tolist() == [[[255, 0, 0], [0, 255, 0]]]
    Image.new("RGB", (5, 3), (1, 2, 3)).save(tmp_path / "a.tif")
    assert read_image(sample(tmp_path / "a.tif"))[0, 0].tolist() == [1, 2, 3]
    Image.new("1", (5, 3), 1).save(tmp_path / "bits.tif")  # without a tag that says how many
    assert (read_image(sample(tmp_path / "bits.tif")) == 255).all()


def test_missing_image(tmp_path: Path) -> None:
    assert_fails(tmp_path / "none.jpg", "file is missing")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp"])
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.9])
def test_truncated_image(tmp_path: Path, suffix: str, kept: float) -> None:
    path = write_image(tmp_path / f"a{suffix}", size=(64, 64))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    assert_fails(path, "cannot be read as an image")


def test_corrupt_png(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.png", size=(64, 64))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    assert_fails(path, "cannot be read as an image")


def test_text_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_text("404: not found")
    assert_fails(path, "cannot be read as an image")


def test_half_images_are_not_accepted_behind_our_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_image(tmp_path / "a.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(RuntimeError, match="LOAD_TRUNCATED_IMAGES"):
        read_image(sample(path))


def test_mask_grey_and_palette(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    grey = write_mask(tmp_path / "m.png", [2, 1, 255])
    mask = read_mask(sample(image, grey), 3)
    assert (mask.shape, mask.dtype) == (SIZE, np.uint8)
    assert mask[0, :4].tolist() == [2, 1, 255, 0]
    coloured = Image.fromarray(mask)
    coloured.putpalette([9] * 768)
    coloured.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_mask(sample(image, tmp_path / "p.png"), 3), mask)


def test_mask_numbering_is_mapped(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    mask = write_mask(tmp_path / "m.png", [44, 1, 90, 255, 0])
    read = read_mask(sample(image, mask, (1, 44, 90)), 4)
    assert read[0, :5].tolist() == [2, 1, 3, 255, 0]


@pytest.mark.parametrize(
    ("values", "ids", "message"),
    [
        ([0, 3, 2, 7, 255], None, r"expected 0\.\.2 or 255, got 3, 7"),
        ([0, 2], (1, 44), "expected 0 and the 2 ids or 255, got 2"),
        (range(3, 15), None, r"got 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, \.\.\."),
    ],
)
def test_mask_values_outside(
    tmp_path: Path, values: list[int], ids: tuple[int, ...] | None, message: str
) -> None:
    image = write_image(tmp_path / "a.png")
    mask = write_mask(tmp_path / "m.png", values)
    with pytest.raises(DataError, match=message) as caught:
        read_mask(sample(image, mask, ids), 3)
    assert f"{mask} ({SOURCE})" in str(caught.value)


def test_deep_masks(tmp_path: Path) -> None:
    path = tmp_path / "m.png"
    Image.fromarray(np.array([[0, 2], [255, 1]], np.uint16)).save(path)
    assert read_labels(path, 3).tolist() == [[0, 2], [255, 1]]
    Image.fromarray(np.array([[0, 258]], np.uint16)).save(path)
    with pytest.raises(DataError, match="got 258"):
        read_labels(path, 3)


#: A gamma of 1/2.2, and label 1 (of a palette: index 1) transparent.
GAMMA, TRANSPARENT = (b"gAMA", (45455).to_bytes(4, "big")), (b"tRNS", b"\0\1")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("chunks", [(), (GAMMA,), (TRANSPARENT,)])
@pytest.mark.parametrize(
    ("bits", "palette"),
    [(bits, False) for bits in (1, 2, 4, 8, 16)] + [(bits, True) for bits in (1, 2, 4, 8)],
)
def test_every_kind_of_png_gives_the_numbers_that_it_stores(
    tmp_path: Path,
    bits: int,
    palette: bool,
    chunks: tuple[tuple[bytes, bytes], ...],
    interlaced: bool,
) -> None:
    largest = min(2**bits - 1, 60)
    numbers = [[0, largest, 1], [1, 0, largest // 2], [largest, largest, 0], [0] * 3, [1] * 3]
    path = tmp_path / "masks/m.png"
    path.parent.mkdir()
    write_png(path, numbers, bits, palette=palette, interlaced=interlaced, chunks=chunks)
    assert read_labels(path, largest + 1).tolist() == numbers
    folder = MaskFolder(tmp_path)
    folder.record(MaskEntry("m", "masks/m.png", None, (5, 3), ()))
    assert folder.read("m").tolist() == numbers


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("size", "whole"), [((9, 7), True), ((10, 7), False), ((2**23, 7), False)])
def test_masks_with_fewer_pixels_than_their_header_says(
    tmp_path: Path, size: tuple[int, int], whole: bool, interlaced: bool
) -> None:
    """Pillow would fill the others with 0 = background."""
    path = write_png(tmp_path / "m.png", [[1] * 7] * 9, 2, interlaced=interlaced)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", size[1], size[0])
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    if whole:
        assert read_labels(path, 3).tolist() == [[1] * 7] * 9
        return
    tracemalloc.start()
    with pytest.raises(DataError, match=r"m\.png: cannot be read .* fewer pixels"):
        read_labels(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


def with_zeros(path: Path, begin: int, end: int | None = None) -> Path:
    """The file with zeros in place of its bytes, as a copy that broke off or a full disk leaves."""
    content = bytearray(path.read_bytes())
    content[begin:end] = bytes(len(content[begin:end]))
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize(("begin", "end"), [(1000, None), (1000, 1064), (1000, 1001), (-20, -16)])
def test_masks_with_zeros_in_place_of_their_data(
    tmp_path: Path, palette: bool, begin: int, end: int | None
) -> None:
    """Pillow looks at no checksum of the pixels, and may give others without a word."""
    numbers = np.random.default_rng(0).integers(1, 21, (60, 80), np.uint8)
    path = write_png(tmp_path / "m.png", numbers.tolist(), 8, palette=palette)
    assert read_labels(path, 21).tolist() == numbers.tolist()
    with pytest.raises(DataError, match=r"m\.png: cannot be read as an image: it is damaged"):
        read_labels(with_zeros(path, begin, end), 21)


@pytest.mark.parametrize("read", [read_image, partial(read_photograph, max_side=None)])
def test_photographs_with_zeros_in_place_of_their_data(
    tmp_path: Path, read: Callable[[Sample], object]
) -> None:
    grey = np.random.default_rng(0).integers(0, 21, (60, 80), np.uint8)
    Image.fromarray(grey).save(tmp_path / "a.png")
    with_zeros(tmp_path / "a.png", -1500)
    with Image.open(tmp_path / "a.png") as image:
        assert (np.array(image) != grey).any()  # without a word
    with pytest.raises(DataError, match=r"a\.png \(list\.txt:7\): .* damaged: its pixels do not"):
        read(sample(tmp_path / "a.png"))


@pytest.mark.parametrize("change", [lambda png: png + b"more" * 9, lambda png: png[:-3]])
def test_what_follows_the_pixels_does_not_matter(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    path = write_png(tmp_path / "m.png", [[1] * 7] * 9, 2)
    path.write_bytes(change(path.read_bytes()))
    assert read_labels(path, 3).tolist() == [[1] * 7] * 9


def test_a_mask_whose_data_claim_to_be_longer_than_the_file(tmp_path: Path) -> None:
    path = write_png(tmp_path / "m.png", [[1] * 7] * 9, 2)
    content = bytearray(path.read_bytes())
    content[33:37] = struct.pack(">I", 2**31 - 1)
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(DataError, match=r"m\.png: cannot be read as an image"):
        read_labels(path, 3)
    assert tracemalloc.get_traced_memory()[1] < 10e6
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("mode", "suffix", "told"),
    [
        ("LA", ".png", "got mode LA: store it as palette or grey PNG without transparency"),
        ("RGB", ".png", "got mode RGB: .* replace each by the number of its class"),
        ("RGBA", ".png", "got mode RGBA: .* replace each by the number of its class"),
        ("L", ".jpg", "expected a mask as PNG, which keeps every number, got JPEG"),
        ("L", ".tif", "expected a mask as PNG, which keeps every number, got TIFF"),
        ("P", ".gif", "expected a mask as PNG, which keeps every number, got GIF"),
    ],
)
def test_masks_of_other_forms(tmp_path: Path, mode: str, suffix: str, told: str) -> None:
    path = tmp_path / f"m{suffix}"
    Image.new(mode, (4, 3)).save(path)
    renamed = path.rename(tmp_path / "m.png")
    with pytest.raises(DataError, match=told):
        read_labels(renamed, 3)


def test_mask_of_another_size(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png", size=(24, 32))
    mask = write_mask(tmp_path / "m.png", [1], size=(32, 24))
    with pytest.raises(DataError, match=r"expected 32x24 .* got 24x32"):
        read_mask(sample(image, mask), 3)


def test_coloured_mask(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"one channel .* got mode RGB: store it as palette"):
        read_mask(sample(image, image), 3)


def test_no_mask(tmp_path: Path) -> None:
    image = write_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="has no mask"):
        read_mask(sample(image), 3)
    with pytest.raises(DataError, match=r"gone\.png .*file is missing"):
        read_mask(sample(image, tmp_path / "gone.png"), 3)
    mask = write_mask(tmp_path / "m.png", [1])
    image.unlink()
    with pytest.raises(DataError, match=r"a\.png .*file is missing"):
        read_mask(sample(image, mask), 3)


def test_pillow_reads_all_formats():
    Image.init()
    assert set(FORMATS) <= Image.OPEN.keys()
    assert features.check("avif") and features.check("webp")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
@pytest.mark.parametrize("exif", ["ignore", "apply"])
def test_strips_have_the_pixels_of_the_whole(tmp_path, monkeypatch, mode, exif):
    pixels = np.random.default_rng(0).integers(0, 256, (37, 53, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels, "RGBA").convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    turn = Image.Exif()
    turn[0x0112] = 6
    picture.save(path, exif=turn)
    with Image.open(path) as image:  # of a TIFF, Pillow turns the pixels itself
        whole = image.convert("RGB")
        if exif == "apply" and mode != "CMYK":
            whole = whole.transpose(Image.Transpose.ROTATE_270)
    monkeypatch.setattr("weaktr.data.io.PIECE", 53 * 4)
    read = read_image(Sample("a", path, None, None, "list:1", exif=exif))
    np.testing.assert_array_equal(read, np.array(whole))
    assert read.flags.writeable


def test_memory_of_a_large_photograph(tmp_path, monkeypatch):
    """Beside the file's own pixels, which Pillow has, only those that are returned."""
    size = (1000, 1500)
    Image.new("L", size[::-1], 7).save(tmp_path / "a.png")
    monkeypatch.setattr("weaktr.data.io.PIECE", 2**16)
    tracemalloc.start()
    pixels = read_image(Sample("a", tmp_path / "a.png", None, None, "list:1"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert pixels.shape == (*size, 3) and (pixels == 7).all()
    assert peak < 1.3 * pixels.nbytes
