"""The losses of a batch of stage 2."""

from __future__ import annotations

import math

import pytest
import torch

from tests.models import small
from weaktr.config import TrainSegConfig
from weaktr.data.datasets import shown_classes
from weaktr.ops import collision_cross_entropy, soft_cross_entropy
from weaktr.training.segmenter_losses import class_loss, segmenter_losses


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
    encoding = model.encode(images)
    forward, passes = model.vit.forward, []
    monkeypatch.setattr(model.vit, "forward", lambda x: passes.append(x) or forward(x))
    for loss in (soft_cross_entropy, collision_cross_entropy):
        settings = TrainSegConfig(loss="collision")
        losses = segmenter_losses(model, settings, loss, images, shares, shown)
        assert losses["soft"].equal(loss(model.decode(encoding), shares))
        assert losses["image"].equal(class_loss(encoding.classes, shown))
    labels = torch.randint(0, 4, (2, *size))
    clipped = segmenter_losses(model, TrainSegConfig(), collision_cross_entropy, images, labels)
    assert clipped.keys() == {"clipped"}
    assert clipped["clipped"].equal(model.loss(images, labels).loss)
    assert len(passes) == 4
