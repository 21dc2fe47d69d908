"""Attention of the backbones by xformers, an optional package: `attention="xformers"`.

Importing this raises ImportError where xformers is not installed. It runs on CUDA alone, is no
faster than SDPA on every GPU, and so is taken only where it is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from xformers.ops import memory_efficient_attention
from xformers.ops.fmha.attn_bias import BlockDiagonalMask

from weaktr.ops.attention import Attended, Statistics


def refusal(device_type: str, **_: Any) -> str:
    """Why xformers does not take tensors on such a device, "" where it does."""
    if device_type == "cuda":
        return ""
    return f"xformers runs on CUDA tensors, got {device_type}; leave attention at 'auto'"


def attention_xformers(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout: float,
    with_lse: bool,
    lengths: Sequence[int] | None,
    statistics: Statistics | None,
) -> Attended:
    """Like `weaktr.ops.attention.definition.attention_torch`; packed images in one launch, lse never."""
    mask: Any = None if lengths is None else BlockDiagonalMask.from_seqlens(list(lengths))
    by_token = (x.transpose(1, 2) for x in (q, k, v))  # [B, N, H, d]
    out: Tensor = memory_efficient_attention(*by_token, attn_bias=mask, p=dropout)
    return Attended(out.transpose(1, 2), None)
