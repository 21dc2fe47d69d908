"""Attention of DeiT-S: C++ beside PyTorch's, alone and with the statistics that training needs."""

import pytest
import torch

from weaktr.models.attention import softmax_attention
from weaktr.ops import head_stats

HEADS, WIDTH, CLASSES = 6, 64, 20
#: Images and tokens, and whether statistics are wanted: a batch of windows of 480 x 480, a
#: photograph of 600 x 500, a training batch of 224 x 224.
WORK = [(8, 900, False), (1, 1167, False), (8, 216, True)]
ROWS = ["cpu", "torch", "cpu bf16", "torch bf16"]


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


@pytest.mark.parametrize(("batch", "tokens", "statistics"), WORK)
@pytest.mark.parametrize("row", ROWS)
def bench_attention(measure, device, row, batch, tokens, statistics):
    backend, *half = row.split()
    if backend == "cpu":
        native = pytest.importorskip("weaktr._native")
        if device != "cpu":
            pytest.skip("needs tensors on the CPU")
        if half and not native.has_bfloat16():
            pytest.skip("this processor does not multiply bfloat16")
    name = "cpu" if backend == "cpu" else "sdpa"
    torch.manual_seed(0)
    qkv = torch.randn(batch, tokens, 3, HEADS, WIDTH, device=device).permute(2, 0, 3, 1, 4)
    given = (qkv.bfloat16() if half else qkv).unbind()
    measure(
        lambda: attention(*given, name, statistics),
        group=f"attention, {batch} x {tokens} tokens, {HEADS} heads of width {WIDTH}"
        + (", with statistics" if statistics else ""),
        row=row,
        baseline=row == "torch",
        expected=attention(*qkv.unbind(), "sdpa", statistics),
        within=3e-2 if half else 1e-5,
        items=batch,
        dtype="bfloat16" if half else "float32",
    )
