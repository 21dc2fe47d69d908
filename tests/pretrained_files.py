"""Random weights in the files that backbones are released in: their formats, names and shapes."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

KEYS = json.loads((Path(__file__).parent / "golden/F_checkpoint_keys.json").read_text())
#: Short name -> (start of its key list's name, file name, key its tensors stand below).
RELEASES: dict[str, tuple[str, str, str | None]] = {
    "deit_s": ("pretrained.deit_small", "deit_small_patch16_224-cd65a155.pth", "model"),
    "dinov2_s": ("pretrained.dinov2_small", "dinov2_vits14_pretrain.pth", None),
    "vit_s": ("pretrained.vit_small", "S_16-i21k-300ep--imagenet2012-res_384.npz", None),
    "eva02_s": ("pretrained.eva02_small", "eva02_S_pt_in21k_p14.pt", "module"),
}


def shapes(release: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a released file."""
    (keys,) = (value for name, value in KEYS.items() if name.startswith(RELEASES[release][0]))
    plain = {k: v[0] if v and isinstance(v[0], list) else v for k, v in keys.items()}
    # "?" is the width of EVA-02's masked-image head, which no list tells and no encoder needs
    return {k: tuple(8 if side == "?" else side for side in v) for k, v in plain.items()}


def write_release(release: str, folder: Path, *, seed: int = 0) -> Path:
    """Write a backbone's file, full size, with random weights.

    Args:
        release: one of `RELEASES`.
        folder: where to.
        seed: of the weights.

    Returns:
        The file.
    """
    _, name, below = RELEASES[release]
    arrays = random_arrays(shapes(release), seed)
    path = folder / name
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    torch.save(tensors if below is None else {below: tensors}, path)
    return path


def random_arrays(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, np.ndarray]:
    """Float32 arrays as in a fresh model: norms and layer scales 1, biases 0, the rest small."""
    rng = np.random.default_rng(seed)
    arrays = {}
    for name, shape in shapes.items():
        if re.search(r"(norm\d?\.weight|scale|gamma)$", name):
            arrays[name] = np.ones(shape, np.float32)
        elif name.endswith("bias"):
            arrays[name] = np.zeros(shape, np.float32)
        else:
            arrays[name] = rng.normal(0, 0.02, shape).astype(np.float32)
    return arrays
