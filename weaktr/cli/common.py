"""What several commands share: exit codes, options, models, the folder of their results."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weaktr.config import LabelConfig, PredictConfig
    from weaktr.models import CamModel, Segmenter

#: Exit codes beside 0.
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def add_set(parser: argparse.ArgumentParser, what: str) -> None:
    """``--set KEY=VALUE``, a change of one of `what`."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change one of the {what}; may be repeated",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """``--device``, a name for `choose_device`."""
    parser.add_argument("--device", default="auto")


def keys(settings: type[LabelConfig | PredictConfig]) -> str:
    """The names of the settings, for a help text."""
    return ", ".join(field.name for field in fields(settings))


def load_model(path: Path, device: str) -> tuple[CamModel | Segmenter, dict[str, Any]]:
    """A checkpoint's model in eval mode on its device, and the checkpoint's description."""
    from weaktr.models import checkpoints
    from weaktr.models.precision import choose_device

    return checkpoints.load(path, choose_device(device))


def class_names(description: dict[str, Any], path: Path) -> tuple[str, ...]:
    """The classes in the description of the checkpoint `path`.

    Raises:
        ValueError: it does not name them.
    """
    if "classes" not in description:
        raise ValueError(f"{path}: this checkpoint does not name its classes")
    return tuple(description["classes"]["names"])


def begin(folder: Path, checkpoint: Path, settings: dict[str, Any]) -> None:
    """Make `folder` ready for masks of one checkpoint and settings; see `weaktr.outputs.begin`."""
    from weaktr import outputs

    size = checkpoint.stat().st_size
    made_from = outputs.fingerprint(str(checkpoint.resolve()), size, settings)
    outputs.begin(folder, made_from, checkpoint=str(checkpoint), settings=settings)
