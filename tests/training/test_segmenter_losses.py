"""The losses of a batch of stage 2."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models import small
from weaktr.config import TrainSegConfig
from weaktr.data.datasets import shown_classes
from weaktr.ops import clipped_cross_entropy, collision_cross_entropy, soft_cross_entropy
from weaktr.training.segmenter_losses import (
    LEAST_SHARE,
    NEARLY_ALL,
    SILENCED,
    SILENT_STEPS,
    Silence,
    balancing,
    class_loss,
    segmenter_losses,
    silenced,
)


def test_classes_that_are_not_known_do_not_count():
    logits = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    shown = torch.tensor([[1.0, 0, -1], [0, -1, 1]])
    loss = class_loss(logits, shown)
    terms = []
    for row, known in zip(logits.tolist(), shown.tolist(), strict=True):
        for logit, value in zip(row, known, strict=True):
            share = 1 / (1 + math.exp(-logit))
            terms += [] if value < 0 else [-math.log(share if value else 1 - share)]
    assert loss.item() == pytest.approx(sum(terms) / 4, rel=1e-12)
    (gradient,) = torch.autograd.grad(loss, logits)
    assert gradient[shown < 0].tolist() == [0, 0]
    assert gradient[shown >= 0].abs().min() > 0
    assert class_loss(logits, torch.full((2, 3), -1.0)).item() == 0


def test_what_a_crop_shows():
    mask = torch.zeros(4, 4, dtype=torch.uint8)
    mask[1, 1], mask[2, 2] = 3, 255
    assert shown_classes((0, 2), mask, 4).tolist() == [-1, 0, 1, 0]
    assert shown_classes((), mask, 4).tolist() == [0, 0, 1, 0]  # a mask that was corrected by hand


@pytest.mark.parametrize("size", [(32, 32), (27, 30)])
def test_all_losses_come_from_one_pass(size, monkeypatch):
    model = small.segmenter(
        "vit_tiny_patch16_224", 4, image_size=32, patch_size=8, image_head=True, decoder="linear",
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    ).eval()  # fmt: skip
    images, shown = torch.randn(2, 3, *size), torch.tensor([[1.0, 0, -1], [0, 0, 1]])
    shares = torch.rand(2, 4, 4, 4).softmax(1)
    inside = torch.eye(4).expand(2, 4, 4)
    encoding, without_padding = model.encode(images), model.encode(images, inside).classes
    forward, passes = model.vit.forward, []
    monkeypatch.setattr(model.vit, "forward", lambda *x: passes.append(x) or forward(*x))
    for loss in (soft_cross_entropy, collision_cross_entropy):
        settings = TrainSegConfig(loss="collision")
        losses = segmenter_losses(model, settings, loss, images, shares, shown)
        assert losses["soft"].equal(loss(model.decode(encoding), shares))
        assert losses["image"].equal(class_loss(encoding.classes, shown))
        losses = segmenter_losses(model, settings, loss, images, shares, shown, inside)
        assert losses["image"].equal(class_loss(without_padding, shown))
    labels = torch.randint(0, 4, (2, *size))
    clipped = segmenter_losses(model, TrainSegConfig(), collision_cross_entropy, images, labels)
    assert clipped.keys() == {"clipped", SILENCED}
    assert clipped["clipped"].equal(model.loss(images, labels).loss)
    assert len(passes) == 6


# ---- clipping that silences objects --------------------------------------------------------------


@pytest.mark.parametrize("start", [9.0, 0.01])
def test_the_share_of_objects_that_clipping_silences(start):
    """Two tiles: in the left one all is taken for background, in the right one the lower half."""
    labels = torch.zeros(1, 8, 16, dtype=torch.long)
    labels[0, 0, :4] = 2  # 4 pixels of an object in the left tile
    labels[0, :, 8:] = 1  # 64 in the right one
    labels[0, 7, 0] = 255
    logits = torch.zeros(1, 3, 8, 16)
    logits[0, 0, :, :8] = logits[0, 0, 4:] = logits[0, 1, :4, 8:] = 9.0
    result = clipped_cross_entropy(logits, labels, patch_size=8, start_value=start)
    expected = (4 + 32) / 68 if start > 1 else 0.0
    assert silenced(result, labels, 8).item() == pytest.approx(expected)
    assert silenced(result, torch.zeros_like(labels), 8).item() == 0


def test_silence_is_told_once_and_only_where_it_lasts(caplog):
    def entries(*shares):
        return [{"step": step, SILENCED: share} for step, share in enumerate(shares, 1)]

    Silence(1.2).notice(entries(*[0.99] * (SILENT_STEPS - 1)))
    Silence(1.2).notice(entries(*[NEARLY_ALL - 0.05] * 200))
    Silence(1.2).notice(entries(*[0.0] * 200))
    assert not caplog.records
    silence = Silence(1.2)
    for _ in range(3):
        silence.notice(entries(*[0.0, 0.97] * SILENT_STEPS))
    (record,) = caplog.records
    message = record.getMessage()
    assert f"up to step {2 * SILENT_STEPS} clipping left 97 % of the pixels of objects" in message
    assert "clip_start=1.2" in message and "--set train_seg.clip_start=0" in message


# ---- rare labels ---------------------------------------------------------------------------------


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 1.0])
def test_weights_are_those_of_the_formula(balance):
    shares = [0.7, 0.2, 0.08, 0.02]
    weights = balancing(torch.tensor(shares), balance).tolist()
    whole = sum(share ** (1 - balance) for share in shares)
    assert weights == pytest.approx([share**-balance / whole for share in shares], rel=1e-5)
    counts = [share * weight for share, weight in zip(shares, weights, strict=True)]
    assert sum(counts) == pytest.approx(1, rel=1e-6)  # the mean weight of a patch
    assert balance < 1 or counts == pytest.approx([0.25] * 4, rel=1e-5)


def test_a_label_that_no_mask_holds_counts_like_a_very_rare_one():
    weights = balancing(torch.tensor([0.75, 0.25, 0.0]), 0.5)
    some = balancing(torch.tensor([0.75, 0.25]), 0.5)
    assert weights[:2].tolist() == pytest.approx(some.tolist(), rel=1e-6)
    assert (weights[2] / weights[1]).item() == pytest.approx((0.25 / LEAST_SHARE) ** 0.5, rel=1e-5)


def table(logits):
    """A model whose patches [B, h, w] are rows of a table of logits [K, L]."""
    return SimpleNamespace(
        encode=lambda images, _: SimpleNamespace(patches=images, classes=None),
        decode=lambda encoding: logits[encoding.patches].permute(0, 3, 1, 2),
    )


def test_weighted_losses_patch_by_patch():
    """The cross-entropy of shares times w, and of logits plus ln w; no target, no loss."""
    logits, patches = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 5, (2, 3, 4))
    targets = torch.rand(2, 3, 3, 4).softmax(1)
    targets[0, :, 1, 2] = 0
    weights, settings = torch.tensor([0.5, 2.0, 3.0]), TrainSegConfig(loss="soft_ce")
    arguments = table(logits), settings, soft_cross_entropy, patches, targets
    terms = []
    for image, y, x in np.ndindex(2, 3, 4):
        odds = (weights * logits[patches[image, y, x]].exp()).tolist()
        for weight, target, odd in zip(weights, targets[image, :, y, x], odds, strict=True):
            terms.append(-(weight * target).item() * math.log(odd / sum(odds)))
    loss = segmenter_losses(*arguments, weights=weights)["soft"]
    assert loss.item() == pytest.approx(sum(terms) / 23, rel=1e-6)
    plain = segmenter_losses(*arguments)["soft"]
    assert plain.equal(soft_cross_entropy(logits[patches].permute(0, 3, 1, 2), targets))
    assert segmenter_losses(*arguments, weights=torch.ones(3))["soft"].equal(plain)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_what_is_learnt_to_be_likely_stays(balance):
    """Patches of three kinds with noisy labels, the second one rare, learnt until nothing changes.

    A model that can tell the kinds apart learns each kind's share of labels, whatever the weights.
    """
    likely = torch.tensor([0.02, 0.1, 0.6])
    patches = torch.randint(0, 3, (1, 60, 60))
    rare = torch.rand(1, 60, 60) < likely[patches]
    targets = torch.stack([~rare, rare], 1).double()
    logits = torch.zeros(3, 2, dtype=torch.float64, requires_grad=True)
    weights = balancing(targets.mean((0, 2, 3)), balance) if balance else None
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def loss():
        optimizer.zero_grad()
        settings = TrainSegConfig(loss="soft_ce", balance=balance)
        every = segmenter_losses(
            table(logits), settings, soft_cross_entropy, patches, targets, weights=weights
        )
        every["soft"].backward()
        return every["soft"]

    optimizer.step(loss)
    expected = [rare[patches == kind].double().mean().item() for kind in range(3)]
    assert logits.softmax(1)[:, 1].tolist() == pytest.approx(expected, abs=1e-4)
