"""`fuse_heads`: the refined CAM from all attention maps of an image, without keeping any map.

    A_m[i, j]  = exp(q_mi·k_mj · scale − lse_mi)
    fine[i, c] = 1/M Σ_m w_m Σ_j A_m[i, j] · values[j, c]

with i, j over the P patch tokens (the last P of N). Softmax statistics `lse` are given, the value
matrix is shared by all M maps, every map has one weight. The maps are constants, as in the method:
only the weights and the values get a gradient.

Source: arXiv 2304.01184, section 3.2, equations of the adaptive attention fusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weaktr.backends import pick
from weaktr.ops.attention_tiles import attention_logits, tiles
from weaktr.ops.head_stats import (
    check_attention_inputs,
    check_packing,
    check_same_kind,
    full_precision,
)

#: What computes one image, such as `fuse_image`.
Fuse = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


def fuse_heads(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    *,
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Weighted patch-attention refinement of `values`, accumulated over maps in float32.

    Args:
        q: [B, M, N, d] queries of all maps (layers stacked), floating point.
        k: [B, M, N, d] keys, same shape, dtype and device.
        lse: [B, M, N] row log-sum-exp of q·k · scale over all N keys.
        weights: [B, M] importance of each map, usually in (0, 1).
        values: [B, P, C'] what is spread, usually cross attention × coarse CAM; P <= N.
        scale: factor on q·k; 1/sqrt(d) where None.
        backend: see `weaktr.backends.pick`.

    Returns:
        [B, P, C'] float32 (float64 for float64 values), differentiable in `weights` and `values`;
        the maps are computed again for that gradient.

    Raises:
        ValueError: shapes that do not fit together.
        BackendUnavailable: `backend` was named and cannot run, or takes no such inputs.
    """
    if values.ndim != 3 or values.shape[0] != q.shape[0]:
        raise ValueError(f"values: expected [{q.shape[0]}, P, C'], got {tuple(values.shape)}")
    check_attention_inputs(q, k, values.shape[1])
    _check_statistics(lse, weights, q.shape[:3], q.shape[:2])
    return _run(q, k, lse, weights, values, scale, backend)


def fuse_heads_ragged(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    *,
    tokens: Sequence[int],
    patches: Sequence[int],
    scale: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """`fuse_heads` of images of different sizes, packed one behind the other; B may be 0.

    Args:
        q: [M, ΣN, d] queries of all maps and images, floating point.
        k: [M, ΣN, d] keys, same shape, dtype and device.
        lse: [M, ΣN] row log-sum-exp over the keys of the row's own image.
        weights: [B, M] importance of each map.
        values: [ΣP, C'] what is spread.
        tokens: N of each image, in order.
        patches: P of each image, at most its N; its last P tokens are the patches.
        scale: factor on q·k; 1/sqrt(d) where None.
        backend: see `weaktr.backends.pick`.

    Returns:
        [ΣP, C'] like `fuse_heads`.

    Raises:
        ValueError: shapes that do not fit together.
        BackendUnavailable: `backend` was named and cannot run, or takes no such inputs.
    """
    check_packing(q, tokens, patches)
    if values.ndim != 2 or values.shape[0] != sum(patches):
        raise ValueError(f"values: expected [{sum(patches)}, C'], got {tuple(values.shape)}")
    check_same_kind(q, k)
    _check_statistics(lse, weights, q.shape[:2], (len(tokens), q.shape[0]))
    batched = (q[None], k[None], lse[None], weights, values[None])
    return _run(*batched, scale, backend, tokens=tokens, patches=patches)[0]


def _check_statistics(
    lse: Tensor, weights: Tensor, lse_shape: tuple[int, ...], weights_shape: tuple[int, ...]
) -> None:
    for name, tensor, shape in (("lse", lse, lse_shape), ("weights", weights, weights_shape)):
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")


def _run(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    scale: float | None,
    backend: str,
    *,
    tokens: Sequence[int] | None = None,
    patches: Sequence[int] | None = None,
) -> Tensor:
    dtypes = (q.dtype, lse.dtype, weights.dtype, values.dtype)
    run = pick("fuse_heads", q.device, backend, dtypes=dtypes, head_dim=q.shape[-1])
    with torch.autocast(q.device.type, enabled=False):
        fine: Tensor = run(
            *(q.detach(), k.detach(), lse.detach(), weights, values),
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            tokens=tokens,
            patches=patches,
        )
    return fine


def fuse_heads_torch(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    *,
    scale: float,
    tokens: Sequence[int] | None = None,
    patches: Sequence[int] | None = None,
) -> Tensor:
    """The definition, image by image.

    A ragged batch has a batch dimension of 1 before packed tokens and patches, which `tokens` and
    `patches` count; `weights` are [B, M] all the same.
    """
    tensors = (q, k, lse, weights, values)
    return image_by_image(fuse_image, *tensors, scale=scale, tokens=tokens, patches=patches)


def image_by_image(
    fuse: Fuse,
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
    *,
    scale: float,
    tokens: Sequence[int] | None,
    patches: Sequence[int] | None,
    as_is: Sequence[torch.dtype] = (),
) -> Tensor:
    """`fuse_heads_torch`, with `fuse` in place of `fuse_image`; q and k are brought to float32 or
    wider, but for the dtypes `as_is`.
    """
    values = full_precision(values)
    weights = full_precision(weights).to(values.dtype)
    one = partial(_patches_of_image, fuse, scale, as_is)
    if tokens is None or patches is None:
        dense = list(map(one, q, k, lse, weights, values))
        return torch.stack(dense) if dense else torch.empty_like(values)
    sizes, counts = list(tokens), list(patches)
    packed = (x[0].split(sizes, 1) for x in (q, k, lse))
    parts = map(one, *packed, weights, values[0].split(counts))
    return torch.cat([values[0, :0], *parts])[None]


def _patches_of_image(
    fuse: Fuse,
    scale: float,
    as_is: Sequence[torch.dtype],
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    weights: Tensor,
    values: Tensor,
) -> Tensor:
    """q, k [M, N, d], lse [M, N], weights [M], values [P, C'] -> [P, C']."""
    first_patch = q.shape[1] - values.shape[0]
    queries, keys = (x[:, first_patch:] for x in (q, k))
    if q.dtype not in as_is:
        queries, keys = (full_precision(x).to(values.dtype) for x in (queries, keys))
    row_lse = lse[:, first_patch:].to(values.dtype)
    fine: Tensor = _FusedMaps.apply(fuse, queries, keys, row_lse, weights, values, scale)
    return fine


def fuse_image(
    q: Tensor, k: Tensor, lse: Tensor, weights: Tensor, values: Tensor, scale: float
) -> Tensor:
    """q, k [M, P, d], lse [M, P], weights [M], values [P, C'] -> [P, C'], without gradient."""
    fine = torch.empty_like(values)
    for rows, attention in _fused_rows(q, k, lse, weights, scale):
        fine[rows] = attention @ values
    return fine


class _FusedMaps(torch.autograd.Function):
    """`fuse` of one image, patch tokens only; maps are computed again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        fuse: Fuse,
        q: Tensor,
        k: Tensor,
        lse: Tensor,
        weights: Tensor,
        values: Tensor,
        scale: float,
    ) -> Tensor:
        """Arguments and result like those of `fuse_image`."""
        ctx.save_for_backward(q, k, lse, weights, values)
        ctx.scale = scale
        return fuse(q, k, lse, weights, values, scale)

    @staticmethod
    @once_differentiable  # whose stub loses the signature
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override]
        """The maps are constants: gradients in `weights` and `values` alone."""
        q, k, lse, weights, values = ctx.saved_tensors
        q, k = q.to(values.dtype), k.to(values.dtype)
        (gradient,) = gradients
        of_weights = of_values = None
        with torch.autocast(q.device.type, enabled=False):
            if ctx.needs_input_grad[4]:
                of_weights = _weights_gradient(q, k, lse, values, gradient, ctx.scale)
            if ctx.needs_input_grad[5]:
                of_values = torch.zeros_like(values)
                for rows, attention in _fused_rows(q, k, lse, weights, ctx.scale):
                    of_values += attention.T @ gradient[rows]
        return None, None, None, None, of_weights, of_values, None


def _weights_gradient(
    q: Tensor, k: Tensor, lse: Tensor, values: Tensor, gradient: Tensor, scale: float
) -> Tensor:
    """1/M Σ_ij A_m[i, j] · (gradient[i]·values[j]), [M]."""
    maps, patches, _ = q.shape
    sums = values.new_zeros(maps)
    for some, rows in product(*tiles(maps, patches, patches, q)):
        attention = _maps(q, k, lse, some, rows, scale)
        sums[some] += attention.flatten(1) @ (gradient[rows] @ values.T).flatten()
    return sums / maps


def _maps(q: Tensor, k: Tensor, lse: Tensor, some: slice, rows: slice, scale: float) -> Tensor:
    """Rows of some maps, [m, rows, P]."""
    return attention_logits(q[some, rows], k[some], scale, lse[some, rows]).exp_()


def _fused_rows(
    q: Tensor, k: Tensor, lse: Tensor, weights: Tensor, scale: float
) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the weighted mean of all maps, [rows, P] at a time."""
    maps, patches, _ = q.shape
    share = weights / maps
    cuts_of_maps, cuts_of_rows = tiles(maps, patches, patches, q)
    for rows in cuts_of_rows:
        fused = q.new_zeros(rows.stop - rows.start, patches)
        for some in cuts_of_maps:
            attention = _maps(q, k, lse, some, rows, scale)
            fused.view(-1).addmv_(attention.flatten(1).T, share[some])
        yield rows, fused
