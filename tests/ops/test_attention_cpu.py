"""Attention in C++: every instruction set, odd shapes, memory as it lies, threads, gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.ops.attention import check_that_training_takes_statistics
from tests.tolerances import assert_close, assert_golden
from weaktr.ops import head_stats
from weaktr.ops.attention import softmax_attention
from weaktr.ops.registry import BackendUnavailable

native = pytest.importorskip("weaktr._native", exc_type=ImportError)

#: B, H, N, d, C, P: around the 64 queries, 256 of a group and 6 keys of a tile; registers between.
SHAPES = [
    (1, 1, 1, 1, 0, 1),
    (2, 3, 5, 4, 1, 4),
    (1, 2, 63, 6, 3, 60),
    (2, 1, 64, 16, 20, 40),
    (1, 2, 65, 24, 64, 1),
    (3, 2, 131, 64, 0, 131),
    (1, 1, 257, 48, 81, 176),
    (1, 2, 300, 72, 5, 291),
]
ISAS = native.isa_levels()
HALF = pytest.mark.skipif(
    not native.has_bfloat16(), reason="this processor does not multiply bfloat16"
)


def inputs(batch, heads, tokens, width, dtype=torch.float32):
    """q, k, v as a ViT's layer leaves them: views of one projection."""
    generator = torch.Generator().manual_seed(tokens)
    qkv = torch.randn(batch, tokens, 3, heads, width, generator=generator).to(dtype)
    return qkv.permute(2, 0, 3, 1, 4).unbind(0)


def exactly(q, k, v):
    """out, lse and the maps, in float64."""
    q, k, v = (x.detach().double() for x in (q, k, v))
    logits = q @ k.mT * q.shape[-1] ** -0.5
    maps = logits.softmax(-1)
    return maps @ v, logits.logsumexp(-1), maps


def run(q, k, v, classes=0, patches=0, threads=1, isa="auto"):
    """The binding itself: out [B, H, N, d], lse, class rows, column means."""
    settings = (q.shape[-1] ** -0.5, classes, patches, threads)
    if q.dtype == torch.bfloat16:
        arrays = (x.view(torch.uint16).numpy() for x in (q, k, v))
        out, *others = map(torch.from_numpy, native.attention_cpu_bfloat16(*arrays, *settings))
        return out.view(torch.bfloat16).transpose(1, 2), *others
    arrays = (x.numpy() for x in (q, k, v))
    out, *others = map(torch.from_numpy, native.attention_cpu(*arrays, *settings, isa))
    return out.transpose(1, 2), *others


def check_statistics(results, maps, lse, classes, patches):
    _, own_lse, rows, means = results
    first = maps.shape[-1] - patches
    assert_close(own_lse, lse, "float32")
    assert_close(rows, maps[:, :, :classes, first:], "float32")
    assert_close(means, maps[:, :, first:, first:].mean(2), "float32")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_the_formula(shape, isa):
    *sizes, classes, patches = shape
    q, k, v = inputs(*sizes)
    out, lse, maps = exactly(q, k, v)
    results = run(q, k, v, classes, patches, isa=isa)
    assert_close(results[0], out, "float32")
    check_statistics(results, maps, lse, classes, patches)


@HALF
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape[3] % 2 == 0])
def test_bfloat16_errs_at_most_twice_as_much_as_pytorch(shape):
    *sizes, classes, patches = shape
    q, k, v = inputs(*sizes, dtype=torch.bfloat16)
    out, lse, maps = exactly(q, k, v)
    results = run(q, k, v, classes, patches)
    theirs = F.scaled_dot_product_attention(q, k, v)
    assert (results[0] - out).abs().max() <= 2 * (theirs - out).abs().max()
    check_statistics(results, maps, lse, classes, patches)  # computed in float32


def test_statistics_are_left_out_where_not_asked_for():
    q, k, v = inputs(2, 3, 70, 8)
    _, _, rows, means = run(q, k, v)
    assert rows.shape == (2, 3, 0, 0) and means.shape == (2, 3, 0)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=HALF)])
def test_neither_threads_nor_the_batch_change_a_bit(dtype):
    q, k, v = inputs(3, 2, 300, 16, getattr(torch, dtype))
    one = run(q, k, v, 7, 290)
    for threads in (2, 5):
        for a, b in zip(one, run(q, k, v, 7, 290, threads=threads), strict=True):
            assert torch.equal(a, b)
    alone = run(q[1:2], k[1:2], v[1:2], 7, 290)
    for a, b in zip(one, alone, strict=True):
        assert torch.equal(a[1:2], b)


def test_large_and_small_logits():
    q, k, v = inputs(1, 2, 70, 8)
    out, lse, _ = exactly(100 * q, k, v)
    results = run(100 * q, k, v, 3, 60)
    assert_golden(results[0], out, floor=1e-4)  # the logits' own rounding
    assert_golden(results[1], lse)
    assert (results[2].sum(-1) <= 1.0001).all()
    zero = run(0 * q, k, v)
    assert_close(zero[0], v.mean(2, keepdim=True).expand_as(v), "float32")


@pytest.mark.parametrize("isa", ISAS)
def test_nan_is_passed_on(isa):
    q, k, v = (x.clone() for x in inputs(1, 1, 70, 8))
    q[0, 0, 5, 3] = torch.nan
    out, lse, _, _ = run(q, k, v, isa=isa)
    assert out[0, 0, 5].isnan().all() and lse[0, 0, 5].isnan()
    others = [i for i in range(70) if i != 5]
    assert out[0, 0, others].isfinite().all()


def test_gradients_are_those_of_pytorch():
    ours = [x.clone().requires_grad_() for x in inputs(2, 3, 37, 16)]
    theirs = [x.detach().clone().requires_grad_() for x in ours]
    attended = softmax_attention(*ours, with_lse=True, statistics=(4, 30), attention="auto")
    assert attended.stats is not None
    assert not attended.lse.requires_grad and not attended.stats.class_rows.requires_grad
    weight = torch.randn(2, 3, 37, 16)
    (attended.out * weight).sum().backward()
    (F.scaled_dot_product_attention(*theirs) * weight).sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a.grad, b.grad, "float32")


@HALF
@pytest.mark.parametrize("tokens", [37, 257])
def test_gradients_of_bfloat16_are_computed_in_float32(tokens):
    exact = [x.double().requires_grad_() for x in inputs(1, 2, tokens, 16, torch.bfloat16)]
    weight = torch.randn(1, 2, tokens, 16, generator=torch.Generator().manual_seed(1)).bfloat16()
    whole = F.scaled_dot_product_attention
    expected = torch.autograd.grad(whole(*exact), exact, weight.double())
    errors = []
    ours = torch.ops.weaktr.attention_cpu.default  # also where PyTorch has AMX
    for attend in (lambda *x: ours(*x, 0, 0)[0], whole):
        given = [x.detach().bfloat16().requires_grad_() for x in exact]
        own = torch.autograd.grad(attend(*given), given, weight)
        assert all(x.dtype == torch.bfloat16 for x in own)
        errors.append(
            max(float((a - b).norm() / b.norm()) for a, b in zip(own, expected, strict=True))
        )
    assert errors[0] < 2e-3 and errors[0] < errors[1] / 1.3


def test_operator_is_whole_for_the_compiler():
    op = torch.ops.weaktr.attention_cpu.default
    q, k, v = (x.clone().requires_grad_() for x in inputs(1, 2, 20, 8))
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(op, (q, k, v, 3, 15), test_utils=checks)
    compiled = torch.compile(
        lambda *x: softmax_attention(*x, statistics=(3, 15)).out,
        fullgraph=True,
        backend="aot_eager",
    )
    assert_close(compiled(q, k, v), exactly(q, k, v)[0], "float32")


def test_statistics_are_those_of_head_stats():
    q, k, v = inputs(2, 3, 90, 16)
    stats = softmax_attention(q, k, v, statistics=(5, 80)).stats
    expected = head_stats(q, k, num_classes=5, num_patches=80, backend="torch")
    for a, b in zip(stats, expected, strict=True):
        assert_close(a, b, "float32")


def test_training_takes_them_from_attention(monkeypatch):
    check_that_training_takes_statistics("auto", torch.device("cpu"), monkeypatch)


@pytest.mark.parametrize(
    ("dtype", "dropout", "why"),
    [
        (torch.float64, 0.0, "it takes float32 and bfloat16, got torch.float64"),
        (torch.float16, 0.0, "it takes float32 and bfloat16, got torch.float16"),
        (torch.float32, 0.5, "it drops no weights"),
    ],
)
def test_what_it_does_not_take_goes_to_pytorch(dtype, dropout, why):
    q, k, v = inputs(1, 2, 9, 8, dtype)
    assert softmax_attention(q, k, v, dropout=dropout, statistics=(1, 8)).stats is None
    with pytest.raises(BackendUnavailable, match=why):
        softmax_attention(q, k, v, dropout=dropout, attention="cpu")


@HALF
@pytest.mark.parametrize(("amx", "width"), [(True, 8), (False, 7)])
def test_bfloat16_that_pytorch_does_better(amx, width, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    q, k, v = inputs(1, 2, 9, width, torch.bfloat16)
    assert softmax_attention(q, k, v, statistics=(1, 8)).stats is None


def test_environment_chooses_pytorch(monkeypatch):
    q, k, v = inputs(1, 2, 9, 8)
    for wanted, ours in (("torch", False), ("cpu", True), ("triton", True)):
        monkeypatch.setenv("WEAKTR_BACKEND", wanted)
        assert (softmax_attention(q, k, v, statistics=(1, 8)).stats is not None) == ours


GOOD = np.zeros((1, 2, 5, 8), np.float32)


@pytest.mark.parametrize(("arrays", "settings", "told"), [
    ((GOOD[0], GOOD, GOOD), (0, 0, 1), r"q: expected \[B, H, N, d\], got 3 axes"),
    ((GOOD, GOOD[:, :, :4], GOOD), (0, 0, 1), r"k: expected \[1, 2, 5, 8\]"),
    ((GOOD, GOOD, GOOD[..., :4]), (0, 0, 1), r"v: expected \[1, 2, 5, 8\]"),
    ((GOOD, GOOD, np.asfortranarray(GOOD)), (0, 0, 1), "v: expected the numbers of a row"),
    ((GOOD, GOOD, GOOD), (2, 4, 1), "classes, patches: expected at most N = 5 together"),
    ((GOOD, GOOD, GOOD), (-1, 4, 1), "classes, patches: expected"),
    ((GOOD, GOOD, GOOD), (0, 0, 0), "num_threads: expected at least 1, got 0"),
])  # fmt: skip
def test_wrong_arrays_are_named(arrays, settings, told):
    with pytest.raises(ValueError, match=told):
        native.attention_cpu(*arrays, 1.0, *settings)


def test_other_mistakes_are_named():
    settings = (1.0, 0, 0, 1)
    with pytest.raises(ValueError, match="isa: expected auto or one of isa_levels"):
        native.attention_cpu(GOOD, GOOD, GOOD, *settings, "sse9")
    with pytest.raises(TypeError):
        native.attention_cpu(*[GOOD.astype(np.float64)] * 3, *settings)
    odd = np.zeros((1, 2, 5, 7), np.uint16)
    with pytest.raises(ValueError, match=r"an even d in bfloat16, got 7"):
        native.attention_cpu_bfloat16(odd, odd, odd, *settings)
