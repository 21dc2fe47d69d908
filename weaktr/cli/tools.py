"""The commands that look at things: ``weaktr show | env | data``."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table

from weaktr.ops.registry import report
from weaktr.progress import console, log
from weaktr.recipes import apply_setting, load_recipe

Arguments = argparse.Namespace

DATA_HELP = """\
Prepare a data set, or look at it before training on it.

  check   reads every file and lists all faults at once, with file and line
  stats   counts images, labels, sizes
  write   writes the manifest as JSON
  masks   draws the true masks of a COCO instances JSON
  prepare downloads (or finds), unpacks and completes VOC 2012 or COCO 2014, and says
          what is missing; goes on where it was interrupted

examples:
  weaktr data prepare voc12 --root data --download
  weaktr data prepare coco14 --root data/coco --archives /mnt/zips --coco-ids 90
  weaktr data check voc12 VOCdevkit/VOC2012 --split train_aug
  weaktr data check coco14 MSCOCO --split train --option ids=80
  weaktr data stats folder photos/
  weaktr data masks coco14 annotations/instances_val2014.json --out masks/ --option ids=80
"""
SHOW_HELP = """\
Draw image | CAMs plain, fused, refined | pseudo label | prediction | truth of a run.

examples:
  weaktr show runs/demo
  weaktr show runs/voc --names 2007_000032 2007_000039
"""
ENV_HELP = "Print versions, devices, which backend of each op is picked, and why another is not."


def add_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--count", type=int, default=5, help="images of each split (default 5)")
    parser.add_argument("--names", nargs="*", default=[], help="draw these samples instead")
    parser.add_argument("--device", default="auto")


def show_command(arguments: Arguments) -> int:
    from weaktr.cli.show import show_run
    from weaktr.stages.run import Run

    file = arguments.run / "recipe.yaml"
    if not file.is_file():
        raise ValueError(f"{arguments.run}: expected the folder of a run, {file} is missing")
    recipe = replace(load_recipe(file), device=arguments.device)
    run = Run(recipe, arguments.run)
    for path in show_run(run, count=arguments.count, names=arguments.names):
        log.info("picture: %s", path)
    return 0


def add_env(_: argparse.ArgumentParser) -> None:
    pass


def _instructions() -> str:
    """Which instructions the compiled code uses here."""
    try:
        from weaktr import _native
    except ImportError:
        return "not built"
    best, *_ = _native.isa_levels()
    return f"{best}, bfloat16" if _native.has_bfloat16() else f"{best}, no bfloat16"


def env_command(_: Arguments) -> int:
    import torch

    facts = {
        "Python": f"{platform.python_version()} on {platform.platform()}",
        "CPU": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads",
        "C++ code": _instructions(),
        "GPU": ", ".join(
            torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
        ) or "none",
    }  # fmt: skip
    for package in (
        "weaktr",
        "torch",
        "torchvision",
        "timm",
        "numpy",
        "Pillow",
        "triton",
        "xformers",
    ):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    table = Table("what", "value", title="environment", title_justify="left")
    for what, value in facts.items():
        table.add_row(what, value)
    console.print(table)
    console.print(_table_of_ops())
    return 0


def _table_of_ops() -> Table:
    """Which backend of each op is picked, and why another one is not."""
    columns = ("op", "backend", "runs here", "picked on", "takes, or reason")
    ops = Table(*columns, title="ops", title_justify="left")
    for status in report():
        here = "yes" if status.available else "no"
        remark = status.reason or status.refused or status.limits
        ops.add_row(status.op, status.backend, here, ", ".join(status.picked), remark)
    return ops


# ---------------------------------------------------------------- data


def add_data(parser: argparse.ArgumentParser) -> None:
    from weaktr.cli.data import add_prepare_options

    parser.add_argument("action", choices=("check", "stats", "write", "masks", "prepare"))
    parser.add_argument("source", help="voc12, coco14, folder, images, scenes, manifest")
    parser.add_argument(
        "folder", type=Path, nargs="?", help="the data set's folder (manifest: the JSON)"
    )
    parser.add_argument("--root", type=Path, metavar="DIR", help="the same, by name")
    parser.add_argument("--split", default="train")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="further argument of the source, such as ids=80; may be repeated",
    )
    parser.add_argument("--out", type=Path, help="write: the JSON; masks: the folder")
    add_prepare_options(parser)


def data_command(arguments: Arguments) -> int:
    from weaktr import data
    from weaktr.cli.data import run_check, run_prepare, run_stats

    arguments.root = arguments.root or arguments.folder
    if arguments.root is None:
        raise ValueError(f"--root: data {arguments.action} needs the data set's folder")
    if arguments.action == "prepare":
        return run_prepare(arguments.source, arguments.root, arguments, console)
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
