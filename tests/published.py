"""Checkpoint files as the published code writes them, made from its stored key lists."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity import recipe

#: name -> {key: [shape, dtype]} of every released model.
KEY_LISTS: dict[str, Any] = {
    name: keys
    for name, keys in json.loads((recipe.GOLDEN / "F_checkpoint_keys.json").read_text()).items()
    if name.startswith(("stage1.", "stage2."))
}


def random_state(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names and shapes of a released model."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: 0.05 * torch.randn(shape, generator=generator)
        for key, (shape, _) in KEY_LISTS[name].items()
    }


def save_stage1(path: Path, state: Mapping[str, Tensor], **extra: Any) -> Path:
    """What ``main.py`` of the published code saves."""
    torch.save({"model": dict(state), "epoch": 17, "miou": np.float64(68.7), **extra}, path)
    return path


def save_stage2(path: Path, state: Mapping[str, Tensor], labels: int, **extra: Any) -> Path:
    """What ``segm/train.py`` of the published code saves."""
    wrapper = {
        "model": dict(state),
        "optimizer": {
            "state": {0: {"momentum_buffer": torch.zeros(4)}},
            "param_groups": [{"lr": 1e-5, "nesterov": True, "params": [0]}],
        },
        "n_cls": labels,
        "lr_scheduler": {"iter_max": 100, "base_lrs": [1e-4], "_last_lr": [np.float64(1e-5)]},
        "epoch": 99,
        "miou": np.float64(74.02),
        "args": argparse.Namespace(amp=False, log_dir="seg"),
    }
    torch.save(wrapper | extra, path)
    return path


def save_variant(path: Path, **net: Any) -> Path:
    """The ``variant.yml`` of a stage-2 training; `net` changes its ``net_kwargs``."""
    import yaml

    kwargs = {
        "backbone": "deit_small_patch16_224",
        "normalization": "deit",
        "image_size": (480, 480),
        "patch_size": 16,
        "d_model": 384,
        "n_heads": 6,
        "n_layers": 12,
        "n_cls": 21,
        "decoder": {"name": "mask_transformer", "n_layers": 2, "dropout": 0.1},
    } | net
    tree = {
        "net_kwargs": kwargs,
        "dataset_kwargs": {"dataset": "pascal_voc", "normalization": kwargs["normalization"]},
        "inference_kwargs": {"im_size": 520, "window_size": 480, "window_stride": 320},
    }
    path.write_text(yaml.dump(tree))  # writes image_size as !!python/tuple, as published
    return path
