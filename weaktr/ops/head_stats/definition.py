"""The definition of `head_stats` in PyTorch."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor

from weaktr.ops.attention_inputs import full_precision
from weaktr.ops.attention_tiles import attention_logits, tiles
from weaktr.ops.head_stats import HeadStats


def head_stats_torch(
    q: Tensor,
    k: Tensor,
    *,
    num_classes: int,
    num_patches: int,
    scale: float,
    lse: Tensor | None,
    column_means: bool,
    tokens: Sequence[int] | None = None,
    patches: Sequence[int] | None = None,
) -> HeadStats:
    """The definition, image by image if packed.

    A packed batch has a batch dimension of 1 before packed tokens and patches, which `tokens` and
    `patches` count; `num_patches` is the sum of these.
    """
    stats = partial(_stats_of_maps, num_classes=num_classes, scale=scale, column_means=column_means)
    if not tokens or not patches:
        return stats(q, k, lse, num_patches=num_patches)
    pieces = [x.split(list(tokens), 2) for x in (q, k)]
    known = [None] * len(tokens) if lse is None else lse.split(list(tokens), 2)
    parts = [
        stats(*image, num_patches=count)
        for *image, count in zip(*pieces, known, patches, strict=True)
    ]
    means = [part.column_means for part in parts if part.column_means is not None]
    return HeadStats(
        torch.cat([part.class_rows for part in parts], -1),
        torch.cat(means, -1) if column_means else None,
        torch.cat([part.lse for part in parts], -1),
    )


def _stats_of_maps(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None,
    *,
    num_classes: int,
    num_patches: int,
    scale: float,
    column_means: bool,
) -> HeadStats:
    """Explicit softmax, a bounded number of maps or query rows at a time."""
    batch, heads, tokens, _ = q.shape
    maps, first_patch = batch * heads, tokens - num_patches
    queries, keys = (full_precision(x).flatten(0, 1) for x in (q, k))
    known = None if lse is None else lse.reshape(maps, tokens).to(queries.dtype)
    rows_lse = queries.new_empty(maps, tokens) if known is None else known
    class_rows = queries.new_empty(maps, num_classes, num_patches)
    sums = queries.new_zeros(maps, num_patches)
    needed = tokens if known is None or column_means else num_classes
    for some, rows in product(*tiles(maps, needed, tokens, queries)):
        part = None if known is None else known[some, rows]
        logits = attention_logits(queries[some, rows], keys[some], scale, part)
        if part is None:
            part = rows_lse[some, rows] = logits.logsumexp(-1)
            logits -= part[..., None]
        attention = logits.exp_()[..., first_patch:]
        ahead = slice(rows.start, min(rows.stop, num_classes))
        class_rows[some, ahead] = attention[:, : max(0, num_classes - rows.start)]
        if column_means:
            sums[some] += attention[:, max(0, first_patch - rows.start) :].sum(1)
    return HeadStats(
        class_rows.view(batch, heads, num_classes, num_patches),
        (sums / num_patches).view(batch, heads, num_patches) if column_means else None,
        rows_lse.view(batch, heads, tokens),
    )
