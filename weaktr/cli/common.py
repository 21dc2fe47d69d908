"""What several commands share: exit codes and options."""

from __future__ import annotations

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weaktr.config import LabelConfig, PredictConfig

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


def add_profile(parser: argparse.ArgumentParser) -> None:
    """``--profile FILE``."""
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="write what readers, model and writers did when, for chrome://tracing or "
        "ui.perfetto.dev",
    )


def keys(settings: type[LabelConfig | PredictConfig]) -> str:
    """The names of the settings, for a help text."""
    return ", ".join(field.name for field in fields(settings))
