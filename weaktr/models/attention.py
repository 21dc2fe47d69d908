"""Softmax attention of the backbones: which implementation, chosen here and nowhere else.

Everywhere `F.scaled_dot_product_attention`. On the CPU its kernel also knows the row
log-sum-exp that stage 1 needs; asked for that, it is called by its own name, which saves computing
q·k once more. Explicit softmax is nowhere faster: on two cores and DeiT-S it takes 1.5 times as
long for 733 tokens, twice as long for 1167, and as long for 8 training images of 216.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, *, dropout: float = 0.0, with_lse: bool = False
) -> tuple[Tensor, Tensor | None]:
    """softmax(q kᵀ / √d) v, and the log-sum-exp of its rows where that costs nothing.

    Args:
        q, k, v: [B, H, N, d], N >= 1.
        dropout: probability that an attention weight is dropped.
        with_lse: whether the log-sum-exp is of use.

    Returns:
        (output [B, H, N, d], lse [B, H, N] without gradient, float32 or wider; None where not
        asked for, or where it would have to be computed).
    """
    if not (with_lse and _knows_lse(q, k, v, dropout)):
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout), None
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
    return out, lse.detach()


def _knows_lse(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> bool:
    return (
        q.device.type == "cpu"
        and q.dtype == k.dtype == v.dtype
        and dropout == 0.0
        and not torch.compiler.is_exporting()  # exporters know the public function alone
    )
