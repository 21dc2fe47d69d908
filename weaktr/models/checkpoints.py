"""Model files in the native format.

A native checkpoint is two files side by side: ``NAME.safetensors`` with the weights and
``NAME.json`` which describes them (stage, architecture, classes, normalisation), so that loading
needs nothing else and never runs pickled code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from weaktr import __version__
from weaktr.config import BackboneConfig, CamModelConfig, SegModelConfig
from weaktr.files import whole_file, write_bytes
from weaktr.models.cam import CamModel
from weaktr.models.segmenter import Segmenter
from weaktr.recipes import as_tree, make

FORMAT = "weaktr-checkpoint"
#: Name in a description -> the model, its configuration, and what its second argument is called.
MODELS: dict[str, tuple[Any, type[BackboneConfig], str]] = {
    "cam": (CamModel, CamModelConfig, "num_classes"),
    "segmenter": (Segmenter, SegModelConfig, "num_labels"),
}
#: Settings of a model that belong to a run: where its weights came from and what computes it.
OF_THE_RUN = ("weights", "resize", "attention")


def save(model: CamModel | Segmenter, path: str | Path, **extra: Any) -> Path:
    """Write a model; a crash at any moment leaves the old files or the new ones.

    Args:
        model: what to save.
        path: target; the suffix is replaced by ``.safetensors`` and ``.json``.
        extra: facts to store with it, as JSON, such as ``classes=[...]``.

    Returns:
        The path of the ``.safetensors`` file.

    Raises:
        OSError: the disk is full or not writable; the previous checkpoint is untouched.
    """
    path = Path(path).with_suffix(".safetensors")
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    mean, std = model.normalization
    name, count_name = next((k, entry[2]) for k, entry in MODELS.items() if type(model) is entry[0])
    config = {key: value for key, value in as_tree(model.config).items() if key not in OF_THE_RUN}
    description = {
        "format": FORMAT,
        "version": __version__,
        "model": name,
        "config": config | {count_name: getattr(model, count_name)},
        "normalization": {"mean": list(mean), "std": list(std)},
        **extra,
    }
    text = json.dumps(description, indent=1)
    # The description is also stored inside the weights file, and loading reads that copy: weights
    # and description belong together even after a crash between the two renames.
    with whole_file(path) as temporary:
        save_file(state, temporary, metadata={"weaktr": text})
    write_bytes(path.with_suffix(".json"), f"{text}\n".encode())
    return path


def load(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[CamModel | Segmenter, dict[str, Any]]:
    """Read a native checkpoint.

    Args:
        path: the ``.safetensors`` file (or the same name with any suffix).
        device: where the model goes.

    Returns:
        (model in eval mode, its description: format, model, config, normalization and extras).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of weaktr, cut off, or tensors missing or of another shape.
    """
    given, path = Path(path), weights_file(path)
    if not path.is_file():
        if given.is_file():
            raise ValueError(
                f"{given}: not a checkpoint of weaktr; if the published code wrote it, run "
                f"weaktr import {given} --out DIR first"
            )
        raise FileNotFoundError(f"checkpoint: no file {path}")
    info = describe(path)
    if info.get("model") not in MODELS:
        raise ValueError(f"{path}: unknown model kind {info.get('model')!r}")
    kind, settings, count_name = MODELS[info["model"]]
    config = info["config"] | {"weights": None}
    count = config.pop(count_name)
    model: CamModel | Segmenter = kind(make(settings, config, str(path)), count)
    norm = info["normalization"]
    model.vit.normalization = (tuple(norm["mean"]), tuple(norm["std"]))
    load_strict(model, load_file(path), f"checkpoint {path}")
    return model.to(device).eval(), info


def weights_file(path: str | Path) -> Path:
    """The file with the weights of a checkpoint that is named with any suffix."""
    return Path(path).with_suffix(".safetensors")


def class_names(info: Mapping[str, Any], path: Path) -> tuple[str, ...]:
    """The classes in the description of the checkpoint `path`.

    Raises:
        ValueError: it does not name them.
    """
    if "classes" not in info:
        raise ValueError(f"{path}: this checkpoint does not name its classes")
    return tuple(info["classes"]["names"])


def load_strict(module: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """`load_state_dict` whose error lists every missing, unknown and misshapen tensor.

    Raises:
        ValueError: with up to five names of each kind.
    """
    own = module.state_dict()
    problems = {
        "missing": [k for k in own if k not in state],
        "unknown": [k for k in state if k not in own],
        "of another shape": [
            f"{k} (expected {tuple(own[k].shape)}, got {tuple(state[k].shape)})"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
    }
    parts = [f"{len(v)} {kind}: {', '.join(v[:5])}" for kind, v in problems.items() if v]
    if parts:
        raise ValueError(f"{what} does not fit this model; " + "; ".join(parts))
    module.load_state_dict(dict(state))


def describe(path: Path) -> dict[str, Any]:
    """The description stored in a checkpoint, without its weights.

    Raises:
        ValueError: not a checkpoint of weaktr, or cut off.
    """
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("weaktr")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    if text is None:
        raise ValueError(
            f"{path}: safetensors without a weaktr description. Backbone weights go into "
            "model.weights; checkpoints of the published code go through weaktr import"
        )
    info: dict[str, Any] = json.loads(text)
    return info
