"""Attention with dropout on a CPU.

PyTorch keeps three maps of each head for the gradient. Here a map is computed again, and of each of
its weights a byte is kept, whether it was dropped. The random numbers are PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def attend_with_dropout(
    q: Tensor, k: Tensor, v: Tensor, dropout: float, kept: Tensor | None = None
) -> Tensor:
    """dropout(softmax(q kᵀ / √d)) v of q, k, v [B, H, N, d] -> [B, H, N, d].

    Half precision is computed in float32, as by PyTorch.

    Args:
        q, k, v: of one shape and dtype.
        dropout: probability that a weight is dropped.
        kept: bool [B, H, N, N], the weights that are not dropped; None = they are drawn here.
    """
    dtype = torch.promote_types(q.dtype, torch.float32)
    q_, k_, v_ = (x.to(dtype) for x in (q, k, v))
    if kept is None:
        tokens = q.shape[2]
        kept = q_.new_empty(*q.shape[:2], tokens, tokens).bernoulli_(1 - dropout).bool()
    out: Tensor = _AttendWithDropout.apply(q_, k_, v_, dropout, kept)
    return out.to(q.dtype)


class _AttendWithDropout(torch.autograd.Function):
    """`attend_with_dropout`."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, dropout: float, kept: Tensor) -> Tensor:
        """[B, H, N, d] -> [B, H, N, d], heads behind tokens in memory."""
        batch, heads, tokens, dim = q.shape
        ctx.dropout = dropout
        ctx.save_for_backward(q, k, v, kept)
        out = q.new_empty(batch, tokens, heads, dim).transpose(1, 2)
        for one in every_map(q):
            weights = map_of(q[one], k[one]).mul_(kept[one])
            torch.mm(weights, v[one], out=out[one])
        return out.div_(1 - dropout)

    @staticmethod
    @once_differentiable  # whose stub loses the signature
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override]
        """Each map is computed once more."""
        q, k, v, kept = ctx.saved_tensors
        gradient = gradients[0] / (1 - ctx.dropout)
        of_qkv = q.new_empty(3, *q.shape)
        for one in every_map(q):
            weights = map_of(q[one], k[one])
            of_q, of_k, of_v = (x[one] for x in of_qkv)
            torch.mm((weights * kept[one]).T, gradient[one], out=of_v)
            of_weights = (gradient[one] @ v[one].T).mul_(kept[one])
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            torch.mm(of_scores, k[one], out=of_q)
            torch.mm(of_scores.T, q[one], out=of_k)
        of_qkv[:2] *= q.shape[-1] ** -0.5
        return *of_qkv, None, None


def every_map(q: Tensor) -> list[tuple[int, int]]:
    """Image and head of each map of q [B, H, N, d]."""
    return [(image, head) for image in range(q.shape[0]) for head in range(q.shape[1])]


def map_of(q: Tensor, k: Tensor) -> Tensor:
    """softmax(q kᵀ / √d) of one head: [N, d] -> [N, N]."""
    return (q * q.shape[-1] ** -0.5 @ k.T).softmax(-1)
