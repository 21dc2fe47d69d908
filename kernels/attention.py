"""Attention on a GPU in one launch, with log-sum-exp, and the statistics that stage 1 needs of it.

A program takes a block of queries of one map. A first sweep over the keys finds output and
log-sum-exp; a second one, where statistics are wanted, the entries of the class rows and sums over
its patch queries. These sums, [B, H, blocks, P], are added afterwards in a fixed order. A packed
batch takes the same launch, with as many blocks for each image as its largest one has.

The other way is SDPA, whose kernels know the log-sum-exp, and then `weaktr.kernels.head_stats`.
Which one is faster on this GPU for such sizes is measured like a launch configuration
(`weaktr.kernels.tuning`). Packed images have no other way in float32; in half precision PyTorch's
flash attention takes them. The gradient is PyTorch's.

Source: arXiv 2307.08691, algorithm 1 (the first sweep); 2304.01184, section 3.2 (the statistics).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from weaktr.kernels.common import (
    DTYPES,
    LIMITS_OF_ATTENTION,
    LOG2_E,
    MOST_HEAD_DIM,
    block_of,
    block_of_map,
    configs,
    dot_precision,
    image_of,
    key_of_attention,
    load_rows,
    product,
    rounded,
    softmax_step,
)
from weaktr.kernels.head_stats import attention_stats
from weaktr.kernels.launching import launch
from weaktr.kernels.tuning import Config, best_config, bucket
from weaktr.ops.attention import Attended, AttentionInputs, Packing, Results, empty_results
from weaktr.ops.attention.definition import attention_torch
from weaktr.ops.attention.sdpa import attend_by, gradients_by, is_trained, kernel_of
from weaktr.ops.head_stats import HeadStats
from weaktr.ops.registry import takes

#: The candidate that is no launch of ours: SDPA, then the statistics.
SEPARATELY: Config = {}


@takes(
    f"{LIMITS_OF_ATTENTION}: with statistics, or float32; packed without gradient; "
    "all else is left to PyTorch"
)
def attention_triton(inputs: AttentionInputs) -> Attended:
    """Like `attention_torch`, with statistics of images that are not packed."""
    q, k, v, dropout, with_lse, packing, statistics = inputs
    taken = q.dtype in DTYPES and q.shape[-1] <= MOST_HEAD_DIM
    kernel = kernel_of(q, k, v, dropout) if taken else ""
    if packing is not None:
        if kernel in ("", "flash") or is_trained(q, k, v) or torch.compiler.is_compiling():
            return attention_torch(inputs)
        out, lse = packed_in_one_launch(q, k, v, packing)
        return Attended(out, lse if with_lse else None)
    if not kernel or (statistics is None and kernel != "efficient"):
        return attention_torch(inputs)
    run = _Attend.apply if is_trained(q, k, v) else attend
    if torch.compiler.is_compiling():
        run = attend_op
    out, lse, rows, means = run(q, k, v, *(statistics or (0, 0)), kernel)
    stats = HeadStats(rows, means, lse) if statistics else None
    return Attended(out, lse if with_lse else None, stats)


# ---- operator -----------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, classes: int, patches: int, kernel: str) -> Results:
    """q, k, v [B, H, N, d] -> `Results`; no statistics of no patches.

    The gradient is that of `kernel` (`weaktr.ops.attention.sdpa`), whichever way was taken.
    """

    def run(config: Config) -> Results:
        if config == SEPARATELY:
            return separately(q, k, v, classes, patches, kernel)
        return in_one_launch(q, k, v, classes, patches, config)

    with torch.cuda.device_of(q):
        sizes = (q.shape[2], q.shape[0])
        key = (*key_of_attention(q, *sizes), bucket(classes), int(patches > 0), kernel)
        return run(best_config(_attention_kernel, key, candidates(), run, q.device))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Results) -> None:
    *tensors, _, _, ctx.kernel = inputs
    ctx.save_for_backward(*tensors, *output[:2])
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    return *gradients_by(ctx.kernel, gradient, *ctx.saved_tensors), None, None, None


class _Attend(torch.autograd.Function):
    """`attend` with its gradient, for half of the host's time that `attend_op` takes."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Results:
        results = attend(*inputs)
        _save(ctx, inputs, results)
        return results

    backward = staticmethod(_backward)


#: The same for torch.compile.
attend_op = torch.library.custom_op("weaktr::attention_with_stats", attend, mutates_args=())
attend_op.register_autograd(_backward, setup_context=_save)


@attend_op.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, classes: int, patches: int, kernel: str) -> Results:
    return empty_results(q, classes, patches)


def candidates() -> tuple[Config, ...]:
    """What is measured once, the first one where nothing is."""
    return SEPARATELY, *configs()


# ---- the ways -----------------------------------------------------------------------------------


def separately(q: Tensor, k: Tensor, v: Tensor, classes: int, patches: int, kernel: str) -> Results:
    """By PyTorch's `kernel`, then `attention_stats`; float32 but for the output."""
    out, lse = attend_by(kernel, q, k, v)
    lse = lse.contiguous()
    if patches:
        stats = attention_stats(q, k, lse, classes, patches, q.shape[-1] ** -0.5, True)
    else:
        stats = empty_results(q, classes, patches)[2:]
    return out.transpose(1, 2).contiguous().transpose(1, 2), lse, *stats


def in_one_launch(
    q: Tensor, k: Tensor, v: Tensor, classes: int, patches: int, config: Config
) -> Results:
    """By `_attention_kernel`; float32 but for the output."""
    batch, heads, tokens, dim = q.shape
    out, lse, rows, means = empty_results(q, classes, patches)
    blocks = triton.cdiv(tokens, config["BLOCK_I"])
    sums = lse.new_empty(batch, heads, blocks, patches)
    launch(
        _attention_kernel,
        (batch * heads * blocks,),
        *(q, q.stride(), k, k.stride(), v, v.stride(), out, out.stride(), lse, rows, sums, None),
        *(heads, tokens, tokens, patches, dim, classes, dim**-0.5),
        PACKED=False,
        STATISTICS=patches > 0,
        BLOCK_D=block_of(dim),
        PRECISION=dot_precision(q.dtype),
        **config,
    )
    return out, lse, rows, sums.sum(2) / patches if patches else means


def packed_in_one_launch(
    q: Tensor, k: Tensor, v: Tensor, packing: Packing
) -> tuple[Tensor, Tensor]:
    """Packed images, without gradient: [1, H, ΣN, d] -> output, log-sum-exp float32 [1, H, ΣN]."""
    _, heads, tokens, dim = q.shape
    images, most = len(packing.lengths), max(packing.lengths)
    out, lse, *_ = empty_results(q, 0, 0)

    def run(config: Config) -> None:
        blocks = triton.cdiv(most, config["BLOCK_I"])
        launch(
            _attention_kernel,
            (images * heads * blocks,),
            *(q, q.stride(), k, k.stride(), v, v.stride(), out, out.stride(), lse, None, None),
            *(packing.starts, heads, tokens, most, 0, dim, 0, dim**-0.5),
            PACKED=True,
            STATISTICS=False,
            BLOCK_D=block_of(dim),
            PRECISION=dot_precision(q.dtype),
            **config,
        )

    with torch.cuda.device_of(q):
        key = (*key_of_attention(q, most, images), "packed")
        run(best_config(_attention_kernel, key, configs(), run, q.device))
    return out, lse


@triton.jit(do_not_specialize=["tokens", "most_tokens", "num_patches", "num_classes"])
def _attention_kernel(
    q,
    q_strides,
    k,
    k_strides,
    v,
    v_strides,
    out,
    out_strides,
    lse,
    class_rows,
    sums,
    starts,
    heads,
    tokens,
    most_tokens,
    num_patches,
    dim,
    num_classes,
    scale,
    PACKED: tl.constexpr,
    STATISTICS: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries of one map: output and log-sum-exp, then its part of the statistics."""
    block, index, image, head = block_of_map(most_tokens, heads, BLOCK_I)
    first = tl.full([], 0, tl.int32)
    own = tokens
    if PACKED:
        first = tl.load(starts + image)
        own = tl.load(starts + image + 1) - first
        if block * BLOCK_I >= own:  # the image is smaller than the largest
            return
        lse += head * tokens + first
    else:
        lse += index * tokens
    q = image_of(q, q_strides, image, head, first, PACKED)
    k = image_of(k, k_strides, image, head, first, PACKED)
    v = image_of(v, v_strides, image, head, first, PACKED)
    out = image_of(out, out_strides, image, head, first, PACKED)
    rows = block * BLOCK_I + tl.arange(0, BLOCK_I)
    here = rows < own
    queries = load_rows(q, rows, here, q_strides[2], q_strides[3], dim, BLOCK_D)

    largest = tl.full([BLOCK_I], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_I], tl.float32)
    result = tl.zeros([BLOCK_I, BLOCK_D], tl.float32)
    for start in range(0, own, BLOCK_J):
        columns = start + tl.arange(0, BLOCK_J)
        there = columns < own
        keys = load_rows(k, columns, there, k_strides[2], k_strides[3], dim, BLOCK_D)
        logits = product(queries, tl.trans(keys), PRECISION) * (scale * LOG2_E)
        weights, shrink, largest, total = softmax_step(logits, there, largest, total)
        values = load_rows(v, columns, there, v_strides[2], v_strides[3], dim, BLOCK_D)
        result = result * shrink[:, None] + product(
            rounded(weights, values.dtype), values, PRECISION
        )
    dims = tl.arange(0, BLOCK_D)
    target = out + rows.to(tl.int64)[:, None] * out_strides[2] + dims[None, :] * out_strides[3]
    result = rounded(result / total[:, None], out.dtype.element_ty)
    tl.store(target, result, mask=here[:, None] & (dims < dim)[None, :])
    log_total = largest + tl.log2(total)
    tl.store(lse + rows, log_total * 0.6931471805599453, mask=here)

    if STATISTICS:
        class_rows += index * num_classes * num_patches
        sums += tl.program_id(0).to(tl.int64) * num_patches
        ahead = own - num_patches  # class and register tokens
        of_classes = (rows < num_classes)[:, None]
        of_patches = ((rows >= ahead) & here)[:, None]
        for start in range(0, num_patches, BLOCK_J):
            columns = start + tl.arange(0, BLOCK_J)
            there = columns < num_patches
            keys = load_rows(k, ahead + columns, there, k_strides[2], k_strides[3], dim, BLOCK_D)
            logits = product(queries, tl.trans(keys), PRECISION) * (scale * LOG2_E)
            attention = tl.exp2(logits - log_total[:, None])
            entries = class_rows + rows.to(tl.int64)[:, None] * num_patches + columns[None, :]
            tl.store(entries, attention, mask=of_classes & there[None, :])
            tl.store(sums + columns, tl.sum(tl.where(of_patches, attention, 0.0), 0), mask=there)
