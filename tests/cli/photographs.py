"""Photographs, tiny models and the commands on them, for the tests of those commands."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.models import small
from weaktr.models import checkpoints

NAMES = ["cat", "dog"]
#: Of the commands, so that they take a moment.
SETTINGS = {
    "label": ["scales=[1.0]", "flip=false"],
    "predict": [
        "short_side=32", "window=32", "stride=32", "ratios=[1.0]", "flip=false", "ensemble=plain",
    ],
}  # fmt: skip
COMMANDS = ["label", "predict"]
#: Settings for photographs without labels.csv.
CAT_ALONE = {"label": ["--set", "predict_above=0"], "predict": []}


def tiny_models(folder: Path) -> dict[str, Path]:
    """A model of stage 1 for ``label`` and one of stage 2 for ``predict``."""
    torch.manual_seed(0)  # whatever tests ran before
    segmenter = small.segmenter(
        "vit_tiny_patch16_224", 3, decoder="linear", image_size=32, patch_size=16,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    ).eval()  # fmt: skip
    known = {"classes": {"names": NAMES}}
    return {
        "label": checkpoints.save(small.tiny_cam_model(), folder / "cam.safetensors", **known),
        "predict": checkpoints.save(segmenter, folder / "seg.safetensors", **known),
    }


def arguments(command, models, photos, out, *more):
    """Of ``weaktr``, for a command with its model in `models`."""
    settings = [part for setting in SETTINGS[command] for part in ("--set", setting)]
    return [command, models[command], photos, "--out", out, *settings, *more]


def photo(path, width, height, seed=0):
    """A photograph of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (min(height, 64), min(width, 64), 3))
    Image.fromarray(noise.astype(np.uint8)).resize((width, height)).save(path, compress_level=1)
    return path


def with_labels(photos, labels="cat"):
    """A folder with the same labels for all its photographs."""
    rows = [["image", "labels"], *([path.name, labels] for path in sorted(photos.iterdir()))]
    with open(photos / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return photos
