"""``weaktr init PHOTOS``: look at a folder of photographs and write a recipe for it."""

from __future__ import annotations

import argparse
import shlex
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from weaktr.cli.common import FAILED, check_files
from weaktr.messages import few, one_line
from weaktr.progress import console, log

if TYPE_CHECKING:
    from weaktr.config import Recipe
    from weaktr.data.own import Header, OwnPhotographs
    from weaktr.data.problems import Findings
    from weaktr.stages.start import Choices

HELP = """\
Look at a folder of photographs, hold some out, and write a recipe to train with.

Labels are looked for in PHOTOS and its folders; which form they have is known by the content:
  a table   image,labels with commas, semicolons or tabs; a column of 0 and 1 for each class
  JSON      {"a.jpg": ["cat"]}, COCO's instances, exports of Label Studio (JSON, JSON-MIN, CSV)
  XML       CVAT for images 1.1
  LabelMe   a JSON for each photograph
  folders   cat/1.jpg, dog/2.jpg; photographs in background/ or none/ show no class

Writes PHOTOS/train.csv and val.csv (train_part.csv and val_part.csv where you have a train.csv of
your own; nothing where you have both) and PHOTOS/recipe.yaml. Started again, it replaces what it
wrote itself, and nothing that you wrote or changed.

examples:
  weaktr init photos/
  weaktr init photos/ --try
  weaktr init photos/ --labels export.json --classes classes.txt
  weaktr init photos/ --hold-out 0.1 --weights dinov2_small.safetensors
"""
#: Classes in the table; photographs and epochs of ``--try``.
SHOWN, TRIED, TRY_EPOCHS = 30, 30, 10
#: Share of the photographs that is held out.
HOLD_OUT = 0.2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photographs", type=Path, metavar="PHOTOS", help="folder of photographs")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="label file, or folder of LabelMe's"
    )
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help="class names in their order, one a line"
    )
    parser.add_argument(
        "--hold-out",
        type=float,
        metavar="SHARE",
        help=f"of the photographs, 0 to 0.5 (default {HOLD_OUT}); 0: masks are predicted for those "
        "that were trained on",
    )
    parser.add_argument("--out", type=Path, metavar="RECIPE", help="default: PHOTOS/recipe.yaml")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="of DINOv2-S (default: timm fetches them)"
    )
    parser.add_argument(
        "--exif",
        choices=("ignore", "apply"),
        help="whether photographs are turned as viewers do (default: apply where there are some to "
        "turn and no masks/)",
    )
    parser.add_argument(
        "--try",
        dest="is_trial",
        action="store_true",
        help=f"write nothing there; train on {TRIED} photographs, about two minutes on two cores, "
        "to see what to expect",
    )
    parser.add_argument(
        "--out-run", type=Path, metavar="DIR", help="of --try (default runs/try-PHOTOS)"
    )


def run(arguments: argparse.Namespace) -> int:
    from weaktr.data.hold_out import hold_out
    from weaktr.data.own import doubts, look_at
    from weaktr.recipes import load_recipe
    from weaktr.stages.start import own_files, recipe_text, splits_of, write_start

    root, file = arguments.photographs, arguments.out or arguments.photographs / "recipe.yaml"
    if arguments.weights is not None and not arguments.weights.is_file():
        raise ValueError(f"--weights: expected a file, got {str(arguments.weights)!r}")
    check_files({"--out": file})
    own = look_at(root, arguments.labels, arguments.classes, own_files(root))
    headers = own.headers()
    choices = _choices(arguments, own, headers)
    if own.held_out is not None and arguments.hold_out is not None:
        raise ValueError(f"--hold-out: {root} has a val.csv that says it; leave it out")
    if arguments.is_trial:
        return _try(arguments, own, choices)
    share = HOLD_OUT if arguments.hold_out is None else arguments.hold_out
    copies = [name for group in own.copies() for name in group]
    held = hold_out(own.labels, share, copies) if own.held_out is None else own.held_out
    splits = splits_of(own, held, root)
    write_start(splits, file, recipe_text(own, splits, choices))
    recipe = load_recipe(file)
    _show(own, headers, held)
    found = _checked(recipe)
    for doubt in doubts(own, held):
        console.print(Text(f"look at: {one_line(doubt)}", style="yellow"))
    _show_findings(found)
    for name in sorted(splits.files):
        log.info("labels: %s", root / name)
    log.info("recipe: %s", file)
    if found.count("error"):
        log.warning(
            "correct the errors, then start this again; all of them: weaktr data check folder %s "
            "--split %s", shlex.quote(recipe.data.root), recipe.data.train_split,
        )  # fmt: skip
        return FAILED
    _show_next(recipe, file)
    return 0


def _choices(
    arguments: argparse.Namespace, own: OwnPhotographs, headers: Mapping[str, Header]
) -> Choices:
    """What the recipe says of EXIF and weights."""
    from weaktr.stages.start import Choices

    turned = sum(header.is_turned for header in headers.values())
    wanted = "apply" if turned and not (own.root / "masks").is_dir() else "ignore"
    return Choices(arguments.exif or wanted, turned, arguments.weights)


def _show(own: OwnPhotographs, headers: Mapping[str, Header], held: Collection[str]) -> None:
    """Print what was understood: photographs, labels, classes."""
    long = [max(header.size) for header in headers.values()] or [0]
    formats = Counter(header.format for header in headers.values()).most_common()
    names = own.classes.names
    rows = {
        "photographs": f"{len(own.photographs)} below {own.images}",
        "formats": ", ".join(f"{count} {name}" for name, count in formats),
        "longer side": f"{min(long)} … {int(median(long))} … {max(long)} (least, median, most)",
        "labels": f"{own.tags.path}: {own.tags.form}, of {len(own.labels)} photographs",
        "no class": str(sum(not labels for labels in own.labels.values())),
        "held out": f"{len(held)}, trained on {len(own.labels) - len(held)}",
    }
    table = Table("what", "value", title=one_line(str(own.root)), title_justify="left")
    for what, value in rows.items():
        table.add_row(what, Text(one_line(value)))
    console.print(table)
    counts = Counter(label for labels in own.labels.values() for label in labels)
    out = Counter(label for name in held for label in own.labels[name])
    table = Table(title=f"{len(names)} classes", title_justify="left")
    for heading in ("label", "class", "photographs", "held out"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for number, name in enumerate(names[:SHOWN], start=1):
        table.add_row(str(number), Text(name), str(counts[name]), str(out[name]))
    if len(names) > SHOWN:
        table.add_row("...", f"and {len(names) - SHOWN} more", "", "")
    console.print(table)


def _checked(recipe: Recipe) -> Findings:
    """What `weaktr data check` finds; of the held-out photographs, only of single ones."""
    from weaktr.data import check
    from weaktr.data.problems import Findings
    from weaktr.stages.run import load_split

    settings, found = recipe.data, Findings()
    check(load_split(settings, settings.train_split, problems=found), problems=found)
    if settings.val_split != settings.train_split:
        of_val = check(load_split(settings, settings.val_split, problems=[]))
        found.extend(problem for problem in of_val if not problem.where.startswith("split "))
    return found


def _show_findings(found: Findings) -> None:
    """Print a line for each kind of problem; photographs without a class are none here."""
    first = {found.key(problem): problem for problem in reversed(found)}
    for (level, kind), count in found.counts.items():
        if kind.startswith(("has no label", "image that is not listed")):
            continue
        problem = first[level, kind]
        more = f" ({count:,} of this kind)" if count > 1 else ""
        style = "bold red" if level == "error" else "yellow"
        console.print(Text(f"{level}: {problem}{more}", style=style))


def _show_next(recipe: Recipe, file: Path) -> None:
    """Print what the training needs, how long it may take here, and its command."""
    import timm

    from weaktr.stages.check_models import is_fetched
    from weaktr.stages.forecast import forecast
    from weaktr.stages.pipeline import STAGES
    from weaktr.stages.plan import in_words, time_in_words
    from weaktr.stages.run import Run

    run = Run(recipe, Path("runs") / recipe.name)
    log.info("measuring how long this machine takes: %s", in_words(run.device))
    if seconds := forecast(run, STAGES):
        log.info("%s", time_in_words(seconds))
    known = timm.models.get_pretrained_cfg(recipe.cam_model.backbone)
    if recipe.cam_model.weights == "timm" and known is not None and not is_fetched(known):
        log.info("weights: timm fetches them once, about 90 MB; or give a file: --weights FILE")
    log.info("next: weaktr-train %s", shlex.quote(str(file)))


def _try(arguments: argparse.Namespace, own: OwnPhotographs, choices: Choices) -> int:
    """Train on a few photographs, into a folder of its own, and write the report of it."""
    from dataclasses import replace

    from weaktr.data import Classes
    from weaktr.data.hold_out import hold_out, spread
    from weaktr.outputs import require_apart
    from weaktr.recipes import load_recipe
    from weaktr.report.page import report_at_the_end
    from weaktr.stages.pipeline import run_recipe
    from weaktr.stages.start import recipe_text, splits_of, write_start

    out = arguments.out_run or Path("runs") / f"try-{own.root.resolve().name}"
    require_apart(out, [own.tags.path], [own.root], option="--out-run")
    chosen = spread(own.labels, TRIED)
    labels = {name: own.labels[name] for name in chosen}
    shown = {label for names in labels.values() for label in names}
    classes = Classes(tuple(name for name in own.classes.names if name in shown))
    own = replace(own, found=replace(own.found, labels=labels), classes=classes)
    held = hold_out(own.labels, HOLD_OUT)
    splits = splits_of(own, held, out)
    text = recipe_text(own, splits, replace(choices, epochs=TRY_EPOCHS))
    write_start(splits, out / "recipe.yaml", text)
    log.info("a try: %d photographs are trained on, %d held out: %s",
             len(chosen) - len(held), len(held), few(chosen))  # fmt: skip
    recipe = load_recipe(out / "recipe.yaml")
    left_out = run_recipe(recipe, out / "run")
    report_at_the_end(out / "run")
    log.info(
        "%d photographs of %d classes are few: the report shows that your photographs are read, "
        "and how masks look, not how good they become; next: weaktr init %s",
        len(chosen), len(classes), shlex.quote(str(arguments.photographs)),
    )  # fmt: skip
    return FAILED if left_out else 0
