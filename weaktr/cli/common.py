"""What several commands share: exit codes and options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from weaktr.outputs import require_free_place
from weaktr.progress import log

if TYPE_CHECKING:
    from weaktr.config import LabelConfig, PredictConfig
    from weaktr.jobs.folder import Masks

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
        "as stored (default: as a manifest says; of other photographs, as the run that trained the "
        "model did)",
    )


def add_profile(parser: argparse.ArgumentParser) -> None:
    """``--profile FILE``."""
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="write what readers, model and writers did when, for chrome://tracing or "
        "ui.perfetto.dev",
    )


def refuse_idle(is_idle: bool, why: str, **options: object) -> None:
    """Refuse options that would do nothing beside the others.

    Args:
        is_idle: whether they would.
        why: what they need, such as ``expected with --dataset alone``.
        options: name of each option -> its value; None = it is not given.

    Raises:
        ValueError: names the option.
    """
    for name, value in options.items():
        if is_idle and value is not None:
            raise ValueError(f"--{name.replace('_', '-')}: {why}")


def add_dataset(parser: argparse.ArgumentParser, split: str) -> None:
    """``--dataset`` and ``--split``, of which `split` is the default; see `split_of`."""
    parser.add_argument(
        "--dataset",
        choices=("coco14", "voc12"),
        help="IMAGES is the root of this data set, with its lists and image-level labels",
    )
    parser.add_argument("--split", help=f"of --dataset (default: {split})")


def split_of(arguments: argparse.Namespace, default: str) -> str:
    """What ``--split`` says.

    Raises:
        ValueError: there is no ``--dataset`` of which it would be a split.
    """
    why = "expected with --dataset alone; which photographs of a folder, a file says (--help)"
    refuse_idle(arguments.dataset is None, why, split=arguments.split)
    return arguments.split or default


def add_shards(parser: argparse.ArgumentParser) -> None:
    """The options of work on shards; see `shard_options`."""
    group = parser.add_argument_group(
        "many photographs, several processes",
        "see docs/scale.md; torchrun and Slurm arrays say by themselves which part a process does",
    )
    group.add_argument(
        "--shard", metavar="I/N", help="do every N-th shard, from number I on (0..N-1)"
    )
    group.add_argument(
        "--engine",
        choices=("here", "ray"),
        default="here",
        help="ray: workers of a Ray cluster, or of this machine (default: here, this process)",
    )
    group.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="of Ray (default: as many as there are GPUs, or CPUs where there are none)",
    )
    group.add_argument(
        "--shard-size",
        type=int,
        metavar="PHOTOS",
        help="photographs of a shard, where they are not in tars (default: 1000)",
    )
    group.add_argument(
        "--output",
        choices=("png", "tar"),
        help="loose masks, or a tar a shard (default: as IMAGES)",
    )
    group.add_argument(
        "--max-bad",
        metavar="N",
        help="stop where more than N photographs, or N%% of a shard, cannot be used",
    )
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="try again those that could not be used, in shards that are whole",
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


def show_masks(masks: Masks) -> int:
    """Say what is in a folder of masks that was just made; returns the exit code."""
    from weaktr.evaluation.overview import print_labels

    assert masks.report is not None
    print_labels(masks.report.images_of, masks.label_names, masks.report.masks)
    log.info("masks: %s", masks.folder / "masks")
    if masks.contact_sheet is not None:
        log.info("contact sheet: %s", masks.contact_sheet)
    return FAILED if masks.report.left_out else 0


def keys(settings: type[LabelConfig | PredictConfig]) -> str:
    """The names of the settings, for a help text."""
    return ", ".join(field.name for field in fields(settings))
