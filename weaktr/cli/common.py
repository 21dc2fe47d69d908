"""What several commands share: exit codes and options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from weaktr.config import LabelConfig, PredictConfig
from weaktr.outputs import require_free_place
from weaktr.progress import log

if TYPE_CHECKING:
    from weaktr.data import Sample
    from weaktr.stages.masks import MaskReport

S = TypeVar("S", LabelConfig, PredictConfig)
#: Exit codes beside 0.
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130


def add_debug(parser: argparse.ArgumentParser, default: object = False) -> None:
    """``--debug``; `default` ``argparse.SUPPRESS`` where a parser above has it too."""
    parser.add_argument(
        "--debug", action="store_true", default=default, help="show tracebacks and debug messages"
    )


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


def add_exif(parser: argparse.ArgumentParser) -> None:
    """``--exif``, see `Sample.exif`."""
    parser.add_argument(
        "--exif",
        choices=("ignore", "apply"),
        help="apply: turn photographs as viewers do, and their masks with them; ignore: the pixels "
        "as stored (default: as the run that trained the model, else ignore)",
    )


def carried_settings(
    kind: type[S], arguments: argparse.Namespace, description: Mapping[str, Any]
) -> S:
    """The settings that the checkpoint carries, with the changes of ``--set``; says which.

    Also gives ``--exif`` its value.

    Raises:
        ValueError: see `weaktr.stages.carried.carried`; or of a change.
    """
    from weaktr.models.checkpoints import weights_file
    from weaktr.stages.carried import carried

    own = carried(kind, weights_file(arguments.checkpoint), description, arguments.set)
    arguments.exif = arguments.exif or own.exif
    log.info("%s", own.in_words())
    return own.settings


def exif_of(arguments: argparse.Namespace) -> dict[str, str]:
    """``--exif`` as one of the settings that masks depend on."""
    return {} if arguments.exif == "ignore" else {"exif": arguments.exif}


def about(
    command: str, arguments: argparse.Namespace, names: Sequence[str] | None
) -> dict[str, Any]:
    """What a folder of masks notes of the command that made them (`weaktr.stages.masked`)."""
    return {
        "command": command,
        "photographs": str(arguments.images.resolve()),
        "classes": None if names is None else list(names),
        "exif": arguments.exif,
    }


def photograph_places(images: Path) -> list[Path]:
    """The folders in which a command's photographs, and true masks of them, are looked for."""
    from weaktr.data.sources.folder import photographs_of

    return [photographs_of(images), images / "masks"]


def add_profile(parser: argparse.ArgumentParser) -> None:
    """``--profile FILE``."""
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="write what readers, model and writers did when, for chrome://tracing or "
        "ui.perfetto.dev",
    )


def check_files(files: Mapping[str, Path | None], apart: Sequence[Path] = ()) -> None:
    """Refuse files of results that would replace each other, or be taken for something else.

    Args:
        files: option -> the file that it names, if any.
        apart: folders in which none of them may lie: of other results, of photographs.

    Raises:
        ValueError: names the options, or the folder.
    """
    given = {option: path for option, path in files.items() if path is not None}
    option_of: dict[Path, str] = {}
    for option, path in given.items():
        place = path.resolve()
        if place in option_of:
            raise ValueError(f"{option_of[place]}, {option}: expected two files, got {path} twice")
        option_of[place] = option
        require_free_place(path, option)
        if path.parent.exists() and not path.parent.is_dir():
            raise ValueError(f"{option} {path}: expected a folder, {path.parent} is a file")
        for folder in apart:
            if place.is_relative_to(folder.resolve()):
                raise ValueError(f"{option} {path}: expected a file outside {folder}")


def show_masks(
    report: MaskReport, out: Path, samples: Sequence[Sample], names: Sequence[str] | None
) -> int:
    """Say what is in a folder of masks, in a table and a picture; returns the exit code.

    Args:
        report: of the command that made them.
        out: the folder.
        samples: its images.
        names: of the classes; None = not known.
    """
    from weaktr.evaluation.overview import draw_contact_sheet, print_labels

    last = max(report.images_of, default=0)
    classes = names or [f"class {index}" for index in range(last)]
    labels = ["background", *classes]
    print_labels(report.images_of, labels, report.masks)
    log.info("masks: %s", out / "masks")
    if picture := draw_contact_sheet(out, samples, labels):
        log.info("contact sheet: %s", picture)
    return FAILED if report.left_out else 0


def keys(settings: type[LabelConfig | PredictConfig]) -> str:
    """The names of the settings, for a help text."""
    return ", ".join(field.name for field in fields(settings))
