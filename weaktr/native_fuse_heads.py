"""`fuse_heads` in C++; importing this raises ImportError where the extension was not built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weaktr._native import fuse_heads_cpu as native_fuse_heads
from weaktr.native_torch import with_whole_rows
from weaktr.ops.fuse_heads import image_by_image

LIMITS = "float16, bfloat16, float32"


def refusal(device_type: str, dtypes: Sequence[torch.dtype], **_: Any) -> str:
    """Why the C++ code does not take such inputs, "" where it does."""
    if device_type != "cpu":
        return f"it runs on CPU tensors, got {device_type}"
    if torch.float64 in dtypes:
        return f"it takes {LIMITS}, got float64"
    return ""


def fuse_heads_cpu(
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
    """Like `weaktr.ops.fuse_heads.fuse_heads_torch`; computed in float32, with torch's threads.

    A thread holds 64 rows of the mean of all maps; the result does not depend on their number. The
    gradient is the definition's.
    """
    tensors = (q, k, lse, weights, values)
    return image_by_image(fuse_op, *tensors, scale=scale, tokens=tokens, patches=patches)


@torch.library.custom_op("weaktr::fuse_image_cpu", mutates_args=(), device_types="cpu")
def fuse_op(
    q: Tensor, k: Tensor, lse: Tensor, weights: Tensor, values: Tensor, scale: float
) -> Tensor:
    """q, k [M, P, d], lse [M, P], weights [M], values [P, C'], all float32 -> [P, C']."""
    fine = native_fuse_heads(
        with_whole_rows(q).numpy(),
        with_whole_rows(k).numpy(),
        lse.numpy(),
        weights.contiguous().numpy(),
        values.contiguous().numpy(),
        scale,
        torch.get_num_threads(),
    )
    return torch.from_numpy(fine)


@fuse_op.register_fake
def _(q: Tensor, k: Tensor, lse: Tensor, weights: Tensor, values: Tensor, scale: float) -> Tensor:
    return values.new_empty(values.shape)
