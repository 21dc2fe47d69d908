"""``weaktr-train RECIPE`` and ``weaktr train RECIPE``: all stages of a recipe."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from weaktr.cli.common import FAILED, WRONG_INPUT, add_set
from weaktr.config import Recipe
from weaktr.messages import first_lines
from weaktr.progress import console, log
from weaktr.recipes import dump_recipe, load_recipe, recipe_names

if TYPE_CHECKING:
    from weaktr.stages.check import Part

HELP = f"""\
Train from image-level labels to masks: {" -> ".join(Recipe.stages)}.

A finished stage is not run again unless its inputs have changed; a run that was
interrupted or killed goes on from its last checkpoint when started again. Before
anything runs, all that can be known is checked: splits, files, settings, weights.

Several GPUs, on one machine or many, share every batch when torchrun starts it:
  torchrun --nproc-per-node 4 $(which weaktr-train) coco14_deit_s --data-root /data
The batch, and all that follows from it, stays that of the recipe; see docs/training.md.
Ctrl-C, SIGTERM and SIGUSR1 end a training after its step, which is saved.

Your own photographs need no recipe but own_dinov2_s, in which train_seg.epochs and
train_seg.batch_size are auto: by the number of photographs, as configs/README.md says.

recipes: {", ".join(recipe_names())} (or the path of a YAML file)

examples:
  weaktr-train demo
  weaktr-train own_dinov2_s --data-root photos
  weaktr-train voc12_deit_s --data-root /data --out runs/voc
  weaktr-train voc12_deit_s --set train_cam.micro_batch=16
  weaktr-train demo --from label --set label.threshold=0.3
  weaktr-train demo --from label --set label.threshold=auto
  weaktr-train my.yaml --only evaluate --force
  weaktr-train my.yaml --check
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's name or YAML file")
    add_set(parser, "recipe's settings, such as train_cam.epochs=5")
    parser.add_argument("--data-root", metavar="DIR", help="short for --set data.root=DIR")
    parser.add_argument(
        "--val-masks",
        type=int,
        metavar="N",
        help="choose the threshold on the true masks of N images of the score split, drawn at "
        "random: short for --set label.threshold=search_on_masks --set label.val_masks=N",
    )
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder (default runs/RECIPE)")
    parser.add_argument(
        "--from", dest="start", choices=Recipe.stages, help="take earlier stages as is"
    )
    parser.add_argument("--only", choices=Recipe.stages, help="run this stage alone")
    parser.add_argument("--force", action="store_true", help="run finished stages again")
    parser.add_argument(
        "--check", action="store_true", help="check the recipe, its data and weights, and stop"
    )
    parser.add_argument(
        "--no-report", action="store_true", help="do not write RUN/report.html at the end"
    )
    parser.add_argument("--print", action="store_true", help="print the whole recipe and stop")


def settings_of(arguments: argparse.Namespace) -> list[str]:
    """Those of ``--set``, and of the options that are short for some.

    Raises:
        ValueError: an option is given beside a setting that it is short for.
    """
    root, count = arguments.data_root, arguments.val_masks
    options: tuple[tuple[str, object, dict[str, object]], ...] = (
        ("--data-root", root, {"data.root": json.dumps(root)}),
        ("--val-masks", count, {"label.threshold": "search_on_masks", "label.val_masks": count}),
    )
    settings = list(arguments.set)
    given = {setting.partition("=")[0].strip() for setting in settings}
    for option, value, means in options:
        if value is None:
            continue
        if both := sorted(means.keys() & given):
            raise ValueError(f"{option}: expected it or --set {both[0]}, got both")
        settings += [f"{key}={part}" for key, part in means.items()]
    return settings


def run(arguments: argparse.Namespace) -> int:
    recipe = load_recipe(arguments.recipe, settings_of(arguments))
    if arguments.print:
        sys.stdout.write(dump_recipe(recipe))
        return 0
    from weaktr import processes
    from weaktr.report.page import report_at_the_end
    from weaktr.stages.pipeline import check_recipe, run_recipe

    folder = arguments.out or Path("runs") / recipe.name
    given, own = Path(arguments.recipe), folder / "recipe.yaml"
    if own.is_file() and given.is_file() and given.samefile(own) and recipe != load_recipe(own):
        raise ValueError(
            f"{own}: --set would replace this recipe, which you gave; copy it to another place, or "
            "choose another --out"
        )
    chosen = {"start": arguments.start, "only": arguments.only, "force": arguments.force}
    if arguments.check:
        started = time.monotonic()
        parts = check_recipe(recipe, folder, **chosen)
        return show_check(recipe.name, parts, time.monotonic() - started)
    left_out = run_recipe(recipe, folder, **chosen)
    if not processes.speaks():
        return FAILED if left_out else 0
    log.info("results: %s", folder)
    if not arguments.no_report:
        report_at_the_end(folder)
    if (model := folder / "train_seg/model.safetensors").is_file():
        command = shlex.join(["weaktr", "predict", str(model), "PHOTOS", "--out", "masks"])
        log.info("masks of any photographs: %s", command)
    if left_out:
        log.warning("images were left out (see above); start again to try them")
    return FAILED if left_out else 0


def show_check(name: str, parts: Sequence[Part], seconds: float) -> int:
    """Print what was checked and what is wrong; returns the exit code."""
    from weaktr.stages.check import are_outside

    for part in parts:
        console.print(Text(f"{'wrong' if part.faults else 'fine':6}{part.what}: {part.found}"))
        for fault in first_lines(part.faults):
            console.print(Text(f"      {fault}", style="bold red"))
        for warning in first_lines(part.warnings):
            console.print(Text(f"      warning: {warning}", style="yellow"))
    faults = sum(len(part.faults) for part in parts)
    if not parts:
        console.print(Text(f"{name}: every stage is finished, there is nothing to run"))
    else:
        count = {0: "no fault", 1: "1 fault"}.get(faults, f"{faults} faults")
        console.print(Text(f"{name}: {count}, looked at in {seconds:.1f} s"))
    if not faults:
        return 0
    return FAILED if are_outside(parts) else WRONG_INPUT
