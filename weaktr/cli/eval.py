"""``weaktr eval MASKS TRUTH``: scores of masks or CAMs."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from weaktr.cli.common import refuse_idle
from weaktr.messages import few
from weaktr.progress import console, log

if TYPE_CHECKING:
    from weaktr.data import Classes
    from weaktr.evaluation.folders import Truth
    from weaktr.evaluation.report import Conditions

HELP = """\
Score masks against true masks: mIoU with its interval, per class, boundaries, confusions.

MASKS is what `weaktr predict` or `weaktr label` wrote (masks before and after refinement are
then both scored, and scales, flip, CRF and ensemble are known), or any folder of label PNGs, or of
CAMs (NAME.npz of --dump-cams, NAME.npy of the published code), whose best threshold is found.
TRUTH is a folder of label PNGs of the same names, 255 = not counted.

Where MASKS has confidence/ (weaktr label --emit confidence), a table says how many pixels are
right at each confidence.

Writes OUT/metrics.json and OUT/classes.png; docs/evaluation.md explains every number.

examples:
  weaktr eval predictions VOCdevkit/VOC2012/SegmentationClassAug --classes voc12 \\
      --names VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt
  weaktr eval runs/voc/predict VOCdevkit/VOC2012/SegmentationClassAug
  weaktr eval theirs/ truth/ --num-labels 21 --made-with scales=1 flip=no crf=none ensemble=-
  weaktr eval labels/cams truth/ --classes voc12 --thresholds 0.2:0.6:0.01
"""
#: What --thresholds is where it is not given.
THRESHOLDS = "0:0.8:0.01"
#: The most steps of --thresholds: each takes a confusion matrix.
MOST_STEPS = 1000
#: The keys that --made-with takes.
CONDITIONS = ("scales", "flip", "crf", "ensemble", "note")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("masks", type=Path, metavar="MASKS", help="folder of masks or CAMs")
    parser.add_argument("truth", type=Path, metavar="TRUTH", help="folder of true masks")
    parser.add_argument(
        "--classes",
        help="the numbers in true masks: of voc12, of coco14 or coco80 (COCO's ids 1..90), or of a "
        "file with a name a line (default: as in the masks of the run or command)",
    )
    parser.add_argument("--num-labels", type=int, help="in place of --classes; VOC: 21")
    parser.add_argument("--names", type=Path, help="the split's images, a name or path a line")
    parser.add_argument("--split", help="what to call the images (default: as --names, else TRUTH)")
    parser.add_argument("--without-crf", type=Path, help="masks before refinement, if apart")
    parser.add_argument(
        "--made-with",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help=f"how the masks were made, where no file tells: {', '.join(CONDITIONS)}",
    )
    parser.add_argument(
        "--thresholds",
        metavar="FIRST:LAST:STEP",
        help=f"for CAMs; one number = that threshold (default {THRESHOLDS})",
    )
    parser.add_argument(
        "--boundary",
        type=float,
        default=0.0075,
        help="tolerance of the boundary F-score, as a share of the diagonal (default 0.0075)",
    )
    parser.add_argument("--out", type=Path, default=Path("evaluation"), help="default: evaluation")
    parser.add_argument("--chart", choices=("png", "svg"), default="png")


def _check_out(out: Path, masks: Path, truth: Path, chart: str) -> None:
    """Refuse a folder in which scores and their chart would be taken for something else.

    Raises:
        ValueError: it lies among masks, photographs or other results, is that of a run, or holds
            files of these names that weaktr did not write.
    """
    from weaktr.data.layout import IMAGE_SUFFIXES
    from weaktr.files import require_replaceable
    from weaktr.outputs import require_free_place, require_outside_results

    for folder in (masks / "masks" if (masks / "masks").is_dir() else masks, truth):
        if out.resolve().is_relative_to(folder.resolve()):
            raise ValueError(f"--out {out}: expected a folder outside the masks {folder}")
    require_outside_results(out, "--out", inside=True)
    require_free_place(out / "metrics.json", "--out")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out: expected a folder, got the file {out}")
    names = sorted(file.name for file in out.iterdir()) if out.exists() else []
    pictures = [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]
    if others := [name for name in pictures if not name.startswith("classes.")]:
        raise ValueError(
            f"--out {out}: holds {few(others)}, beside which the chart would be taken for a "
            "photograph; choose another folder"
        )
    require_replaceable(out / "metrics.json")
    require_replaceable(out / f"classes.{chart}")


def run(arguments: argparse.Namespace) -> int:
    from weaktr.data.layout import require_folder
    from weaktr.evaluation import folders
    from weaktr.evaluation.report import (
        UNKNOWN,
        print_calibration,
        print_classes,
        print_confused,
        print_rows,
        refined_by,
    )

    masks = require_folder(arguments.masks, "MASKS")
    require_folder(arguments.truth, "TRUTH")
    _check_out(arguments.out, masks, arguments.truth, arguments.chart)
    truth = _truth(arguments)
    of_list = arguments.names and arguments.names.stem
    split = arguments.split or of_list or Path(os.path.abspath(arguments.truth)).name
    labels, tolerance = truth.classes.label_names, arguments.boundary
    if not 0 <= tolerance <= 1:
        raise ValueError(f"--boundary: expected a share of the diagonal, 0 to 1, got {tolerance}")
    holds_masks = (masks / "masks").is_dir() or any(masks.rglob("*.[pP][nN][gG]"))
    holds_cams = masks.is_dir() and not holds_masks and any(masks.rglob("*.np[yz]"))
    conditions = folders.written_conditions(masks, split, of_cams=holds_cams)
    conditions = _with_changes(conditions, arguments.made_with, of_cams=holds_cams)
    of_cams = f"expected with CAMs alone, of which {masks} holds none"
    refuse_idle(not holds_cams, of_cams, thresholds=arguments.thresholds)
    of_masks = f"expected with masks alone, {masks} holds CAMs"
    refuse_idle(holds_cams, of_masks, without_crf=arguments.without_crf)
    curve: list[tuple[float, float]] = []
    calibration = None
    if holds_cams:
        cams = folders.Source("CAMs", masks, conditions)
        thresholds = _thresholds(arguments.thresholds or THRESHOLDS)
        row, curve = folders.score_cams(cams, truth, thresholds, tolerance)
        rows = [row]
    else:
        sources = folders.mask_sources(masks, conditions, arguments.without_crf)
        names = folders.chosen_names(sources[-1].folder, folders.PNG, truth)
        same = replace(truth, names=names)  # or refinement would seem to add what other images do
        rows = [folders.score_masks(source, same, tolerance) for source in sources]
        calibration = folders.score_confidence(masks, truth)

    print_rows(rows, f"{masks} against {arguments.truth}, in %")
    print_classes(rows, labels)
    print_confused(rows[-1], labels)
    if calibration is not None:
        print_calibration(calibration)
    if gain := folders.refinement_gain(rows):
        adds = f"the {refined_by(rows[-1].conditions.crf)} adds"
        console.print(adds, "{miou:+.2f} mIoU ({low:+.2f} to {high:+.2f})".format(**gain))
    if unknown := [key for key in CONDITIONS if getattr(rows[-1].conditions, key) == UNKNOWN]:
        log.warning(
            "%s: not known; say it with --made-with %s",
            ", ".join(unknown), " ".join(f"{key}=..." for key in unknown),
        )  # fmt: skip
    out, chart = arguments.out, arguments.chart
    written = folders.write_report(
        rows, labels, out, curve, tolerance=tolerance, chart=chart, calibration=calibration
    )
    for what, path in zip(("numbers", "chart"), written, strict=False):
        log.info("%s: %s", what, path)
    return 0


def _truth(arguments: argparse.Namespace) -> Truth:
    """The true masks that --classes, --num-labels and --names describe."""
    from weaktr.data import read_names
    from weaktr.evaluation.folders import Truth, stage_folder
    from weaktr.jobs.masked import noted_classes

    if arguments.classes is not None and arguments.num_labels is not None:
        raise ValueError("--classes, --num-labels: expected one of the two, got both")
    classes = _classes(arguments, noted_classes(stage_folder(arguments.masks)))
    names = read_names(arguments.names) if arguments.names else None
    return Truth(arguments.truth, classes, names)


def _classes(arguments: argparse.Namespace, noted: Classes | None) -> Classes:
    """The classes that --classes or --num-labels mean, with their numbers in true masks.

    Args:
        arguments: of the command.
        noted: what the masks noted of theirs; None = nothing.

    Raises:
        ValueError: an option is wrong, or does not go with the masks.
    """
    from weaktr.data import Classes
    from weaktr.data.names import class_list
    from weaktr.evaluation import numbering

    masks, given, num_labels = arguments.masks, arguments.classes, arguments.num_labels
    if num_labels is not None:
        if not 2 <= num_labels <= 255:
            raise ValueError(f"--num-labels: expected 2 to 255 with background, got {num_labels}")
        if noted is None:
            return Classes(tuple(f"label {label}" for label in range(1, num_labels)))
        numbering.require_count(noted, num_labels, masks)
        return noted
    expected = f"--classes: expected {', '.join(numbering.KNOWN)} or a file"
    if given is None:
        if noted is None:
            raise ValueError(
                f"{expected} of names, or else --num-labels: "
                f"{masks} does not say what its classes are called"
            )
        numbering.require_told(noted, masks)
        log.info("classes of %s: %s", masks, few(noted.names))
        return noted
    if given in numbering.KNOWN:
        known = numbering.KNOWN[given]
        return known if noted is None else numbering.by_names(noted, given, masks)
    if not Path(given).is_file():
        raise ValueError(f"{expected}, got {given!r}")
    classes = class_list(Path(given))
    if classes.names[0].casefold() == "background":
        told = "--classes %s: its first class is called background, and label 0 stands before it"
        log.warning(told, given)
    if numbering.is_coco80(classes):
        told = "--classes %s: true masks are read with its numbers 1..80; if they hold COCO's ids "
        log.warning(told + "1..90, say --classes coco80", given)
    if noted is not None:
        numbering.require_same(noted, classes, given, masks)
    return classes


def _with_changes(conditions: Conditions, changes: list[str], *, of_cams: bool) -> Conditions:
    """`conditions` with the ``KEY=VALUE`` of --made-with.

    Raises:
        ValueError: one is no condition, stands twice, or is one that CAMs do not have.
    """
    from weaktr.evaluation.conditions import noted

    given: dict[str, str] = {}
    for change in changes:
        key, sign, value = change.partition("=")
        if not sign or key not in CONDITIONS:
            raise ValueError(f"--made-with: expected {', '.join(CONDITIONS)}=VALUE, got {change!r}")
        if key in given:
            raise ValueError(f"--made-with: expected {key} once, got {given[key]!r} and {value!r}")
        if of_cams and key in ("crf", "ensemble") and value != getattr(conditions, key):
            expected = f"expected {key}={getattr(conditions, key)} of CAMs"
            raise ValueError(f"--made-with: {expected}, which have neither, got {change!r}")
        given[key] = value
    if "note" in given:
        given["note"] = noted(conditions.note, given["note"])
    return replace(conditions, **given)


def _thresholds(text: str) -> list[float]:
    """``FIRST:LAST:STEP`` or one number, as numbers in [0, 1]."""
    from weaktr.evaluation.iou import thresholds_of

    try:
        numbers = [float(part) for part in text.split(":")]
        first, last, step = numbers if len(numbers) > 1 else (*numbers, *numbers, 1.0)
    except ValueError:
        raise ValueError(f"--thresholds: expected FIRST:LAST:STEP, got {text!r}") from None
    if not (0 <= first <= last <= 1 and step > 0 and (last - first) / step <= MOST_STEPS):
        raise ValueError(
            "--thresholds: expected 0 <= FIRST <= LAST <= 1 and STEP > 0, of which at most "
            f"{MOST_STEPS} lie between them, got {text!r}"
        )
    return thresholds_of(first, last, step).tolist()
