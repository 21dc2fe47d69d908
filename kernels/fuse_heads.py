"""`weaktr.ops.fuse_heads` on a GPU: all maps of a batch in one launch, none of them in memory.

A program holds one tile (queries × keys) and runs through all M maps, adding w_m A_m to it in
registers; only then is the tile multiplied by the values, once. Key blocks are divided among enough
programs to fill the device; their results, [splits, B, P, C'], are added afterwards in a fixed
order. The gradient in the values is the same sum with queries and keys exchanged:

    d values[j, c] = 1/M Σ_m w_m Σ_i A_m[i, j] · g[i, c]
    d weights[m]   = 1/M Σ_ij A_m[i, j] · (g[i]·values[j])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from weaktr.kernels.common import (
    LIMITS_OF_ATTENTION,
    block_of,
    configs_of,
    dot_precision,
    packing_table,
    processors,
    refusal_of_attention,
)
from weaktr.kernels.fuse_heads_kernels import spread_kernel, weights_kernel
from weaktr.kernels.tuning import Config, best_config, bucket

refusal = refusal_of_attention
LIMITS = LIMITS_OF_ATTENTION

#: Widest block of channels C' that a program holds; more of them form the tile again.
MOST_CHANNELS = 64


def fuse_heads_triton(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    *,
    scale: float,
    tokens: Sequence[int] | None = None,
    patches: Sequence[int] | None = None,
) -> Tensor:
    """Like `weaktr.ops.fuse_heads.definition.fuse_heads_torch`; all tensors of any strides."""
    counts = [None if given is None else list(given) for given in (tokens, patches)]
    fine: Tensor = fuse_op(q, k, lse, weights, values, scale, *counts)
    return fine


# ---- operators ----------------------------------------------------------------------------------


@torch.library.custom_op("weaktr::fuse_heads", mutates_args=())
def fuse_op(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    scale: float,
    tokens: list[int] | None,
    patches: list[int] | None,
) -> Tensor:
    """`fuse_heads_triton` with a gradient in the weights and in the values."""
    layout = _layout(q, values, weights, tokens, patches)
    return _spread(q, k, lse, weights, values, scale, layout, transposed=False)


@fuse_op.register_fake
def _(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    scale: float,
    tokens: list[int] | None,
    patches: list[int] | None,
) -> Tensor:
    return values.new_empty(values.shape, dtype=torch.float32)


@torch.library.custom_op("weaktr::fuse_heads_backward", mutates_args=())
def fuse_backward_op(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    scale: float,
    tokens: list[int] | None,
    patches: list[int] | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients in the weights and in the values; one that is not needed is empty."""
    layout = _layout(q, values, weights, tokens, patches)
    for_weights, for_values = weights.new_empty(0), values.new_empty(0)
    if needed[0]:
        for_weights = _weights_gradient(gradient, q, k, lse, values, scale, layout)
        for_weights = for_weights.to(weights.dtype)
    if needed[1]:
        for_values = _spread(k, q, lse, weights, gradient, scale, layout, transposed=True)
        for_values = for_values.to(values.dtype)
    return for_weights, for_values


@fuse_backward_op.register_fake
def _(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    scale: float,
    tokens: list[int] | None,
    patches: list[int] | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor]:
    for_weights = weights.new_empty(weights.shape if needed[0] else 0)
    for_values = values.new_empty(values.shape if needed[1] else 0)
    return for_weights, for_values


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.scale, ctx.tokens, ctx.patches = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    needed = [ctx.needs_input_grad[3], ctx.needs_input_grad[4]]
    for_weights, for_values = fuse_backward_op(
        gradient, *ctx.saved_tensors, ctx.scale, ctx.tokens, ctx.patches, needed
    )
    found = (for_weights if needed[0] else None, for_values if needed[1] else None)
    return None, None, None, *found, None, None, None


fuse_op.register_autograd(_backward, setup_context=_keep_inputs)


# ---- launches -----------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Where the images of a batch lie."""

    images: int
    most_patches: int  #: of one image
    table: Tensor | None  #: of a packed batch


def _layout(
    q: Tensor,
    values: Tensor,
    weights: Tensor,
    tokens: list[int] | None,
    patches: list[int] | None,
) -> _Layout:
    if tokens is None or patches is None:
        return _Layout(weights.shape[0], values.shape[1], None)
    return _Layout(len(tokens), max(patches, default=0), packing_table(tokens, patches, q.device))


def _spread(
    x: Tensor,
    y: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    scale: float,
    layout: _Layout,
    *,
    transposed: bool,
) -> Tensor:
    """out[r, c] = 1/M Σ_m w_m Σ_s exp(x_mr·y_ms · scale - lse) · values[s, c].

    lse belongs to the rows r, or to the columns s if `transposed`.
    """
    maps, dim = x.shape[1], x.shape[3]
    batch, rows, channels = values.shape
    if values.numel() == 0 or maps == 0:
        return torch.zeros_like(values, dtype=torch.float32)
    block_c = block_of(channels, MOST_CHANNELS)

    def launch(config: Config) -> Tensor:
        row_blocks = triton.cdiv(layout.most_patches, config["BLOCK_I"])
        programs = row_blocks * triton.cdiv(channels, block_c) * layout.images
        splits = triton.cdiv(4 * processors(x), programs)
        splits = min(splits, triton.cdiv(layout.most_patches, config["BLOCK_J"]))
        parts = torch.empty(splits, batch, rows, channels, dtype=torch.float32, device=x.device)
        spread_kernel[(programs * splits,)](
            *(x, x.stride(), y, y.stride(), lse, lse.stride(), weights, weights.stride()),
            *(values, values.stride(), parts, layout.table),
            *(maps, x.shape[2], layout.most_patches, channels, dim, scale, splits, batch * rows),
            PACKED=layout.table is not None,
            TRANSPOSED=transposed,
            BLOCK_D=block_of(dim),
            BLOCK_C=block_c,
            PRECISION=dot_precision(),
            **config,
        )
        return parts.sum(0) if splits > 1 else parts[0]

    key = (*_key(x, values, layout), int(transposed))
    with torch.cuda.device_of(x):
        return launch(best_config(spread_kernel, key, configs_of(x), launch, x.device))


def _weights_gradient(
    gradient: Tensor,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    values: Tensor,
    scale: float,
    layout: _Layout,
) -> Tensor:
    """1/M Σ_ij A_m[i, j] · (gradient[i]·values[j]): float32 [B, M]."""
    maps, dim, channels = q.shape[1], q.shape[3], values.shape[2]
    if values.numel() == 0 or maps == 0:
        return torch.zeros(layout.images, maps, dtype=torch.float32, device=q.device)

    def launch(config: Config) -> Tensor:
        row_blocks = triton.cdiv(layout.most_patches, config["BLOCK_I"])
        shape = (layout.images, maps, row_blocks)
        parts = torch.empty(shape, dtype=torch.float32, device=q.device)
        weights_kernel[(parts.numel(),)](
            *(q, q.stride(), k, k.stride(), lse, lse.stride(), gradient, gradient.stride()),
            *(values, values.stride(), parts, layout.table),
            *(maps, q.shape[2], layout.most_patches, channels, dim, scale),
            PACKED=layout.table is not None,
            BLOCK_D=block_of(dim),
            BLOCK_C=block_of(channels, MOST_CHANNELS),
            PRECISION=dot_precision(),
            **config,
        )
        return parts.sum(2)

    with torch.cuda.device_of(q):
        return launch(
            best_config(weights_kernel, _key(q, values, layout), configs_of(q), launch, q.device)
        )


def _key(q: Tensor, values: Tensor, layout: _Layout) -> tuple[int | str, ...]:
    maps, dim = q.shape[1], q.shape[3]
    sizes = (dim, bucket(maps), bucket(layout.images), bucket(layout.most_patches))
    return (str(q.dtype), dot_precision(), *sizes, bucket(values.shape[2]))
