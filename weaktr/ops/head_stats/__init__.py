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
from typing import NamedTuple

import torch
from torch import Tensor

from weaktr.ops.attention_maps import (
    check_attention_inputs,
    check_packing,
    check_same_kind,
    constant,
)
from weaktr.ops.registry import Backend, Op, Triton, register
from weaktr.ops.tracing import without_autocast
from weaktr.ops.upload import upload_table

OP = register(
    Op(
        "head_stats",
        backends=(
            Triton("weaktr.kernels.head_stats"),
            Backend("torch", "weaktr.ops.head_stats.definition"),
        ),
        usual={"dtypes": (torch.float32,), "head_dim": 64},
    )
)


class HeadStatsInputs(NamedTuple):
    """What the backends take, checked and without gradient.

    A packed batch has a B of 1 before its packed tokens and patches, [1, H, ΣN, d]; `tokens` and
    `patches` say how many are an image's.
    """

    q: Tensor  #: [B, H, N, d] floating point, of any strides
    k: Tensor  #: [B, H, N, d], same dtype and device
    lse: Tensor | None  #: [B, H, N] row log-sum-exp of q·k · scale, where it is known
    num_classes: int  #: C, of every image
    num_patches: int  #: P, of a packed batch ΣP
    scale: float  #: factor on q·k
    column_means: bool  #: whether they are wanted
    tokens: list[int] | None = None  #: N of each packed image
    patches: list[int] | None = None  #: P of each packed image
    #: int64 [images, R] in 0..C-1, on the device of q: the class tokens whose rows are wanted of
    #: each packed image; None = all C
    rows: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """How many class rows an image gets."""
        return self.num_classes if self.rows is None else self.rows.shape[1]


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
        backend: see `weaktr.ops.registry.Op.pick`.

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
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    inputs = HeadStatsInputs(
        constant(q), constant(k), lse, num_classes, num_patches, scale, column_means
    )
    return _run(inputs, backend)


def head_stats_packed(
    q: Tensor,
    k: Tensor,
    *,
    num_classes: int,
    tokens: Sequence[int],
    patches: Sequence[int],
    scale: float | None = None,
    lse: Tensor | None = None,
    column_means: bool = True,
    classes: Sequence[Sequence[int]] | None = None,
    backend: str = "auto",
) -> HeadStats:
    """`head_stats` of images of different sizes, packed one after another; B may be 0.

    Args:
        q: [H, ΣN, d] queries of all maps and images, floating point.
        k: [H, ΣN, d] keys, same shape, dtype and device.
        num_classes: C >= 1, the class tokens at the front of each image.
        tokens: N of each image, in order.
        patches: P of each image, its last tokens; C + P <= N.
        scale: factor on q·k; 1/sqrt(d) where None.
        lse: [H, ΣN] row log-sum-exp over the keys of the row's own image, where it is known.
        column_means: False skips them.
        classes: for each image the class tokens whose rows are wanted; None = all of them, which
            for many classes is much work and memory.
        backend: see `weaktr.ops.registry.Op.pick`.

    Returns:
        `HeadStats` of [H, C, ΣP], [H, ΣP] and [H, ΣN], detached. With `classes` the class rows are
        [H, R, ΣP], R the largest number of classes of an image, at least 1; those beyond an image's
        own classes mean nothing.

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
    if classes is not None and (
        len(classes) != len(tokens)
        or any(not 0 <= index < num_classes for own in classes for index in own)
    ):
        raise ValueError(
            f"classes: expected a list of indices 0..{num_classes - 1} for each of the "
            f"{len(tokens)} images, got {[list(own) for own in classes]}"
        )
    inputs = HeadStatsInputs(
        constant(q)[None],
        constant(k)[None],
        None if lse is None else lse[None],
        num_classes,
        sum(patches),
        q.shape[-1] ** -0.5 if scale is None else scale,
        column_means,
        list(tokens),
        list(patches),
        None if classes is None else _classes_table(classes, q.device),
    )
    stats = _run(inputs, backend)
    means = None if stats.column_means is None else stats.column_means[0]
    return HeadStats(stats.class_rows[0], means, stats.lse[0])


def _classes_table(classes: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """int64 [images, R]: the classes of each image, then zeros."""
    width = max(1, *map(len, classes)) if classes else 1
    rows = [[*own, *[0] * (width - len(own))] for own in classes]
    return upload_table(rows, width, device)


def _run(inputs: HeadStatsInputs, backend: str) -> HeadStats:
    q, lse = inputs.q, inputs.lse
    dtypes = (q.dtype,) if lse is None else (q.dtype, lse.dtype)
    run = OP.pick(q.device, backend, dtypes=dtypes, head_dim=q.shape[-1])
    with torch.no_grad(), without_autocast(q.device.type):
        stats: HeadStats = run(inputs)
    return stats
