"""timm's transformer blocks, with the intermediate values that the method needs.

The blocks of the backbones (`weaktr.models.vit`) and of stage 2's decoder run here, with timm's
modules and parameter names.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat
from timm.models.eva import EvaBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from weaktr.models.dropping import attend_dropping, draws_apart, draws_for, numbers_of
from weaktr.models.mlp import linear_of_norm, mlp_of_norm
from weaktr.ops.attention import Attended, Packing, Statistics, softmax_attention
from weaktr.ops.head_stats import HeadStats


class Layer(NamedTuple):
    """Output and intermediate values of one transformer block."""

    tokens: Tensor  #: [B, N, D] the block's output
    attended: Tensor  #: [B, N, D] attention branch after its projection, before layer scale
    q: Tensor  #: [B, H, N, d] queries as they enter the softmax
    k: Tensor  #: [B, H, N, d] keys
    lse: Tensor | None  #: [B, H, N] log-sum-exp of the softmax, where requested and known
    stats: HeadStats | None  #: where requested and free of cost


def run_block(
    block: Any,
    tokens: Tensor,
    rope: Tensor | None = None,
    prefix: int = 0,
    *,
    recompute: bool = False,
    **attention: Any,
) -> Layer:
    """Run timm's transformer block; returns its output and its intermediate values.

    Args:
        block: timm's Block or EvaBlock.
        tokens: [B, N, D].
        recompute: keep only `tokens` for the gradient, and compute everything again when it is
            wanted, with the same random numbers.
        rope, prefix, attention: see `attend`.
    """
    if recompute and torch.is_grad_enabled():
        layer: Layer = checkpoint(
            _run_block, block, tokens, rope, prefix, use_reentrant=False, **attention
        )
        return layer
    return _run_block(block, tokens, rope, prefix, **attention)


def _run_block(
    block: Any, tokens: Tensor, rope: Tensor | None, prefix: int, **attention: Any
) -> Layer:
    attended, q, k, by_products = attend(block.attn, block.norm1, tokens, rope, prefix, **attention)
    if isinstance(block, EvaBlock):
        scale1, scale2 = (_gamma(block.gamma_1), _gamma(block.gamma_2))
    else:
        scale1, scale2 = block.ls1, block.ls2
    tokens = tokens + block.drop_path1(scale1(attended))
    tokens = tokens + block.drop_path2(scale2(mlp_of_norm(block.mlp, block.norm2, tokens)))
    return Layer(tokens, attended, q, k, by_products.lse, by_products.stats)


def attend(
    module: Any,
    norm: nn.Module,
    tokens: Tensor,
    rope: Tensor | None,
    prefix: int,
    *,
    with_lse: bool = False,
    packing: Packing | None = None,
    statistics: Statistics | None = None,
    attention: str = "auto",
) -> tuple[Tensor, Tensor, Tensor, Attended]:
    """Multi-head self-attention of a timm module, with its queries and keys.

    Args:
        module: timm's Attention, AttentionRope or EvaAttention; its weights, norms, gate and
            dropouts are used.
        norm: the layer norm before it.
        tokens: [B, N, D].
        rope: rotary embedding of the N - prefix patch tokens, or None.
        prefix: number of tokens at the front that take no rotary embedding.
        with_lse, packing, statistics, attention: see `softmax_attention`.

    Returns:
        (output [B, N, D] after projection, q and k [B, H, N, d], what attention returned).
    """
    q, k, v = _project(module, norm, tokens)
    q, k = module.q_norm(q), module.k_norm(k)
    if rope is not None:
        half = bool(getattr(module, "rotate_half", False))
        q = _rotate(q, rope, prefix, half).type_as(v)
        k = _rotate(k, rope, prefix, half).type_as(v)
    dropout = module.attn_drop.p if module.training else 0.0
    by_kernel = partial(
        softmax_attention,
        *(q, k, v),
        dropout=dropout,
        with_lse=with_lse,
        packing=packing,
        statistics=statistics,
        attention=attention,
    )
    if dropout and draws_for(module.attn_drop, q.device):
        attended = Attended(attend_dropping(q, k, v, module.attn_drop), None)
    elif dropout and draws_apart(module.attn_drop):
        with numbers_of(module.attn_drop.part, q.device):
            attended = by_kernel()
    else:
        attended = by_kernel()
    out = module.norm(attended.out.transpose(1, 2).flatten(2))
    if getattr(module, "gate", None) is not None:
        out = out * module.gate(norm(tokens)).sigmoid()
    return module.proj_drop(module.proj(out)), q, k, attended


def _project(attention: Any, norm: nn.Module, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v, each [B, H, N, d], from fused or separate projections."""
    batch, count, _ = tokens.shape
    heads = attention.num_heads
    if attention.qkv is None:
        x = norm(tokens)
        parts = [p(x) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
        q, k, v = (p.reshape(batch, count, heads, -1).transpose(1, 2) for p in parts)
        return q, k, v
    if getattr(attention, "q_bias", None) is None:
        qkv = linear_of_norm(norm, attention.qkv, tokens)
    else:
        bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
        qkv = F.linear(norm(tokens), attention.qkv.weight, bias)
    q, k, v = qkv.reshape(batch, count, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _rotate(x: Tensor, rope: Tensor, prefix: int, half: bool) -> Tensor:
    """Rotary embedding of all but the first `prefix` tokens of x [B, H, N, d]."""
    rotated = apply_rot_embed_cat(x[:, :, prefix:], rope, half=half)
    return torch.cat([x[:, :, :prefix], rotated], dim=2)


def _gamma(gamma: Tensor | None) -> Any:
    return nn.Identity() if gamma is None else gamma.mul
