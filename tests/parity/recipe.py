"""Weights and inputs of the goldens that are rebuilt instead of stored (manifest: recipe, rnd)."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parents[1] / "golden"
SHAPES: dict[str, Any] = json.loads((GOLDEN / "shapes.json").read_text())


def arrays(name: str) -> dict[str, Tensor]:
    """The stored arrays of one golden file."""
    return load_file(GOLDEN / f"{name}.safetensors")


def config(name: str) -> dict[str, Any]:
    """The published model's settings of one golden file."""
    return SHAPES[name]["config"]


def recipe_weight(name: str, shape: Sequence[int], seed: int) -> Tensor:
    """One tensor of the manifest's weight recipe, float32."""
    state = np.random.RandomState((zlib.crc32(name.encode()) + 7919 * seed) & 0xFFFFFFFF)
    z = state.standard_normal(size=tuple(shape))
    leaf = name.rsplit(".", 1)[-1]
    if leaf in {"pos_embed", "cls_token", "dist_token", "cls_emb"}:
        value = 0.5 * z
    elif len(shape) == 1:
        value = {"gamma": 0.7 + 0.2 * z, "weight": 1 + 0.1 * z}.get(leaf, 0.1 * z)
    elif leaf in {"proj_patch", "proj_classes"}:
        value = z / math.sqrt(shape[0])
    else:
        factor = 1.5 if name.endswith("qkv.weight") else 3.0 if "attn_head_ffn" in name else 1.0
        value = factor / math.sqrt(math.prod(shape[1:])) * z
    return torch.from_numpy(np.asarray(value, dtype=np.float64).astype(np.float32))


def state_dict(name: str) -> dict[str, Tensor]:
    """The published model's whole state dict of one golden case."""
    shapes: Mapping[str, list[int]] = SHAPES[name]["state_dict"]
    seed = config(name)["seed"]
    return {k: recipe_weight(k, v, seed) for k, v in shapes.items() if "rope.freqs" not in k}


def rnd(tag: str, shape: Sequence[int]) -> Tensor:
    """The manifest's `rnd(tag, shape)`, float32."""
    state = np.random.RandomState(zlib.crc32(tag.encode()) & 0xFFFFFFFF)
    return torch.from_numpy(state.standard_normal(size=tuple(shape)).astype(np.float32))
