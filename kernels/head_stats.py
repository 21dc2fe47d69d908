"""`weaktr.ops.head_stats` on a GPU: class rows and column means, no [N, N] map in memory.

Two launches. The first finds the log-sum-exp of every row, keys passing block by block. In the
second a program holds a block of keys (columns of the map), writes their entries in the class rows,
then sums them over the queries of all patches. Sums are in float32 and in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from weaktr.kernels.common import (
    block_of,
    configs_of,
    dot_precision,
    load_lse,
    load_rows,
    log2_attention,
    refusal_of_attention,
)
from weaktr.kernels.tuning import Config, best_config, bucket
from weaktr.ops.head_stats import HeadStats

refusal = refusal_of_attention


def head_stats_triton(
    q: Tensor,
    k: Tensor,
    *,
    num_classes: int,
    num_patches: int,
    scale: float,
    lse: Tensor | None,
    column_means: bool,
) -> HeadStats:
    """Like `weaktr.ops.head_stats.head_stats_torch`; q and k of any strides."""
    if lse is None:
        lse = attention_lse(q, k, scale)
    class_rows, means = attention_stats(q, k, lse, num_classes, num_patches, scale, column_means)
    return HeadStats(class_rows, means if column_means else None, lse)


@torch.library.custom_op("weaktr::attention_lse", mutates_args=())
def attention_lse(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """log Σ_j exp(q_i·k_j · scale): q, k [B, H, N, d] -> float32 [B, H, N]."""
    batch, heads, tokens, dim = q.shape
    lse = torch.empty(batch, heads, tokens, dtype=torch.float32, device=q.device)
    if lse.numel() == 0:
        return lse

    def launch(config: Config) -> None:
        grid = (triton.cdiv(tokens, config["BLOCK_I"]) * batch * heads,)
        _lse_kernel[grid](
            *(q, q.stride(), k, k.stride(), lse, heads, tokens, dim, scale),
            BLOCK_D=block_of(dim),
            PRECISION=dot_precision(),
            **config,
        )

    with torch.cuda.device_of(q):
        launch(best_config(_lse_kernel, _key(q), configs_of(q), launch, q.device))
    return lse


@attention_lse.register_fake
def _(q: Tensor, k: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("weaktr::attention_stats", mutates_args=())
def attention_stats(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    num_classes: int,
    num_patches: int,
    scale: float,
    column_means: bool,
) -> tuple[Tensor, Tensor]:
    """Class rows [B, H, C, P] and column means [B, H, P] (none: [B, H, 0]), both float32."""
    batch, heads, tokens, dim = q.shape
    rows = torch.empty(batch, heads, num_classes, num_patches, dtype=torch.float32, device=q.device)
    means = rows.new_empty(batch, heads, num_patches if column_means else 0)
    if rows.numel() == 0:
        return rows, means

    def launch(config: Config) -> None:
        grid = (triton.cdiv(num_patches, config["BLOCK_J"]) * batch * heads,)
        _stats_kernel[grid](
            *(q, q.stride(), k, k.stride(), lse, lse.stride(), rows, means),
            *(heads, tokens, dim, num_classes, num_patches, scale),
            MEANS=column_means,
            BLOCK_D=block_of(dim),
            PRECISION=dot_precision(),
            **config,
        )

    key = (*_key(q), bucket(num_classes), int(column_means))
    with torch.cuda.device_of(q):
        launch(best_config(_stats_kernel, key, configs_of(q), launch, q.device))
    return rows, means


@attention_stats.register_fake
def _(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    num_classes: int,
    num_patches: int,
    scale: float,
    column_means: bool,
) -> tuple[Tensor, Tensor]:
    batch, heads = q.shape[:2]
    rows = q.new_empty(batch, heads, num_classes, num_patches, dtype=torch.float32)
    return rows, rows.new_empty(batch, heads, num_patches if column_means else 0)


def _key(q: Tensor) -> tuple[int | str, ...]:
    batch, heads, tokens, dim = q.shape
    return (str(q.dtype), dot_precision(), dim, bucket(tokens), bucket(batch * heads))


@triton.jit
def _lse_kernel(
    q,
    q_strides,
    k,
    k_strides,
    lse,
    heads,
    tokens,
    dim,
    scale,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries of one map: maximum and sum of exponentials, updated key by key."""
    blocks = tl.cdiv(tokens, BLOCK_I)
    index = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = index // heads, index % heads
    q += image * q_strides[0] + head * q_strides[1]
    k += image * k_strides[0] + head * k_strides[1]
    rows = (tl.program_id(0) % blocks) * BLOCK_I + tl.arange(0, BLOCK_I)
    queries = load_rows(q, rows, rows < tokens, q_strides[2], q_strides[3], dim, BLOCK_D)
    largest = tl.full([BLOCK_I], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_I], tl.float32)
    for start in range(0, tokens, BLOCK_J):
        columns = start + tl.arange(0, BLOCK_J)
        keys = load_rows(k, columns, columns < tokens, k_strides[2], k_strides[3], dim, BLOCK_D)
        logits = log2_attention(queries, keys, scale, PRECISION)
        logits = tl.where((columns < tokens)[None, :], logits, float("-inf"))
        new = tl.maximum(largest, tl.max(logits, 1))
        total = total * tl.exp2(largest - new) + tl.sum(tl.exp2(logits - new[:, None]), 1)
        largest = new
    result = (largest + tl.log2(total)) * 0.6931471805599453
    tl.store(lse + index * tokens + rows, result, mask=rows < tokens)


@triton.jit
def _stats_kernel(
    q,
    q_strides,
    k,
    k_strides,
    lse,
    lse_strides,
    class_rows,
    means,
    heads,
    tokens,
    dim,
    num_classes,
    num_patches,
    scale,
    MEANS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of keys of one map: its entries in the class rows, its sum over patch queries."""
    blocks = tl.cdiv(num_patches, BLOCK_J)
    index = (tl.program_id(0) // blocks).to(tl.int64)
    image, head = index // heads, index % heads
    q += image * q_strides[0] + head * q_strides[1]
    k += image * k_strides[0] + head * k_strides[1]
    lse += image * lse_strides[0] + head * lse_strides[1]
    class_rows += index * num_classes * num_patches
    first = tokens - num_patches
    columns = (tl.program_id(0) % blocks) * BLOCK_J + tl.arange(0, BLOCK_J)
    inside = columns < num_patches
    keys = load_rows(k, first + columns, inside, k_strides[2], k_strides[3], dim, BLOCK_D)
    for start in range(0, num_classes, BLOCK_I):
        rows = start + tl.arange(0, BLOCK_I)
        valid = rows < num_classes
        queries = load_rows(q, rows, valid, q_strides[2], q_strides[3], dim, BLOCK_D)
        logits = log2_attention(queries, keys, scale, PRECISION)
        attention = tl.exp2(logits - load_lse(lse, rows, valid, lse_strides[2])[:, None])
        target = class_rows + rows.to(tl.int64)[:, None] * num_patches + columns[None, :]
        tl.store(target, attention, mask=valid[:, None] & inside[None, :])
    if MEANS:
        total = tl.zeros([BLOCK_J], tl.float32)
        for start in range(first, tokens, BLOCK_I):
            rows = start + tl.arange(0, BLOCK_I)
            valid = rows < tokens
            queries = load_rows(q, rows, valid, q_strides[2], q_strides[3], dim, BLOCK_D)
            logits = log2_attention(queries, keys, scale, PRECISION)
            attention = tl.exp2(logits - load_lse(lse, rows, valid, lse_strides[2])[:, None])
            total += tl.sum(tl.where(valid[:, None], attention, 0.0), 0)
        tl.store(means + index * num_patches + columns, total / num_patches, mask=inside)
