"""A data set and a recipe so small that all stages take a few seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from weaktr.config import Recipe
from weaktr.recipes import make

NAMES = ("red", "green", "blue")
VIT = {"embed_dim": 32, "depth": 2, "num_heads": 2}
MODEL = {
    "backbone": "vit_tiny_patch16_224",
    "weights": None,
    "image_size": 32,
    "patch_size": 8,
    "backbone_args": VIT,
}


def squares(root: Path, count: int = 24, size: int = 32) -> Path:
    """Coloured squares on grey noise as a folder data set, with masks."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    rows = ["image,labels"]
    for index in range(count):
        rng = np.random.default_rng(index)
        colour = int(rng.integers(3))
        image = rng.integers(90, 140, (size, size, 3)).astype(np.uint8)
        mask = np.zeros((size, size), np.uint8)
        top, left = rng.integers(2, size // 2, 2)
        part = np.s_[top : top + 12, left : left + 12]
        image[part] = np.eye(3, dtype=np.uint8)[colour] * 190 + 40
        mask[part] = colour + 1
        Image.fromarray(image).save(root / "images" / f"{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
        rows.append(f"{index}.png,{NAMES[colour]}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    (root / "classes.txt").write_text("\n".join(NAMES) + "\n")
    return root


def tree(root: Path) -> dict[str, Any]:
    """The recipe's plain values."""
    return {
        "name": "tiny",
        "device": "cpu",
        "num_workers": 0,
        "log_steps": 2,
        "data": {"source": "folder", "root": str(root), "train_split": "train",
                 "score_split": None, "val_split": "val"},
        "cam_model": MODEL | {"reduction": 2.0},
        "train_cam": {"epochs": 2, "batch_size": 4, "lr": 1e-3, "warmup_epochs": 1},
        "label": {"batch_size": 4, "scales": [1.0], "crf": None},
        "seg_model": MODEL | {"weights": "stage1"},
        "train_seg": {"epochs": 2, "batch_size": 4, "crop": 32, "clip_patch": 8, "lr": 1e-2,
                      "augment": {"short_side": 32}},
        "predict": {"short_side": 32, "window": 32, "stride": 16, "ratios": [1.0],
                    "crf": None, "ensemble": "plain"},
        "evaluate": {"cam_images": 6, "thresholds": [0.0, 0.8, 0.2]},
    }  # fmt: skip


def recipe(root: Path, **changes: dict[str, Any]) -> Recipe:
    """The recipe, with changes to its parts: ``recipe(root, label={"threshold": 0.5})``."""
    values = tree(root)
    for part, change in changes.items():
        values[part] = {**values.get(part, {}), **change} if isinstance(change, dict) else change
    return make(Recipe, values)


@contextmanager
def interrupted(
    monkeypatch: pytest.MonkeyPatch, optimizer: type[torch.optim.Optimizer], step: int
) -> Iterator[None]:
    """Have the training below stopped by an error in a step of its optimiser, from 1."""
    whole, steps = optimizer.step, []

    def stop_there(self, closure=None):
        steps.append(0)
        if len(steps) == step:
            raise KeyboardInterrupt
        return whole(self, closure)

    with monkeypatch.context() as patched:
        patched.setattr(optimizer, "step", stop_there)
        with pytest.raises(KeyboardInterrupt):
            yield
