"""Attention in Triton, every way that it may go, against the literal softmax."""

from __future__ import annotations

import itertools
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.tuning import clocked
from tests.ops.attention import (
    SHAPES,
    attention_inputs,
    check_that_training_takes_statistics,
    every_config,
    home,
    literal,
    strided,
)
from tests.tolerances import GOLDEN_RELATIVE, assert_golden
from weaktr.ops.attention import (
    Attended,
    AttentionInputs,
    empty_results,
    packing_of,
    softmax_attention,
)
from weaktr.ops.registry import OPS, BackendUnavailable

OP = "attention"
WAYS = ("separately", "in_one_launch")


@pytest.fixture(params=WAYS)
def way(request, kernels, monkeypatch):
    """The only way that is a candidate."""
    ways = {"separately": lambda: (kernels.SEPARATELY,), "in_one_launch": kernels.configs}
    monkeypatch.setattr(kernels, "candidates", lambda: ways[request.param]()[:1])
    return request.param


def inputs(*shape, extra=0, dtype=torch.float32):
    """q, k, v of C + extra + P tokens."""
    q, k = attention_inputs(*shape, extra=extra, backend="triton", dtype=dtype)
    return q, k, torch.randn(q.shape, dtype=torch.float64).to(q)


def attention(q, k, v, classes, patches):
    """[out, lse, class rows, column means] by the operator."""
    sizes = {"statistics": (classes, patches), "with_lse": True, "attention": "triton"}
    out, lse, stats = softmax_attention(q, k, v, **sizes)
    assert stats.lse is lse
    return [out, lse, stats.class_rows, stats.column_means]


def plainly(q, k, v, classes, patches):
    """The same from whole maps, in the precision of the inputs."""
    logits, first = q @ k.mT * q.shape[-1] ** -0.5, q.shape[2] - patches
    maps = logits.softmax(-1)
    rows, square = maps[:, :, :classes, first:], maps[:, :, first:, first:]
    return [F.scaled_dot_product_attention(q, k, v), logits.logsumexp(-1), rows, square.mean(2)]


def exactly(q, k, v, classes, patches):
    """The same in float64."""
    return plainly(q.double(), k.double(), v.double(), classes, patches)


def assert_within_twice(actual, plain, exact):
    """At most twice the error of plain PyTorch in this precision, and what float32 rounds."""
    rounding = GOLDEN_RELATIVE * exact.abs().max()
    assert (actual - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("shape", "registers"), list(itertools.product(SHAPES, (0, 4))))
def test_equals_the_formula(shape, registers, dtype, way):
    sizes = shape[2:4]
    given = inputs(*shape, extra=registers, dtype=dtype)
    results = attention(*given, *sizes)
    assert [x.dtype for x in results] == [dtype] + 3 * [torch.float32]
    ways = (results, plainly(*given, *sizes), exactly(*given, *sizes))
    for actual, plain, exact in zip(*ways, strict=True):
        assert_within_twice(actual, plain, exact)


@every_config
def test_every_configuration_gives_the_same(kernels, dtype, config):
    given = inputs(1, 2, 3, 71, 24, extra=2, dtype=dtype)
    out, *others = kernels.in_one_launch(*given, 3, 71, config)
    exact, *expected = exactly(*given, 3, 71)
    assert_within_twice(out, F.scaled_dot_product_attention(*given), exact)
    for actual, wanted in zip(others, expected, strict=True):  # computed in float32
        assert_golden(actual, wanted)


def test_large_logits(way):
    q, k, v = inputs(1, 2, 3, 71, 24)
    for actual, expected in zip(
        attention(30 * q, k, v, 3, 71), exactly(30 * q, k, v, 3, 71), strict=True
    ):
        assert_golden(actual, expected, floor=1e-4)  # the logits' own rounding


def test_does_not_depend_on_strides(kernels):
    given = inputs(2, 3, 4, 37, 16)
    config = kernels.configs()[0]
    expected = kernels.in_one_launch(*given, 4, 37, config)
    packed = torch.stack(given).permute(1, 3, 0, 2, 4).contiguous()  # [B, N, 3, H, d] as in a ViT
    for others in (map(strided, given), packed.permute(2, 0, 3, 1, 4)):
        for actual, wanted in zip(
            kernels.in_one_launch(*others, 4, 37, config), expected, strict=True
        ):
            assert torch.equal(actual, wanted)


def test_twice_is_the_same_bits(way):
    given = inputs(2, 3, 4, 137, 16, dtype=torch.bfloat16)
    for one, other in zip(attention(*given, 4, 137), attention(*given, 4, 137), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_are_those_of_pytorch(dtype, way):
    results = []
    given = inputs(2, 3, 4, 37, 16, dtype=dtype)
    weight = torch.randn(given[0].shape, dtype=torch.float64).to(given[0])

    def of_maps(*given):
        return literal(*given[:2]) @ given[2]

    def ours(*given):
        out, *others = attention(*given, 4, 37)
        assert not any(x.requires_grad for x in others)
        return out

    for run, precision in (
        (ours, dtype),
        (F.scaled_dot_product_attention, dtype),
        (of_maps, torch.float64),
    ):
        leaves = [x.to(precision).requires_grad_() for x in given]
        results.append(torch.autograd.grad(run(*leaves), leaves, weight.to(precision)))
    for actual, plain, exact in zip(*results, strict=True):
        assert actual.dtype == dtype
        assert_within_twice(actual, plain, exact)


def test_operator_is_registered_as_torch_wants_it(kernels, way):
    given = [x.requires_grad_() for x in inputs(1, 2, 4, 5, 16)]
    kernel = kernels.kernel_of(*given)
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(kernels.attend_op, (*given, 4, 5, kernel), test_utils=checks)


def test_torch_compile_takes_it_whole(way):
    given = [x.requires_grad_() for x in inputs(2, 3, 4, 37, 16)]

    def total(q, k, v):
        out, _, rows, means = attention(2 * q, k, v, 4, 37)
        return out.square().sum() + (rows.sum() + means.sum()).detach()

    compiled = torch.compile(total, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(run(*given), given) for run in (compiled, total)]
    assert_golden(compiled(*given), total(*given))
    for actual, expected in zip(*gradients, strict=True):
        assert_golden(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_without_statistics(kernels, dtype, way):
    """What float32 on a GPU takes: output, log-sum-exp, gradient, and no statistics."""
    given = [x.requires_grad_() for x in inputs(2, 3, 4, 37, 16, dtype=dtype)]
    weight = torch.randn(given[0].shape, dtype=torch.float64).to(given[0])
    out, lse, rows, means = kernels._Attend.apply(*given, 0, 0, kernels.kernel_of(*given))
    assert rows.numel() == means.numel() == 0
    exact = exactly(*(x.detach() for x in given), 4, 37)
    assert_golden(lse, exact[1])
    plain = F.scaled_dot_product_attention(*given)
    assert_within_twice(out, plain, exact[0])
    leaves = [x.detach().double().requires_grad_() for x in given]
    true = torch.autograd.grad(literal(*leaves[:2]) @ leaves[2], leaves, weight.double())
    theirs, ours = (torch.autograd.grad(x, given, weight) for x in (plain, out))
    for actual, theirs_, truth in zip(ours, theirs, true, strict=True):
        assert_within_twice(actual, theirs_, truth)


def test_float32_without_statistics_is_measured_too(kernels, monkeypatch):
    """Where SDPA would take "efficient"; in half precision its kernels are left to it."""
    calls = []
    monkeypatch.setattr(kernels, "kernel_of", lambda *_: "efficient")
    monkeypatch.setattr(kernels, "candidates", lambda: kernels.configs()[:1])
    monkeypatch.setattr(kernels, "attention_torch", calls.append)
    given = inputs(2, 3, 4, 37, 16)
    with torch.inference_mode():
        out, lse, stats = kernels.attention_triton(AttentionInputs(*given, 0.0, True, None, None))
    for actual, expected in zip((out, lse), exactly(*given, 4, 37), strict=False):
        assert_golden(actual, expected)
    assert stats is None and not calls
    monkeypatch.setattr(kernels, "kernel_of", lambda *_: "flash")
    kernels.attention_triton(AttentionInputs(*given, 0.0, True, None, None))
    assert len(calls) == 1


# ---- packed images ------------------------------------------------------------------------------

LENGTHS = [41, 5, 5, 1, 100]


def packed_inputs(dtype=torch.float32, width=24):
    """q, k, v as a ViT leaves them, and where the images lie."""
    device = home("triton")
    generator = torch.Generator().manual_seed(7)
    qkv = torch.randn(1, sum(LENGTHS), 3, 2, width, generator=generator, dtype=torch.float64)
    given = qkv.to(device, dtype).permute(2, 0, 3, 1, 4).unbind()
    return given, packing_of(LENGTHS, device)


def assert_packed(results, given):
    """Output and log-sum-exp of each image are those of the image alone."""
    parts = [x.split(LENGTHS, 2) for x in (*given, *results)]
    for q, k, v, out, lse in zip(*parts, strict=True):
        exact, exact_lse, *_ = exactly(q, k, v, 1, 1)
        assert_within_twice(out, F.scaled_dot_product_attention(q, k, v), exact)
        assert_golden(lse, exact_lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("width", [16, 24, 64, 128])
def test_packed_images_attend_to_themselves_alone(kernels, dtype, width):
    given, packing = packed_inputs(dtype, width)
    out, lse = kernels.packed_in_one_launch(*given, packing)
    assert (out.dtype, lse.dtype) == (dtype, torch.float32)
    assert_packed((out, lse), given)


@every_config
def test_packed_images_in_every_configuration(kernels, dtype, config, monkeypatch):
    monkeypatch.setattr(kernels, "configs", lambda: (config,))
    given, packing = packed_inputs(dtype)
    assert_packed(kernels.packed_in_one_launch(*given, packing), given)


def test_packed_images_of_any_strides(kernels):
    given, packing = packed_inputs()
    expected = kernels.packed_in_one_launch(*given, packing)
    actual = kernels.packed_in_one_launch(*map(strided, given), packing)
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one, other)


def test_packed_images_take_one_launch(kernels, monkeypatch):
    """Of float32; half precision goes to flash attention, a gradient to PyTorch."""
    given, packing = packed_inputs()
    expected = kernels.packed_in_one_launch(*given, packing)
    left = []
    monkeypatch.setattr(
        kernels, "attention_torch", lambda _: left.append(1) or Attended(None, None)
    )
    asked = {"packing": packing, "attention": "triton"}
    out, lse, _ = softmax_attention(*given, with_lse=True, **asked)
    assert torch.equal(out, expected[0]) and torch.equal(lse, expected[1]) and not left
    assert softmax_attention(*given, **asked).lse is None and not left
    softmax_attention(given[0].clone().requires_grad_(), *given[1:], **asked)
    assert len(left) == 1
    monkeypatch.setattr(kernels, "kernel_of", lambda *_: "flash")
    softmax_attention(*given, **asked)
    assert len(left) == 2


# ---- the choice ---------------------------------------------------------------------------------


@pytest.fixture
def clock(kernels, monkeypatch, tmp_path):
    """As on a GPU where each way takes as long as this dict says; collects what is measured."""
    times, ran, measured = {}, [], []

    def stub(name):
        def run(q, k, v, classes, patches, *_):
            ran.append(name)
            return tuple(x.zero_() for x in empty_results(q, classes, patches))

        return run

    def milliseconds(run):
        run()
        measured.append(ran[-1])
        return times[ran[-1]]

    for name in WAYS:
        monkeypatch.setattr(kernels, name, stub(name))
    with clocked(monkeypatch, tmp_path, milliseconds):
        yield times, ran, measured


@pytest.mark.parametrize("faster", WAYS)
def test_faster_way_is_measured_once_and_taken(faster, kernels, clock):
    times, ran, measured = clock
    times.update({way: 1 + (way != faster) for way in WAYS})
    given = inputs(2, 3, 4, 37, 16)
    attention(*given, 4, 37)
    assert measured == ["separately"] + ["in_one_launch"] * len(kernels.configs())
    import_module("weaktr.kernels.tuning")._table.cache_clear()  # another process
    ran.clear()
    attention(*given, 4, 37)
    assert ran == [faster]


def test_where_nothing_is_measured_it_is_sdpa(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "in_one_launch", None)
    given = inputs(2, 3, 4, 37, 16)
    for actual, expected in zip(attention(*given, 4, 37), exactly(*given, 4, 37), strict=True):
        assert_golden(actual, expected)


def test_training_takes_statistics_from_attention(way, monkeypatch):
    check_that_training_takes_statistics("triton", home("triton"), monkeypatch)


# ---- what is left to PyTorch --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "width", "asked"),
    [
        (torch.bfloat16, 16, {}),
        (torch.float32, 16, {"statistics": (4, 37), "dropout": 0.5}),
        (torch.float32, 136, {"packing": packing_of([11, 30], home("triton")), "with_lse": True}),
        (torch.float64, 16, {"statistics": (4, 37)}),
        (torch.float32, 136, {"statistics": (4, 37)}),
    ],
)
def test_all_else_is_left_to_pytorch(dtype, width, asked, kernels, monkeypatch):
    monkeypatch.setattr(kernels, "attend", None)
    given = inputs(1, 3, 4, 37, width, dtype=dtype)
    results = []
    for name in ("triton", "sdpa"):
        torch.manual_seed(1)
        results.append(softmax_attention(*given, attention=name, **asked))
    ours, theirs = results
    assert torch.equal(ours.out, theirs.out)
    assert ours.stats is None
    assert (ours.lse is None) == ("with_lse" not in asked)


def test_it_is_first_on_cuda_and_nothing_is_passed_over(kernels):
    for dtype, dropout in itertools.product((torch.float16, torch.float64), (False, True)):
        facts = {"dtype": dtype, "head_dim": 136, "dropout": dropout}
        backend, passed_over = OPS[OP].choice("cuda", "auto", facts)
        assert (backend.name, passed_over) == ("triton", {})


def test_cpu_tensors_are_refused_unless_interpreted(compiled_kernels):
    q = torch.zeros(1, 2, 12, 16)
    with pytest.raises(BackendUnavailable, match=r"CUDA tensors, got cpu; set TRITON_INTERPRET=1"):
        softmax_attention(q, q, q, attention="triton")
