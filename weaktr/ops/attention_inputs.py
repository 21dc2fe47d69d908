"""Checks that the ops on attention maps share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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


def full_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
