"""For export only: position embeddings for a grid that is not known when the model is traced.

A tracer turns `if` into a constant, and some exporters translate resizing inexactly. Here every
resize is two small matrices, computed from the grid in the graph itself:

    resized[i, j] = Σ_y Σ_x rows[i, y] · columns[j, x] · stored[y, x]

`ViT` and `weaktr.export.modules` use this; models that are not exported call torch's own resizing.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Parameter of the cubic kernel: torch's, and with antialiasing (as in Pillow).
CUBIC, CUBIC_ANTIALIAS = -0.75, -0.5


def resized_position(
    stored: Tensor,
    stored_grid: tuple[int, int],
    grid: tuple[int, int],
    size: tuple[int, int],
    mode: str,
) -> Tensor:
    """The patch part of a position embedding for any grid, in operations without branches.

    Args:
        stored: [1, P0, D] of the grid `stored_grid`.
        stored_grid: (h0, w0).
        grid: (h, w) wanted; may be symbolic.
        size: (H, W) of the image in pixels; may be symbolic.
        mode: one of `weaktr.models.vit.POSITION_MODES`.

    Returns:
        [1, h · w, D], what eager resizing gives, up to rounding.
    """
    count = stored.shape[1]
    same_count = torch.scalar_tensor(grid[0] * grid[1]) == count
    same_grid = same_count & (torch.scalar_tensor(grid[0]) == stored_grid[0])
    if mode == "published_cam":
        rows, columns = (
            cubic_matrix(length, before, (length + 0.1) / before)
            for length, before in zip(grid, stored_grid, strict=True)
        )
        is_square = torch.scalar_tensor(size[0]) == torch.scalar_tensor(size[1])
        as_is = same_grid & (is_square if stored_grid[0] == stored_grid[1] else same_grid)
    else:
        matrix = antialias_matrix if mode == "timm" else linear_matrix
        rows, columns = (
            matrix(length, before) for length, before in zip(grid, stored_grid, strict=True)
        )
        as_is = same_grid if mode == "timm" else same_count
    image = stored[0].unflatten(0, stored_grid)
    narrow = (rows @ image.flatten(1)).unflatten(1, image.shape[1:])
    resized = (columns @ narrow).flatten(0, 1)
    index = torch.arange(grid[0] * grid[1], device=stored.device).clamp(max=count - 1)
    return torch.where(as_is, stored[:, index], resized[None])


def linear_matrix(length: int, before: int) -> Tensor:
    """Bilinear resizing along one axis, ``align_corners=False``: [length, before]."""
    return _linear(_centres(length) * before / length, before)


def upsampling_matrix(length: int, before: int, factor: int) -> Tensor:
    """The first `length` of ``before · factor`` bilinearly upsampled values: [length, before]."""
    return _linear(_centres(length) / factor, before)


def _linear(at: Tensor, before: int) -> Tensor:
    """Linear interpolation at places in [0, before] of cells with centres 0.5, 1.5, ..."""
    at = (at - 0.5).clamp(min=0)
    first = at.floor()
    share = (at - first)[:, None]
    return (1 - share) * _one_hot(first, before) + share * _one_hot(first + 1, before)


def cubic_matrix(length: int, before: int, factor: float) -> Tensor:
    """Bicubic resizing along one axis by a given scale factor: [length, before]."""
    at = _centres(length) / factor - 0.5
    first = at.floor()
    return sum(
        (
            cubic(at - (first + tap), CUBIC)[:, None] * _one_hot(first + tap, before)
            for tap in (-1, 0, 1, 2)
        ),
        start=torch.zeros(()),
    )


def antialias_matrix(length: int, before: int) -> Tensor:
    """Bicubic resizing with antialiasing along one axis: [length, before]."""
    step = before / length
    stretch = torch.scalar_tensor(step).clamp(min=1)
    distance = (_centres(before)[None] - _centres(length)[:, None] * step) / stretch
    weights = cubic(distance, CUBIC_ANTIALIAS)
    return weights / weights.sum(1, keepdim=True)


def cubic(x: Tensor, a: float) -> Tensor:
    """Keys' cubic convolution kernel, support (-2, 2).

    Source: R. Keys, "Cubic convolution interpolation for digital image processing", 1981.
    """
    x = x.abs()
    inner = ((a + 2) * x - (a + 3)) * x * x + 1
    outer = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x <= 1, inner, torch.where(x < 2, outer, torch.zeros_like(x)))


def _centres(length: int) -> Tensor:
    """Centres of `length` cells: 0.5, 1.5, ..."""
    return torch.arange(length).float() + 0.5


def _one_hot(index: Tensor, before: int) -> Tensor:
    """[n] positions, clamped to the grid -> [n, before], 1 at each."""
    return (index.clamp(0, before - 1)[:, None] == torch.arange(before)[None]).float()
