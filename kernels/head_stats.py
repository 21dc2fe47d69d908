"""`weaktr.ops.head_stats` on a GPU: class rows and column means, no [N, N] map in memory.

Two launches. The first finds the log-sum-exp of every row, keys passing block by block. In the
second a program holds a block of keys (columns of the map), writes their entries in the class rows,
then sums them over the queries of all patches. Sums are in float32 and in a fixed order. A packed
batch takes the same launches, with as many blocks for each image as its largest one has.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weaktr.kernels.common import (
    CONFIGS,
    LIMITS_OF_ATTENTION,
    LN_2,
    LOG2_E,
    block_of_map,
    blocks_of,
    configs,
    configurations,
    dot_precision,
    dots,
    entries,
    image_of,
    is_wide,
    key_of_attention,
    packing_table,
    part_of,
    place,
    refusal_of_attention,
    side_by_side,
    take_lse,
    take_rows,
)
from weaktr.kernels.launching import launch
from weaktr.kernels.tuning import Config, best_config
from weaktr.ops.head_stats import HeadStats, HeadStatsInputs
from weaktr.ops.registry import takes
from weaktr.ops.tracing import needs_operator

#: Of wide rows (`is_wide`), of which blocks of 32 x 32 spill.
WIDE_CONFIGS = (*configurations((32, 16, 4, 1)), *CONFIGS[1:])
#: Class rows alone: of an image's few classes, 1 to 16 fit into a block.
ROWS_CONFIGS = configurations((16, 64, 4, 1))

#: `HeadStatsInputs`, with `lse` known, as torch writes it.
SCHEMA = (
    "Tensor q, Tensor k, Tensor lse, SymInt num_classes, SymInt num_patches, float scale, "
    "bool column_means, SymInt[]? tokens=None, SymInt[]? patches=None, Tensor? rows=None"
)


@takes(LIMITS_OF_ATTENTION, refusal_of_attention)
def head_stats_triton(inputs: HeadStatsInputs) -> HeadStats:
    """Like `head_stats_torch`."""
    q, k, lse, *settings = inputs
    lse_of, stats_of = attention_lse, attention_stats
    if needs_operator(q, k):
        lse_of, stats_of = lse_op, stats_op
    if lse is None:
        lse = lse_of(q, k, inputs.scale, inputs.tokens)
    class_rows, means = stats_of(q, k, lse, *settings)
    return HeadStats(class_rows, means if inputs.column_means else None, lse)


def attention_lse(q: Tensor, k: Tensor, scale: float, tokens: list[int] | None = None) -> Tensor:
    """log Σ_j exp(q_i·k_j · scale) over an image's keys: q, k [B, H, N, d] -> float32 [B, H, N].

    `tokens` counts those of each image of a packed batch: q, k [1, H, ΣN, d] -> [1, H, ΣN].
    """
    batch, heads, count, dim = q.shape
    lse = torch.empty(batch, heads, count, dtype=torch.float32, device=q.device)
    if lse.numel() == 0:
        return lse
    if scale < 0:  # the kernel takes the largest dot product for that of the largest logit
        q, scale = -q, -scale
    images = batch if tokens is None else len(tokens)
    most = count if tokens is None else max(tokens)
    table = None if tokens is None else packing_table(tokens, tokens, q.device)

    def run(config: Config) -> None:
        grid = (blocks_of(most, config["BLOCK_I"]) * images * heads,)
        launch(
            _lse_kernel,
            grid,
            *(q, q.stride(), k, k.stride(), lse, table, heads, count, most, scale),
            PACKED=table is not None,
            DIM=dim,
            BLOCK_D=part_of(dim, q.dtype),
            PRECISION=dot_precision(q.dtype),
            **config,
        )

    with torch.cuda.device_of(q):
        key = key_of_attention(q, most, images)
        run(best_config(_lse_kernel, key, stats_configs(q), run, q.device))
    return lse


lse_op = torch.library.custom_op("weaktr::attention_lse", attention_lse, mutates_args=())


@lse_op.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return q.new_empty(q.shape[:3], dtype=torch.float32)


def attention_stats(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Class rows [B, H, R, P] and column means [B, H, P] (none: [B, H, 0]), both float32."""
    inputs = HeadStatsInputs(*arguments)
    q, k, lse, _, num_patches, scale, column_means, tokens, patches, chosen = inputs
    num_rows = inputs.num_rows
    assert lse is not None
    lse = side_by_side(lse)
    batch, heads, count, dim = q.shape
    rows = torch.empty(batch, heads, num_rows, num_patches, dtype=torch.float32, device=q.device)
    means = rows.new_empty(batch, heads, num_patches if column_means else 0)
    if rows.numel() == 0:
        return rows, means
    images, most_tokens, most, table = batch, count, num_patches, None
    if tokens is not None and patches is not None:
        images, most_tokens, most = len(tokens), max(tokens), max(patches)
        table = packing_table(tokens, patches, q.device)

    def run(config: Config) -> None:
        grid = (blocks_of(most, config["BLOCK_J"]) * images * heads,)
        launch(
            _stats_kernel,
            grid,
            *(q, q.stride(), k, k.stride(), lse, lse.stride(), rows, means, table, chosen),
            *(heads, count, num_patches, most, num_rows, scale),
            PACKED=table is not None,
            CHOSEN=chosen is not None,
            MEANS=column_means,
            DIM=dim,
            BLOCK_D=part_of(dim, q.dtype),
            PRECISION=dot_precision(q.dtype),
            **config,
        )

    key = key_of_attention(q, most_tokens, images)
    with torch.cuda.device_of(q):
        chosen_from = stats_configs(q) if column_means else ROWS_CONFIGS
        run(best_config(_stats_kernel, key, chosen_from, run, q.device))
    return rows, means


stats_op = torch.library.custom_op(
    "weaktr::attention_stats",
    attention_stats,
    mutates_args=(),
    schema=f"({SCHEMA}) -> (Tensor, Tensor)",
)


@stats_op.register_fake
def _(*arguments: Any) -> tuple[Tensor, Tensor]:
    inputs = HeadStatsInputs(*arguments)
    maps, patches = inputs.q.shape[:2], inputs.num_patches
    rows = inputs.q.new_empty(*maps, inputs.num_rows, patches, dtype=torch.float32)
    return rows, rows.new_empty(*maps, patches if inputs.column_means else 0)


def stats_configs(q: Tensor) -> tuple[Config, ...]:
    """Candidates for both kernels."""
    return WIDE_CONFIGS if is_wide(q) else configs()


@triton.jit
def _lse_step(products, columns, own, factor, largest, total, EDGE: tl.constexpr):
    """A softmax goes over a further block of columns, products [R, C].

    A logit, base 2, is `factor` >= 0 times a product. largest [R] and total [R] are of the columns
    so far: their maximum, and their sum of exponentials under it. At the edge, where the last
    column is repeated, the columns below `own` count.
    """
    new = tl.maximum(largest, tl.max(products, 1) * factor)
    weights = tl.exp2(products * factor - new[:, None])
    if EDGE:
        weights = tl.where((columns < own)[None, :], weights, 0.0)
    return new, total * tl.exp2(largest - new) + tl.sum(weights, 1)


@triton.jit(do_not_specialize=["heads", "tokens", "most_tokens"])
def _lse_kernel(
    q,
    q_strides,
    k,
    k_strides,
    lse,
    table,
    heads,
    tokens,
    most_tokens,
    scale,
    PACKED: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries of one map: maximum and sum of exponentials, updated key by key."""
    block, index, image, head = block_of_map(most_tokens, heads, BLOCK_I)
    first, own, _, _ = place(table, image, tokens, tokens, PACKED)
    q = image_of(q, q_strides, image, head, first, PACKED)
    k = image_of(k, k_strides, image, head, first, PACKED)
    if PACKED:
        lse += head * tokens + first
    else:
        lse += index * tokens
    if block * BLOCK_I >= own:  # the image is smaller than the largest
        return
    rows = block * BLOCK_I + tl.arange(0, BLOCK_I)
    rows_at = tl.minimum(rows, own - 1)
    x = take_rows(q, rows_at, q_strides, 0, DIM, BLOCK_D)
    factor = scale * LOG2_E
    largest = tl.full([BLOCK_I], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_I], tl.float32)
    columns = tl.arange(0, BLOCK_J)
    whole = own // BLOCK_J * BLOCK_J
    for start in range(0, whole, BLOCK_J):
        columns_at = start + columns
        y = take_rows(k, columns_at, k_strides, 0, DIM, BLOCK_D)
        products = dots(
            *(x, y, q, q_strides, rows_at, k, k_strides, columns_at), DIM, BLOCK_D, PRECISION
        )
        largest, total = _lse_step(products, columns, own, factor, largest, total, False)
    if whole < own:
        columns += whole
        columns_at = tl.minimum(columns, own - 1)
        y = take_rows(k, columns_at, k_strides, 0, DIM, BLOCK_D)
        products = dots(
            *(x, y, q, q_strides, rows_at, k, k_strides, columns_at), DIM, BLOCK_D, PRECISION
        )
        largest, total = _lse_step(products, columns, own, factor, largest, total, True)
    result = (largest + tl.log2(total)) * LN_2
    tl.store(lse + rows, result, mask=rows < own)


@triton.jit(
    do_not_specialize=["heads", "tokens", "num_patches", "most_patches", "num_rows"],
    do_not_specialize_on_alignment=["lse", "chosen"],
)
def _stats_kernel(
    q,
    q_strides,
    k,
    k_strides,
    lse,
    lse_strides,
    class_rows,
    means,
    table,
    chosen,
    heads,
    tokens,
    num_patches,
    most_patches,
    num_rows,
    scale,
    PACKED: tl.constexpr,
    CHOSEN: tl.constexpr,
    MEANS: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of keys of one map: its entries in the class rows, its sum over patch queries."""
    block, index, image, head = block_of_map(most_patches, heads, BLOCK_J)
    first, own, patches, before = place(table, image, tokens, num_patches, PACKED)
    q = image_of(q, q_strides, image, head, first, PACKED)
    k = image_of(k, k_strides, image, head, first, PACKED)
    lse += head * lse_strides[1]
    if PACKED:
        lse += first
        class_rows += head * num_rows * num_patches + before
        means += head * num_patches + before
    else:
        lse += image * lse_strides[0]
        class_rows += index * num_rows * num_patches
        means += index * num_patches
    if block * BLOCK_J >= patches:  # the image is smaller than the largest
        return
    columns = block * BLOCK_J + tl.arange(0, BLOCK_J)
    inside = columns < patches
    ahead = own - patches  # class and register tokens
    keys_at = ahead + tl.minimum(columns, patches - 1)
    keys = take_rows(k, keys_at, k_strides, 0, DIM, BLOCK_D)
    for start in range(0, num_rows, BLOCK_I):
        rows = start + tl.arange(0, BLOCK_I)
        classes = tl.minimum(rows, num_rows - 1)
        if CHOSEN:
            classes = tl.load(chosen + image * num_rows + classes)
        queries = take_rows(q, classes, q_strides, 0, DIM, BLOCK_D)
        attention = entries(
            *(queries, keys, q, q_strides, classes, k, k_strides, keys_at),
            *(scale, take_lse(lse, classes)[:, None], DIM, BLOCK_D, PRECISION),
        )
        target = class_rows + rows.to(tl.int64)[:, None] * num_patches + columns[None, :]
        tl.store(target, attention, mask=(rows < num_rows)[:, None] & inside[None, :])
    if MEANS:
        total = tl.zeros([BLOCK_J], tl.float32)
        for start in range(ahead, own, BLOCK_I):
            rows = start + tl.arange(0, BLOCK_I)
            queries_at = tl.minimum(rows, own - 1)
            queries = take_rows(q, queries_at, q_strides, 0, DIM, BLOCK_D)
            attention = entries(
                *(queries, keys, q, q_strides, queries_at, k, k_strides, keys_at),
                *(scale, take_lse(lse, queries_at)[:, None], DIM, BLOCK_D, PRECISION),
            )
            total += tl.sum(tl.where((rows < own)[:, None], attention, 0.0), 0)
        tl.store(means + columns, total / patches, mask=inside)
