"""Outlines of objects as COCO's JSON has them: polygons and run lengths, checked before use.

pycocotools fills polygons. It trusts its input: NaN, infinite or far numbers end the process, and
so do run lengths that do not fit the image. Nothing reaches it here before it is checked, and run
lengths are read without it.

Source: Lin et al., "Microsoft COCO", ECCV 2014; the formats are those of its ``cocoapi``.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import numpy as np

#: Pixels of the largest image whose outlines are drawn; Pillow opens none that is larger.
MOST_PIXELS = 178_956_970
#: Steps of the longest polygon, in the fifths of a pixel in which pycocotools walks around it.
MOST_STEPS = 1 << 24
_STEPS_A_PIXEL = 5
#: Digits of 5 bits of the longest number in compressed run lengths; 7 hold every image's.
_MOST_DIGITS = 7


def require_size(height: Any, width: Any) -> tuple[int, int]:
    """(H, W) of an image, as numbers of a JSON.

    Raises:
        ValueError: they are no whole numbers, below 1, or more than `MOST_PIXELS` in all.
    """
    if not (is_whole(height) and is_whole(width)):
        raise ValueError(
            f"expected height and width as whole numbers, got {height!r:.60} and {width!r:.60}"
        )
    if height < 1 or width < 1 or height * width > MOST_PIXELS:
        raise ValueError(
            f"expected height and width of at least 1 and at most {MOST_PIXELS} pixels in all, "
            f"got {height!r:.60} and {width!r:.60}"
        )
    return int(height), int(width)


def is_whole(number: object) -> TypeGuard[int]:
    """Whether this is a whole number (``640`` or ``640.0``, but not ``true``)."""
    if isinstance(number, bool):
        return False
    return isinstance(number, int) or (isinstance(number, float) and number.is_integer())


def check_outline(outline: Any, size: tuple[int, int]) -> list[np.ndarray] | np.ndarray:
    """An outline as polygons (float64 [2 · points] each) or as run lengths (see `runs_of`).

    Raises:
        ValueError: not such an outline, or not one of an image of this size; says what is wrong.
    """
    if isinstance(outline, list):
        return [_polygon(part, size) for part in outline]
    if not isinstance(outline, dict) or not outline.keys() >= {"size", "counts"}:
        raise ValueError(f"expected polygons or run lengths, got {outline!r:.60}")
    if outline["size"] != list(size):
        got = f"{outline['size']!r:.60}"
        raise ValueError(f"expected run lengths of size {list(size)} (height, width), got {got}")
    counts = outline["counts"]
    runs = _uncompressed(counts) if isinstance(counts, list) else _decompressed(counts)
    if runs.size and runs.min() < 0:
        raise ValueError(f"expected run lengths of 0 and more, got {runs.min()}")
    if runs.sum() != size[0] * size[1]:
        expected = f"{size[0]} x {size[1]} = {size[0] * size[1]}"
        raise ValueError(f"expected run lengths whose sum is {expected} pixels, got {runs.sum()}")
    return runs


def runs_of(outline: Any, size: tuple[int, int]) -> np.ndarray:
    """The run lengths of an outline.

    Args:
        outline: polygons ``[[x0, y0, x1, y1, ...], ...]``, or ``{"size": [H, W], "counts": ...}``
            with a list of run lengths or COCO's compressed text.
        size: (H, W) of the image.

    Returns:
        int64: the numbers of pixels outside, inside, outside, ... in turn, column by column from
        the top left; their sum is H · W.

    Raises:
        ValueError: see `check_outline`.
    """
    checked = check_outline(outline, size)
    if isinstance(checked, np.ndarray):
        return checked
    from pycocotools import mask as coco_mask

    filled = coco_mask.frPyObjects([polygon.tolist() for polygon in checked], *size)
    return _decompressed(coco_mask.merge(filled)["counts"].decode("ascii"))


def area(runs: np.ndarray) -> int:
    """The number of pixels inside."""
    return int(runs[1::2].sum())


def paint(columns: np.ndarray, runs: np.ndarray, label: int) -> None:
    """Set the pixels inside to `label` in a mask of columns, uint8 [W, H]; see `runs_of`."""
    pixels, ends = columns.reshape(-1), np.cumsum(runs)
    for start, end in zip(ends[:-1:2].tolist(), ends[1::2].tolist(), strict=True):
        pixels[start:end] = label


def _polygon(part: Any, size: tuple[int, int]) -> np.ndarray:
    """float64 [2 · points] of one polygon.

    Corners may lie outside the image, by its own size: objects reach beyond the edge.
    """
    if not isinstance(part, list) or not {*map(type, part)} <= {int, float}:
        raise ValueError(f"expected polygons [x0, y0, x1, y1, ...] of numbers, got {part!r:.60}")
    if len(part) < 6 or len(part) % 2:
        raise ValueError(
            f"expected polygons of at least three points, x and y each, got {len(part)} numbers"
        )
    try:
        corners = np.asarray(part, np.float64).reshape(-1, 2)
    except OverflowError:
        corners = np.full((3, 2), np.inf)
    sides = np.array(size[::-1])
    if not ((corners >= -sides) & (corners <= 2 * sides)).all():  # NaN is not either
        raise ValueError(
            f"expected polygons in or near an image of {size[1]}x{size[0]} (width x height), got "
            f"x from {corners[:, 0].min():g} to {corners[:, 0].max():g} and y from "
            f"{corners[:, 1].min():g} to {corners[:, 1].max():g}"
        )
    edges = np.diff(np.concatenate((corners, corners[:1])), axis=0)
    steps = np.abs(edges).max(axis=1).sum() * _STEPS_A_PIXEL
    if steps > MOST_STEPS:
        most = MOST_STEPS // _STEPS_A_PIXEL
        raise ValueError(
            f"expected polygons of at most {most} pixels around, got {steps / _STEPS_A_PIXEL:.0f}"
        )
    return corners.ravel()


def _uncompressed(counts: list[Any]) -> np.ndarray:
    if not all(is_whole(count) and abs(count) <= MOST_PIXELS for count in counts):
        wrong = next(c for c in counts if not (is_whole(c) and abs(c) <= MOST_PIXELS))
        raise ValueError(f"expected run lengths as whole numbers of pixels, got {wrong!r:.60}")
    return np.array(counts, np.int64)


def _decompressed(text: Any) -> np.ndarray:
    """The numbers in COCO's compressed run lengths.

    A number is written in digits of 5 bits, the lowest first, each as the character 48 + digit,
    or 80 + digit where another one follows; the highest bit is its sign. From the fourth number
    on they are differences to the one before the last.
    """
    if not isinstance(text, str):
        raise ValueError(f"expected run lengths as a list or text, got {text!r:.60}")
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int64) - 48
    if ((codes < 0) | (codes > 63)).any():
        raise ValueError(f"expected compressed run lengths, got other characters: {text!r:.60}")
    last = np.flatnonzero(codes < 32)  # digits that end a number
    if codes.size and (not last.size or last[-1] != codes.size - 1):
        raise ValueError("expected whole compressed run lengths, got text that is cut off")
    digits = np.diff(last, prepend=-1)
    if digits.size and digits.max() > _MOST_DIGITS:
        raise ValueError(f"expected compressed run lengths, got a number of {digits.max()} digits")
    first = last - digits + 1
    place = np.arange(codes.size) - np.repeat(first, digits)
    numbers = np.add.reduceat((codes & 31) << (5 * place), first) if digits.size else codes
    numbers -= np.where(codes[last] & 16, 1 << (5 * digits), 0)
    for chain in (numbers[1::2], numbers[2::2]):
        np.cumsum(chain, out=chain)
    return numbers
