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

from itertools import product
from typing import NamedTuple

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
    dtypes = (q.dtype,) if lse is None else (q.dtype, lse.dtype)
    run = pick("head_stats", q.device, backend, dtypes=dtypes, head_dim=q.shape[-1])
    with torch.no_grad(), torch.autocast(q.device.type, enabled=False):
        result: HeadStats = run(
            q.detach(),
            k.detach(),
            num_classes=num_classes,
            num_patches=num_patches,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            lse=lse,
            column_means=column_means,
        )
    return result


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
) -> HeadStats:
    """The definition: explicit softmax, a bounded number of maps or query rows at a time."""
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
