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

from weaktr.cli.common import FAILED, check_files, refuse_idle
from weaktr.messages import few, one_line
from weaktr.progress import console, log

if TYPE_CHECKING:
    from weaktr.config import Recipe
    from weaktr.data.own import Header, OwnPhotographs
    from weaktr.data.problems import Findings
    from weaktr.stages.init import Choices

HELP = """\
Look at a folder of photographs, hold some out, and write a recipe to train with.

Labels are looked for in PHOTOS and its folders; which form they have is known by the content:
  a table   image,labels with commas, semicolons or tabs; a column of 0 and 1 for each class
  JSON      {"a.jpg": ["cat"]}, COCO's instances, exports of Label Studio (JSON, JSON-MIN, CSV)
  XML       CVAT for images 1.1
  a file for each photograph: LabelMe's JSON, Pascal VOC's XML
  folders   cat/1.jpg, dog/2.jpg; photographs in background/ or none/ show no class

Writes PHOTOS/train.csv and val.csv (train_part.csv and val_part.csv where you have a train.csv of
your own; nothing where you have both, unless photographs are in both) and PHOTOS/recipe.yaml.
Started again, it replaces what it wrote itself, and nothing that you wrote or changed; options that
you leave out are those of the last time.

examples:
  weaktr init photos/
  weaktr init photos/ --try
  weaktr init photos/ --labels export.json --classes classes.txt
  weaktr init photos/ --hold-out 0.1 --weights dinov2_small.safetensors
"""
#: Classes in the table; photographs and epochs of ``--try``.
SHOWN, TRIED, TRY_EPOCHS = 100, 30, 10
#: Share of the photographs that is held out, and why it may be less.
HOLD_OUT = 0.2
LESS = " (at least half of each class)"
#: What pseudo labels came to, measured (docs/own_data.md).
EXPECT = (
    "what pseudo labels came to elsewhere: mIoU 17 to 18 with 128 photographs of 80 classes, 33 to "
    "37 with 50 of 20 classes, 55 with 311 of 20 classes; photographs of each class count"
)
#: ``--weights`` of timm's hub, where a file was given the last time.
FETCHED = Path("timm")
#: Options that are files -> what to give where the one of the last time is gone.
OTHERS = {
    "labels": "--labels FILE",
    "classes": "--classes FILE",
    "weights": "--weights FILE, or --weights timm",
}
#: Problems of a kind that are printed.
OF_A_KIND = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photographs", type=Path, metavar="PHOTOS", help="folder of photographs")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="label file, or folder of LabelMe's or Pascal VOC's",
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
        "--weights",
        type=Path,
        metavar="FILE",
        help="of DINOv2-S; timm: it fetches them (default)",
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
    from weaktr.data.layout import require_folder
    from weaktr.data.own import doubts, look_at
    from weaktr.recipes import load_recipe
    from weaktr.stages.init import (
        class_numbers,
        own_files,
        recipe_text,
        renumbered,
        splits_of,
        write_start,
    )

    require_folder(arguments.photographs, "PHOTOS")
    is_trial, told = arguments.is_trial, "expected without --try, whose folder --out-run is"
    refuse_idle(not is_trial, "expected with --try alone", out_run=arguments.out_run)
    refuse_idle(is_trial, told, out=arguments.out)
    root, file = arguments.photographs, arguments.out or arguments.photographs / "recipe.yaml"
    if arguments.weights not in (None, FETCHED) and not arguments.weights.is_file():
        raise ValueError(f"--weights: expected a file, got {str(arguments.weights)!r}")
    check_files({"--out": file})
    has_share = arguments.hold_out is not None
    _take_former(arguments)
    if arguments.weights == FETCHED:
        arguments.weights = None
    own = look_at(root, arguments.labels, arguments.classes, own_files(root))
    headers = own.headers()
    choices = _choices(arguments, own, headers)
    if own.held_out is not None and has_share:
        raise ValueError(f"--hold-out: {root} has a val.csv that says it; leave it out")
    if arguments.is_trial:
        return _try(arguments, own, choices)
    share = HOLD_OUT if arguments.hold_out is None else arguments.hold_out
    copies = [name for group in own.copies() for name in group]
    held = hold_out(own.labels, share, copies) if own.held_out is None else own.held_out
    splits = splits_of(own, held, root)
    former = class_numbers(file)
    write_start(own, splits, file, recipe_text(own, splits, choices), _options(arguments))
    recipe = load_recipe(file)
    _show(own, headers, held, share)
    found = _checked(recipe)
    if moved := renumbered(former, class_numbers(file)):
        console.print(Text(f"look at: {moved}", style="yellow"))
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


def _options(arguments: argparse.Namespace) -> dict[str, str | float]:
    """The options that count the next time too, as plain values; paths from the root."""
    from weaktr.stages.init import OPTIONS

    given = {name: getattr(arguments, name) for name in OPTIONS}
    return {
        name: str(value.resolve()) if isinstance(value, Path) else value
        for name, value in given.items()
        if value is not None
    }


def _in_words(options: Mapping[str, str | float]) -> str:
    """Options as they are typed."""
    return " ".join(
        f"--{name.replace('_', '-')} {shlex.quote(str(value))}" for name, value in options.items()
    )


def _take_former(arguments: argparse.Namespace) -> None:
    """Let options that are not given be those of the last time.

    Raises:
        ValueError: a file of these is gone, so that other classes or weights would count.
    """
    from weaktr.stages.init import options_of, require_source

    if arguments.labels is None:
        require_source(arguments.photographs)
    taken = {}
    for name, value in options_of(arguments.photographs).items():
        if getattr(arguments, name) is not None:
            continue
        if name in OTHERS and not Path(str(value)).exists():
            raise ValueError(
                f"--{name}: {str(value)!r}, given the last time, is not there any more; put it "
                f"back, or say what counts: {OTHERS[name]}"
            )
        setattr(arguments, name, Path(str(value)) if name in OTHERS else value)
        taken[name] = value
    if taken:
        log.info("as the last time: %s", _in_words(taken))


def _choices(
    arguments: argparse.Namespace, own: OwnPhotographs, headers: Mapping[str, Header]
) -> Choices:
    """What the recipe says of EXIF and weights."""
    from weaktr.stages.init import Choices

    turned = sum(header.is_turned for header in headers.values())
    wanted = "apply" if turned and not (own.root / "masks").is_dir() else "ignore"
    return Choices(arguments.exif or wanted, turned, arguments.weights)


def _show(
    own: OwnPhotographs, headers: Mapping[str, Header], held: Collection[str], share: float
) -> None:
    """Print what was understood: photographs, labels, classes; `share`: to be held out."""
    long = [max(header.size) for header in headers.values()] or [0]
    formats = Counter(header.format for header in headers.values()).most_common()
    names = own.classes.names
    none = [name for name, labels in own.labels.items() if not labels]
    rows = {
        "photographs": f"{len(own.photographs)} below {own.images}",
        "formats": ", ".join(f"{count} {name}" for name, count in formats),
        "longer side": f"{min(long)} … {int(median(long))} … {max(long)} (least, median, most)",
        "labels": f"{own.tags.path}: {own.tags.form}, of {len(own.labels)} photographs",
        "no class": f"{len(none)} ({few(none)})" if none else "0",
        "held out": f"{len(held)}, trained on {len(own.labels) - len(held)}"
        + (LESS if own.held_out is None and 0 < len(held) < round(share * len(own.labels)) else ""),
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
    train = load_split(settings, settings.train_split, problems=found)
    check(train, problems=found)
    if settings.val_split != settings.train_split:
        of_val = check(load_split(settings, settings.val_split, problems=[]), others=[train])
        found.extend(problem for problem in of_val if not problem.where.startswith("split "))
    return found


def _show_findings(found: Findings) -> None:
    """Print the first problems of each kind, but for what is told as a doubt or is none here."""
    told = ("has no label", "image that is not listed")
    for (level, kind), count in found.counts.items():
        if kind.startswith(told) or kind.endswith("only one image"):
            continue
        own = [problem for problem in found if found.key(problem) == (level, kind)]
        style = "bold red" if level == "error" else "yellow"
        for problem in own[:OF_A_KIND]:
            console.print(Text(f"{level}: {problem}", style=style))
        if count > OF_A_KIND:
            console.print(Text(f"{level}: {count - OF_A_KIND:,} more of this kind", style=style))


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
    else:
        log.info("it could not be measured; the training says it after its first batches")
    known = timm.models.get_pretrained_cfg(recipe.cam_model.backbone)
    if recipe.cam_model.weights == "timm" and known is not None and not is_fetched(known):
        log.info("weights: timm fetches them once, about 90 MB; or give a file: --weights FILE")
    log.info(EXPECT)
    log.info("next: weaktr-train %s", shlex.quote(str(file)))


def _try(arguments: argparse.Namespace, own: OwnPhotographs, choices: Choices) -> int:
    """Train on a few photographs, into a folder of its own, and write the report of it."""
    from dataclasses import replace

    from weaktr.data import Classes
    from weaktr.data.hold_out import hold_out, spread
    from weaktr.outputs import require_apart
    from weaktr.recipes import load_recipe
    from weaktr.report.page import report_at_the_end
    from weaktr.stages.init import recipe_text, splits_of, write_start
    from weaktr.stages.pipeline import run_recipe

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
    write_start(own, splits, out / "recipe.yaml", text)
    log.info("a try of %d photographs (%s): %d are trained on, %d held out",
             len(chosen), few(chosen), len(chosen) - len(held), len(held))  # fmt: skip
    recipe = load_recipe(out / "recipe.yaml")
    left_out = run_recipe(recipe, out / "run")
    report_at_the_end(out / "run")
    log.info(
        "this is how masks look after a short training on %d photographs of %d classes; all of "
        "yours, and more of each class, make them better", len(chosen), len(classes),
    )  # fmt: skip
    command = f"weaktr init {shlex.quote(str(arguments.photographs))}"
    log.info("next: %s", " ".join(filter(None, [command, _in_words(_options(arguments))])))
    return FAILED if left_out else 0
