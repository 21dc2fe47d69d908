"""Attention of the backbones by xformers, an optional package: `attention="xformers"`.

Importing this raises ImportError where xformers is not installed. It runs on CUDA alone, is no
faster than SDPA on every GPU, and so is taken only where it is asked for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from xformers.ops import memory_efficient_attention
from xformers.ops.fmha.attn_bias import BlockDiagonalMask

from weaktr.ops.attention import Attended, AttentionInputs


def attention_xformers(inputs: AttentionInputs) -> Attended:
    """Like `attention_torch`; packed images in one launch, log-sum-exp never."""
    q, k, v, dropout, _, packing, _ = inputs
    mask: Any = None if packing is None else BlockDiagonalMask.from_seqlens(packing.lengths)
    by_token = (x.transpose(1, 2) for x in (q, k, v))  # [B, N, H, d]
    out: Tensor = memory_efficient_attention(*by_token, attn_bias=mask, p=dropout)
    return Attended(out.transpose(1, 2), None)
