"""Stage 1, training step and CAMs of one photograph-sized image, beside the published way.

The rows of a group run in turns, so that a busy moment of the machine meets all of them.
"""

import os
import time
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import published
import pytest
import torch
from conftest import largest_difference, peak_mib, synchronize
from torch.nn.functional import multilabel_soft_margin_loss

from weaktr.backends import ENVIRONMENT_VARIABLE
from weaktr.models import CamModel
from weaktr.stages.precision import autocast

BACKBONE = "deit_small_patch16_224"
CLASSES = 20
ROUNDS = 5
#: "bf16": autocast, as `train_cam.amp=bf16` asks for. "torch": the plain definitions of all ops.
TRAINING_ROWS = ["weaktr", "weaktr bf16", "published"]
CAM_ROWS = ["weaktr", "torch", "published"]
SIZES = [(375, 500), (500, 600)]


class Found(NamedTuple):
    """What was seen of a row."""

    seconds: list[float]
    peak: float | None
    error: float
    scale: float  #: largest number of the right result


def in_turns(ways: dict[str, Callable[[], Any]]) -> dict[str, Found]:
    """Run every way in turns; their results are compared with that of the first."""
    results, peaks = {}, {}
    for row, way in ways.items():
        way()
        results[row], peaks[row] = peak_mib(way)
    seconds: dict[str, list[float]] = {row: [] for row in ways}
    for _ in range(ROUNDS):
        for row, way in ways.items():
            synchronize()
            start = time.perf_counter()
            way()
            synchronize()
            seconds[row].append(time.perf_counter() - start)
    right = next(iter(results.values()))
    return {
        row: Found(
            seconds[row],
            peaks[row],
            largest_difference(results[row], right),
            float(right.abs().max()),
        )
        for row in ways
    }


def model_and_images(device, batch, height, width):
    torch.manual_seed(0)
    model = CamModel(BACKBONE, CLASSES).to(device)
    images = torch.randn(batch, 3, height, width, device=device)
    labels = torch.zeros(batch, CLASSES, device=device)
    labels[:, [3, 14]] = 1
    return model, images, labels


@cache
def training_steps(device, batch, side):
    model, images, labels = model_and_images(device, batch, side, side)

    def step(forward):
        model.zero_grad(set_to_none=True)
        predictions = forward(images)
        loss = sum(multilabel_soft_margin_loss(logits.float(), labels) for logits in predictions)
        loss.backward()
        return loss.detach()

    def in_bf16(images):
        with autocast("bf16", images.device):
            return model(images)

    return in_turns(
        {
            "weaktr": lambda: step(model),
            "weaktr bf16": lambda: step(in_bf16),
            "published": lambda: step(lambda x: published.cam_forward(model, x)),
        }
    )


@pytest.mark.parametrize("row", TRAINING_ROWS)
def bench_cam_training(record, device, row, batch=8, side=224):
    found = training_steps(device, batch, side)[row]
    record(
        found.seconds,
        group=f"stage 1 training, DeiT-S, batch {batch}, {side}x{side}",
        row=row,
        baseline=row == "published",
        error=found.error,
        within=1e-3 if row == "weaktr bf16" else 1e-5,
        peak=found.peak,
        items=batch,
        dtype="bfloat16" if row == "weaktr bf16" else "float32",
    )


def with_plain_ops(call):
    """`call()` on backend "torch" of every op."""
    before = os.environ.get(ENVIRONMENT_VARIABLE)
    os.environ[ENVIRONMENT_VARIABLE] = "torch"
    try:
        return call()
    finally:
        del os.environ[ENVIRONMENT_VARIABLE]
        if before is not None:
            os.environ[ENVIRONMENT_VARIABLE] = before


@cache
def cams(device, height, width):
    model, images, labels = model_and_images(device, 1, height, width)
    model.eval()
    return in_turns(
        {
            "torch": lambda: with_plain_ops(lambda: model.cams(images, labels)),
            "weaktr": lambda: model.cams(images, labels),
            "published": lambda: published.cams(model, images, labels),
        }
    )


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("row", CAM_ROWS)
def bench_cams(record, device, row, height, width):
    found = cams(device, height, width)[row]
    record(
        found.seconds,
        group=f"CAMs, DeiT-S, {width}x{height}, 2 of {CLASSES} classes",
        row=row,
        baseline=row == "published",
        error=found.error,
        within=1e-5 * found.scale,
        peak=found.peak,
        dtype="float32",
    )
