"""Sliding windows over the scales and flips of an image, and from their logits back to its pixels.

Three steps lead from the logits of a view's windows to the image: each window is upsampled to its
pixels, overlapping windows are averaged, and the view is resized to the image. All three are
linear, and the same for every row and for every column. So together they are two small matrices,
and no window or view is ever held at full size:

    out[l] = Rᵀ P[l] C        P [h·T, w·U]: patch logits of T x U windows, side by side
                              R [h·T, H], C [w·U, W]: weights of patches in rows, columns

Source: reference.md 48.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.config import PredictConfig
from weaktr.inference.resize import resize_bilinear
from weaktr.ops.upload import upload

#: With `PredictConfig.max_side`: how many times as long as wide a scaled image may be.
MOST_ASPECT = 8


class View(NamedTuple):
    """One scale and flip of an image; `pixels_of` gives its pixels.

    Args:
        scaled: uint8 [h, w, 3], one of the image's `scaled_images`.
        flipped: whether it is mirrored.
        size: height and width of its pixels, both at least the window.
        tops, lefts: where its windows begin; there is one at every pair, row by row.
    """

    scaled: Tensor
    flipped: bool
    size: tuple[int, int]
    tops: list[int]
    lefts: list[int]


def scaled_images(image: np.ndarray, settings: PredictConfig) -> list[np.ndarray]:
    """An image uint8 [H, W, 3] RGB at every ratio, uint8 [h, w, 3]."""
    scaled = []
    for ratio in settings.ratios:
        short_side = max(1, int(settings.short_side * ratio))
        height, width = scaled_size(image.shape[:2], short_side)
        if settings.max_side is not None:
            most = MOST_ASPECT * min(height, width)
            height, width = min(height, most), min(width, most)
        scaled.append(resize_bilinear(image, height, width))
    return scaled


def views(scaled: Sequence[Tensor], settings: PredictConfig) -> list[View]:
    """Every scale and flip of an image.

    Args:
        scaled: its `scaled_images`.
        settings: flip, window and stride.
    """
    image_views = []
    for image in scaled:
        size = _enlarged_size((image.shape[0], image.shape[1]), settings.window)
        tops, lefts = (anchors(side, settings.window, settings.stride) for side in size)
        for flipped in (False, True) if settings.flip else (False,):
            image_views.append(View(image, flipped, size, tops, lefts))
    return image_views


def on_device(
    normalization: tuple[Sequence[float], Sequence[float]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(mean, std) per channel in [0, 1] as float32 [3, 1, 1], of pixels in 0..255."""
    mean, std = (
        upload(torch.tensor(np.round(255 * np.array(values), 2)).float().view(3, 1, 1), device)
        for values in normalization
    )
    return mean, std


def pixels_of(view: View, normalization: tuple[Tensor, Tensor]) -> Tensor:
    """The normalised pixels of a view.

    Args:
        view: of `views`.
        normalization: from `on_device`, where the pixels go.

    Returns:
        float32 [3, H, W]; enlarged where a side of the scaled image is below the window.
    """
    mean, std = normalization
    pixels = upload(view.scaled, mean.device).permute(2, 0, 1).float().sub_(mean).div_(std)
    if view.flipped:
        pixels = pixels.flip(-1)
    if pixels.shape[1:] == view.size:
        return pixels
    return F.interpolate(pixels[None], size=view.size, mode="bilinear", align_corners=False)[0]


def windows(
    image_views: Sequence[View], normalization: tuple[Tensor, Tensor], window: int
) -> Iterator[Tensor]:
    """The windows [3, window, window] of all views, in order; one view's pixels at a time.

    Args:
        image_views: of `views`.
        normalization: from `on_device`.
        window: side of a window, in pixels.
    """
    for view in image_views:
        pixels = pixels_of(view, normalization)
        for top in view.tops:
            for left in view.lefts:
                yield pixels[:, top : top + window, left : left + window]


def merge(view: View, logits: Tensor, patch: int, window: int, size: tuple[int, int]) -> Tensor:
    """Patch logits of a view's windows -> logits of the image's pixels.

    Args:
        view: whose windows.
        logits: [T·U, E, L, h, w] float32; h, w = patches of a window.
        patch: pixels of a patch.
        window: side of a window, in pixels.
        size: H, W of the image.

    Returns:
        [E, L, H, W], not mirrored.
    """
    grid = (logits.shape[-2], logits.shape[-1])
    height, width = view.size
    device = logits.device
    rows = axis_weights(tuple(view.tops), window, grid[0], patch, height, size[0], device)
    columns = axis_weights(tuple(view.lefts), window, grid[1], patch, width, size[1], device)
    if view.flipped:
        columns = columns.flip(1)
    patches = logits.unflatten(0, (len(view.tops), len(view.lefts)))
    side_by_side = patches.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
    merged: Tensor = rows.T @ (side_by_side @ columns)
    return merged


@lru_cache(maxsize=64)  # a view and its mirror image, and images of one size, share them
def axis_weights(
    starts: tuple[int, ...],
    window: int,
    grid: int,
    patch: int,
    length: int,
    size: int,
    device: torch.device,
) -> Tensor:
    """What each patch of each window adds to each pixel, along one axis.

    Bilinear upsampling of `grid` patches to their pixels, cut to the window, divided by the number
    of windows at each place, then bilinear resizing from `length` to `size`.

    Args:
        starts: where the windows begin, in pixels of the scaled image.
        window: side of a window, in pixels.
        grid: patches along a window.
        patch: side of a patch, in pixels.
        length: of the scaled image, in pixels.
        size: of the image, in pixels.
        device: where the weights go.

    Returns:
        [windows · grid, size] float32, shared: not to be written to.
    """
    upsampled = F.interpolate(torch.eye(grid)[None], size=grid * patch, mode="linear")[
        0, :, :window
    ]
    placed = upsampled.new_zeros(len(starts), grid, length)
    count = upsampled.new_zeros(length)
    for index, start in enumerate(starts):
        placed[index, :, start : start + window] = upsampled
        count[start : start + window] += 1
    return upload(F.interpolate(placed / count, size=size, mode="linear").flatten(0, 1), device)


def scaled_size(size: Sequence[int], short_side: int) -> tuple[int, int]:
    """Height and width with the short side at `short_side`, rounded half up."""
    scale = short_side / min(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def anchors(length: int, window: int, stride: int) -> list[int]:
    """Starts of the windows along one axis: every `stride`, and one flush with the end.

    Args:
        length: of the axis, at least a window.
        window, stride: see `require_cover`.

    Raises:
        ValueError: some pixels would be in no window.
    """
    require_cover(window, stride)
    if length < window:
        raise ValueError(f"length: expected at least a window, {window} pixels, got {length}")
    return [*range(0, length - window, stride), length - window]


def require_cover(window: int, stride: int) -> None:
    """Raise `ValueError` unless windows every `stride` pixels leave no pixel out."""
    if window < 1:
        raise ValueError(f"window: expected at least 1 pixel, got {window}")
    if not 1 <= stride <= window:
        raise ValueError(f"stride: expected 1 to {window} pixels, the window, got {stride}")


def _enlarged_size(size: tuple[int, int], window: int) -> tuple[int, int]:
    """Height and width, enlarged to a short side of `window` where it is smaller.

    The published order of operations counts: int(533 / 260 · 480) is 983, of 533 · 480 / 260 984.
    """
    short = min(size)
    if short >= window:
        return size
    height, width = (int(n / short * window) for n in size)
    return height, width
