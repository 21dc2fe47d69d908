"""Read photographs and masks: whole, 8-bit and of the right size, or an error that says where.

Every error names the file and the line that declared it (`Sample.source`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from weaktr import tars
from weaktr.data.classes import IGNORE
from weaktr.data.manifest import Exif, Sample
from weaktr.data.pngs import damage_in_data
from weaktr.data.problems import DataError, Problem
from weaktr.files import is_outside_input, refusal

T = TypeVar("T")

#: Pixels that are converted together.
PIECE = 2**20

#: What may be in an image file, whatever its suffix; other formats of Pillow run other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "AVIF")
_IMAGE_MODES = ("RGB", "L", "P", "RGBA", "LA", "PA", "CMYK", "YCbCr", "1", "RGBX", "LAB", "HSV")
#: How Pillow unpacks the pixels of a PNG of one channel -> what it multiplied their numbers by. It
#: spreads the 4 or 16 greys of 2 or 4 bits over 0..255, as for a photograph.
_MASK_FACTORS = {
    **{"1": 1, "L;2": 85, "L;4": 17, "L": 1, "I;16B": 1},
    **{"P;1": 1, "P;2": 1, "P;4": 1, "P": 1},
}
#: What to do about a mask of more channels.
_COLOURS = "; where its colours stand for classes, replace each by the number of its class first"
_REMEDIES = {"LA": " without transparency", "RGB": _COLOURS, "RGBA": _COLOURS}
_EXIF_ORIENTATION = 0x0112
_BITS_OF_TIFF = 258
#: Orientation in EXIF -> how viewers turn and mirror the stored image.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: What Pillow calls a file that is in a tar.
_BYTES = re.compile(r"<_io\.BytesIO object at 0x[0-9A-Fa-f]+>")
#: Those that make height of width.
ACROSS = (5, 6, 7, 8)


def read_image(sample: Sample) -> np.ndarray:
    """The photograph of a sample.

    Pixels come as stored, since masks and lists of published data sets are in stored orientation;
    with ``Sample.exif == "apply"`` as viewers show them. TIFFs are always read as viewers show
    them, which is Pillow's doing. Transparency is dropped, grey becomes RGB.

    Returns:
        uint8 [H, W, 3] RGB.

    Raises:
        DataError: the file is missing, not an image, truncated, corrupt, or has more than 8 bits
            a channel.
    """
    return read_rgb(sample.image, sample.source, sample.exif)


def read_mask(sample: Sample, num_labels: int) -> np.ndarray:
    """The true labels of a sample's pixels, in labels (`Sample.mask_ids` already mapped).

    Args:
        sample: has a mask.
        num_labels: L, background included.

    Returns:
        uint8 [H, W]: 0 background, ``k + 1`` = class index k, 255 = ignore.

    Raises:
        DataError: the mask is missing, corrupt, coloured, of another size than the image, or
            holds a value that is no label; or the image itself cannot be opened.
    """
    if sample.mask is None:
        raise DataError(Problem(str(sample.image), sample.source, "has no mask"))
    mask = read_labels(sample.mask, num_labels, sample.source, mask_ids=sample.mask_ids)
    size = image_size(sample.image, sample.source, sample.exif)
    require_same_size(mask, size, sample.mask, sample.source)
    return mask


def read_rgb(path: Path, source: str = "", exif: Exif = "ignore") -> np.ndarray:
    """uint8 [H, W, 3] of an image file; `source` is named in errors. See `read_image`."""

    def decode(image: Image.Image) -> np.ndarray:
        check_is_8_bit(image, path, source)
        check_is_undamaged(image, path, source)
        return _rgb(turned(image, orientation(image)) if exif == "apply" else image)

    return open_image(path, source, decode)


def _rgb(image: Image.Image) -> np.ndarray:
    """The pixels of an open image, uint8 [H, W, 3].

    Large ones in strips: Pillow's own RGB has four bytes a pixel, of which NumPy gets two copies.
    """
    image.load()  # which turns a TIFF
    if image.mode == "RGB" and image.width * image.height <= PIECE:
        return np.array(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    rows = max(1, PIECE // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def orientation(image: Image.Image) -> int:
    """How EXIF asks viewers to turn or mirror an open image: 2..8, or 1 = not at all.

    An entry that means nothing counts as 1, as in viewers. A PNG is decoded for it.
    """
    value = orientation_entry(image)
    return value if isinstance(value, int) and value in _TURNS else 1


def orientation_entry(image: Image.Image) -> object:
    """The orientation in the EXIF of an open image as it stands there; None = there is none."""
    if image.format == "TIFF":  # Pillow turns those when it decodes them
        return None
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # of any kind, from bytes that anybody wrote: not worth the photograph
        return None


def turned(image: Image.Image, how: int) -> Image.Image:
    """An image as viewers show it; `how`: see `orientation`."""
    return image if how == 1 else image.transpose(_TURNS[how])


def check_is_8_bit(image: Image.Image, path: Path, source: str) -> None:
    """Raise `DataError` for an open image of more than 8 bits a channel, not yet decoded."""
    bits = _bits(image)
    if bits > 8 or image.mode not in _IMAGE_MODES:
        got = f"{bits} bits" if bits > 8 else f"mode {image.mode}"
        expected = "expected an image of 8 bits a channel"
        advice = "convert it first, its own range of numbers to 0..255"
        raise DataError(Problem(str(path), source, f"{expected}, got {got}: {advice}"))


def check_is_undamaged(image: Image.Image, path: Path, source: str, *, rows: bool = False) -> None:
    """Raise `DataError` for an open PNG whose pixels are not as they were written.

    Other formats have no checksums. `rows`: see `weaktr.data.pngs.damage_in_data`.
    """
    damage = damage_in_data(tars.read_bytes(path), rows=rows) if image.format == "PNG" else None
    if damage is not None:
        raise DataError(Problem(str(path), source, f"cannot be read as an image: {damage}"))


def _bits(image: Image.Image) -> int:
    """The bits of a channel in the file of an open image; 8 where they are at most that.

    Of several channels of 16 bits Pillow gives the upper 8, with which data of 12 bits are black.
    """
    if isinstance(image, PngImageFile):
        return 16 if ";16" in _packing(image) else 8
    if isinstance(image, TiffImageFile):
        return max((8, *image.tag_v2.get(_BITS_OF_TIFF, ())))
    return 8


def _packing(image: Image.Image) -> str:
    """How the pixels of an open image are packed in its file, as Pillow calls it."""
    tiles = getattr(image, "tile", ())
    return str(tiles[0].args) if tiles else ""


def check_is_mask(image: Image.Image, path: Path, source: str) -> int:
    """How many times the stored numbers Pillow gives for an open mask (1 but for low bits).

    Raises:
        DataError: it cannot hold labels.
    """
    factor = _MASK_FACTORS.get(_packing(image)) if image.format == "PNG" else None
    if factor is None:
        message = _not_a_mask(image)
        raise DataError(Problem(str(path), source, message, kind="mask of another form"))
    return factor


def read_labels(
    path: Path, num_labels: int, source: str = "", *, mask_ids: tuple[int, ...] | None = None
) -> np.ndarray:
    """Labels of a single-channel mask file.

    Args:
        path: a PNG of one channel, palette or grey, of 1 to 16 bits. Its numbers count as they are
            stored; the palette's colours, transparency and gamma do not.
        num_labels: L, background included.
        source: where the file was declared, for errors.
        mask_ids: pixel value of each class index in the file; None = ``k + 1``.

    Returns:
        uint8 [H, W]; every value is < `num_labels` or 255.

    Raises:
        DataError: missing, corrupt, cut off, coloured, no PNG, or a value outside.
    """
    stored = read_stored_labels(path, source)
    labels, outside = to_labels(stored, num_labels, mask_ids)
    if outside:
        raise DataError(Problem(str(path), source, outside_message(outside, num_labels, mask_ids)))
    return labels


def read_stored_labels(path: Path, source: str = "") -> np.ndarray:
    """The numbers in a mask file as stored, [H, W] of an integer type; see `read_labels`."""

    def decode(image: Image.Image) -> np.ndarray:
        factor = check_is_mask(image, path, source)
        check_is_undamaged(image, path, source, rows=True)
        deep = image.mode == "I;16"
        pixels = np.array(image).astype(np.int32 if deep else np.uint8, copy=False)
        return pixels if factor == 1 else pixels // factor

    return open_image(path, source, decode)


def _not_a_mask(image: Image.Image) -> str:
    """Why an open image cannot hold labels, and what to do."""
    if image.format != "PNG":
        return (
            f"expected a mask as PNG, which keeps every number, got {image.format}: make it again "
            "as PNG from the labels"
        )
    return (
        f"expected a mask of one channel holding label numbers, got mode {image.mode}: store it as "
        "palette or grey PNG" + _REMEDIES.get(image.mode, "")
    )


def to_labels(
    stored: np.ndarray, num_labels: int, mask_ids: tuple[int, ...] | None
) -> tuple[np.ndarray, list[int]]:
    """Map stored pixel values to labels.

    Args:
        stored: integers [H, W].
        num_labels: L.
        mask_ids: stored value of each class index; None = ``k + 1``.

    Returns:
        uint8 [H, W] labels (255 where the value is no label), and the values that are no label,
        ascending.
    """
    table = np.full(256, IGNORE, np.uint8)
    ids = range(1, num_labels) if mask_ids is None else mask_ids
    table[[0, *ids]] = np.arange(num_labels)
    is_small = stored.dtype == np.uint8
    fits = True if is_small else (stored >= 0) & (stored < 256)
    labels = table.take(stored if is_small else np.where(fits, stored, IGNORE))
    wrong = (labels == IGNORE) & (stored != IGNORE) | np.logical_not(fits)
    return labels, np.unique(stored[wrong]).tolist() if wrong.any() else []


def outside_message(outside: list[int], num_labels: int, mask_ids: tuple[int, ...] | None) -> str:
    """The message about mask values that are no labels, see `to_labels`."""
    expected = f"0..{num_labels - 1}" if mask_ids is None else f"0 and the {len(mask_ids)} ids"
    shown = ", ".join(map(str, outside[:10])) + (", ..." if len(outside) > 10 else "")
    return f"mask values outside the classes: expected {expected} or {IGNORE}, got {shown}"


def image_size(path: Path, source: str = "", exif: Exif = "ignore") -> tuple[int, int]:
    """(H, W) of a photograph, from its header only; with "apply" as viewers show it.

    A PNG is then decoded, since its EXIF may come last.

    Raises:
        DataError: missing, no image, or of more than 8 bits a channel.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        check_is_8_bit(image, path, source)
        across = exif == "apply" and orientation(image) in ACROSS
        return (image.width, image.height) if across else (image.height, image.width)

    return open_image(path, source, size)


def mask_size(path: Path, source: str = "") -> tuple[int, int]:
    """(H, W) of a mask, from its header only.

    Raises:
        DataError: missing, or no image with labels for pixels.
    """

    def size(image: Image.Image) -> tuple[int, int]:
        check_is_mask(image, path, source)
        return image.height, image.width

    return open_image(path, source, size)


def require_same_size(
    mask: np.ndarray, size: tuple[int, int], path: Path, source: str = ""
) -> None:
    """Raise `DataError` unless a mask [H, W] has the image's (H, W)."""
    if mask.shape != size:
        raise DataError(Problem(str(path), source, size_message("mask", mask.shape, size)))


def size_message(what: str, own: tuple[int, ...], image: tuple[int, int]) -> str:
    """The message about a mask, or CAMs, whose [H, W] `own` is not the image's."""
    return (
        f"{what} and image differ in size: expected {image[1]}x{image[0]} (width x height), "
        f"got {own[1]}x{own[0]}"
    )


def open_image(path: Path, source: str, use: Callable[[Image.Image], T]) -> T:
    """Open an image file, hand it to `use`, and name file and declaration in every failure."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so truncated images would be read as if "
            "they were whole: set it back to False"
        )
    try:
        if path.is_dir():
            os.scandir(path).close()  # of one that cannot be listed the system says why
        with Image.open(tars.opened(path), formats=FORMATS) as image:
            return use(image)
    except (DataError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise DataError(Problem(str(path), source, "file is missing")) from error
    except Exception as error:  # decoders raise errors of any kind on damaged files
        if is_outside_input(error):
            problem = Problem(str(path), source, refusal(error), is_outside=True)
            raise DataError(problem) from error
        reason = _BYTES.sub(lambda _: repr(str(path)), str(error)).removeprefix(f"{path}: ")
        message = f"cannot be read as an image: {reason}"
        raise DataError(Problem(str(path), source, message)) from error
