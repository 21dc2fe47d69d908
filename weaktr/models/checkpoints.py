"""Model files in the native format.

A native checkpoint is two files side by side: ``NAME.safetensors`` with the weights and
``NAME.json`` which describes them (stage, architecture, classes, normalisation), so that loading
needs nothing else and never runs pickled code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from weaktr import __version__
from weaktr.config import BackboneConfig, CamModelConfig, SegModelConfig
from weaktr.data.classes import MAX_CLASSES, Classes
from weaktr.files import (
    parse_json,
    require_readable,
    whole_file,
    write_bytes,
    written_by_library,
)
from weaktr.models import Stage1Model
from weaktr.models.cam import CamModel
from weaktr.models.patches import PatchModel
from weaktr.models.segmenter import Segmenter
from weaktr.models.shapes import without_memory
from weaktr.models.vit import Normalization, require_count
from weaktr.recipes import as_tree, make

M = TypeVar("M", bound=torch.nn.Module)

FORMAT = "weaktr-checkpoint"
#: Name in a description -> the model, its configuration, and what its second argument is called.
MODELS: dict[str, tuple[Any, type[BackboneConfig], str]] = {
    "cam": (CamModel, CamModelConfig, "num_classes"),
    "patches": (PatchModel, CamModelConfig, "num_classes"),
    "segmenter": (Segmenter, SegModelConfig, "num_labels"),
}
#: Settings of a model that belong to a run: where its weights came from and what computes it.
OF_THE_RUN = ("weights", "resize", "attention")


def save(model: Stage1Model | Segmenter, path: str | Path, **extra: Any) -> Path:
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
    with whole_file(path) as temporary, written_by_library(path):
        save_file(state, temporary, metadata={"weaktr": text})
    write_bytes(path.with_suffix(".json"), f"{text}\n".encode())
    return path


def load(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[Stage1Model | Segmenter, dict[str, Any]]:
    """Read a native checkpoint.

    Args:
        path: the ``.safetensors`` file (or the same name with any suffix).
        device: where the model goes.

    Returns:
        (model in eval mode, its description: format, model, config, normalization and extras).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of weaktr, damaged, or tensors that are missing, of another
            shape, or not finite. Nothing is built for a description that its tensors do not fit.
    """
    path = weights_file(path)
    info = describe(path)
    try:
        build, normalization = _model_of(info)
        class_names(info, path)
        model = built(build, read_safetensors(path))
    except ValueError as error:
        message = "; ".join(str(error).removeprefix(f"{path}: ").splitlines())
        raise ValueError(f"checkpoint {path}: {message}") from error
    model.vit.normalization = normalization
    return model.to(device).eval(), info


def built(build: Callable[[], M], state: Mapping[str, Tensor]) -> M:
    """A model with the weights `state`.

    Args:
        build: makes it with random weights; it is first asked for the shapes alone, so that nothing
            is allocated that the weights do not account for.
        state: its tensors.

    Raises:
        ValueError: they do not fit, or are not finite.
    """
    with without_memory():
        check_fit(build().state_dict(), state)
    model = build()
    load_strict(model, state)
    return model


def weights_file(path: str | Path) -> Path:
    """The ``.safetensors`` file of a checkpoint that is named with any suffix.

    Raises:
        FileNotFoundError: there is none.
        ValueError: a folder, or a file of another kind.
    """
    given = Path(path)
    path = given if given.suffix == ".safetensors" else Path(f"{given}.safetensors")
    if given.suffix == ".json":
        path = given.with_suffix(".safetensors")
    if path.is_file():
        return path
    if given.is_dir():
        inside = sorted(given.glob("*.safetensors"))
        here = f"; here it is {inside[0]}" if inside else ""
        raise ValueError(
            f"{given}: expected a checkpoint's file such as model.safetensors, got a folder{here}"
        )
    if given.is_file():
        raise ValueError(
            f"{given}: not a checkpoint of weaktr, expected a file such as model.safetensors; "
            f"if the published code wrote it, run weaktr import {given} --out DIR first"
        )
    raise FileNotFoundError(f"checkpoint: no file {path}")


def _model_of(
    info: Mapping[str, Any],
) -> tuple[Callable[[], Stage1Model | Segmenter], Normalization]:
    """(what builds the model that a description describes, its normalisation (mean, std)).

    Raises:
        ValueError: it describes none.
    """
    name = info.get("model")
    if info.get("format") != FORMAT or not isinstance(name, str) or name not in MODELS:
        raise ValueError(
            f"expected a description of {FORMAT} with model {', '.join(MODELS)}, got "
            f"{info.get('format')!r:.40} with {name!r:.40}"
        )
    kind, settings, count_name = MODELS[name]
    config = info.get("config")
    if not isinstance(config, dict):
        raise ValueError("the description lacks config")
    normalization = normalization_of(info)
    config = {key: value for key, value in config.items() if key not in OF_THE_RUN}
    most = MAX_CLASSES + (count_name == "num_labels")
    count = require_count(count_name, config.pop(count_name, None), 1, most)
    configuration = make(settings, config | {"weights": None})
    return lambda: kind(configuration, count), normalization


def normalization_of(info: Mapping[str, Any]) -> Normalization:
    """(mean, std) in the description of a checkpoint.

    Raises:
        ValueError: there are none, or others than three numbers each.
    """
    norm = info.get("normalization")
    if not isinstance(norm, dict):
        raise ValueError("the description lacks normalization")
    return _channels(norm, "mean"), _channels(norm, "std")


def _channels(norm: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Three numbers of a normalisation, one a channel.

    Raises:
        ValueError: others; a standard deviation that is not above 0.
    """
    values = norm.get(name)
    least = 1e-6 if name == "std" else -1e6
    if (
        not isinstance(values, list)
        or len(values) != 3
        or not all(type(value) in (int, float) and least <= value <= 1e6 for value in values)
    ):
        raise ValueError(
            f"normalization: {name}: expected three numbers from {least:g} to 1e+06, "
            f"got {values!r:.60}"
        )
    return tuple(map(float, values))


def class_names(info: Mapping[str, Any], path: Path) -> tuple[str, ...] | None:
    """The classes in the description of the checkpoint `path`; None where it names none.

    Raises:
        ValueError: they are no names, or not those of the model's classes.
    """
    classes = info.get("classes")
    names = classes.get("names") if isinstance(classes, dict) else classes
    if names is None:
        return None
    config = info["config"]
    count = config["num_labels"] - 1 if info["model"] == "segmenter" else config["num_classes"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: classes: expected a list of names, got {names!r:.60}")
    if len(names) != count:
        raise ValueError(f"{path}: classes: expected {count} names, got {len(names)}")
    try:
        return Classes(tuple(names)).names
    except ValueError as error:
        raise ValueError(f"{path}: classes: {error}") from error


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not those of a model.

    Args:
        own: the model's.
        state: those to load.

    Raises:
        ValueError: tensors are missing, unknown, of another shape, or no fractions where the
            model's are; up to five names of each kind.
    """
    problems = {
        "missing": [k for k in own if k not in state],
        "unknown": [k for k in state if k not in own],
        "of another shape": [
            f"{k} (expected {tuple(own[k].shape)}, got {tuple(state[k].shape)})"
            for k in own
            if k in state and state[k].shape != own[k].shape
        ],
        "of another type": [
            f"{k} ({state[k].dtype})"
            for k in own
            if k in state and own[k].is_floating_point() != state[k].is_floating_point()
        ],
    }
    parts = [f"{len(v)} {kind}: {', '.join(v[:5])}" for kind, v in problems.items() if v]
    if parts:
        raise ValueError("does not fit the model; " + "; ".join(parts))


def require_finite(state: Mapping[str, Tensor], dtype: torch.dtype | None = None) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        state: the weights.
        dtype: in which they will be; None = their own.

    Raises:
        ValueError: names up to five.
    """
    broken = [
        name
        for name, value in state.items()
        if value.is_floating_point() and not value.to(dtype or value.dtype).isfinite().all()
    ]
    if broken:
        raise ValueError(f"not finite: {', '.join(broken[:5])}; the training diverged")


def load_strict(module: torch.nn.Module, state: Mapping[str, Tensor]) -> None:
    """`load_state_dict` that refuses what `check_fit` and `require_finite` refuse.

    Raises:
        ValueError: see there.
    """
    check_fit(module.state_dict(), state)
    require_finite(state, torch.float32)
    module.load_state_dict(dict(state))


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        OSError: it cannot be read.
        ValueError: damaged; names the file.
    """
    require_readable(path)
    try:
        return load_file(path)
    except (SafetensorError, AttributeError, KeyError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    except RuntimeError as error:  # torch's kind for a file that cannot be opened
        raise OSError(f"{path}: cannot be read ({error})") from error


def describe(path: Path) -> dict[str, Any]:
    """The description stored in a checkpoint, without its weights.

    Raises:
        OSError: it cannot be read.
        ValueError: not a checkpoint of weaktr, or damaged.
    """
    require_readable(path)
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get("weaktr")
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error
    except RuntimeError as error:  # torch's kind for a file that cannot be opened
        raise OSError(f"{path}: cannot be read ({error})") from error
    if text is None:
        raise ValueError(
            f"{path}: safetensors without a weaktr description. Backbone weights go into "
            "model.weights; checkpoints of the published code go through weaktr import"
        )
    info = parse_json(text, f"{path}: a damaged description", finite=False)
    if not isinstance(info, dict):
        raise ValueError(f"{path}: expected a description, got a {type(info).__name__}")
    return info
