"""The definition of `head_stats` in PyTorch."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from weaktr.ops.attention_maps import attention_logits, full_precision, tiles
from weaktr.ops.head_stats import HeadStats, HeadStatsInputs


def head_stats_torch(inputs: HeadStatsInputs) -> HeadStats:
    """The definition, image by image if packed."""
    q, k, lse, num_classes, _, scale, column_means, tokens, patches, rows = inputs
    if not tokens or not patches:
        return _stats_of_maps(inputs)
    if rows is not None and lse is not None and not column_means:
        return HeadStats(_chosen_rows(inputs), None, full_precision(lse))
    known = [None] * len(tokens) if lse is None else lse.split(tokens, 2)
    images = zip(q.split(tokens, 2), k.split(tokens, 2), known, patches, strict=True)
    parts = [
        _stats_of_maps(HeadStatsInputs(queries, keys, own, num_classes, count, scale, column_means))
        for queries, keys, own, count in images
    ]
    means = [part.column_means for part in parts if part.column_means is not None]
    class_rows = [part.class_rows for part in parts]
    if rows is not None:
        class_rows = [all_rows[:, :, own] for all_rows, own in zip(class_rows, rows, strict=True)]
    return HeadStats(
        torch.cat(class_rows, -1),
        torch.cat(means, -1) if column_means else None,
        torch.cat([part.lse for part in parts], -1),
    )


def _chosen_rows(inputs: HeadStatsInputs) -> Tensor:
    """[1, H, R, ΣP], the rows of some class tokens of packed images, of known log-sum-exp."""
    q, k, lse, *_, tokens, patches, rows = inputs
    assert lse is not None and tokens is not None and patches is not None and rows is not None
    parts = []
    images = zip(*(x[0].split(tokens, 1) for x in (q, k, lse)), patches, rows, strict=True)
    for queries, keys, own_lse, count, own in images:
        first_patch = keys.shape[1] - count
        chosen, columns = (full_precision(x) for x in (queries[:, own], keys[:, first_patch:]))
        logits = attention_logits(chosen, columns, inputs.scale, own_lse[:, own].to(columns.dtype))
        parts.append(logits.exp_())
    return torch.cat(parts, -1)[None]


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
