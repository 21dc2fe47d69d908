"""`fuse_heads`: the refined CAM from all attention maps of an image, without keeping any map.

    A_m[i, j]  = exp(q_mi·k_mj · scale − lse_mi)
    fine[i, c] = 1/M Σ_m w_m Σ_j A_m[i, j] · values[j, c]

with i, j over the P patch tokens (the last P of N). Softmax statistics `lse` are given, the value
matrix is shared by all M maps, every map has one weight. The maps are constants, as in the method:
only the weights and the values get a gradient.

Source: arXiv 2304.01184, section 3.2, equations of the adaptive attention fusion.
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

OP = register(
    Op(
        "fuse_heads",
        backends=(
            Triton("weaktr.kernels.fuse_heads"),
            Backend("cpu", "weaktr.ops.fuse_heads.cpu", devices=("cpu",)),
            Backend("torch", "weaktr.ops.fuse_heads.definition"),
        ),
        usual={"dtypes": (torch.float32,), "head_dim": 64},
    )
)


class FuseHeadsInputs(NamedTuple):
    """What the backends take, checked.

    A packed batch has a batch dimension of 1 before its packed tokens and patches, [1, M, ΣN, d]
    and [1, ΣP, C']; `tokens` and `patches` say how many are an image's.
    """

    q: Tensor  #: [B, M, N, d] floating point without gradient; all tensors of any strides
    k: Tensor  #: [B, M, N, d] without gradient, same dtype and device
    lse: Tensor  #: [B, M, N] without gradient, row log-sum-exp of q·k · scale
    weights: Tensor  #: [B, M], of a packed batch too
    values: Tensor  #: [B, P, C']
    scale: float  #: factor on q·k
    tokens: list[int] | None = None  #: N of each packed image
    patches: list[int] | None = None  #: P of each packed image


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
        backend: see `weaktr.ops.registry.Op.pick`.

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
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    maps = (constant(q), constant(k), constant(lse))
    return _run(FuseHeadsInputs(*maps, weights, values, scale), backend)


def fuse_heads_packed(
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
    """`fuse_heads` of images of different sizes, packed one after another; B may be 0.

    Args:
        q: [M, ΣN, d] queries of all maps and images, floating point.
        k: [M, ΣN, d] keys, same shape, dtype and device.
        lse: [M, ΣN] row log-sum-exp over the keys of the row's own image.
        weights: [B, M] importance of each map.
        values: [ΣP, C'] what is spread.
        tokens: N of each image, in order.
        patches: P of each image, at most its N; its last P tokens are the patches.
        scale: factor on q·k; 1/sqrt(d) where None.
        backend: see `weaktr.ops.registry.Op.pick`.

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
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    maps = (constant(q)[None], constant(k)[None], constant(lse)[None])
    sizes = (list(tokens), list(patches))
    return _run(FuseHeadsInputs(*maps, weights, values[None], scale, *sizes), backend)[0]


def _check_statistics(
    lse: Tensor, weights: Tensor, lse_shape: tuple[int, ...], weights_shape: tuple[int, ...]
) -> None:
    for name, tensor, shape in (("lse", lse, lse_shape), ("weights", weights, weights_shape)):
        if tensor.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(tensor.shape)}")


def _run(inputs: FuseHeadsInputs, backend: str) -> Tensor:
    q, _, lse, weights, values, *_ = inputs
    dtypes = (q.dtype, lse.dtype, weights.dtype, values.dtype)
    run = OP.pick(q.device, backend, dtypes=dtypes, head_dim=q.shape[-1])
    with without_autocast(q.device.type):
        fine: Tensor = run(inputs)
    return fine
