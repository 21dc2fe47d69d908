"""SDPA's kernels by name: which one is asked for, what it returns, its gradient.

Without a GPU the operators for it run on tensors without numbers (`FakeTensorMode`): that checks
their arguments and the shapes, not the values.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.ops.attention import literal_lse, strided
from tests.tolerances import assert_close, assert_golden
from weaktr.ops.attention import Packing, packing_of, sdpa, softmax_attention
from weaktr.ops.attention import definition as attention_module

BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
MATH = SDPBackend.MATH.value
DTYPES = {"flash": torch.bfloat16, "efficient": torch.float32, "cudnn": torch.float16}
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def inputs(dtype=torch.float32, device="cpu", width=16, tokens=50):
    """q, k, v as a ViT's layer leaves them: views of one projection; 50 rows are padded to 64."""
    qkv = torch.randn(2, tokens, 3, 4, width, device=device, dtype=torch.float64).to(dtype)
    return qkv.permute(2, 0, 3, 1, 4).unbind()


@pytest.fixture
def chosen(monkeypatch):
    """As on a GPU where SDPA chooses the kernel of a name; tensors have no numbers."""

    def choose(name):
        monkeypatch.setattr(sdpa, "choice", lambda q, k, v: BACKENDS[name].value)

    with FakeTensorMode():
        yield choose


# ---- the choice ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("trained", [True, False])
def test_without_gradient_flash_attention_takes_the_place_of_cudnn(name, trained, monkeypatch):
    """Whose plans, one for every size of photographs, cost more than they save."""
    monkeypatch.setattr(torch, "_fused_sdp_choice", lambda *_: BACKENDS[name].value)
    with FakeTensorMode():
        given = [x.requires_grad_(trained) for x in inputs(DTYPES[name], "cuda")]
        taken = "flash" if name == "cudnn" and not trained else name
        assert sdpa.kernel_of(*given) == taken
        with torch.no_grad():
            assert sdpa.kernel_of(*given) == ("flash" if name == "cudnn" else name)
        torch.backends.cuda.enable_flash_sdp(False)
        try:
            assert sdpa.kernel_of(*given) == name
        finally:
            torch.backends.cuda.enable_flash_sdp(True)


@pytest.mark.parametrize("name", BACKENDS)
def test_kernel_is_the_one_that_sdpa_takes(name, chosen):
    chosen(name)
    assert sdpa.kernel_of(*inputs(DTYPES[name], "cuda")) == name


def test_what_sdpa_would_change_before_is_left_to_it(chosen, monkeypatch):
    chosen("flash")
    q, k, v = inputs(torch.float16, "cuda")
    assert sdpa.kernel_of(q, k, v, dropout=0.1) == ""
    assert sdpa.kernel_of(q, k.float(), v) == ""
    assert sdpa.kernel_of(q[:0], k[:0], v[:0]) == ""
    assert sdpa.kernel_of(*inputs(torch.float16, "cuda", width=20)) == ""  # padded to 24
    monkeypatch.setattr(sdpa, "is_exporting", lambda: True)
    assert sdpa.kernel_of(q, k, v) == ""


def test_autocast_to_another_dtype_is_left_to_sdpa(chosen, monkeypatch):
    chosen("flash")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    assert sdpa.kernel_of(*inputs(torch.float32, "cuda")) == ""
    assert sdpa.kernel_of(*inputs(torch.bfloat16, "cuda")) == "flash"


def test_the_formula_has_no_kernel(chosen, monkeypatch):
    monkeypatch.setattr(sdpa, "choice", lambda q, k, v: MATH)
    assert sdpa.kernel_of(*inputs(torch.float16, "cuda")) == ""


@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=GPU)])
@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torch_compile_makes_the_same_choice(where, contiguous, trained, dtype):
    given = [x.contiguous() if contiguous else x for x in inputs(dtype, where)]
    given = [x.detach().requires_grad_(trained) for x in given]
    torch.compiler.reset()  # what differs between these cases is no dimension of one graph
    compiled = torch.compile(sdpa.choice, fullgraph=True, backend="eager")
    assert compiled(*given) == sdpa.choice(*given)


def test_values_on_a_cpu_do_not_depend_on_strides():
    q, k, v = inputs()
    attended = softmax_attention(*map(strided, (q, k, v)), with_lse=True, attention="sdpa")
    assert_close(attended.out, F.scaled_dot_product_attention(q, k, v), "float32")
    assert_close(attended.lse, literal_lse(q, k).float(), "float32")


# ---- operators ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKENDS)
def test_operators_take_such_arguments(name, chosen):
    q, k, v = inputs(DTYPES[name], "cuda")
    out, lse = sdpa.attend_by(name, q, k, v)
    assert (out.shape, out.dtype, out.device) == (q.shape, q.dtype, q.device)
    assert (lse.shape, lse.dtype) == ((2, 4, 50), torch.float32)
    gradients = sdpa.gradients_by(name, out, q, k, v, out, lse.contiguous())
    assert [x.shape for x in gradients] == [q.shape] * 3


@pytest.mark.parametrize("name", BACKENDS)
def test_lse_comes_with_attention_on_cuda(name, chosen, monkeypatch):
    chosen(name)
    q, k, v = inputs(DTYPES[name], "cuda")
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)
    attended = softmax_attention(q, k, v, with_lse=True, attention="sdpa")
    assert attended.out.shape == q.shape
    assert attended.lse.shape == (2, 4, 50) and not attended.lse.requires_grad


def both(q, k, v):
    """Output and log-sum-exp by SDPA."""
    return softmax_attention(2 * q, k, v, with_lse=True, attention="sdpa")[:2]


@pytest.mark.parametrize("attention", ["sdpa", "auto"])
@pytest.mark.parametrize("with_lse", [True, False])
def test_packed_images_take_one_launch_of_flash_attention(attention, with_lse, chosen, monkeypatch):
    chosen("flash")
    q, k, v = (x[:1] for x in inputs(torch.float16, "cuda"))
    packing = Packing([11, 38, 1], torch.tensor([0, 11, 49, 50], dtype=torch.int32, device="cuda"))
    asked = {"packing": packing, "with_lse": with_lse, "attention": attention}
    with torch.profiler.profile() as profile:
        out, lse, _ = softmax_attention(q, k, v, **asked)
    calls = [event.key for event in profile.key_averages() if "attention" in event.key]
    assert calls == ["aten::_flash_attention_forward"]
    assert (out.shape, out.dtype, out.device) == (q.shape, q.dtype, q.device)
    assert (None if lse is None else lse.shape) == ((1, 4, 50) if with_lse else None)


def test_packed_images_with_a_gradient_go_length_by_length(chosen, monkeypatch):
    chosen("flash")
    q, k, v = (x[:1].requires_grad_() for x in inputs(torch.float16, "cuda"))
    monkeypatch.setattr(attention_module, "attend_packed", None)
    packing = Packing([11, 38, 1], torch.tensor([0, 11, 49, 50], dtype=torch.int32, device="cuda"))
    attended = softmax_attention(q, k, v, packing=packing, with_lse=True, attention="sdpa")
    assert attended.out.requires_grad and attended.lse.shape == (1, 4, 50)


@pytest.mark.parametrize("name", BACKENDS)
def test_torch_compile_takes_it_whole(name, chosen, monkeypatch):
    number = BACKENDS[name].value
    answer = torch.compiler.assume_constant_result(lambda *facts: number)
    monkeypatch.setattr(sdpa, "choice_for", answer)
    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for tokens in (50, 61, 70):  # the second makes it a graph for any number
        out, lse = compiled(*inputs(DTYPES[name], "cuda", tokens=tokens))
        assert (out.shape, lse.shape) == ((2, 4, tokens, 16), (2, 4, tokens))


def test_lse_is_not_asked_for_where_it_is_of_no_use(monkeypatch):
    monkeypatch.setattr(attention_module, "kernel_of", None)
    assert softmax_attention(*inputs(), attention="sdpa").lse is None


def test_cpu_kernel_equals_the_formula():
    q, k, v = (x.requires_grad_() for x in inputs(torch.float64))
    out, lse = sdpa.attend_by(sdpa.kernel_of(q, k, v), q, k, v)
    assert_close(lse, literal_lse(q, k), "float64")
    assert not lse.requires_grad
    weight = torch.randn_like(out)
    gradients = sdpa.gradients_by("cpu", weight, *(x.detach() for x in (q, k, v, out)), lse)
    for actual, expected in zip(
        gradients, torch.autograd.grad(out, (q, k, v), weight), strict=True
    ):
        assert_close(actual, expected, "float64")


# ---- on a GPU -----------------------------------------------------------------------------------


def on_gpu(name, **sizes):
    """Inputs of a kernel and the context that leaves SDPA no other; skips where it does not run."""
    given = [x.requires_grad_() for x in inputs(DTYPES[name], "cuda", **sizes)]
    with sdpa_kernel([BACKENDS[name], SDPBackend.MATH]):
        if sdpa.kernel_of(*given) != name:
            pytest.skip(f"SDPA does not take {name!r} here")
    return given, sdpa_kernel([BACKENDS[name]])


@GPU
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("tokens", [50, 217])
def test_lse_and_output_on_a_gpu(name, tokens):
    given, only = on_gpu(name, tokens=tokens, width=64)
    with only:
        expected = F.scaled_dot_product_attention(*given)
    out, lse = sdpa.attend_by(name, *given)
    assert torch.equal(out, expected)
    assert_golden(lse, literal_lse(*given[:2]))


@GPU
@pytest.mark.parametrize("name", BACKENDS)
def test_gradients_on_a_gpu(name):
    """Of the named kernel through autograd, and of its backward pass alone, against SDPA's."""
    given, only = on_gpu(name, width=64)
    with only:
        plain = F.scaled_dot_product_attention(*given)
    weight = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, given, weight)
    out, lse = sdpa.attend_by(name, *given)
    through = torch.autograd.grad(out, given, weight)
    tensors = [x.detach() for x in (weight, *given, out)]
    alone = sdpa.gradients_by(name, *tensors, lse.contiguous())
    exact = [x.detach().double().requires_grad_() for x in given]
    logits = exact[0] @ exact[1].mT * exact[0].shape[-1] ** -0.5
    true = torch.autograd.grad(logits.softmax(-1) @ exact[2], exact, weight.double())
    for gradients in (through, alone):
        for actual, theirs, truth in zip(gradients, expected, true, strict=True):
            bound = 2 * (theirs - truth).abs().max() + 1e-5 * truth.abs().max()
            assert (actual - truth).abs().max() <= bound


@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_switched_off_is_not_taken(dtype):
    q, k, v = inputs(dtype, "cuda")
    with sdpa_kernel([SDPBackend.MATH]):
        assert softmax_attention(q, k, v, with_lse=True, attention="sdpa").lse is None


@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spread", [False, True])
def test_any_strides_on_a_gpu(dtype, spread):
    q, k, v = inputs(dtype, "cuda", width=24)
    given = [strided(x) for x in (q, k, v)] if spread else (q, k, v)
    out, lse, _ = softmax_attention(*given, with_lse=True, attention="sdpa")
    maps = (q.double() @ k.double().mT * 24**-0.5).softmax(-1)
    error = (F.scaled_dot_product_attention(q, k, v) - maps @ v.double()).abs().max()
    assert (out - maps @ v.double()).abs().max() <= 2 * error + 1e-5
    if lse is not None:
        assert_golden(lse, literal_lse(q, k))


@GPU
@pytest.mark.parametrize("attention", ["sdpa", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_packed_images_on_a_gpu(attention, dtype):
    """Each is what it is alone, to twice the error of SDPA."""
    lengths = [50, 217, 1, 217, 96]
    q, k, v = (x[:1] for x in inputs(dtype, "cuda", width=64, tokens=sum(lengths)))
    packing = packing_of(lengths, q.device)
    out, lse, _ = softmax_attention(q, k, v, packing=packing, with_lse=True, attention=attention)
    parts = (x.split(lengths, 2) for x in (q, k, v, out, lse))
    for a, b, c, ours, own_lse in zip(*parts, strict=True):
        exact = (a.double() @ b.double().mT / 8).softmax(-1) @ c.double()
        error = (F.scaled_dot_product_attention(a, b, c) - exact).abs().max()
        assert (ours - exact).abs().max() <= 2 * error + 1e-5 * exact.abs().max()
        assert_golden(own_lse, literal_lse(a, b))


@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_torch_compile_takes_it_whole_on_a_gpu(dtype):
    torch.compiler.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for tokens in (50, 61, 70):  # the second makes it a graph for any number
        given = inputs(dtype, "cuda", tokens=tokens)
        for actual, expected in zip(compiled(*given), both(*given), strict=True):
            assert (actual is None) == (expected is None)
            if actual is not None:
                assert_golden(actual, expected)
