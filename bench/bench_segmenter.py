"""Stage 2, training step and one scale of prediction, beside the published way."""

import numpy as np
import published
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from weaktr.config import PredictConfig
from weaktr.models import Segmenter
from weaktr.stages.predict import probabilities

BACKBONE = "deit_small_patch16_224"
LABELS = 21


@pytest.mark.parametrize("row", ["weaktr", "published"])
def bench_segmenter_training(measure, device, row, batch=2, side=480):
    torch.manual_seed(0)
    # without dropout, so that both ways see the same network
    model = Segmenter(BACKBONE, LABELS, image_size=side, drop_path=0.0, dropout=0.0).to(device)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(LABELS, (batch, side, side), device=device)

    def ours():
        model.zero_grad(set_to_none=True)
        loss = model.loss(images, labels, start_value=9.0).loss
        loss.backward()
        return loss.detach()

    def the_published():
        model.zero_grad(set_to_none=True)
        with sdpa_kernel(SDPBackend.MATH):  # explicit softmax attention
            loss = published.clipped_loss(model(images), labels, 120, 9.0)
            loss.backward()
        return loss.detach()

    measure(
        the_published if row == "published" else ours,
        group=f"stage 2 training, DeiT-S, batch {batch}, {side}x{side}, L{LABELS}",
        row=row,
        baseline=row == "published",
        expected=ours(),
        within=1e-5,
        items=batch,
        dtype="float32",
    )


@pytest.mark.parametrize("row", ["weaktr", "published"])
def bench_segmenter_prediction(measure, data, device, row):
    torch.manual_seed(0)
    model = Segmenter(BACKBONE, LABELS).to(device).eval()
    image = np.load(data / "crf" / "large_b_coco_cam_L3.npz")["image"]
    one_scale = PredictConfig(ratios=(1.0,), flip=False, ensemble="plain", crf=None)

    def ours():
        return probabilities(model, image, one_scale)

    def the_published():
        return published.window_probabilities(
            model, image, one_scale.short_side, one_scale.window, one_scale.stride
        )

    height, width = image.shape[:2]
    measure(
        the_published if row == "published" else ours,
        group=f"stage 2 prediction, DeiT-S, {width}x{height}, one scale, L{LABELS}",
        row=row,
        baseline=row == "published",
        expected=ours(),
        within=1e-4,  # the decoder's norm over labels enlarges rounding
        dtype="float32",
    )
