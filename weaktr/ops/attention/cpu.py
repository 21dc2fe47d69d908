"""Attention of the backbones in C++; importing this raises ImportError without the extension.

It sees all keys of 64 queries at once, so that the log-sum-exp and the statistics of stage 1
(`weaktr.ops.head_stats`) are by-products. The gradient is PyTorch's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weaktr._native import attention_cpu as native_attention
from weaktr._native import attention_cpu_bfloat16 as native_bfloat16
from weaktr._native import has_bfloat16
from weaktr.ops.attention import Attended, Statistics
from weaktr.ops.attention.definition import by_length
from weaktr.ops.attention.sdpa import gradients_by
from weaktr.ops.head_stats import HeadStats
from weaktr.ops.native import with_whole_rows

LIMITS = "float32; bfloat16 with AVX-512 BF16 (AMX is left to PyTorch); no dropout"


def refusal(device_type: str, *, dtype: torch.dtype, head_dim: int, dropout: bool) -> str:
    """Why the C++ code does not take such inputs, "" where it does."""
    if device_type != "cpu":
        return f"it runs on CPU tensors, got {device_type}"
    if dropout:
        return "it drops no weights"
    if dtype == torch.bfloat16:
        if not has_bfloat16():
            return "this processor does not multiply bfloat16 (AVX-512 BF16)"
        if torch.cpu._is_amx_tile_supported():
            return "this processor has AMX, which PyTorch uses"
        return f"bfloat16 needs an even head_dim, got {head_dim}" if head_dim % 2 else ""
    return "" if dtype == torch.float32 else f"it takes float32 and bfloat16, got {dtype}"


def attention_cpu(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    dropout: float,
    with_lse: bool,
    lengths: Sequence[int] | None,
    statistics: Statistics | None,
) -> Attended:
    """Like `weaktr.ops.attention.definition.attention_torch`, with statistics of unpacked images.

    With torch's threads; neither their number nor the batch changes the result.
    """
    classes, patches = statistics or (0, 0)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Attended:
        q, k, v = (with_whole_rows(x) for x in (q, k, v))
        out, lse, rows, means = attend_op(q, k, v, classes, patches)
        found = HeadStats(rows, means, lse) if statistics else None
        return Attended(out, lse if with_lse else None, found)

    assert lengths is None or statistics is None
    return attend(q, k, v) if lengths is None else by_length(attend, q, k, v, lengths)


@torch.library.custom_op("weaktr::attention_cpu", mutates_args=(), device_types="cpu")
def attend_op(
    q: Tensor, k: Tensor, v: Tensor, classes: int, patches: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, v [B, H, N, d] -> out [B, H, N, d], lse [B, H, N], [B, H, C, P], [B, H, P]."""
    half = q.dtype == torch.bfloat16
    run: Any = native_bfloat16 if half else native_attention
    arrays = [(x.detach().view(torch.uint16) if half else x.detach()).numpy() for x in (q, k, v)]
    threads = torch.get_num_threads()
    made = run(*arrays, q.shape[-1] ** -0.5, classes, patches, threads)
    out, lse, rows, means = (torch.from_numpy(array) for array in made)
    return (out.view(torch.bfloat16) if half else out).transpose(1, 2), lse, rows, means


@attend_op.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, classes: int, patches: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, tokens, width = q.shape
    out = q.new_empty(batch, tokens, heads, width).transpose(1, 2)
    sizes = [(tokens,), (classes, patches), (patches,)]
    lse, rows, means = (q.new_empty(batch, heads, *s, dtype=torch.float32) for s in sizes)
    return out, lse, rows, means


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3], *output[:2])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    return (*gradients_by("cpu", gradient, *ctx.saved_tensors), None, None)


attend_op.register_autograd(_backward, setup_context=_save)
