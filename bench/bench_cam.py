"""Stage 1, training step and CAMs of one photograph-sized image, beside the published way."""

import published
import pytest
import torch
from torch.nn.functional import multilabel_soft_margin_loss

from weaktr.models import CamModel

BACKBONE = "deit_small_patch16_224"
CLASSES = 20


def model_and_images(device, batch, height, width):
    torch.manual_seed(0)
    model = CamModel(BACKBONE, CLASSES).to(device)
    images = torch.randn(batch, 3, height, width, device=device)
    labels = torch.zeros(batch, CLASSES, device=device)
    labels[:, [3, 14]] = 1
    return model, images, labels


@pytest.mark.parametrize("row", ["weaktr", "published"])
def bench_cam_training(measure, device, row, batch=4, side=224):
    model, images, labels = model_and_images(device, batch, side, side)

    def step(forward):
        model.zero_grad(set_to_none=True)
        loss = sum(multilabel_soft_margin_loss(logits, labels) for logits in forward(images))
        loss.backward()
        return loss.detach()

    def call():
        if row == "published":
            return step(lambda x: published.cam_forward(model, x))
        return step(model)

    measure(
        call,
        group=f"stage 1 training, DeiT-S, batch {batch}, {side}x{side}",
        row=row,
        baseline=row == "published",
        expected=step(model),
        within=1e-5,
        items=batch,
        dtype="float32",
    )


@pytest.mark.parametrize("row", ["weaktr", "published"])
def bench_cams(measure, device, row, height=375, width=500):
    model, images, labels = model_and_images(device, 1, height, width)
    model.eval()

    def call():
        if row == "published":
            return published.cams(model, images, labels)
        return model.cams(images, labels)

    expected = model.cams(images, labels)
    measure(
        call,
        group=f"CAMs, DeiT-S, {width}x{height}, 2 of {CLASSES} classes",
        row=row,
        baseline=row == "published",
        expected=expected,
        within=1e-5 * float(expected.max()),
        dtype="float32",
    )
