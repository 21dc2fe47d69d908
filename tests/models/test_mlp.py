"""Layers that keep less for the gradient: same values, same gradients, less memory."""

from functools import partial

import pytest
import torch
from timm.layers import LayerNorm, Mlp
from torch import nn

from tests.tolerances import assert_close
from weaktr.models.mlp import linear_of_norm, mlp_of_norm

WIDTH, HIDDEN = 12, 20


def layers(dtype=torch.float64, *, norm=nn.LayerNorm, **settings):
    torch.manual_seed(0)
    return Mlp(WIDTH, HIDDEN, **settings).to(dtype), norm(WIDTH).to(dtype)


def both_ways(name, mlp, norm):
    """The layers as they are run here, and as they are."""
    if name == "mlp":
        return lambda x: mlp_of_norm(mlp, norm, x), lambda x: mlp(norm(x))
    return lambda x: linear_of_norm(norm, mlp.fc1, x), lambda x: mlp.fc1(norm(x))


def gradients(call, mlp, norm, tokens):
    """What `call` returns, and the gradients of a weighted sum in tokens and parameters."""
    leaves = [x for x in (tokens, *norm.parameters(), *mlp.parameters()) if x.requires_grad]
    torch.manual_seed(1)
    out = call(tokens)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    found = torch.autograd.grad((out * weights).sum(), leaves, allow_unused=True)
    return [out.detach(), *(x for x in found if x is not None)]


def assert_same_gradients(name, mlp, norm, tokens, dtype):
    ours, plain = (gradients(call, mlp, norm, tokens) for call in both_ways(name, mlp, norm))
    assert len(ours) == len(plain) > 1
    for actual, expected in zip(ours, plain, strict=True):
        assert actual.dtype == expected.dtype
        assert_close(actual, expected, dtype)


NAMES = pytest.mark.parametrize("name", ["mlp", "linear"])


@NAMES
@pytest.mark.parametrize(
    "frozen", [(), ("norm",), ("mlp",), ("norm", "mlp"), ("fc1",), ("tokens",)]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_equals_plain_autograd(name, frozen, bias, drop):
    mlp, norm = layers(bias=bias, drop=drop)
    parts = {"norm": norm, "mlp": mlp, "fc1": mlp.fc1}
    for part in frozen:
        if part != "tokens":
            parts[part].requires_grad_(False)
    tokens = torch.randn(2, 5, WIDTH, dtype=torch.float64, requires_grad="tokens" not in frozen)
    assert_same_gradients(name, mlp, norm, tokens, "float64")


@NAMES
@pytest.mark.parametrize(
    ("act", "norm"),
    [
        (nn.GELU, partial(nn.LayerNorm, elementwise_affine=False)),
        (partial(nn.GELU, "tanh"), LayerNorm),
    ],
)
def test_other_forms_of_norm_and_activation(name, act, norm):
    mlp, norm = layers(act_layer=act, norm=norm)
    tokens = torch.randn(2, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    assert_same_gradients(name, mlp, norm, tokens, "float64")


@NAMES
@pytest.mark.parametrize("drop", [0.0, 0.4])
def test_gradients_are_exact(name, drop):
    mlp, norm = layers(drop=drop)
    tokens = torch.randn(1, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    used = [*norm.parameters(), *(mlp if name == "mlp" else mlp.fc1).parameters()]
    call, _ = both_ways(name, mlp, norm)

    def seeded(x, *_):
        torch.manual_seed(1)
        return call(x)

    assert torch.autograd.gradcheck(seeded, (tokens, *used))


@NAMES
def test_float32_and_autocast(name):
    """Under autocast linear layers compute in bfloat16, and what they give is in it."""
    mlp, norm = layers(torch.float32)
    tokens = torch.randn(2, 40, WIDTH, requires_grad=True)
    assert_same_gradients(name, mlp, norm, tokens, "float32")
    with torch.autocast("cpu", torch.bfloat16):
        ours, plain = (gradients(call, mlp, norm, tokens) for call in both_ways(name, mlp, norm))
    exact = gradients(both_ways(name, mlp, norm)[1], mlp, norm, tokens)
    assert ours[0].dtype == plain[0].dtype == torch.bfloat16
    for actual, expected, right in zip(ours, plain, exact, strict=True):
        assert actual.dtype == expected.dtype
        assert (actual - right).abs().max() <= 2 * (expected - right).abs().max()


def kept(call):
    """Bytes that autograd keeps of a call, parameters apart."""
    sizes = {}

    def note(x):
        if not isinstance(x, nn.Parameter) and x.numel() > WIDTH * HIDDEN:
            sizes[x.data_ptr()] = x.nbytes
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        call()
    return sum(sizes.values())


@NAMES
@pytest.mark.parametrize("half", [False, True])
def test_keeps_what_it_takes_and_no_more(name, half):
    mlp, norm = layers(torch.float32)
    tokens = torch.randn(4, 50, WIDTH, requires_grad=True)
    size, hidden = 2 if half else 4, HIDDEN if name == "mlp" else 0
    ours, plain = both_ways(name, mlp, norm)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        assert kept(lambda: ours(tokens)) == 200 * (4 * WIDTH + size * hidden)
        assert kept(lambda: plain(tokens)) >= 200 * (4 * WIDTH + size * (WIDTH + 2 * hidden))


def test_dropout_keeps_a_byte_for_each_hidden_number():
    mlp, norm = layers(torch.float32, drop=(0.4, 0.0))
    tokens = torch.randn(4, 50, WIDTH, requires_grad=True)
    assert kept(lambda: mlp_of_norm(mlp, norm, tokens)) == 200 * (4 * WIDTH + 5 * HIDDEN)
    mlp.eval()
    assert torch.equal(mlp_of_norm(mlp, norm, tokens), mlp(norm(tokens)))


class Doubled(nn.Linear):
    """Not the linear layer that is looked for."""

    def forward(self, x):
        return 2 * super().forward(x)


class Shifted(nn.LayerNorm):
    """Not the layer norm that is looked for."""

    def forward(self, x):
        return super().forward(x) + 1


@NAMES
@pytest.mark.parametrize("change", ["layer", "norm", "activation", "other"])
def test_anything_else_is_called_as_it_is(name, change):
    mlp, norm = layers(
        torch.float32,
        norm=Shifted if change == "norm" else nn.LayerNorm,
        act_layer=nn.SiLU if change == "activation" else nn.GELU,
    )
    if change == "layer":
        mlp.fc1, mlp.fc2 = Doubled(WIDTH, HIDDEN), Doubled(HIDDEN, WIDTH)
    if change == "other":
        mlp = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        mlp.fc1 = mlp[0]
    tokens = torch.randn(2, 5, WIDTH)
    results = []
    for call in both_ways(name, mlp, norm):
        torch.manual_seed(1)
        results.append(call(tokens))
    assert torch.equal(*results)
