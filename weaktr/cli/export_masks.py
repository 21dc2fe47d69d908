"""``weaktr export-masks RUN --to FORMAT``: masks for other tools."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weaktr import tars
from weaktr.cli.common import FAILED
from weaktr.messages import counted, few, first_lines, one_line
from weaktr.progress import log

if TYPE_CHECKING:
    from weaktr.data import Classes
    from weaktr.exchange import Format, Options, Report, Source
    from weaktr.jobs.masked import Masked
    from weaktr.stages.run import Run

HELP = """\
Write masks for other tools: labelling tools, COCO, YOLO, FiftyOne, Hugging Face.

RUN is the folder of a run, or --out of `weaktr label` or `weaktr predict`. OUT gets the masks in
the format, and images/ with the photographs (hf has them inside). A photograph that viewers would
turn, by its EXIF, becomes a PNG that fits its mask. docs/exchange.md says what each format keeps.

Of a run the pseudo labels of its training photographs are written and the predictions of its
held-out ones; of a photograph with both, the prediction. Predictions do not know the labels of
their photographs: for masks that all follow the labels, export what `weaktr label` makes with the
run's train_cam/model.safetensors. Started again, OUT gets the masks as they
are now; a result in which you have changed something is kept beside it. A photograph that cannot be
read is named and left out; the exit code is then 1.

examples:
  weaktr export-masks runs/own --to coco --out coco/
  weaktr export-masks labels/ --to cvat --out cvat/ --images link
  weaktr export-masks runs/own --to yolo-seg --masks label --least-area 0.0005 --out yolo/
"""
#: Fewer tiny parts than these are not worth a word.
MANY_TINY = 10
#: What ``--to`` takes; `weaktr.exchange.FORMATS` has them.
NAMES = ("coco", "yolo-seg", "labelme", "cvat", "label-studio", "fiftyone", "hf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run, or a folder of masks")
    parser.add_argument("--to", choices=NAMES, required=True, help="the format")
    parser.add_argument("--out", type=Path, required=True, help="folder of the export")
    parser.add_argument(
        "--masks",
        choices=("label", "predict", "all"),
        default="all",
        help="pseudo labels, predictions, or both (default: all)",
    )
    parser.add_argument(
        "--images",
        choices=("copy", "link", "none"),
        default="copy",
        help="copy the photographs, link to them, or write masks alone (default: copy)",
    )
    parser.add_argument(
        "--least-area",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="leave out parts that cover less of their photograph (default: 0, keep all)",
    )
    parser.add_argument(
        "--coco-segmentation",
        choices=("rle", "polygons"),
        default="rle",
        help="of coco: run lengths, which are exact, or polygons (default: rle)",
    )


def run(arguments: argparse.Namespace) -> int:
    from weaktr.exchange import Options, export_masks, require_packages
    from weaktr.exchange.place import replaced
    from weaktr.jobs.masked import masked_in

    if not 0 <= arguments.least_area < 1:
        raise ValueError(
            f"--least-area: expected a share of the photograph, 0 or more and below 1, got "
            f"{arguments.least_area}"
        )
    chosen = require_packages(arguments.to)
    options = Options(arguments.images, arguments.least_area, arguments.coco_segmentation)
    require_effect(arguments.to, chosen, options)
    found = masked_in(arguments.run)
    sources = chosen_sources(found, arguments.masks)
    unusable = [why for one in found for why in one.masks.unusable.values()]
    if not sources:
        why = f": {few(unusable, 2)}" if unusable else ""
        raise ValueError(
            f"{arguments.run}: expected masks ({arguments.masks}), found none that can be used{why}"
        )
    out, classes = arguments.out, found[0].manifest.classes
    facts = {"to": arguments.to, "masks": arguments.masks, "options": vars(options)}
    archives, folders = tars.places_of(source.sample.image for source in sources)
    with replaced(out, arguments.run, folders, facts, archives) as fresh:
        report = export_masks(sources, classes, chosen, fresh, options)
        if not report.written.total():
            raise ValueError(f"no photograph could be exported: {few(report.left_out, 2)}")
    report.left_out[:0] = unusable
    if gone := [name for one in found for name in one.masks.gone]:
        log.warning(
            "%s no longer there, so left out: %s; what made them makes them again",
            counted(len(gone), "mask is", "masks are"), few(gone),
        )  # fmt: skip
    tell(report, out, chosen, options)
    if report.unlike:
        log.warning("%s", unlike_in_words(report, classes))
        log.warning("%s", way_out(found[0].run, arguments.to, out))
    return FAILED if report.left_out else 0


def require_effect(name: str, chosen: Format, options: Options) -> None:
    """Refuse options that a format does not know.

    Raises:
        ValueError: names the option.
    """
    if name != "coco" and options.coco_segmentation != "rle":
        raise ValueError("--coco-segmentation: expected with --to coco alone")
    if chosen.holds_images and options.images != "copy":
        raise ValueError(f"--images: expected copy for {name}, which has the photographs inside")
    if not chosen.by_parts and options.least_area:
        raise ValueError(f"--least-area: expected none for {name}, which has whole masks")


def chosen_sources(found: Sequence[Masked], which: str) -> list[Source]:
    """The photographs of an export; of two masks of a photograph the prediction.

    Args:
        found: see `weaktr.jobs.masked.masked_in`.
        which: "label", "predict", or "all".

    Raises:
        ValueError: two photographs have the same name.
    """
    from weaktr.exchange import Source
    from weaktr.jobs.masked import held_out_by

    sources: dict[str, Source] = {}
    for one in found:
        if which not in (one.maker, "all"):
            continue
        is_held_out = held_out_by(one)
        for sample in one.samples:
            before = sources.get(sample.name)
            if before is not None and before.sample.image.resolve() != sample.image.resolve():
                raise ValueError(
                    f"--masks all: {before.sample.image} and {sample.image} have the same name; "
                    "export them apart, with --masks label and --masks predict"
                )
            sources[sample.name] = Source(sample, one.masks, one.maker, is_held_out(sample))
    return list(sources.values())


def written_in_words(report: Report) -> str:
    """``60 photographs with their masks (52 pseudo labels, 8 predictions)``."""
    kinds = {"label": ("pseudo label", "pseudo labels"), "predict": ("prediction", "predictions")}
    counts = [counted(report.written[kind], *kinds[kind]) for kind in kinds if report.written[kind]]
    total = counted(report.written.total(), "photograph with its mask", "photographs with masks")
    return f"{total} ({', '.join(counts)})"


def unlike_in_words(report: Report, classes: Classes) -> str:
    """Which predictions show other classes than the labels of their photographs say."""

    def names(indices: Sequence[int]) -> str:
        return few([classes.names[index] for index in indices]) or "none"

    examples = [
        f"{name}: given {names(given)}, mask {names(shown)}"
        for name, (given, shown) in [*report.unlike.items()][:3]
    ]
    return (
        f"{counted(report.told, 'photograph has a prediction', 'photographs have predictions')}, "
        f"which {'does' if report.told == 1 else 'do'} not know the labels: "
        f"{counted(len(report.unlike), 'mask has', 'masks have')} other classes "
        f"(such as {one_line(' | '.join(examples))})"
    )


def way_out(run: Run | None, to: str, out: Path) -> str:
    """How all photographs of a run get masks that follow their labels."""
    from weaktr.data.splits import label_files
    from weaktr.stages.run import MODEL

    alone = "--masks label leaves predictions out"
    data = None if run is None else run.recipe.data
    if run is None or data is None or data.source != "folder" or not label_files(data.root):
        return alone
    models = [run.of(stage) / MODEL for stage in ("train_cam", "train_seg")]
    model = next(filter(Path.is_file, models), None)
    if model is None:
        return alone
    labels = Path(f"labels_{run.folder.resolve().name}")
    beside = out.with_name(f"{out.name}_labels")
    commands = [
        shlex.join(map(str, command))
        for command in (
            ("weaktr", "label", model, data.root, "--out", labels),
            ("weaktr", "export-masks", labels, "--to", to, "--out", beside),
        )
    ]
    return (
        f"for masks of all photographs that follow the labels: {commands[0]}; "
        f"then {commands[1]}; or {alone}"
    )


def tell(report: Report, out: Path, chosen: Format, options: Options) -> None:
    """Log what was written, what was not, and how to open it."""
    from weaktr.exchange.items import TINY

    for line in first_lines(report.left_out):
        log.warning("left out: %s", line)
    for note, count in sorted(report.notes.items()):
        log.warning("%s %s", f"{count:,}", note)
    if not chosen.has_labels:
        log.info("image-level labels have no place in this format")
    if report.tiny >= MANY_TINY and report.tiny >= report.parts / 4:
        log.warning(
            "%s of %s are smaller than %g %% of their photograph; --least-area %g leaves them out",
            f"{report.tiny:,}", counted(report.parts, "part", "parts"), 100 * TINY, TINY,
        )  # fmt: skip
    log.info("%s: %s", written_in_words(report), out)
    log.info("to open it: %s", chosen.opened(out, options))
