"""`collision_cross_entropy` and `soft_cross_entropy` against loops over places."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.tolerances import assert_close
from weaktr.ops import collision_cross_entropy, soft_cross_entropy

OP = "collision_cross_entropy"


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Logits and targets: soft ones, one-hot ones (place 0) and none (place 1)."""
    logits = torch.randn(shape, dtype=dtype)
    targets = torch.randn(shape, dtype=dtype).softmax(1)
    targets = torch.where(targets < 0.1, 0, targets)
    targets = targets / targets.sum(1, keepdim=True)
    flat = targets.flatten(2)
    flat[0, :, 0] = torch.eye(shape[1], dtype=dtype)[1]
    flat[0, :, 1] = 0
    return logits, flat.unflatten(2, shape[2:])


def by_place(logits: Tensor, targets: Tensor, loss: str) -> float:
    """The definition in words, place by place."""
    losses = []
    for own, label in zip(
        logits.movedim(1, -1).reshape(-1, logits.shape[1]).tolist(),
        targets.movedim(1, -1).reshape(-1, logits.shape[1]).tolist(),
        strict=True,
    ):
        if sum(label) == 0:
            continue
        total = sum(map(math.exp, own))
        shares = [math.exp(logit) / total for logit in own]
        if loss == "collision":
            losses.append(-math.log(sum(y * p for y, p in zip(label, shares, strict=True))))
        else:
            losses.append(-sum(y * math.log(p) for y, p in zip(label, shares, strict=True)))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("shape", [(2, 4, 3, 5), (1, 2, 7), (3, 21, 2, 2)])
def test_both_are_what_the_formulas_say(backend, device, shape):
    logits, targets = (x.to(device) for x in drawn(shape))
    collision = collision_cross_entropy(logits, targets, backend=backend)
    assert collision.item() == pytest.approx(by_place(logits, targets, "collision"), rel=1e-12)
    soft = soft_cross_entropy(logits, targets)
    assert soft.item() == pytest.approx(by_place(logits, targets, "soft"), rel=1e-12)


def test_gradients(backend, device):
    logits, targets = (x.to(device) for x in drawn((2, 3, 2, 2)))
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: collision_cross_entropy(x, targets, backend=backend), logits
    )
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x, targets), logits)


def test_one_hot_labels_make_both_the_cross_entropy(backend):
    logits, labels = torch.randn(2, 5, 4, 4), torch.randint(5, (2, 4, 4))
    targets = F.one_hot(labels, 5).movedim(-1, 1).float()
    expected = F.cross_entropy(logits, labels)
    assert_close(collision_cross_entropy(logits, targets, backend=backend), expected, "float32")
    assert_close(soft_cross_entropy(logits, targets), expected, "float32")


def test_an_undecided_label_asks_for_nothing(backend):
    logits = torch.randn(1, 4, 3, requires_grad=True)
    collision = collision_cross_entropy(logits, torch.full((1, 4, 3), 0.25), backend=backend)
    (gradient,) = torch.autograd.grad(collision, logits)
    assert collision.item() == pytest.approx(math.log(4), rel=1e-6)
    assert gradient.abs().max() < 1e-6


def test_places_without_target_have_no_gradient(backend):
    logits, targets = drawn((1, 3, 4), torch.float32)
    logits.requires_grad_()
    (gradient,) = torch.autograd.grad(
        collision_cross_entropy(logits, targets, backend=backend), logits
    )
    assert gradient[0, :, 1].tolist() == [0, 0, 0]
    assert gradient[0, :, 0].abs().min() > 0
    nothing = collision_cross_entropy(logits, torch.zeros(1, 3, 4), backend=backend)
    (gradient,) = torch.autograd.grad(nothing, logits)
    assert nothing.item() == 0
    assert not gradient.any()
    assert soft_cross_entropy(logits, torch.zeros(1, 3, 4)).item() == 0


def test_large_logits_of_any_sign_stay_finite(backend):
    logits = torch.tensor([[[1e4], [-1e4], [0.0]]], requires_grad=True)
    targets = torch.tensor([[[0.0], [0.5], [0.5]]])
    loss = collision_cross_entropy(logits, targets, backend=backend)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(1e4 + math.log(2), rel=1e-6)  # of the label with logit 0
    assert gradient.flatten().tolist() == [1, 0, -1]


def test_half_precision_is_computed_in_float32(backend):
    logits, targets = drawn((2, 4, 3, 3), torch.float32)
    low = logits.bfloat16()
    for loss in (collision_cross_entropy, soft_cross_entropy):
        assert loss(low, targets).dtype == torch.float32
        assert_close(loss(low, targets), loss(low.float(), targets), "float32")


@pytest.mark.parametrize(
    ("logits", "targets", "message"),
    [
        (torch.zeros(3), torch.zeros(3), r"logits: expected floating point \[B, L, \.\.\.\]"),
        (torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1, 3), "logits: .* got torch.int64"),
        (torch.zeros(1, 3, 2), torch.zeros(1, 3), r"targets: .*\(1, 3, 2\).*got .*\(1, 3\)"),
        (torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.uint8), "targets: .*got torch.uint8"),
    ],
)
def test_what_does_not_fit_is_refused(logits, targets, message):
    for loss in (collision_cross_entropy, soft_cross_entropy):
        with pytest.raises(ValueError, match=message):
            loss(logits, targets)
