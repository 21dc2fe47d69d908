"""`head_stats`: the two small statistics of every attention map that stage 1 needs.

For one head with queries q and keys k over N tokens, A = softmax(q kᵀ · scale). The first C tokens
are class tokens, the last P are patches; tokens between them (registers) only share the softmax.

    class_rows[c, j]   = A[c, N - P + j]                      class -> patch
    column_means[j]    = 1/P Σ_i A[N - P + i, N - P + j]      mean over patch queries

Because the fine logit averages the refined CAM over its pixels, these two are all that training
needs of a map: no [N, N] array outlives the call.

Source: arXiv 2304.01184, section 3.2 (cross attention and patch attention).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor

from weaktr.backends import pick
from weaktr.ops.attention_tiles import attention_logits, tiles


class HeadStats(NamedTuple):
    """What `head_stats` returns, in the dtype of q (float32 for half-precision lse)."""

    class_rows: Tensor  #: [B, H, C, P]
    column_means: Tensor | None  #: [B, H, P]; None where not asked for
    lse: Tensor  #: [B, H, N] log Σ_j exp(q_i·k_j · scale), float32 or wider


def head_stats(
    q: Tensor,
    k: Tensor,
    *,
    num_classes: int,
    num_patches: int,
    scale: float | None = None,
    lse: Tensor | None = None,
    column_means: bool = True,
    backend: str = "auto",
) -> HeadStats:
    """Class rows and patch column means of softmax attention, without gradient.

    Args:
        q: [B, H, N, d] queries after position encoding, floating point.
        k: [B, H, N, d] keys, same shape, dtype and device as q.
        num_classes: C >= 1, the class tokens at the front.
        num_patches: P >= 1, the patch tokens at the end; C + P <= N.
        scale: factor on q·k; 1/sqrt(d) where None.
        lse: [B, H, N] row log-sum-exp where it is known already.
        column_means: False skips them (inference needs only the class rows).
        backend: see `weaktr.backends.pick`.

    Returns:
        `HeadStats`, detached.

    Raises:
        ValueError: shapes that do not fit together.
        BackendUnavailable: `backend` was named and cannot run, or takes no such inputs.
    """
    check_attention_inputs(q, k, num_patches)
    if num_classes < 1 or num_classes + num_patches > q.shape[2]:
        raise ValueError(
            f"num_classes: expected 1 <= C and C + P <= N = {q.shape[2]}, "
            f"got C = {num_classes}, P = {num_patches}"
        )
    if lse is not None and lse.shape != q.shape[:3]:
        raise ValueError(f"lse: expected shape {tuple(q.shape[:3])}, got {tuple(lse.shape)}")
    settings = (scale, column_means, backend)
    return _run(q, k, lse, *settings, num_classes=num_classes, num_patches=num_patches)


def head_stats_ragged(
    q: Tensor,
    k: Tensor,
    *,
    num_classes: int,
    tokens: Sequence[int],
    patches: Sequence[int],
    scale: float | None = None,
    lse: Tensor | None = None,
    column_means: bool = True,
    backend: str = "auto",
) -> HeadStats:
    """`head_stats` of images of different sizes, packed one behind the other; B may be 0.

    Args:
        q: [H, ΣN, d] queries of all maps and images, floating point.
        k: [H, ΣN, d] keys, same shape, dtype and device.
        num_classes: C >= 1, the class tokens at the front of each image.
        tokens: N of each image, in order.
        patches: P of each image, its last tokens; C + P <= N.
        scale: factor on q·k; 1/sqrt(d) where None.
        lse: [H, ΣN] row log-sum-exp over the keys of the row's own image, where it is known.
        column_means: False skips them.
        backend: see `weaktr.backends.pick`.

    Returns:
        `HeadStats` of [H, C, ΣP], [H, ΣP] and [H, ΣN], detached.

    Raises:
        ValueError: shapes that do not fit together.
        BackendUnavailable: `backend` was named and cannot run, or takes no such inputs.
    """
    check_packing(q, tokens, patches)
    check_same_kind(q, k)
    if num_classes < 1 or any(
        num_classes + count > total for count, total in zip(patches, tokens, strict=True)
    ):
        raise ValueError(
            "num_classes: expected 1 <= C and C + P <= N for each image, "
            f"got C = {num_classes}, P = {list(patches)}, N = {list(tokens)}"
        )
    if lse is not None and lse.shape != q.shape[:2]:
        raise ValueError(f"lse: expected shape {tuple(q.shape[:2])}, got {tuple(lse.shape)}")
    packed = (q[None], k[None], None if lse is None else lse[None])
    stats = _run(
        *(*packed, scale, column_means, backend),
        num_classes=num_classes,
        num_patches=sum(patches),
        tokens=tokens,
        patches=patches,
    )
    means = None if stats.column_means is None else stats.column_means[0]
    return HeadStats(stats.class_rows[0], means, stats.lse[0])


def _run(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None,
    scale: float | None,
    column_means: bool,
    backend: str,
    **sizes: Any,
) -> HeadStats:
    dtypes = (q.dtype,) if lse is None else (q.dtype, lse.dtype)
    run = pick("head_stats", q.device, backend, dtypes=dtypes, head_dim=q.shape[-1])
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        result: HeadStats = run(
            q.detach(),
            k.detach(),
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            lse=lse,
            column_means=column_means,
            **sizes,
        )
    return result


def check_packing(q: Tensor, tokens: Sequence[int], patches: Sequence[int]) -> None:
    """Raise ValueError unless q is [M, ΣN, d] and `patches` are counts among those of `tokens`."""
    if q.ndim != 3 or not q.is_floating_point():
        raise ValueError(f"q: expected floating point [M, ΣN, d], got {q.dtype} {tuple(q.shape)}")
    if len(tokens) != len(patches) or any(
        not 0 <= count <= total for count, total in zip(patches, tokens, strict=False)
    ):
        raise ValueError(
            "patches: expected one number per image, from 0 to its number of tokens "
            f"{list(tokens)}, got {list(patches)}"
        )
    if q.shape[1] != sum(tokens):
        raise ValueError(f"tokens: expected a sum of ΣN = {q.shape[1]}, got {sum(tokens)}")


def check_attention_inputs(q: Tensor, k: Tensor, num_patches: int) -> None:
    """Raise ValueError unless q and k are [B, H, N, d] twins with 1 <= P <= N."""
    if q.ndim != 4 or not q.is_floating_point():
        raise ValueError(f"q: expected floating point [B, H, N, d], got {q.dtype} {tuple(q.shape)}")
    check_same_kind(q, k)
    if not 1 <= num_patches <= q.shape[2]:
        raise ValueError(f"num_patches: expected 1..{q.shape[2]}, got {num_patches}")


def check_same_kind(q: Tensor, k: Tensor) -> None:
    """Raise ValueError unless k has the shape, dtype and device of q."""
    if k.shape != q.shape or k.dtype != q.dtype or k.device != q.device:
        raise ValueError(
            f"k: expected shape {tuple(q.shape)}, {q.dtype} on {q.device} like q, "
            f"got {tuple(k.shape)}, {k.dtype} on {k.device}"
        )


def full_precision(x: Tensor) -> Tensor:
    """Half precision becomes float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


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
    """The definition, image by image if ragged.

    A ragged batch has a batch dimension of 1 before packed tokens and patches, which `tokens` and
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
