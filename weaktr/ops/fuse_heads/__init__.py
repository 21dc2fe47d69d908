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

import torch
from torch import Tensor

from weaktr.ops.attention_inputs import (
    check_attention_inputs,
    check_packing,
    check_same_kind,
)
from weaktr.ops.attention_inputs import (
    full_precision as full_precision,
)
from weaktr.ops.registry import pick


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
        backend: see `weaktr.ops.registry.pick`.

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
        backend: see `weaktr.ops.registry.pick`.

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
