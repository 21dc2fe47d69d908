"""The commands ``weaktr`` and ``weaktr-train``.

Every command says what it needs in its ``--help``; a mistake in the input ends in one line that
says what to do, not in a traceback (``--debug`` shows it).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import math
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from weaktr.artifacts import STAGES
from weaktr.backends import BackendUnavailable, report
from weaktr.config import (
    LabelConfig,
    PredictConfig,
    Recipe,
    as_tree,
    dump_recipe,
    load_recipe,
    make,
    recipe_names,
)
from weaktr.progress import console, log, set_up_logging

Arguments = argparse.Namespace
#: Exit codes beside 0.
FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

_TRAIN_HELP = f"""\
Train from image-level labels to masks: {" -> ".join(STAGES)}.

A finished stage is not run again unless its inputs have changed; a run that was
interrupted or killed goes on from its last checkpoint when started again.

recipes: {", ".join(recipe_names())} (or the path of a YAML file)

examples:
  weaktr-train demo
  weaktr-train voc12_deit_s --set data.root=/data/VOCdevkit/VOC2012 --out runs/voc
  weaktr-train voc12_deit_s --set train_cam.batch_size=16 --set train_cam.accumulate=4
  weaktr-train demo --from label --set label.threshold=0.3
  weaktr-train my.yaml --only evaluate --force
"""
_LABEL_HELP = """\
Pseudo labels for images with image-level labels: CAMs, threshold, CRF, palette PNGs.

IMAGES is a folder with labels.csv (image,labels with labels parted by ;), or one
with a 0/1 column for each class; class names are those of the checkpoint.

examples:
  weaktr label runs/voc/train_cam/model.safetensors photos/ --out labels/
  weaktr label model.safetensors photos/ --labels shop.csv --set crf=none --set threshold=0.3
"""
_PREDICT_HELP = """\
Masks for plain images: sliding windows over scales and flips, then the CRF.

examples:
  weaktr predict runs/voc/train_seg/model.safetensors photos/ --out masks/
  weaktr predict model.safetensors photos/ --set ratios=[1.0] --set flip=false --set crf=none
"""
_EVAL_HELP = """\
Score a folder of masks against a folder of true masks (PNG, same names, 255 = ignore).

examples:
  weaktr eval runs/voc/predict/masks VOCdevkit/VOC2012/SegmentationClassAug --num-labels 21
"""
_DATA_HELP = """\
Look at a data set before training on it.

  check   reads every file and lists all faults at once, with file and line
  stats   counts images, labels, sizes
  write   writes the manifest as JSON
  masks   draws the true masks of a COCO instances JSON

examples:
  weaktr data check voc12 VOCdevkit/VOC2012 --split train_aug
  weaktr data check coco14 MSCOCO --split train --option ids=80
  weaktr data stats folder photos/
  weaktr data masks coco14 annotations/instances_val2014.json --out masks/ --option ids=80
"""
_SHOW_HELP = """\
Draw image | CAMs plain, fused, refined | pseudo label | prediction | truth of a run.

examples:
  weaktr show runs/demo
  weaktr show runs/voc --names 2007_000032 2007_000039
"""


def main(argv: Sequence[str] | None = None) -> int:
    """``weaktr COMMAND ...``; returns the exit code."""
    parser = argparse.ArgumentParser(
        "weaktr",
        description="Weakly-supervised semantic segmentation with plain vision transformers.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (add, act, text) in _COMMANDS.items():
        command = commands.add_parser(
            name,
            help=text.strip().splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add(command)
        _add_common(command)
        command.set_defaults(act=act)
    return _run(parser.parse_args(argv))


def train_main(argv: Sequence[str] | None = None) -> int:
    """``weaktr-train RECIPE ...``; returns the exit code."""
    parser = argparse.ArgumentParser(
        "weaktr-train",
        description=_TRAIN_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_train(parser)
    _add_common(parser)
    parser.set_defaults(act=_train)
    return _run(parser.parse_args(argv))


def _run(arguments: Arguments) -> int:
    set_up_logging(logging.DEBUG if arguments.debug else logging.INFO)
    try:
        code: int = arguments.act(arguments)
    except (ValueError, FileNotFoundError, BackendUnavailable) as error:
        if arguments.debug:
            raise
        console.print(Text(str(error), style="bold red"))
        return WRONG_INPUT
    except KeyboardInterrupt:
        log.warning("interrupted; start the same command again to go on")
        return INTERRUPTED
    return code


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show tracebacks and debug messages")


def _add_set(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"change one of the {what}; may be repeated",
    )


# ---------------------------------------------------------------- train


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's name or YAML file")
    _add_set(parser, "recipe's settings, such as train_cam.epochs=5")
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder (default runs/RECIPE)")
    parser.add_argument("--from", dest="start", choices=STAGES, help="take earlier stages as is")
    parser.add_argument("--only", choices=STAGES, help="run this stage alone")
    parser.add_argument("--force", action="store_true", help="run finished stages again")
    parser.add_argument("--print", action="store_true", help="print the whole recipe and stop")


def _train(arguments: Arguments) -> int:
    recipe = load_recipe(arguments.recipe, arguments.set)
    if arguments.print:
        sys.stdout.write(dump_recipe(recipe))
        return 0
    from weaktr.stages.pipeline import run_recipe

    run = arguments.out or Path("runs") / recipe.name
    run_recipe(recipe, run, start=arguments.start, only=arguments.only, force=arguments.force)
    log.info("results: %s, numbers: %s", run, run / "metrics.json")
    return 0


# ---------------------------------------------------------------- label, predict


def _add_label(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="stage-1 model.safetensors")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument("--labels", type=Path, help="CSV or JSON (default IMAGES/labels.csv)")
    parser.add_argument("--out", type=Path, default=Path("labels"), help="default: labels")
    parser.add_argument("--dump-cams", action="store_true", help="also write cams/NAME.npz (large)")
    parser.add_argument("--device", default="auto")
    _add_set(parser, f"settings of labelling ({_listed(LabelConfig())})")


def _label(arguments: Arguments) -> int:
    from weaktr import data
    from weaktr.models import CamModel
    from weaktr.stages.label import label

    settings = _settings(LabelConfig(), arguments.set)
    model, info = _load(arguments.checkpoint, arguments.device)
    if not isinstance(model, CamModel):
        raise ValueError(f"{arguments.checkpoint}: expected a stage-1 checkpoint, got stage 2")
    names = _class_names(info, arguments.checkpoint)
    manifest = data.folder(arguments.images, arguments.labels, classes=names)
    _begin(arguments.out, arguments.checkpoint, as_tree(settings))
    label(model, manifest.samples, arguments.out, settings, dump_cams=arguments.dump_cams)
    log.info("masks: %s", arguments.out / "masks")
    return 0


def _add_predict(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="stage-2 model.safetensors")
    parser.add_argument("images", type=Path, metavar="IMAGES", help="folder of images")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions"), help="default: predictions"
    )
    parser.add_argument("--device", default="auto")
    _add_set(parser, f"settings of prediction ({_listed(PredictConfig())})")


def _predict(arguments: Arguments) -> int:
    from weaktr import data
    from weaktr.models import Segmenter
    from weaktr.stages.predict import predict

    settings = _settings(PredictConfig(), arguments.set)
    model, _ = _load(arguments.checkpoint, arguments.device)
    if not isinstance(model, Segmenter):
        raise ValueError(f"{arguments.checkpoint}: expected a stage-2 checkpoint, got stage 1")
    manifest = data.unlabelled(arguments.images)
    _begin(arguments.out, arguments.checkpoint, as_tree(settings))
    predict(model, manifest.samples, arguments.out, settings)
    log.info("masks: %s", arguments.out / "masks")
    return 0


def _settings(default: Any, changes: Sequence[str]) -> Any:
    """`default` with ``key=value`` changes."""
    from weaktr.config import apply_setting

    tree = as_tree(default)
    for change in changes:
        apply_setting(tree, change)
    return make(type(default), tree, origin="--set")


def _listed(settings: Any) -> str:
    return ", ".join(as_tree(settings))


def _load(path: Path, device: str) -> tuple[Any, dict[str, Any]]:
    from weaktr.models import checkpoints
    from weaktr.stages.training import choose_device

    return checkpoints.load(path, choose_device(device))


def _class_names(info: dict[str, Any], path: Path) -> tuple[str, ...]:
    if "classes" not in info:
        raise ValueError(f"{path}: this checkpoint does not name its classes")
    return tuple(info["classes"]["names"])


def _begin(folder: Path, checkpoint: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix masks of different checkpoints or settings in one folder."""
    from weaktr.artifacts import fingerprint, read_json, write_json

    made_from = fingerprint(str(checkpoint.resolve()), checkpoint.stat().st_size, settings)
    note = folder / "inputs.json"
    if note.is_file() and read_json(note).get("made_from") != made_from:
        raise ValueError(
            f"{folder}: holds masks made by another checkpoint or with other settings; "
            "choose another --out"
        )
    write_json(note, {"made_from": made_from, "checkpoint": str(checkpoint), "settings": settings})


# ---------------------------------------------------------------- eval, show, env


def _add_eval(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("masks", type=Path, help="folder of predicted PNGs")
    parser.add_argument("truth", type=Path, help="folder of true PNGs")
    parser.add_argument("--num-labels", type=int, required=True, help="with background: VOC 21")
    parser.add_argument("--names", type=Path, help="list of names, one a line (default: all)")
    parser.add_argument("--out", type=Path, help="write the scores as JSON")


def _eval(arguments: Arguments) -> int:
    from weaktr.artifacts import write_json
    from weaktr.stages.evaluate import score_folders

    names = arguments.names.read_text().split() if arguments.names else None
    found = score_folders(arguments.masks, arguments.truth, arguments.num_labels, names)
    table = Table(title=f"{arguments.masks} against {arguments.truth}", title_justify="left")
    for column in ("mIoU", "pixel accuracy", "precision", "recall", "FP", "FN", "images"):
        table.add_column(column, justify="right")
    values = (
        found.miou, found.pixel_accuracy, found.precision, found.recall,
        found.false_positive, found.false_negative,
    )  # fmt: skip
    table.add_row(*(f"{value:.2f}" for value in values), str(found.images))
    console.print(table)
    if arguments.out:
        iou = [None if math.isnan(value) else round(float(value), 3) for value in found.iou]
        write_json(arguments.out, {"miou": found.miou, "iou": iou, "images": found.images})
    return 0


def _add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--count", type=int, default=6, help="images of each split (default 6)")
    parser.add_argument("--names", nargs="*", default=[], help="draw these samples instead")
    parser.add_argument("--device", default="auto")


def _show(arguments: Arguments) -> int:
    from weaktr.stages.pipeline import Pipeline
    from weaktr.stages.show import show_run

    file = arguments.run / "recipe.yaml"
    if not file.is_file():
        raise ValueError(f"{arguments.run}: expected the folder of a run, {file} is missing")
    recipe: Recipe = replace(load_recipe(file), device=arguments.device)
    pipeline = Pipeline(recipe, arguments.run)
    for path in show_run(pipeline, count=arguments.count, names=arguments.names):
        log.info("picture: %s", path)
    return 0


def _add_env(_: argparse.ArgumentParser) -> None:
    pass


def _env(_: Arguments) -> int:
    import torch

    facts = {
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "GPU": ", ".join(
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        ) or "none",
    }  # fmt: skip
    for package in ("weaktr", "torch", "torchvision", "timm", "numpy", "Pillow", "triton"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    table = Table("what", "value", title="environment", title_justify="left")
    for what, value in facts.items():
        table.add_row(what, value)
    console.print(table)
    ops = Table("op", "backend", "runs here", "reason", title="ops", title_justify="left")
    for status in report():
        ops.add_row(status.op, status.backend, "yes" if status.available else "no", status.reason)
    console.print(ops)
    return 0


# ---------------------------------------------------------------- data


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("check", "stats", "write", "masks"))
    parser.add_argument("source", help="voc12, coco14, folder, images, scenes, manifest")
    parser.add_argument("root", type=Path, help="the data set's folder (manifest: the JSON)")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="further argument of the source, such as ids=80; may be repeated",
    )
    parser.add_argument("--out", type=Path, help="write: the JSON; masks: the folder")


def _data(arguments: Arguments) -> int:
    from weaktr import data
    from weaktr.config import apply_setting
    from weaktr.data.command import run_check, run_stats

    options: dict[str, Any] = {}
    for option in arguments.option:
        apply_setting(options, option)
    if arguments.action == "masks":
        return _draw_masks(arguments, options)
    problems: list[data.Problem] = []
    if arguments.action == "check" and arguments.source != "manifest":
        options["problems"] = problems
    manifest = data.load_manifest(arguments.source, arguments.root, arguments.split, **options)
    if arguments.action == "check":
        return run_check(manifest, console, problems=problems)
    if arguments.action == "stats":
        run_stats(manifest, console)
        return 0
    if arguments.out is None:
        raise ValueError("--out: data write needs the JSON file to write")
    manifest.save(arguments.out)
    log.info("manifest: %s", arguments.out)
    return 0


def _draw_masks(arguments: Arguments, options: dict[str, Any]) -> int:
    from weaktr import data

    if arguments.source != "coco14" or arguments.out is None:
        raise ValueError("data masks: expected coco14 INSTANCES.json --out FOLDER")
    written = data.render_masks(arguments.root, arguments.out, **options)
    log.info("%d masks in %s", len(written), arguments.out)
    return 0


_Command = tuple[Callable[[argparse.ArgumentParser], None], Callable[[Arguments], int], str]
_COMMANDS: dict[str, _Command] = {
    "train": (_add_train, _train, _TRAIN_HELP),
    "label": (_add_label, _label, _LABEL_HELP),
    "predict": (_add_predict, _predict, _PREDICT_HELP),
    "eval": (_add_eval, _eval, _EVAL_HELP),
    "data": (_add_data, _data, _DATA_HELP),
    "env": (_add_env, _env, "Print versions, devices, and which backend of each op runs here."),
    "show": (_add_show, _show, _SHOW_HELP),
}

if __name__ == "__main__":
    sys.exit(main())
