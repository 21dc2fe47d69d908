"""The MLP that keeps less for the gradient: same values, same gradients, less memory."""

import pytest
import torch
from timm.layers import Mlp
from torch import nn

from tests.tolerances import assert_close
from weaktr.models.mlp import linear_of, mlp_of_norm

WIDTH, HIDDEN = 12, 20


def layers(dtype=torch.float64, **settings):
    torch.manual_seed(0)
    return Mlp(WIDTH, HIDDEN, **settings).to(dtype), nn.LayerNorm(WIDTH).to(dtype)


def gradients(call, mlp, norm, tokens):
    """What `call` returns, and the gradients of a weighted sum in tokens and parameters."""
    tokens = tokens.clone().requires_grad_()
    leaves = [x for x in (tokens, *norm.parameters(), *mlp.parameters()) if x.requires_grad]
    out = call(tokens)
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum()
    return [out.detach(), *torch.autograd.grad(loss, leaves)]


@pytest.mark.parametrize("frozen", [(), ("norm",), ("mlp",), ("norm", "mlp")])
@pytest.mark.parametrize("bias", [True, False])
def test_equals_plain_autograd(frozen, bias):
    mlp, norm = layers(bias=bias)
    norm.requires_grad_("norm" not in frozen)
    mlp.requires_grad_("mlp" not in frozen)
    tokens = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    ours = gradients(lambda x: mlp_of_norm(mlp, norm, x), mlp, norm, tokens)
    plain = gradients(lambda x: mlp(norm(x)), mlp, norm, tokens)
    assert len(ours) == len(plain)
    for actual, expected in zip(ours, plain, strict=True):
        assert_close(actual, expected, "float64")


def test_gradients_are_exact():
    mlp, norm = layers()
    tokens = torch.randn(1, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: mlp_of_norm(mlp, norm, x), tokens)


def test_tokens_without_gradient():
    mlp, norm = layers()
    tokens = torch.randn(1, 3, WIDTH, dtype=torch.float64)
    mlp_of_norm(mlp, norm, tokens).sum().backward()
    assert mlp.fc1.weight.grad is not None
    assert norm.weight.grad is not None


def kept(call):
    """Numbers that autograd keeps of a call, parameters apart."""
    sizes = {}

    def note(x):
        if not isinstance(x, nn.Parameter) and x.numel() > WIDTH * HIDDEN:
            sizes[x.data_ptr()] = x.numel()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        call()
    return sum(sizes.values())


def test_keeps_what_it_takes_and_no_more():
    mlp, norm = layers()
    tokens = torch.randn(4, 50, WIDTH, dtype=torch.float64, requires_grad=True)
    assert kept(lambda: mlp_of_norm(mlp, norm, tokens)) == 200 * (WIDTH + HIDDEN)
    assert kept(lambda: mlp(norm(tokens))) >= 200 * (2 * WIDTH + 2 * HIDDEN)


class Doubled(nn.Linear):
    """Not the linear layer that is looked for."""

    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("change", ["dropout", "layer", "autocast", "other"])
def test_anything_else_is_called_as_it_is(change):
    mlp, norm = layers(torch.float32, drop=0.5 if change == "dropout" else 0.0)
    if change == "layer":
        mlp.fc2 = Doubled(HIDDEN, WIDTH)
    if change == "other":
        mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    tokens = torch.randn(2, 5, WIDTH)
    results = []
    for call in (lambda: mlp_of_norm(mlp, norm, tokens), lambda: mlp(norm(tokens))):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=change == "autocast"):
            results.append(call())
    assert results[0].dtype == results[1].dtype
    assert torch.equal(*results)


def test_linear_of_any_module():
    linear = nn.Linear(WIDTH, 3).double()
    x = torch.randn(4, WIDTH, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: linear_of(nn.Tanh(), linear, x), x)
