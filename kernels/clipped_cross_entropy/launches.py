"""The launches of the loss's kernels, and their configurations."""

from __future__ import annotations

import torch
from torch import Tensor

from weaktr import processes
from weaktr.kernels.clipped_cross_entropy.cells import cells_of, tile_of, tiles_of
from weaktr.kernels.clipped_cross_entropy.clipping import clip_kernel, tile_sums_kernel
from weaktr.kernels.clipped_cross_entropy.cross_entropy import (
    corners_kernel,
    gradient_kernel,
    losses_kernel,
    scale_kernel,
)
from weaktr.kernels.common import blocks_of
from weaktr.kernels.launching import launch
from weaktr.kernels.tuning import Config, best_config, bucket

#: Labels that are loaded at a time; quads of a program in the backward pass, at most.
QUAD, QUADS_BACK = 4, 8
#: Rows of a tile that a program clips; columns and pixels of them that it holds, at most.
PIECE_ROWS, PIECE_ACROSS, PIECE_PIXELS = 32, 128, 1024
#: Logits of a program that scales them, or adds up their corners.
FLAT_BLOCK = 512

#: ROWS of a strip; COLUMNS of each cell in one thread's registers.
FORWARD_CONFIGS: tuple[Config, ...] = tuple(
    {"ROWS": rows, "COLUMNS": columns, "num_warps": 1} for rows, columns in ((16, 1), (8, 1))
)
BACKWARD_CONFIGS: tuple[Config, ...] = tuple(
    {"ROWS": rows, "COLUMNS": columns, "num_warps": 1}
    for rows, columns in ((8, 2), (16, 2), (16, 1), (8, 4))
)


def scale_logits(logits: Tensor) -> Tensor:
    """Logits [B, L, h, w] times log2(e), [B, h, w, L and what fills up its last quad]."""
    scaled = empty_scaled(logits)
    batch, height, width, labels = scaled.shape
    launch(
        scale_kernel,
        (blocks_of(scaled[0].numel(), FLAT_BLOCK), batch),
        *(logits, scaled, *logits.stride(), logits.shape[1], labels // QUAD, height, width),
        BLOCK=FLAT_BLOCK,
    )
    return scaled


def pixel_losses(
    scaled: Tensor, labels: Tensor, num_labels: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every pixel, and log2 Σ exp(logits), infinite where ignored; [B, H, W]."""
    losses = torch.empty(labels.shape, dtype=scaled.dtype, device=scaled.device)
    lse = torch.empty_like(losses)
    cells = cells_of(scaled, labels)
    _, height, width, padded = scaled.shape
    sizes = (num_labels, height, width, *labels.shape[1:], padded // QUAD)

    def run(config: Config) -> None:
        tile = tile_of(cells, config)
        launch(
            losses_kernel,
            (tile.across, tile.down, len(labels)),
            *(scaled, labels, losses, lse, cells.starts, cells.fractions, *labels.stride()),
            *(*sizes, tile.strips, ignore_index),
            **tile.constants,
        )

    run(best_config(losses_kernel, _key(scaled, labels), FORWARD_CONFIGS, run, scaled.device))
    return losses, lse


def clip_losses(
    losses: Tensor, lse: Tensor, patch_size: int, start_value: float, batch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`definition.clip_losses` -> (loss, mean loss, clipped, thresholds).

    `lse` becomes infinite where a pixel is held at its threshold.
    """
    images, height, width = losses.shape
    tile, tiles = tiles_of(losses, patch_size)
    across = min(bucket(tile[1]), PIECE_ACROSS)
    down = min(bucket(tile[0]), PIECE_ROWS, PIECE_PIXELS // across)
    grid = (tiles[0] * tiles[1], blocks_of(tile[0], PIECE_ROWS), images)
    sizes = (height, width, *tile)
    blocks = {"ROWS": PIECE_ROWS, "DOWN": down, "ACROSS": across}
    sums, held = losses.new_empty(grid), losses.new_empty(grid)
    launch(tile_sums_kernel, grid, losses, sums, *sizes, **blocks)
    of_tiles = sums.sum((1, 2))
    if batch != images:
        of_tiles = processes.total(of_tiles)
    scalars = losses.new_empty((), dtype=torch.bool), losses.new_empty(())
    results = (held, *scalars, thresholds := losses.new_empty(tiles))
    launch(
        clip_kernel,
        grid,
        *(losses, lse, of_tiles, *results, float(start_value), batch, *sizes),
        **blocks,
    )
    clipped, mean_loss = scalars
    return held.sum(), mean_loss, clipped, thresholds


def logits_gradient(
    gradient: Tensor, logits: Tensor, labels: Tensor, scaled: Tensor, lse: Tensor
) -> Tensor:
    """Gradient in the logits, [B, L, h, w] in their dtype, for `gradient` [] of the loss."""
    result = torch.empty_like(logits)
    cells = cells_of(scaled, labels)
    batch, height, width, padded = scaled.shape
    quads = padded // QUAD
    blocks = blocks_of(quads, QUADS_BACK)
    sizes = (height, width, *labels.shape[1:])

    def sum_corners(config: Config) -> tuple[Tensor, int]:
        """What `gradient_kernel` adds up, and the strips of a cell."""
        tile = tile_of(cells, config)
        sums = lse.new_empty(batch, tile.down, cells.across, 4, padded)
        launch(
            corners_kernel,
            (tile.across * blocks, tile.down, batch),
            *(scaled, labels, lse, sums, cells.starts, cells.fractions, *labels.stride()),
            *(*sizes, quads, tile.strips, blocks_of(quads, blocks)),
            **tile.constants,
        )
        return sums, tile.strips

    with torch.cuda.device_of(logits):
        key = _key(scaled, labels)
        config = best_config(corners_kernel, key, BACKWARD_CONFIGS, sum_corners, logits.device)
        launch(
            gradient_kernel,
            (blocks_of(scaled[0].numel(), FLAT_BLOCK), batch),
            *(gradient, *sum_corners(config), result, *result.stride()),
            *(logits.shape[1], quads, *sizes),
            BLOCK=FLAT_BLOCK,
        )
    return result


def wide(logits: Tensor) -> torch.dtype:
    """What the kernels compute in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def empty_scaled(logits: Tensor) -> Tensor:
    """Where `scale_logits` puts its result."""
    batch, num_labels, height, width = logits.shape
    padded = QUAD * blocks_of(num_labels, QUAD)
    return logits.new_empty(batch, height, width, padded, dtype=wide(logits))


def _key(scaled: Tensor, labels: Tensor) -> tuple[int | str, ...]:
    """What the fastest configuration depends on."""
    batch, height, _, padded = scaled.shape
    sizes = (batch, padded, height, *labels.shape[1:])
    return (str(scaled.dtype), *map(bucket, sizes))
