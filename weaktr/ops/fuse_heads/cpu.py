"""`fuse_heads` in C++; importing this raises ImportError where the extension was not built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weaktr._native import fuse_heads_cpu as native_fuse_heads
from weaktr._native import fuse_heads_cpu_bfloat16 as native_bfloat16
from weaktr._native import has_bfloat16
from weaktr.ops.fuse_heads import FuseHeadsInputs
from weaktr.ops.fuse_heads.definition import image_by_image
from weaktr.ops.native import with_whole_rows
from weaktr.ops.registry import takes

LIMITS = "float16, bfloat16, float32"
#: Types of queries and keys that are multiplied as they are.
AS_IS = (torch.bfloat16,) if has_bfloat16() else ()


def refusal(dtypes: Sequence[torch.dtype], **_: Any) -> str:
    """Why the C++ code does not take inputs of such dtypes, "" where it does."""
    return f"it takes {LIMITS}, got float64" if torch.float64 in dtypes else ""


@takes(LIMITS, refusal)
def fuse_heads_cpu(inputs: FuseHeadsInputs) -> Tensor:
    """Like `fuse_heads_torch`; summed in float32, with torch's threads.

    Queries and keys of bfloat16 are multiplied as they are where the processor can. A thread holds
    64 rows of the mean of all maps; the result does not depend on their number. The gradient is the
    definition's.
    """
    as_is = AS_IS if inputs.q.shape[-1] % 2 == 0 else ()
    return image_by_image(fuse_op, inputs, as_is)


@torch.library.custom_op("weaktr::fuse_image_cpu", mutates_args=(), device_types="cpu")
def fuse_op(
    q: Tensor, k: Tensor, lse: Tensor, weights: Tensor, values: Tensor, scale: float
) -> Tensor:
    """q, k [M, P, d] float32 or bfloat16, the others float32: see `fuse_image`."""
    others = (lse.numpy(), weights.contiguous().numpy(), values.contiguous().numpy())
    settings = (scale, torch.get_num_threads())
    if q.dtype == torch.bfloat16:
        q, k = (_at_even_places(x).view(torch.uint16) for x in (q, k))
        return torch.from_numpy(native_bfloat16(q.numpy(), k.numpy(), *others, *settings))
    q, k = with_whole_rows(q), with_whole_rows(k)
    return torch.from_numpy(native_fuse_heads(q.numpy(), k.numpy(), *others, *settings))


@fuse_op.register_fake
def _(q: Tensor, k: Tensor, lse: Tensor, weights: Tensor, values: Tensor, _: float) -> Tensor:
    return values.new_empty(values.shape)


def _at_even_places(x: Tensor) -> Tensor:
    """Rows of bfloat16 that begin at multiples of four bytes."""
    odd = x.data_ptr() % 4 or any(stride % 2 for stride in x.stride()[:-1])
    return x.clone(memory_format=torch.contiguous_format) if odd else with_whole_rows(x)
