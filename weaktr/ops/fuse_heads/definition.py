"""The definition of `fuse_heads` in PyTorch; image by image, with the gradient of all twins."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weaktr.ops.attention_maps import attention_logits, full_precision, tiles
from weaktr.ops.fuse_heads import FuseHeadsInputs

#: What computes one image, such as `fuse_image`.
Fuse = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]


def fuse_heads_torch(inputs: FuseHeadsInputs) -> Tensor:
    """The definition, image by image."""
    return image_by_image(fuse_image, inputs)


def image_by_image(
    fuse: Fuse, inputs: FuseHeadsInputs, as_is: Sequence[torch.dtype] = ()
) -> Tensor:
    """`fuse_heads_torch`, with `fuse` in place of `fuse_image`; q and k are brought to float32 or
    wider, but for the dtypes `as_is`.
    """
    *maps, weights, values, scale, tokens, patches = inputs
    values = full_precision(values)
    weights = full_precision(weights).to(values.dtype)
    one = partial(_patches_of_image, fuse, scale, as_is)
    if tokens is None or patches is None:
        dense = list(map(one, *maps, weights, values))
        return torch.stack(dense) if dense else torch.empty_like(values)
    packed = (x[0].split(tokens, 1) for x in maps)
    parts = map(one, *packed, weights, values[0].split(patches))
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
    def forward(ctx: Any, fuse: Fuse, *arguments: Any) -> Tensor:
        """`arguments` and result like those of `fuse_image`."""
        *tensors, ctx.scale = arguments
        ctx.save_for_backward(*tensors)
        return fuse(*arguments)

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
