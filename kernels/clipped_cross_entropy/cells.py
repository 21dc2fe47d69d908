"""Where pixels lie between logits, and what a program has of them."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from weaktr.kernels.common import blocks_of
from weaktr.kernels.tuning import Config, bucket

#: Threads of a warp.
WARP = 32


class Axis(NamedTuple):
    """How an axis of n logits is enlarged to N pixels: cell c lies between logits c - 1 and c."""

    first: Tensor  #: int32 [n + 2], first pixel of each cell
    fraction: Tensor  #: [N] weight of logit c in the pixels of cell c; of c - 1 the rest
    widest: int  #: pixels of the largest cell


class Cells(NamedTuple):
    """All cells of an image, on the device."""

    starts: Tensor  #: int32 [h + 2 + w + 2], `Axis.first` of rows, then of columns
    fractions: Tensor  #: [H + W], `Axis.fraction` likewise
    down: int  #: h + 1
    across: int  #: w + 1
    tallest: int  #: rows of the tallest cell
    widest: int  #: columns of the widest cell


class Tile(NamedTuple):
    """What a program has of the image."""

    strips: int  #: of each cell
    down: int  #: strips of the image
    across: int  #: programs beside each other
    constants: dict[str, int]  #: sides of the tile and warps, as the kernels take them


def _axis(logits: int, pixels: int, dtype: torch.dtype) -> Axis:
    """The positions of PyTorch's bilinear interpolation, as exact as there."""
    arange = partial(torch.arange, dtype=dtype, device="cpu")
    ratio = torch.tensor(logits / pixels, dtype=dtype, device="cpu")
    position = (arange(pixels) + 0.5) * ratio - 0.5
    cell = (position.floor() + 1).clamp_(0, logits)
    fraction = position - (cell - 1)
    fraction[cell == 0] = 1  # before the first logit, and behind the last: that logit alone
    fraction[cell == logits] = 0
    first = torch.searchsorted(cell, arange(logits + 2))
    return Axis(first.int(), fraction, int(first.diff().max()))


@lru_cache(maxsize=64)
def _cells(
    height: int, width: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> Cells:
    """Of height × width logits, enlarged to rows × columns pixels."""
    y, x = _axis(height, rows, dtype), _axis(width, columns, dtype)
    starts = torch.cat([y.first, x.first]).to(device)
    fractions = torch.cat([y.fraction, x.fraction]).to(device)
    return Cells(starts, fractions, height + 1, width + 1, y.widest, x.widest)


def cells_of(scaled: Tensor, labels: Tensor) -> Cells:
    """Of logits [B, h, w, ...], enlarged to labels [B, H, W]."""
    return _cells(*scaled.shape[1:3], *labels.shape[1:], scaled.dtype, scaled.device)


def tile_of(cells: Cells, config: Config) -> Tile:
    """As the configuration has it, where cells are large enough for that."""
    warps, columns = config["num_warps"], min(config["COLUMNS"], bucket(cells.widest))
    registers = cells.fractions.itemsize // 4  # of a number
    rows = min(config["ROWS"] // registers, bucket(cells.tallest))
    strips = blocks_of(cells.tallest, rows)
    lanes_a_cell = bucket(cells.widest) // columns
    lanes = max(WARP * warps, lanes_a_cell)
    abreast = lanes // lanes_a_cell
    constants = {"ROWS": rows, "COLUMNS": columns, "CELLS": abreast, "LANES": lanes}
    return Tile(
        strips=strips,
        down=cells.down * strips,
        across=blocks_of(cells.across, abreast),
        constants={**constants, "num_warps": warps},
    )


def tiles_of(losses: Tensor, patch_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) of a whole tile of [B, H, W], and how many there are down and across."""
    _, height, width = losses.shape
    tile = (min(patch_size, height), min(patch_size, width))
    return tile, (blocks_of(height, tile[0]), blocks_of(width, tile[1]))
