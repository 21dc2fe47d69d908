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
from weaktr.inference.transfer import upload

#: With `PredictConfig.max_side`: how many times as long as wide a scaled image may be.
MOST_ASPECT = 8


class View(NamedTuple):
    """One scale and flip of an image.

    Args:
        pixels: [3, H, W] normalised, both sides at least the window.
        flipped: whether it is mirrored.
        tops, lefts: where its windows begin; there is one at every pair, row by row.
    """

    pixels: Tensor
    flipped: bool
    tops: list[int]
    lefts: list[int]


def scaled_images(image: np.ndarray, settings: PredictConfig) -> list[np.ndarray]:
    """An image uint8 [H, W, 3] RGB at every ratio, uint8 [h, w, 3]."""
    scaled = []
    for ratio in settings.ratios:
        height, width = scaled_size(image.shape[:2], int(settings.short_side * ratio))
        if settings.max_side is not None:
            most = MOST_ASPECT * min(height, width)
            height, width = min(height, most), min(width, most)
        scaled.append(resize_bilinear(image, height, width))
    return scaled


def views(
    scaled: Sequence[Tensor],
    normalization: tuple[Sequence[float], Sequence[float]],
    settings: PredictConfig,
    device: torch.device,
) -> list[View]:
    """Every scale and flip of an image.

    Args:
        scaled: its `scaled_images`.
        normalization: (mean, std) per channel in [0, 1].
        settings: flip, window and stride.
        device: where the pixels go.
    """
    mean, std = (
        torch.tensor(np.round(255 * np.array(values), 2), device=device).float().view(3, 1, 1)
        for values in normalization
    )
    image_views = []
    for image in scaled:
        pixels = (upload(image, device).permute(2, 0, 1).float() - mean) / std
        for flipped in (False, True) if settings.flip else (False,):
            view = _enlarge(pixels.flip(-1) if flipped else pixels, settings.window)
            tops, lefts = (anchors(n, settings.window, settings.stride) for n in view.shape[1:])
            image_views.append(View(view, flipped, tops, lefts))
    return image_views


def windows(image_views: Sequence[View], window: int) -> Iterator[Tensor]:
    """The windows [3, window, window] of all views, in order."""
    for view in image_views:
        for top in view.tops:
            for left in view.lefts:
                yield view.pixels[:, top : top + window, left : left + window]


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
    height, width = view.pixels.shape[1:]
    rows = axis_weights(tuple(view.tops), window, grid[0], patch, height, size[0]).to(logits)
    columns = axis_weights(tuple(view.lefts), window, grid[1], patch, width, size[1]).to(logits)
    if view.flipped:
        columns = columns.flip(1)
    patches = logits.unflatten(0, (len(view.tops), len(view.lefts)))
    side_by_side = patches.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
    merged: Tensor = rows.T @ (side_by_side @ columns)
    return merged


@lru_cache(maxsize=64)  # a view and its mirror image, and images of one size, share them
def axis_weights(
    starts: tuple[int, ...], window: int, grid: int, patch: int, length: int, size: int
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

    Returns:
        [windows · grid, size] float32 on the CPU, shared: not to be written to.
    """
    upsampled = F.interpolate(torch.eye(grid)[None], size=grid * patch, mode="linear")[
        0, :, :window
    ]
    placed = upsampled.new_zeros(len(starts), grid, length)
    count = upsampled.new_zeros(length)
    for index, start in enumerate(starts):
        placed[index, :, start : start + window] = upsampled
        count[start : start + window] += 1
    return F.interpolate(placed / count, size=size, mode="linear").flatten(0, 1)


def scaled_size(size: Sequence[int], short_side: int) -> tuple[int, int]:
    """Height and width with the short side at `short_side`, rounded half up."""
    scale = short_side / min(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def anchors(length: int, window: int, stride: int) -> list[int]:
    """Starts of the windows along one axis: every `stride`, and one flush with the end."""
    return [*range(0, length - window, stride), length - window]


def _enlarge(pixels: Tensor, window: int) -> Tensor:
    """[3, H, W], enlarged to a short side of `window` where it is smaller."""
    height, width = pixels.shape[1:]
    short = min(height, width)
    if short >= window:
        return pixels
    size = [window if side == short else int(side * (window / short)) for side in (height, width)]
    return F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]
