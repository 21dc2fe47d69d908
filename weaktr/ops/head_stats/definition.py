"""The definition of `head_stats` in PyTorch."""

from __future__ import annotations

from itertools import product

import torch

from weaktr.ops.attention_maps import attention_logits, full_precision, tiles
from weaktr.ops.head_stats import HeadStats, HeadStatsInputs


def head_stats_torch(inputs: HeadStatsInputs) -> HeadStats:
    """The definition, image by image if packed."""
    q, k, lse, num_classes, _, scale, column_means, tokens, patches = inputs
    if not tokens or not patches:
        return _stats_of_maps(inputs)
    known = [None] * len(tokens) if lse is None else lse.split(tokens, 2)
    images = zip(q.split(tokens, 2), k.split(tokens, 2), known, patches, strict=True)
    parts = [
        _stats_of_maps(HeadStatsInputs(queries, keys, own, num_classes, count, scale, column_means))
        for queries, keys, own, count in images
    ]
    means = [part.column_means for part in parts if part.column_means is not None]
    return HeadStats(
        torch.cat([part.class_rows for part in parts], -1),
        torch.cat(means, -1) if column_means else None,
        torch.cat([part.lse for part in parts], -1),
    )


def _stats_of_maps(inputs: HeadStatsInputs) -> HeadStats:
    """Explicit softmax, a bounded number of maps or query rows at a time; not packed."""
    q, k, lse, num_classes, num_patches, scale, column_means, *_ = inputs
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
