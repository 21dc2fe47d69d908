"""What the ops on attention maps share: checks of q and k, and maps piece by piece in PyTorch."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

# ---- checks -------------------------------------------------------------------------------------


def check_packing(q: Tensor, tokens: Sequence[int], patches: Sequence[int]) -> None:
    """Raise ValueError unless q is [M, ΣN, d] and `patches` are counts among those of `tokens`."""
    if q.ndim != 3 or not q.is_floating_point():
        raise ValueError(f"q: expected floating point [M, ΣN, d], got {q.dtype} {tuple(q.shape)}")
    if len(tokens) != len(patches) or any(
        not 0 <= count <= total for count, total in zip(patches, tokens, strict=False)
    ):
        raise ValueError(
            "patches: expected one number per image, from 0 to its number of tokens "
            f"{list(tokens)}, got {list(patches)}"
        )
    if q.shape[1] != sum(tokens):
        raise ValueError(f"tokens: expected a sum of ΣN = {q.shape[1]}, got {sum(tokens)}")


def check_attention_inputs(q: Tensor, k: Tensor, num_patches: int) -> None:
    """Raise ValueError unless q and k are [B, H, N, d] twins with 1 <= P <= N."""
    if q.ndim != 4 or not q.is_floating_point():
        raise ValueError(f"q: expected floating point [B, H, N, d], got {q.dtype} {tuple(q.shape)}")
    check_same_kind(q, k)
    if not 1 <= num_patches <= q.shape[2]:
        raise ValueError(f"num_patches: expected 1..{q.shape[2]}, got {num_patches}")


def check_same_kind(q: Tensor, k: Tensor) -> None:
    """Raise ValueError unless k has the shape, dtype and device of q."""
    if k.shape != q.shape or k.dtype != q.dtype or k.device != q.device:
        raise ValueError(
            f"k: expected shape {tuple(q.shape)}, {q.dtype} on {q.device} like q, "
            f"got {tuple(k.shape)}, {k.dtype} on {k.device}"
        )


def constant(x: Tensor) -> Tensor:
    """x as a constant; asking is cheaper than `detach`, which makes a tensor."""
    return x.detach() if x.requires_grad else x


# ---- maps piece by piece ------------------------------------------------------------------------

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


def full_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
