"""Attention of the backbones in C++; importing this raises ImportError without the extension.

It sees all keys of 64 queries at once, so that the log-sum-exp and the statistics of stage 1
(`weaktr.ops.head_stats`) are by-products. The gradient is PyTorch's own; of bfloat16 it is computed
in float32 where that is as fast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weaktr._native import attention_cpu as native_attention
from weaktr._native import attention_cpu_bfloat16 as native_bfloat16
from weaktr._native import has_bfloat16
from weaktr.ops.attention import Attended, AttentionInputs, Results, empty_results
from weaktr.ops.attention.definition import by_length
from weaktr.ops.attention.sdpa import gradients_by
from weaktr.ops.head_stats import HeadStats
from weaktr.ops.native import with_whole_rows
from weaktr.ops.registry import takes

#: Up to so many tokens PyTorch's backward pass is not faster in bfloat16 than in float32, whose
#: error is half as large (AVX-512 BF16, torch 2.14: bench/bench_attention.py).
TOKENS_IN_FLOAT32 = 600


def refusal(dtype: torch.dtype, head_dim: int, dropout: bool) -> str:
    """Why the C++ code does not take such inputs, "" where it does."""
    if dropout:
        return "it drops no weights"
    if dtype == torch.bfloat16:
        if not has_bfloat16():
            return "this processor does not multiply bfloat16 (AVX-512 BF16)"
        if torch.cpu._is_amx_tile_supported():
            return "this processor has AMX, which PyTorch uses"
        return f"bfloat16 needs an even head_dim, got {head_dim}" if head_dim % 2 else ""
    return "" if dtype == torch.float32 else f"it takes float32 and bfloat16, got {dtype}"


@takes("float32; bfloat16 with AVX-512 BF16 (AMX is left to PyTorch); no dropout", refusal)
def attention_cpu(inputs: AttentionInputs) -> Attended:
    """Like `attention_torch`, with statistics of images that are not packed.

    With torch's threads; neither their number nor the batch changes the result.
    """
    q, k, v, _, with_lse, packing, statistics = inputs
    classes, patches = statistics or (0, 0)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Attended:
        q, k, v = (with_whole_rows(x) for x in (q, k, v))
        out, lse, rows, means = attend_op(q, k, v, classes, patches)
        stats = HeadStats(rows, means, lse) if statistics else None
        return Attended(out, lse if with_lse else None, stats)

    assert packing is None or statistics is None
    return attend(q, k, v) if packing is None else by_length(attend, q, k, v, packing.lengths)


@torch.library.custom_op("weaktr::attention_cpu", mutates_args=(), device_types="cpu")
def attend_op(q: Tensor, k: Tensor, v: Tensor, classes: int, patches: int) -> Results:
    """q, k, v [B, H, N, d] -> `Results`."""
    half = q.dtype == torch.bfloat16
    run: Any = native_bfloat16 if half else native_attention
    arrays = [(x.detach().view(torch.uint16) if half else x.detach()).numpy() for x in (q, k, v)]
    threads = torch.get_num_threads()
    results = run(*arrays, q.shape[-1] ** -0.5, classes, patches, threads)
    out, lse, rows, means = (torch.from_numpy(array) for array in results)
    return (out.view(torch.bfloat16) if half else out).transpose(1, 2), lse, rows, means


@attend_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, classes: int, patches: int) -> Results:
    return empty_results(q, classes, patches)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    ctx.save_for_backward(*inputs[:3], *output[:2])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    q, k, v, out, lse = ctx.saved_tensors
    dtype = gradient.dtype
    if dtype == torch.bfloat16 and q.shape[2] <= TOKENS_IN_FLOAT32:
        gradient, q, k, v, out = (x.float() for x in (gradient, q, k, v, out))
    gradients = gradients_by("cpu", gradient, q, k, v, out, lse)
    return (*(x.to(dtype) for x in gradients), None, None)


attend_op.register_autograd(_backward, setup_context=_save)
