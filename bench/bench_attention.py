"""Attention of DeiT-S: C++ beside PyTorch's, alone and with the statistics that training needs.

On a GPU also the two ways in which `weaktr.kernels.attention` yields both, and the one it takes;
and photographs of many sizes packed one after another, with the log-sum-exp.
"""

import random
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from weaktr.ops import head_stats
from weaktr.ops.attention import Attended, packing_of, softmax_attention
from weaktr.ops.attention.definition import by_length

HEADS, WIDTH, CLASSES = 6, 64, 20
#: Images and tokens, and whether statistics are wanted: a batch of windows of 480 x 480, a
#: photograph of 600 x 500, a training batch of 224 x 224.
WORK = [(8, 900, False), (1, 1167, False), (8, 216, True)]
ROWS = ["cpu", "torch", "cpu bf16", "torch bf16"]
#: Training batches of 224 x 224 in patches of 14.
WORK_WITH_GRADIENT = [(8, 257)]
#: On a GPU: a training batch of 224 x 224, photographs of 500 x 375.
WORK_ON_A_GPU = [(64, 216), (8, 733)]
#: Sides of photographs of COCO and VOC.
SIDES = [(375, 500), (500, 375), (333, 500), (480, 640), (427, 640), (640, 480), (500, 600)]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def attention(q, k, v, name, statistics):
    """Output and, where they are wanted, class rows and column means."""
    wanted = (CLASSES, q.shape[2] - CLASSES) if statistics else None
    out, lse, stats = softmax_attention(
        q, k, v, with_lse=statistics, statistics=wanted, attention=name
    )
    if not statistics:
        return (out,)
    stats = stats or head_stats(q, k, num_classes=CLASSES, num_patches=wanted[1], lse=lse)
    return out, stats.class_rows, stats.column_means


def inputs(batch, tokens, device):
    """q, k, v in float32 as a ViT's layer leaves them: views of one projection."""
    torch.manual_seed(0)
    qkv = torch.randn(batch, tokens, 3, HEADS, WIDTH, device=device)
    return qkv.permute(2, 0, 3, 1, 4)


def backend_of(row, device):
    """What `attention` is called with for a row; skips those that cannot run here."""
    if row.startswith("torch"):
        return "sdpa"
    native = pytest.importorskip("weaktr._native")
    if device != "cpu":
        pytest.skip("needs tensors on the CPU")
    if row.endswith("bf16") and not native.has_bfloat16():
        pytest.skip("this processor does not multiply bfloat16")
    return "cpu"


def group_of(batch, tokens, statistics):
    work = f"attention, {batch} x {tokens} tokens, {HEADS} heads of width {WIDTH}"
    return work + (", with statistics" if statistics else "")


@pytest.mark.parametrize(("batch", "tokens", "statistics"), WORK)
@pytest.mark.parametrize("row", ROWS)
def bench_attention(measure, device, row, batch, tokens, statistics):
    half = row.endswith("bf16")
    name = backend_of(row, device)
    qkv = inputs(batch, tokens, device)
    given = (qkv.bfloat16() if half else qkv).unbind()
    measure(
        lambda: attention(*given, name, statistics),
        group=group_of(batch, tokens, statistics),
        row=row,
        baseline=row == "torch",
        expected=attention(*qkv.unbind(), "sdpa", statistics),
        within=3e-2 if half else 1e-5,
        items=batch,
        dtype="bfloat16" if half else "float32",
    )


@pytest.mark.parametrize(("batch", "tokens"), WORK_WITH_GRADIENT)
@pytest.mark.parametrize("row", ROWS)
def bench_attention_with_gradient(measure, device, row, batch, tokens):
    half = row.endswith("bf16")
    name = backend_of(row, device)
    qkv = inputs(batch, tokens, device)
    weight = torch.randn(batch, HEADS, tokens, WIDTH, device=device)

    def gradients(given, weight, name):
        out = softmax_attention(*given, attention=name).out
        return out.detach(), *torch.autograd.grad(out, given, weight)

    def prepared(dtype):
        return [x.to(dtype).requires_grad_() for x in qkv], weight.to(dtype)

    measure(
        partial(gradients, *prepared(torch.bfloat16 if half else torch.float32), name),
        group=group_of(batch, tokens, False) + ", forward + backward",
        row=row,
        baseline=row == "torch",
        expected=gradients(*prepared(torch.float32), "sdpa"),
        within=3e-2 if half else 1e-5,
        items=batch,
        dtype="bfloat16" if half else "float32",
    )


@GPU
@pytest.mark.parametrize("images", [32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("row", ["length by length", "one launch"])
def bench_packed_attention(measure, row, dtype, images):
    """As labelling needs it."""
    draw = random.Random(0)
    sides = [draw.choice(SIDES) for _ in range(images)]
    lengths = [CLASSES + (height // 16) * (width // 16) for height, width in sides]
    qkv = inputs(1, sum(lengths), "cuda")
    given, packing = qkv.to(dtype).unbind(), packing_of(lengths, qkv.device)

    def alone(q, k, v):
        return Attended(F.scaled_dot_product_attention(q, k, v), None)

    calls = {
        "length by length": lambda: (by_length(alone, *given, lengths).out,),
        "one launch": lambda: softmax_attention(*given, with_lse=True, packing=packing)[:1],
    }
    with torch.no_grad():
        measure(
            calls[row],
            group=f"attention, {images} packed photographs, {dtype}",
            row=row,
            baseline=row == "length by length",
            expected=(by_length(alone, *qkv.unbind(), lengths).out,),
            within=1e-5 if dtype == torch.float32 else 3e-2,
            items=images,
            dtype=str(dtype).removeprefix("torch."),
        )


@GPU
@pytest.mark.parametrize(("batch", "tokens"), WORK_ON_A_GPU)
@pytest.mark.parametrize("row", ["sdpa, then statistics", "one launch", "as chosen"])
def bench_attention_with_statistics(measure, row, batch, tokens):
    kernels = pytest.importorskip("weaktr.kernels.attention", exc_type=ImportError)
    from weaktr.kernels.tuning import device_milliseconds, fastest

    qkv = inputs(batch, tokens, "cuda")
    q, k, v = qkv.bfloat16().unbind()
    sizes = (CLASSES, tokens - CLASSES)
    by = kernels.kernel_of(*(x.detach().requires_grad_() for x in (q, k, v)))  # as in training
    assert by, "SDPA takes no kernel that knows the log-sum-exp"

    def launched(config):
        return kernels.in_one_launch(q, k, v, *sizes, config)

    if row == "one launch":
        config, _ = fastest(
            kernels.configs(), lambda config: device_milliseconds(lambda: launched(config))
        )
    calls = {
        "sdpa, then statistics": lambda: kernels.separately(q, k, v, *sizes, by),
        "one launch": lambda: launched(config),
        "as chosen": lambda: kernels.attend(q, k, v, *sizes, by),
    }

    def call():
        out, _, class_rows, column_means = calls[row]()
        return out, class_rows, column_means

    measure(
        call,
        group=group_of(batch, tokens, True),
        row=row,
        baseline=row == "sdpa, then statistics",
        expected=attention(*qkv.unbind(), "sdpa", True),
        within=3e-2,
        items=batch,
        dtype="bfloat16",
        by=by,
    )
