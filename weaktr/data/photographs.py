"""Photographs at the size that they are worked on at, and label maps back at the size of the file.

A photograph of a camera has 12 to 48 megapixels; backbones were trained on 0.05 to 0.3. Above
`max_side` an image is therefore made smaller as a whole, and its labels are enlarged at the end.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image

from weaktr.data.io import (
    ACROSS,
    check_is_8_bit,
    check_is_undamaged,
    open_image,
    orientation,
    turned,
)
from weaktr.data.manifest import Sample

#: Bytes that images which are being decoded may take together; a larger one is decoded alone.
DECODING_BYTES = 256 * 2**20


class Photograph(NamedTuple):
    """An image as it is worked on."""

    pixels: np.ndarray  #: uint8 [h, w, 3] RGB at the working size
    size: tuple[int, int]  #: height and width of the file, turned where `pixels` are
    #: what became of the orientation in its EXIF: "applied", "ignored"; None = it has none
    exif: str | None = None

    @property
    def is_reduced(self) -> bool:
        """Whether the working size is not that of the file."""
        return self.pixels.shape[:2] != self.size


def enlarged(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps [..., h, w] at the working size -> [..., H, W] of the file, each pixel the nearest's."""
    if maps.shape[-2:] == size:
        return maps
    rows, columns = (
        ((np.arange(large) + 0.5) * small / large).astype(np.int64)
        for large, small in zip(size, maps.shape[-2:], strict=True)
    )
    return maps[..., rows[:, None], columns]


def working_size(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """Height and width in the same proportion with neither above `max_side`, each at least 1.

    Args:
        size: (H, W) of the file.
        max_side: None = no limit.
    """
    if max_side is None or max(size) <= max_side:
        return size
    scale = max_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def read_photograph(sample: Sample, max_side: int | None) -> Photograph:
    """Read the photograph of a sample at its working size.

    An image above `max_side` is reduced by Pillow's bicubic filter, antialiased. A JPEG is then
    already decoded at a half, a quarter or an eighth of its size, the smallest that is twice
    the working size, which is several times faster and takes less memory.

    Args:
        sample: its `weaktr.data.io.read_image` says how pixels are read.
        max_side: see `working_size`.

    Raises:
        DataError: see `read_image`.
    """
    return read_resized(sample, lambda size: working_size(size, max_side))


def read_resized(
    sample: Sample, size_of: Callable[[tuple[int, int]], tuple[int, int]]
) -> Photograph:
    """Read the photograph of a sample at a size of the caller's choice, as `read_photograph` does.

    Args:
        sample: see `read_photograph`.
        size_of: (H, W) of the file -> (h, w). Of a photograph that is turned it gets and gives
            the sizes before that.

    Raises:
        DataError: see `read_image`.
    """
    return open_image(sample.image, sample.source, lambda image: _decode(image, sample, size_of))


def reduced(pixels: np.ndarray, max_side: int | None) -> Photograph:
    """The photograph of pixels in memory, uint8 [H, W, 3]."""
    size = (pixels.shape[0], pixels.shape[1])
    height, width = working_size(size, max_side)
    if (height, width) != size:
        small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.array(small)
    return Photograph(pixels, size)


def _decode(
    image: Image.Image, sample: Sample, size_of: Callable[[tuple[int, int]], tuple[int, int]]
) -> Photograph:
    check_is_8_bit(image, sample.image, sample.source)
    check_is_undamaged(image, sample.image, sample.source)
    size = (image.height, image.width)
    height, width = size_of(size)
    if (height, width) != size:
        image.draft(None, (2 * width, 2 * height))  # does nothing unless it is a JPEG
    is_rgb = image.mode == "RGB"
    with _decoding.room((4 if is_rgb else 8) * image.height * image.width):  # Pillow's RGB has 4
        pixels = image if is_rgb else image.convert("RGB")
        if (height, width) != size:
            pixels = pixels.resize((width, height), Image.Resampling.BICUBIC)
        how = orientation(image)
        if how == 1:
            return Photograph(np.array(pixels), size)
        if sample.exif == "ignore":
            return Photograph(np.array(pixels), size, "ignored")
        upright = turned(pixels, how)
        return Photograph(np.array(upright), size[::-1] if how in ACROSS else size, "applied")


class _MemoryBudget:
    """Bytes that several threads share; who wants more than there are waits to be alone."""

    def __init__(self, total: int) -> None:
        self._total, self._taken = total, 0
        self._changed = threading.Condition()

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Have `size` bytes for the body of a ``with`` statement."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self._total)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


_decoding = _MemoryBudget(DECODING_BYTES)
