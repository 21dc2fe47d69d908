"""`fuse_heads`: the refined CAM from all attention maps of an image, without keeping any map.

    A_m[i, j]  = exp(q_mi·k_mj · scale − lse_mi)
    fine[i, c] = 1/M Σ_m w_m Σ_j A_m[i, j] · values[j, c]

with i, j over the P patch tokens (the last P of N). Softmax statistics `lse` are given, the value
matrix is shared by all M maps, every map has one weight.

Source: arXiv 2304.01184, section 3.2, equations of the adaptive attention fusion.
"""

from __future__ import annotations

import torch
from torch import Tensor

from weaktr.backends import pick
from weaktr.ops.head_stats import CHUNK_BYTES, check_attention_inputs, full_precision


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
        [B, P, C'] float32 (float64 for float64 input), detached.

    Raises:
        ValueError: shapes that do not fit together.
        BackendUnavailable: `backend` was named and cannot run.
    """
    if values.ndim != 3 or values.shape[0] != q.shape[0]:
        raise ValueError(f"values: expected [{q.shape[0]}, P, C'], got {tuple(values.shape)}")
    check_attention_inputs(q, k, values.shape[1])
    if lse.shape != q.shape[:3]:
        raise ValueError(f"lse: expected shape {tuple(q.shape[:3])}, got {tuple(lse.shape)}")
    if weights.shape != q.shape[:2]:
        raise ValueError(
            f"weights: expected shape {tuple(q.shape[:2])}, got {tuple(weights.shape)}"
        )
    run = pick("fuse_heads", q.device, backend)
    with torch.no_grad():
        fine: Tensor = run(
            q.detach(),
            k.detach(),
            lse,
            weights.detach(),
            values.detach(),
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
        )
    return fine


def fuse_heads_torch(
    q: Tensor, k: Tensor, lse: Tensor, weights: Tensor, values: Tensor, *, scale: float
) -> Tensor:
    """The definition, image by image, a bounded number of query rows at a time."""
    batch, maps, tokens, _ = q.shape
    patches = values.shape[1]
    first_patch = tokens - patches
    values = full_precision(values)
    share = (weights / maps).to(values.dtype)
    fine = torch.empty_like(values)
    step = max(1, CHUNK_BYTES // (maps * patches * values.element_size()))
    for image in range(batch):
        queries = full_precision(q[image, :, first_patch:]) * scale
        keys = full_precision(k[image, :, first_patch:]).transpose(1, 2)
        row_lse = lse[image, :, first_patch:].to(values.dtype)
        for start in range(0, patches, step):
            rows = slice(start, min(start + step, patches))
            attention = torch.baddbmm(
                row_lse[:, rows, None], queries[:, rows], keys, beta=-1
            ).exp_()
            mixed = (share[image] @ attention.flatten(1)).view(-1, patches)
            fine[image, rows] = mixed @ values[image]
    return fine
