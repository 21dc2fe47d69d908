"""The work of `bench_cam.py`: the CAMs of an image, in every way.

As a program: one way in a process of its own, see `turns.py`.

    python bench/cam_work.py cams weaktr cpu 500 375
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

import published
import torch
import turns
from torch import Tensor

from weaktr.config import CamModelConfig
from weaktr.models import CamModel
from weaktr.ops.registry import ENVIRONMENT_VARIABLE

BACKBONE = "deit_small_patch16_224"
CLASSES = 20


def model_and_images(
    device: str, batch: int, height: int, width: int
) -> tuple[CamModel, Tensor, Tensor]:
    """A model with random weights, images [B, 3, H, W], and labels [B, C] of two classes each."""
    torch.manual_seed(0)
    config = CamModelConfig(BACKBONE, weights=None, drop_path=0.0)
    model = CamModel(config, CLASSES).to(device)
    images = torch.randn(batch, 3, height, width, device=device)
    labels = torch.zeros(batch, CLASSES, device=device)
    labels[:, [3, 14]] = 1
    return model, images, labels


def cams(way: str, *sizes: Any) -> Callable[[], Tensor]:
    """CAMs by "weaktr", "torch" (the plain definitions of all ops) or "published"."""
    model, images, labels = model_and_images(*sizes)
    model.eval()
    if way == "torch":
        os.environ[ENVIRONMENT_VARIABLE] = "torch"
    if way == "published":
        return lambda: published.cams(model, images, labels)
    return lambda: model.cams(images, labels)


def main(work: str, way: str, device: str, height: str, width: str) -> None:
    assert work == "cams"
    turns.serve(way, lambda plain: cams(plain, device, 1, int(height), int(width)))


if __name__ == "__main__":
    main(*sys.argv[1:])
