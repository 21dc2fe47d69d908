"""`weaktr.ops.fuse_heads` on a GPU: all maps of a batch in one launch, none of them in memory.

A program holds one tile (queries × keys) and runs through the M maps, or a share of them where
there are few tiles, adding w_m A_m to it in registers; only then is the tile multiplied by the
values, once. What the programs of some rows yield, [parts, C', B, P], is added afterwards in a
fixed order. The gradient in the values is the same sum with queries and keys exchanged:

    d values[j, c] = 1/M Σ_m w_m Σ_i A_m[i, j] · g[i, c]
    d weights[m]   = 1/M Σ_ij A_m[i, j] · (g[i]·values[j])
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from weaktr.kernels.common import (
    LIMITS_OF_ATTENTION,
    block_of,
    block_of_map,
    blocks_of,
    configurations,
    dot_precision,
    entries,
    is_wide,
    key_of_attention,
    load_rows,
    packing_table,
    part_of,
    place,
    processors,
    refusal_of_attention,
    share_of,
    side_by_side,
    take_lse,
    take_rows,
)
from weaktr.kernels.launching import launch
from weaktr.kernels.tuning import Config, best_config
from weaktr.ops.fuse_heads import FuseHeadsInputs
from weaktr.ops.registry import takes
from weaktr.ops.tracing import needs_operator

#: Widest block of channels C' that a program holds; more of them form the tile again.
MOST_CHANNELS = 64
#: Columns of q and k in float32 that `spread_kernel` multiplies at once.
MOST_FLOAT32 = 32
#: Programs for each multiprocessor, where the maps can be split into so many: two are resident.
PROGRAMS_A_PROCESSOR = 4
#: Fewest maps that a program is given where the maps are split.
LEAST_MAPS = 12

#: Of `spread_kernel`: rows and half the columns of a tile, ...; see `configurations`.
#: None spills, under Triton 3.6 and 3.8; at d = 64 two or three programs are resident on a
#: multiprocessor.
CONFIGS = configurations(
    (32, 32, 4, 1), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2, 128), (128, 64, 4, 2)
)
#: Where more registers are needed: sums of columns, or d > 64.
WIDE_CONFIGS = configurations((32, 32, 4, 1), (64, 64, 4, 2), (128, 64, 8, 2))
FLOAT32_CONFIGS = configurations(
    (32, 16, 4, 1), (64, 16, 4, 2), (64, 32, 4, 2), (64, 32, 4, 3), (128, 32, 8, 2)
)
WIDE_FLOAT32_CONFIGS = configurations((64, 16, 4, 2), (128, 16, 8, 2))
#: Of `weights_kernel`; of wide rows in float32 the last one spills.
WEIGHTS_CONFIGS = configurations((32, 16, 4, 1), (64, 32, 4, 2), (128, 64, 8, 2))

#: `FuseHeadsInputs` as torch writes it.
SCHEMA = (
    "Tensor q, Tensor k, Tensor lse, Tensor weights, Tensor values, float scale, "
    "SymInt[]? tokens, SymInt[]? patches"
)


@takes(LIMITS_OF_ATTENTION, refusal_of_attention)
def fuse_heads_triton(inputs: FuseHeadsInputs) -> Tensor:
    """Like `fuse_heads_torch`."""
    if needs_operator(inputs.q, inputs.weights, inputs.values):
        fine: Tensor = fuse_op(*inputs)
        return fine
    return _fused(inputs)


# ---- operators ----------------------------------------------------------------------------------


def fused(*arguments: Any) -> Tensor:
    """`fuse_heads_triton` of the fields of its inputs, without gradient."""
    return _fused(FuseHeadsInputs(*arguments))


def _fused(inputs: FuseHeadsInputs) -> Tensor:
    """[B, P, C'] float32; see `fuse_heads_torch`."""
    q, k, lse, weights, values, scale, _, _ = inputs
    return _spread(q, k, lse, weights, values, scale, _layout(inputs), transposed=False)


#: `fused` with a gradient in the weights and in the values.
fuse_op = torch.library.custom_op(
    "weaktr::fuse_heads", fused, mutates_args=(), schema=f"({SCHEMA}) -> Tensor"
)


@fuse_op.register_fake
def _(*arguments: Any) -> Tensor:
    values = FuseHeadsInputs(*arguments).values
    return _channel_by_channel(torch.empty_like(values, dtype=torch.float32))


@torch.library.custom_op(
    "weaktr::fuse_heads_backward",
    mutates_args=(),
    schema=f"(Tensor gradient, bool[] needed, {SCHEMA}) -> (Tensor, Tensor)",
)
def fuse_backward_op(
    gradient: Tensor, needed: list[bool], *arguments: Any
) -> tuple[Tensor, Tensor]:
    """Gradients in the weights and in the values; one that is not needed is empty."""
    q, k, lse, weights, values, scale, *_ = inputs = FuseHeadsInputs(*arguments)
    layout = _layout(inputs)
    for_weights, for_values = weights.new_empty(0), values.new_empty(0)
    if needed[0]:
        for_weights = _weights_gradient(gradient, q, k, lse, values, scale, layout)
        for_weights = for_weights.to(weights.dtype)
    if needed[1]:
        for_values = _spread(k, q, lse, weights, gradient, scale, layout, transposed=True)
        for_values = for_values.to(values.dtype)
    return for_weights, for_values


@fuse_backward_op.register_fake
def _(gradient: Tensor, needed: list[bool], *arguments: Any) -> tuple[Tensor, Tensor]:
    inputs = FuseHeadsInputs(*arguments)
    tensors = (inputs.weights, inputs.values)
    for_weights, for_values = (
        x.new_empty(x.shape if wanted else 0) for x, wanted in zip(tensors, needed, strict=True)
    )
    return for_weights, _channel_by_channel(for_values) if needed[1] else for_values


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, scale, tokens, patches = inputs
    ctx.save_for_backward(*tensors)
    ctx.settings = (scale, tokens, patches)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    needed = [ctx.needs_input_grad[3], ctx.needs_input_grad[4]]
    gradients = fuse_backward_op(gradient, needed, *ctx.saved_tensors, *ctx.settings)
    wanted = (x if need else None for x, need in zip(gradients, needed, strict=True))
    return None, None, None, *wanted, None, None, None


fuse_op.register_autograd(_backward, setup_context=_keep_inputs)


# ---- launches -----------------------------------------------------------------------------------


class _Layout(NamedTuple):
    """Where the images of a batch lie."""

    images: int
    most_patches: int  #: of one image
    table: Tensor | None  #: of a packed batch


def _layout(inputs: FuseHeadsInputs) -> _Layout:
    tokens, patches = inputs.tokens, inputs.patches
    if tokens is None or patches is None:
        return _Layout(inputs.weights.shape[0], inputs.values.shape[1], None)
    table = packing_table(tokens, patches, inputs.q.device)
    return _Layout(len(tokens), max(patches, default=0), table)


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
    batch, patches, channels = values.shape
    if values.numel() == 0 or maps == 0:
        return _channel_by_channel(torch.zeros_like(values, dtype=torch.float32))
    if values.dtype != torch.float32 or values.stride() != (patches, 1, batch * patches):
        values = _channel_by_channel(values.float())
    lse = side_by_side(lse)

    def run(config: Config) -> Tensor:
        programs, tiles, map_splits = _programs(
            layout.images, layout.most_patches, maps, config["BLOCK_I"], config["BLOCK_J"],
            processors(x),
        )  # fmt: skip
        parts = values.new_empty((map_splits * tiles, channels, batch, patches))
        launch(
            spread_kernel,
            (programs,),
            *(x, x.stride(), y, y.stride(), lse, lse.stride(), weights, weights.stride()),
            *(values, parts, layout.table),
            *(maps, map_splits, x.shape[2], layout.most_patches, batch * patches, channels, scale),
            PACKED=layout.table is not None,
            TRANSPOSED=transposed,
            DIM=dim,
            BLOCK_D=part_of(dim, x.dtype, MOST_FLOAT32),
            PRECISION=dot_precision(x.dtype),
            **config,
        )
        return parts.sum(0).permute(1, 2, 0)

    key = (*_key(x, layout), int(transposed))
    with torch.cuda.device_of(x):
        return run(best_config(spread_kernel, key, spread_configs(x, transposed), run, x.device))


def _channel_by_channel(x: Tensor) -> Tensor:
    """[B, P, C'] laid out as the kernels read and write it: a channel's patches side by side."""
    return x.permute(2, 0, 1).contiguous().permute(1, 2, 0)


def spread_configs(x: Tensor, transposed: bool) -> tuple[Config, ...]:
    """Candidates for `spread_kernel`; the sums of columns, if `transposed`, take registers."""
    wide = is_wide(x)
    if x.dtype == torch.float32:
        return WIDE_FLOAT32_CONFIGS if wide else FLOAT32_CONFIGS
    return WIDE_CONFIGS if transposed or wide else CONFIGS


def weights_configs(q: Tensor) -> tuple[Config, ...]:
    """Candidates for `weights_kernel`."""
    return WEIGHTS_CONFIGS[:2] if q.dtype == torch.float32 and is_wide(q) else WEIGHTS_CONFIGS


@lru_cache(maxsize=4096)
def _programs(
    images: int, most_patches: int, maps: int, block_i: int, block_j: int, processors: int
) -> tuple[int, int, int]:
    """How many programs spread, in how many tiles of columns and shares of the maps."""
    tiles = blocks_of(most_patches, 2 * block_j)
    blocks = images * blocks_of(most_patches, block_i) * tiles
    map_splits = splits_of(maps, blocks, processors)
    return blocks * map_splits, tiles, map_splits


def splits_of(maps: int, programs: int, processors: int) -> int:
    """How many programs share the maps of a tile.

    Enough that all processors have work, each with `LEAST_MAPS` maps at least to add before it
    multiplies by the values.
    """
    wanted = min(PROGRAMS_A_PROCESSOR * processors // programs, maps // LEAST_MAPS)
    return max(1, wanted)


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
    lse = side_by_side(lse)

    def run(config: Config) -> Tensor:
        row_blocks = blocks_of(layout.most_patches, config["BLOCK_I"])
        shape = (layout.images, maps, row_blocks)
        parts = torch.empty(shape, dtype=torch.float32, device=q.device)
        launch(
            weights_kernel,
            (parts.numel(),),
            *(q, q.stride(), k, k.stride(), lse, lse.stride(), gradient, gradient.stride()),
            *(values, values.stride(), parts, layout.table),
            *(maps, q.shape[2], layout.most_patches, channels, scale),
            PACKED=layout.table is not None,
            DIM=dim,
            BLOCK_D=part_of(dim, q.dtype),
            BLOCK_C=block_of(channels, MOST_CHANNELS),
            PRECISION=dot_precision(q.dtype),
            VALUE_PRECISION=dot_precision(torch.float32),
            **config,
        )
        return parts.sum(2)

    with torch.cuda.device_of(q):
        key = (*_key(q, layout), dot_precision(torch.float32))
        return run(best_config(weights_kernel, key, weights_configs(q), run, q.device))


def _key(q: Tensor, layout: _Layout) -> tuple[int | str, ...]:
    return key_of_attention(q, layout.most_patches, layout.images)


# ---- kernels: strides are tuples, one entry for each axis ---------------------------------------


@triton.jit
def _lse_of(lse, strides, m, tokens):
    """log-sum-exp of rows of map m, base 2."""
    return take_lse(lse + m * strides[1], tokens)


@triton.jit
def _of_values(fused0, fused1, values, columns, count):
    """Σ_s fused[r, s] · values[s] over two blocks of columns, `count` of them; [R].

    On CUDA cores, exactly in float32: once for all maps there is so little of it that the layouts
    and splits of the tensor cores would cost more.
    """
    width = fused0.shape[1]
    value0 = tl.load(values + columns, mask=columns < count, other=0.0)
    value1 = tl.load(values + width + columns, mask=columns < count - width, other=0.0)
    return tl.sum(fused0 * value0[None, :], 1) + tl.sum(fused1 * value1[None, :], 1)


@triton.jit
def _share_of_program(most_patches, map_splits, BLOCK_I: tl.constexpr, TILE: tl.constexpr):
    """What is this program's: image, block of rows, tile of columns, share of the maps; and where
    among the parts of the result its own lies.
    """
    row_blocks = tl.cdiv(most_patches, BLOCK_I)
    tiles = tl.cdiv(most_patches, TILE)
    rest = tl.program_id(0) // row_blocks
    tile, split = rest % tiles, rest // tiles % map_splits
    image = (rest // (tiles * map_splits)).to(tl.int64)
    return image, tl.program_id(0) % row_blocks, tile, split, (split * tiles + tile).to(tl.int64)


@triton.jit
def _store_zeros(parts, rows, valid, channels, stride):
    """No sum for some rows of every channel."""
    for c in range(channels):
        pointers = parts + tl.cast(c, tl.int64) * stride + rows
        tl.store(pointers, tl.zeros(rows.shape, tl.float32), mask=valid)


@triton.jit(
    do_not_specialize=[
        *("maps", "map_splits", "tokens", "most_patches", "all_patches", "channels"),
    ],
    do_not_specialize_on_alignment=["lse", "weights"],
)
def spread_kernel(
    x,
    x_strides,
    y,
    y_strides,
    lse,
    lse_strides,
    weights,
    weights_strides,
    values,
    parts,
    table,
    maps,
    map_splits,
    tokens,
    most_patches,
    all_patches,
    channels,
    scale,
    PACKED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One tile of one image, over one share of the maps: its part of the result.

    A tile is two blocks of columns wide, each with a sum of its own: the wider it is, the less is
    read for an entry, while only one block's logits are in registers.
    """
    TILE: tl.constexpr = 2 * BLOCK_J
    image, block, tile, split, part = _share_of_program(most_patches, map_splits, BLOCK_I, TILE)
    begin, own, patches, before = place(table, image, tokens, most_patches, PACKED)
    first = begin + own - patches
    weights += image * weights_strides[0]
    if not PACKED:
        x += image * x_strides[0]
        y += image * y_strides[0]
        lse += image * lse_strides[0]
    rows = block * BLOCK_I + tl.arange(0, BLOCK_I)
    valid = rows < patches
    parts += part * channels * all_patches + before
    if (block * BLOCK_I >= patches) | (tile * TILE >= patches):  # smaller than the largest image
        _store_zeros(parts, rows, valid, channels, all_patches)
        return

    columns = tl.arange(0, BLOCK_J)
    lefts = first + tl.minimum(rows, patches - 1)
    rights0 = first + tl.minimum(tile * TILE + columns, patches - 1)
    rights1 = first + tl.minimum(tile * TILE + BLOCK_J + columns, patches - 1)
    fused0 = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    fused1 = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
    start, stop = share_of(maps, split, map_splits)
    at = tl.cast(tl.minimum(start, maps - 1), tl.int64)
    weight = tl.load(weights + at * weights_strides[1]).to(tl.float32)
    if not TRANSPOSED:
        sums = _lse_of(lse, lse_strides, at, lefts)
    for m in range(start, stop):
        at = tl.cast(m, tl.int64)
        x_map, y_map = x + at * x_strides[1], y + at * y_strides[1]
        left = take_rows(x_map, lefts, x_strides, 0, DIM, BLOCK_D)
        right0 = take_rows(y_map, rights0, y_strides, 0, DIM, BLOCK_D)
        right1 = take_rows(y_map, rights1, y_strides, 0, DIM, BLOCK_D)
        next = tl.cast(tl.minimum(m + 1, maps - 1), tl.int64)
        next_weight = tl.load(weights + next * weights_strides[1]).to(tl.float32)
        if TRANSPOSED:  # too many to be loaded a map ahead
            sums0 = _lse_of(lse, lse_strides, at, rights0)[None, :]
            sums1 = _lse_of(lse, lse_strides, at, rights1)[None, :]
        else:
            sums0 = sums[:, None]
            sums1 = sums0
            sums = _lse_of(lse, lse_strides, next, lefts)
        fused0 += weight * entries(
            *(left, right0, x_map, x_strides, lefts, y_map, y_strides, rights0),
            *(scale, sums0, DIM, BLOCK_D, PRECISION),
        )
        fused1 += weight * entries(
            *(left, right1, x_map, x_strides, lefts, y_map, y_strides, rights1),
            *(scale, sums1, DIM, BLOCK_D, PRECISION),
        )
        weight = next_weight

    values += before + tile * TILE
    left_over = patches - tile * TILE
    for _ in range(channels):
        result = _of_values(fused0, fused1, values, columns, left_over)
        tl.store(parts + rows, result / maps, mask=valid)
        values += all_patches
        parts += all_patches


@triton.jit
def _channels_of(x, strides, first, rows, valid, channels, BLOCK_C: tl.constexpr):
    """Channels from `first` on of x [P, C'], float32 [len(rows), BLOCK_C]."""
    x += first * strides[2]
    return load_rows(x, rows, valid, strides[1], strides[2], channels - first, BLOCK_C).to(
        tl.float32
    )


@triton.jit(
    do_not_specialize=["maps", "tokens", "most_patches", "channels"],
    do_not_specialize_on_alignment=["lse"],
)
def weights_kernel(
    q,
    q_strides,
    k,
    k_strides,
    lse,
    lse_strides,
    gradient,
    gradient_strides,
    values,
    values_strides,
    parts,
    table,
    maps,
    tokens,
    most_patches,
    channels,
    scale,
    PACKED: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
    VALUE_PRECISION: tl.constexpr,
):
    """A block of queries of one map: its part of Σ_ij A[i, j] · (gradient[i]·values[j])."""
    block, _, image, m = block_of_map(most_patches, maps, BLOCK_I)
    begin, own, patches, before = place(table, image, tokens, most_patches, PACKED)
    first = begin + own - patches
    if PACKED:
        gradient += before * gradient_strides[1]
        values += before * values_strides[1]
    else:
        q += image * q_strides[0]
        k += image * k_strides[0]
        lse += image * lse_strides[0]
        gradient += image * gradient_strides[0]
        values += image * values_strides[0]
    rows = block * BLOCK_I + tl.arange(0, BLOCK_I)
    here = rows < patches
    if block * BLOCK_I >= patches:  # the image is smaller than the largest
        tl.store(parts + tl.program_id(0), 0.0)
        return
    last = first + patches - 1
    lefts = tl.minimum(first + rows, last)
    q_map, k_map = q + m * q_strides[1], k + m * k_strides[1]
    queries = take_rows(q_map, lefts, q_strides, 0, DIM, BLOCK_D)
    sums = _lse_of(lse, lse_strides, m, lefts)
    total = tl.zeros([BLOCK_I], tl.float32)
    for start in range(0, patches, BLOCK_J):
        columns = start + tl.arange(0, BLOCK_J)
        there = columns < patches
        rights = tl.minimum(first + columns, last)
        keys = take_rows(k_map, rights, k_strides, 0, DIM, BLOCK_D)
        attention = entries(
            *(queries, keys, q_map, q_strides, lefts, k_map, k_strides, rights),
            *(scale, sums[:, None], DIM, BLOCK_D, PRECISION),
        )
        both = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        for channel in range(0, channels, BLOCK_C):
            slope = _channels_of(gradient, gradient_strides, channel, rows, here, channels, BLOCK_C)
            value = _channels_of(values, values_strides, channel, columns, there, channels, BLOCK_C)
            both += tl.dot(slope, tl.trans(value), input_precision=VALUE_PRECISION)
        inside = here[:, None] & there[None, :]
        total += tl.sum(tl.where(inside, attention * both, 0.0), 1)
    tl.store(parts + tl.program_id(0), tl.sum(total) / maps)
