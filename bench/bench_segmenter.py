"""Stage 2, training step and prediction over all scales, beside the published way."""

import time
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from conftest import largest_difference, peak_mib

from weaktr.config import PredictConfig, SegModelConfig
from weaktr.data import Sample
from weaktr.data.photographs import reduced
from weaktr.inference.probabilities import for_prediction, probabilities, seg_inputs
from weaktr.models import Segmenter

BACKBONE = "deit_small_patch16_224"
LABELS = 21
PREDICT = PredictConfig(ensemble="plain", crf=None)


@pytest.mark.parametrize("row", ["weaktr", "weaktr, recompute", "published"])
def bench_segmenter_training(measure, device, row, batch=2, side=480):
    torch.manual_seed(0)
    # without dropout, so that both ways see the same network
    config = SegModelConfig(BACKBONE, weights=None, image_size=side, drop_path=0.0, dropout=0.0)
    model = Segmenter(config, LABELS).to(device)
    images = torch.randn(batch, 3, side, side, device=device)
    labels = torch.randint(LABELS, (batch, side, side), device=device)

    def ours():
        model.zero_grad(set_to_none=True)
        loss = model.loss(images, labels, start_value=9.0).loss
        loss.backward()
        return loss.detach()

    def the_published():
        model.zero_grad(set_to_none=True)
        loss = published.clipped_loss(published.patch_logits(model, images), labels, 120, 9.0)
        loss.backward()
        return loss.detach()

    model.recompute_blocks(row == "weaktr, recompute")
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


@dataclass
class Pass:
    """One way of predicting, over all scales."""

    seconds: float
    peak: float | None
    scores: np.ndarray


@cache
def predictions(picture: Path, device: str) -> dict[str, Pass]:
    """All ways in turns, scale by scale, so that a busy moment of the machine meets them all."""
    torch.manual_seed(0)
    model = Segmenter(SegModelConfig(BACKBONE, weights=None), LABELS).to(device).eval()
    image = np.load(picture)["image"]
    ready = for_prediction(model, PREDICT)
    half = for_prediction(model, replace(PREDICT, amp="bf16"))
    sample = Sample("image", picture, None, None, "")

    def scores_of(twin: Segmenter, settings: PredictConfig) -> np.ndarray:
        inputs = seg_inputs(sample, reduced(image, None), settings, torch.device(device))
        return probabilities(twin, [inputs], settings)[0].numpy(force=True)

    ways = {
        "weaktr": lambda settings: scores_of(ready, settings),
        "weaktr bf16": lambda settings: scores_of(half, replace(settings, amp="bf16")),
        "published": lambda settings: published.probabilities(model, image, settings),
    }
    passes = {row: Pass(0.0, None, np.zeros(())) for row in ways}
    for way in ways.values():
        way(replace(PREDICT, ratios=PREDICT.ratios[:1], flip=False))  # to warm up
    for ratio in PREDICT.ratios:
        for row, way in ways.items():
            start = time.perf_counter()
            scores, peak = peak_mib(partial(way, replace(PREDICT, ratios=(ratio,))))
            passes[row].seconds += time.perf_counter() - start
            passes[row].scores = passes[row].scores + scores / len(PREDICT.ratios)
            passes[row].peak = None if peak is None else max(peak, passes[row].peak or 0.0)
    return passes


@pytest.mark.parametrize("row", ["weaktr", "weaktr bf16", "published"])
def bench_segmenter_prediction(record, data, device, row):
    passes = predictions(data / "crf" / "large_b_coco_cam_L3.npz", device)
    expected, actual = passes["weaktr"].scores, passes[row].scores
    height, width = actual.shape[1:]
    record(
        [passes[row].seconds],
        group=f"stage 2 prediction, DeiT-S, {width}x{height}, 6 scales and flip, L{LABELS}",
        row=row,
        baseline=row == "published",
        error=largest_difference(actual, expected),
        # the decoder's norm over labels enlarges rounding
        within=0.1 if row == "weaktr bf16" else 1e-4,
        peak=passes[row].peak,
        dtype="bfloat16" if row == "weaktr bf16" else "float32",
        windows=64,
        same_labels=float((actual.argmax(0) == expected.argmax(0)).mean()),
    )
