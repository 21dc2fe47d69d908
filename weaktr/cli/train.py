"""``weaktr-train RECIPE`` and ``weaktr train RECIPE``: all stages of a recipe."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from weaktr.cli.common import FAILED, add_set
from weaktr.config import Recipe
from weaktr.progress import log
from weaktr.recipes import dump_recipe, load_recipe, recipe_names

HELP = f"""\
Train from image-level labels to masks: {" -> ".join(Recipe.stages)}.

A finished stage is not run again unless its inputs have changed; a run that was
interrupted or killed goes on from its last checkpoint when started again.

recipes: {", ".join(recipe_names())} (or the path of a YAML file)

examples:
  weaktr-train demo
  weaktr-train voc12_deit_s --data-root /data --out runs/voc
  weaktr-train voc12_deit_s --set train_cam.batch_size=16 --set train_cam.accumulate=4
  weaktr-train demo --from label --set label.threshold=0.3
  weaktr-train my.yaml --only evaluate --force
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's name or YAML file")
    add_set(parser, "recipe's settings, such as train_cam.epochs=5")
    parser.add_argument("--data-root", metavar="DIR", help="short for --set data.root=DIR")
    parser.add_argument("--out", type=Path, metavar="RUN", help="folder (default runs/RECIPE)")
    parser.add_argument(
        "--from", dest="start", choices=Recipe.stages, help="take earlier stages as is"
    )
    parser.add_argument("--only", choices=Recipe.stages, help="run this stage alone")
    parser.add_argument("--force", action="store_true", help="run finished stages again")
    parser.add_argument("--print", action="store_true", help="print the whole recipe and stop")


def run(arguments: argparse.Namespace) -> int:
    settings = list(arguments.set)
    if arguments.data_root is not None:
        settings.append(f"data.root={json.dumps(arguments.data_root)}")
    recipe = load_recipe(arguments.recipe, settings)
    if arguments.print:
        sys.stdout.write(dump_recipe(recipe))
        return 0
    from weaktr.stages.pipeline import run_recipe

    folder = arguments.out or Path("runs") / recipe.name
    left_out = run_recipe(
        recipe, folder, start=arguments.start, only=arguments.only, force=arguments.force
    )
    log.info("results: %s, numbers: %s", folder, folder / "metrics.json")
    if left_out:
        log.warning("%d images were left out (see above); start again to try them", left_out)
    return FAILED if left_out else 0
