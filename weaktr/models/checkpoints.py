"""Model files in the native format.

A native checkpoint is two files side by side: ``NAME.safetensors`` with the weights and
``NAME.json`` which describes them (stage, architecture, classes, normalisation), so that loading
needs nothing else and never runs pickled code.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from weaktr import __version__
from weaktr.config import CamModelConfig, SegModelConfig
from weaktr.files import whole_file, write_bytes
from weaktr.models.cam import CamModel
from weaktr.models.segmenter import Segmenter
from weaktr.models.vit import load_strict
from weaktr.recipes import as_tree, make

FORMAT = "weaktr-checkpoint"
MODELS: dict[str, type[CamModel] | type[Segmenter]] = {"cam": CamModel, "segmenter": Segmenter}
#: Settings of a model that belong to a run: where its weights came from and what computes it.
OF_THE_RUN = ("weights", "resize", "attention")


def save(model: CamModel | Segmenter, path: str | Path, **extra: Any) -> Path:
    """Write a model so that a crash at any moment leaves the old files or the new ones.

    Args:
        model: what to save.
        path: target; the suffix is replaced by ``.safetensors`` and ``.json``.
        extra: JSON-able facts to travel along, such as ``classes=[...]``.

    Returns:
        The path of the ``.safetensors`` file.

    Raises:
        OSError: the disk is full or not writable; the previous checkpoint is untouched.
    """
    path = Path(path).with_suffix(".safetensors")
    state = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    mean, std = model.normalization
    description = {
        "format": FORMAT,
        "version": __version__,
        "model": next(name for name, kind in MODELS.items() if type(model) is kind),
        "config": stored_config(model),
        "normalization": {"mean": list(mean), "std": list(std)},
        **extra,
    }
    text = json.dumps(description, indent=1)
    # The description also travels inside the weights file: the pair is consistent even where a
    # crash fell between the two renames, since loading reads the inner copy.
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
        ValueError: not a checkpoint of ours, cut off, or tensors missing or of another shape.
    """
    given, path = Path(path), Path(path).with_suffix(".safetensors")
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
    model = build(info, str(path))
    norm = info["normalization"]
    model.vit.normalization = (tuple(norm["mean"]), tuple(norm["std"]))
    load_strict(model, load_file(path), f"checkpoint {path}")
    return model.to(device).eval(), info


def stored_config(model: CamModel | Segmenter) -> dict[str, Any]:
    """What a checkpoint says of a model's architecture: `model.config`, but for what is the run's.

    With it the number of classes (stage 1) or labels (stage 2).
    """
    config = {key: value for key, value in as_tree(model.config).items() if key not in OF_THE_RUN}
    if isinstance(model, CamModel):
        return config | {"num_classes": model.num_classes}
    return config | {"num_labels": model.num_labels}


def build(info: dict[str, Any], origin: str) -> CamModel | Segmenter:
    """The model that a checkpoint's description speaks of, with random weights.

    Raises:
        ValueError: a description with unknown or wrong settings; names `origin`.
    """
    config = dict(info["config"])
    if info["model"] == "cam":
        classes = config.pop("num_classes")
        return CamModel(make(CamModelConfig, config | {"weights": None}, origin), classes)
    labels = config.pop("num_labels")
    return Segmenter(make(SegModelConfig, config | {"weights": None}, origin), labels)


def describe(path: Path) -> dict[str, Any]:
    """The description stored in a checkpoint, without its weights.

    Raises:
        ValueError: not a checkpoint of ours, or cut off.
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
