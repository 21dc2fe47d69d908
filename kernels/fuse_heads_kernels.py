"""The kernels behind `weaktr.kernels.fuse_heads`. Strides come as tuples, one entry per axis."""

from __future__ import annotations

import triton
import triton.language as tl

from weaktr.kernels.common import load_lse, load_rows, log2_attention, place


@triton.jit
def _tokens_of(x, strides, m, tokens, valid, dim, BLOCK_D: tl.constexpr):
    """Rows of map m of x [M, N, d]: [len(tokens), BLOCK_D]."""
    return load_rows(x + m * strides[1], tokens, valid, strides[2], strides[3], dim, BLOCK_D)


@triton.jit
def _lse_of(lse, strides, m, tokens, valid):
    """log-sum-exp of rows of map m, base 2."""
    return load_lse(lse + m * strides[1], tokens, valid, strides[2])


@triton.jit
def _channels_of(x, strides, first, rows, valid, channels, BLOCK_C: tl.constexpr):
    """Channels from `first` on of x [P, C'], float32 [len(rows), BLOCK_C]."""
    x += first * strides[2]
    return load_rows(x, rows, valid, strides[1], strides[2], channels - first, BLOCK_C).to(
        tl.float32
    )


@triton.jit
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
    values_strides,
    parts,
    table,
    maps,
    tokens,
    most_patches,
    channels,
    dim,
    scale,
    splits,
    part_rows,
    PACKED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of rows and of channels of one image, over the blocks of columns of one split."""
    row_blocks = tl.cdiv(most_patches, BLOCK_I)
    channel_blocks = tl.cdiv(channels, BLOCK_C)
    program = tl.program_id(0)
    block = program % row_blocks
    split = program // row_blocks % splits
    channel = program // (row_blocks * splits) % channel_blocks * BLOCK_C
    image = (program // (row_blocks * splits * channel_blocks)).to(tl.int64)

    begin, own, patches, before = place(table, image, tokens, most_patches, PACKED)
    first = begin + own - patches
    weights += image * weights_strides[0]
    if PACKED:
        values += before * values_strides[1]
    else:
        x += image * x_strides[0]
        y += image * y_strides[0]
        lse += image * lse_strides[0]
        values += image * values_strides[0]
    rows = block * BLOCK_I + tl.arange(0, BLOCK_I)
    here = rows < patches
    result = tl.zeros([BLOCK_I, BLOCK_C], tl.float32)
    column_blocks = tl.where(block * BLOCK_I < patches, tl.cdiv(patches, BLOCK_J), 0)
    share = tl.cdiv(column_blocks, splits)
    for step in range(split * share, tl.minimum((split + 1) * share, column_blocks)):
        columns = step * BLOCK_J + tl.arange(0, BLOCK_J)
        there = columns < patches
        fused = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        for m in range(maps):
            at = tl.cast(m, tl.int64)
            left = _tokens_of(x, x_strides, at, first + rows, here, dim, BLOCK_D)
            right = _tokens_of(y, y_strides, at, first + columns, there, dim, BLOCK_D)
            logits = log2_attention(left, right, scale, PRECISION)
            if TRANSPOSED:
                logits -= _lse_of(lse, lse_strides, at, first + columns, there)[None, :]
            else:
                logits -= _lse_of(lse, lse_strides, at, first + rows, here)[:, None]
            weight = tl.load(weights + at * weights_strides[1]).to(tl.float32)
            fused += weight * tl.exp2(logits)
        fused = tl.where(there[None, :], fused, 0.0)
        value = _channels_of(values, values_strides, channel, columns, there, channels, BLOCK_C)
        result += tl.dot(fused, value, input_precision=PRECISION)
    into = channel + tl.arange(0, BLOCK_C)
    target = parts + (split.to(tl.int64) * part_rows + before + rows[:, None]) * channels
    valid = here[:, None] & (into < channels)[None, :]
    tl.store(target + into[None, :], result / maps, mask=valid)


@triton.jit
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
    dim,
    scale,
    PACKED: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A block of queries of one map: its part of Σ_ij A[i, j] · (gradient[i]·values[j])."""
    row_blocks = tl.cdiv(most_patches, BLOCK_I)
    program = tl.program_id(0)
    block = program % row_blocks
    m = (program // row_blocks % maps).to(tl.int64)
    image = (program // row_blocks // maps).to(tl.int64)

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
    queries = _tokens_of(q, q_strides, m, first + rows, here, dim, BLOCK_D)
    sums = _lse_of(lse, lse_strides, m, first + rows, here)
    total = tl.zeros([BLOCK_I], tl.float32)
    for start in range(0, tl.where(block * BLOCK_I < patches, patches, 0), BLOCK_J):
        columns = start + tl.arange(0, BLOCK_J)
        there = columns < patches
        keys = _tokens_of(k, k_strides, m, first + columns, there, dim, BLOCK_D)
        attention = tl.exp2(log2_attention(queries, keys, scale, PRECISION) - sums[:, None])
        both = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        for channel in range(0, channels, BLOCK_C):
            slope = _channels_of(gradient, gradient_strides, channel, rows, here, channels, BLOCK_C)
            value = _channels_of(values, values_strides, channel, columns, there, channels, BLOCK_C)
            both += tl.dot(slope, tl.trans(value), input_precision=PRECISION)
        inside = here[:, None] & there[None, :]
        total += tl.sum(tl.where(inside, attention * both, 0.0), 1)
    tl.store(parts + program, tl.sum(total) / maps)
