"""Attention with dropout on a CPU: PyTorch's values and random numbers, without its maps."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.tolerances import assert_close
from weaktr.ops.attention import softmax_attention

SHARE = 0.3


def views(dtype=torch.float32, tokens=33):
    """q, k and v [2, 3, N, 16] as a linear layer lays them out, with a gradient."""
    torch.manual_seed(0)
    qkv = torch.randn(2, tokens, 3, 3, 16, dtype=dtype).permute(2, 0, 3, 1, 4)
    return [x.requires_grad_() for x in qkv.unbind()]


def ours(q, k, v):
    return softmax_attention(q, k, v, dropout=SHARE).out


def of_torch(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, dropout_p=SHARE)


def results(attend, given):
    """Output, gradients, and the random numbers that come next."""
    torch.manual_seed(1)
    out = attend(*given)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape).to(out.dtype)
    return [out, *torch.autograd.grad(out, given, weight), torch.rand(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tokens", [1, 33])
def test_equals_that_of_torch(dtype, tokens):
    given = views(dtype, tokens)
    for actual, expected in zip(results(ours, given), results(of_torch, given), strict=True):
        assert actual.dtype == expected.dtype
        assert_close(actual, expected, str(dtype).removeprefix("torch."))


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_errs_no_more(autocast):
    given = views()
    exact = results(of_torch, given)
    half = [x.detach().bfloat16().requires_grad_() for x in given]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found = zip(results(ours, half), results(of_torch, half), exact, strict=True)
    for actual, expected, right in list(found)[:-1]:
        assert actual.dtype == expected.dtype == torch.bfloat16
        assert (actual - right).abs().max() <= 2 * (expected - right).abs().max()


def test_gradients_are_exact():
    given = [x.detach()[:1, :2, :5].requires_grad_() for x in views(torch.float64)]

    def seeded(*given):
        torch.manual_seed(1)
        return ours(*given)

    assert torch.autograd.gradcheck(seeded, given)


def kept(attend, given):
    """Bytes that autograd keeps beside q, k and v."""
    sizes = {}
    known = {x.data_ptr() for x in given}

    def note(x):
        if x.data_ptr() not in known:
            sizes[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        attend(*given)
    return sum(sizes.values())


def test_keeps_a_byte_for_each_weight():
    given = views(tokens=100)
    assert kept(ours, given) == 2 * 3 * 100 * 100
    assert kept(of_torch, given) >= 3 * 4 * 2 * 3 * 100 * 100


def test_without_gradient_it_is_torchs_own(monkeypatch):
    monkeypatch.setattr("weaktr.ops.attention.definition.attend_with_dropout", None)
    given = views()
    with torch.no_grad():
        torch.manual_seed(1)
        out = ours(*given)
        torch.manual_seed(1)
        assert torch.equal(out, of_torch(*given))
