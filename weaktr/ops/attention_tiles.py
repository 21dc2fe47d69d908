"""Attention maps piece by piece: how large the pieces are in which plain PyTorch computes them."""

from __future__ import annotations

import os

import torch
from torch import Tensor

LIMIT_VARIABLE = "WEAKTR_CHUNK_MB"
#: On the CPU pieces that stay in the caches are faster than larger ones (measured on two cores with
#: 1 MiB each: 50 ms for the 72 maps of 713 patches, 90 ms in pieces of 64 MiB).
CACHED_BYTES = 4 * 2**20


def _limit() -> int:
    text = os.environ.get(LIMIT_VARIABLE, "256")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"{LIMIT_VARIABLE}: expected a whole number of MiB from 1, got {text!r}; "
            "unset it for 256"
        )
    return int(text) * 2**20


#: Upper bound, in bytes, on what one call holds of attention maps at one time (a query's row over
#: all keys is the least); MiB in the environment variable ``WEAKTR_CHUNK_MB``, 256 by default.
CHUNK_BYTES = _limit()


def tiles(maps: int, rows: int, columns: int, like: Tensor) -> tuple[list[slice], list[slice]]:
    """(cuts of the maps, cuts of the rows) of [maps, rows, columns] numbers like those of `like`.

    A piece is several maps, if they are small enough, else some rows of one.
    """
    limit = min(CHUNK_BYTES, CACHED_BYTES) if like.device.type == "cpu" else CHUNK_BYTES
    most = max(1, limit // max(1, columns * like.element_size()))
    height = min(most, max(1, rows))
    return _cuts(maps, most // height), _cuts(rows, height)


def _cuts(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def attention_logits(q: Tensor, k: Tensor, scale: float, lse: Tensor | None) -> Tensor:
    """q, k [m, rows or N, d] -> q kᵀ · scale, less `lse` [m, rows] of its rows where given."""
    offset = q.new_zeros(()) if lse is None else lse[..., None]
    return torch.baddbmm(offset, q, k.transpose(1, 2), beta=-1, alpha=scale)
