"""What ``weaktr data check | stats | prepare`` do and print."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from weaktr.data.check import check
from weaktr.data.io import image_size
from weaktr.data.manifest import Manifest
from weaktr.data.prepare import Prepared, prepare_coco14, prepare_voc12
from weaktr.data.problems import DataError, Problem

_STYLES = {"error": "bold red", "warning": "yellow"}


def run_check(
    manifest: Manifest,
    console: Console,
    *,
    problems: Sequence[Problem] = (),
    workers: int | None = None,
) -> int:
    """Check a data set and print all problems as one table.

    Args:
        manifest: the data set.
        console: where to print.
        problems: faults already met while the manifest was made (`load_manifest(problems=...)`).
        workers: threads that decode, see `check`.

    Returns:
        Exit code: 1 if there is an error, 0 if there are at most warnings.
    """
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("checking", total=len(manifest))
        found = [
            *problems,
            *check(
                manifest,
                workers=workers,
                progress=lambda done, total: progress.update(task, completed=done, total=total),
            ),
        ]
    title = f"{manifest.name} {manifest.split}: {len(manifest)} images"
    if found:
        console.print(problem_table(found, title))
    errors = sum(problem.level == "error" for problem in found)
    style = "bold red" if errors else "bold green"
    summary = f"{title}, {errors} errors, {len(found) - errors} warnings"
    console.print(Text(summary, style=style))
    return 1 if errors else 0


def problem_table(problems: Sequence[Problem], title: str) -> Table:
    """A row for each problem; errors first, otherwise in the given order."""
    table = Table(title=title, title_justify="left", show_lines=False)
    for heading in ("level", "file", "declared at", "problem"):
        table.add_column(heading, overflow="fold")
    for problem in sorted(problems, key=lambda problem: problem.level != "error"):
        style = _STYLES[problem.level]
        table.add_row(
            Text(problem.level, style=style),
            Text(problem.file),
            Text(problem.where),
            Text(problem.message),
        )
    return table


def run_stats(manifest: Manifest, console: Console) -> None:
    """Print how many images, labels, masks and which sizes a data set has, and each class's count.

    Image sizes come from the files' headers; files that cannot be opened are counted as such.

    Args:
        manifest: the data set.
        console: where to print.
    """
    console.print(_overview(manifest))
    labelled = [sample.labels for sample in manifest if sample.labels is not None]
    if not labelled:
        return
    counts = Counter(label for labels in labelled for label in labels)
    table = Table(title="images per class", title_justify="left")
    for heading in ("label", "id", "class", "images", "share"):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    pairs = zip(manifest.classes.names, manifest.classes.ids, strict=True)
    for index, (name, identity) in enumerate(pairs):
        share = f"{100 * counts[index] / len(labelled):.1f} %"
        table.add_row(str(index + 1), str(identity), Text(name), str(counts[index]), share)
    console.print(table)


def _overview(manifest: Manifest) -> Table:
    sizes, unreadable = [], 0
    for sample in manifest:
        try:
            sizes.append(image_size(sample.image, sample.source))
        except DataError:
            unreadable += 1
    labelled = [sample.labels for sample in manifest if sample.labels is not None]
    per_image = Counter(len(labels) for labels in labelled)
    rows = {
        "images": str(len(manifest)),
        "cannot be opened": str(unreadable),
        "with labels": str(len(labelled)),
        "with mask": str(sum(sample.mask is not None for sample in manifest)),
        "classes": str(len(manifest.classes)),
        "labels an image": ", ".join(f"{k}: {per_image[k]}" for k in sorted(per_image)) or "-",
        "height": _spread([height for height, _ in sizes]),
        "width": _spread([width for _, width in sizes]),
        "fingerprint": manifest.fingerprint(),
    }
    table = Table(title=f"{manifest.name} {manifest.split}", title_justify="left")
    table.add_column("what")
    table.add_column("value", overflow="fold")
    for what, value in rows.items():
        table.add_row(what, value)
    return table


def _spread(values: list[int]) -> str:
    if not values:
        return "-"
    return f"{min(values)} … {int(np.median(values))} … {max(values)} (least, median, most)"


def add_prepare_options(parser: argparse.ArgumentParser) -> None:
    """The options that only ``weaktr data prepare`` has."""
    group = parser.add_argument_group("prepare")
    group.add_argument(
        "--download", action="store_true", help="get what is missing from the official addresses"
    )
    group.add_argument(
        "--archives", type=Path, metavar="DIR", help="further folder with downloaded archives"
    )
    group.add_argument(
        "--sbd", type=Path, help="SegmentationClassAug (folder, zip) or SBD (benchmark.tgz, folder)"
    )
    group.add_argument(
        "--cls-labels", type=Path, metavar="FILE", help="cls_labels.npy (default: XML or JSON)"
    )
    group.add_argument(
        "--coco-ids", type=int, choices=(80, 90), help="class numbering of COCO (default 90)"
    )


def run_prepare(source: str, root: Path, options: argparse.Namespace, console: Console) -> int:
    """Prepare a data set and print what is there and what is missing.

    Args:
        source: ``voc12`` or ``coco14``.
        root: the data set's folder.
        options: those of `add_prepare_options`.
        console: where to print.

    Returns:
        Exit code: 1 if something is missing that is needed, else 0.

    Raises:
        ValueError: an option does not fit the data set, or what the preparation raises.
    """
    common = {
        "fetch": options.download,
        "archives": options.archives,
        "cls_labels": options.cls_labels,
    }
    try:
        if source == "voc12" and options.coco_ids is None:
            prepared = prepare_voc12(root, sbd_masks=options.sbd, **common)
        elif source == "coco14" and options.sbd is None:
            prepared = prepare_coco14(root, coco_ids=options.coco_ids or 90, **common)
        else:
            raise ValueError(
                f"data prepare: expected voc12 (without --coco-ids) or coco14 (without --sbd), "
                f"got {source!r}"
            )
    except OSError as error:
        raise ValueError(f"{error}; what is done so far stays, start again to go on") from error
    _print_prepared(prepared, console)
    return 0 if prepared.complete else 1


def _print_prepared(prepared: Prepared, console: Console) -> None:
    title = f"{prepared.data_set} in {prepared.root}"
    if prepared.splits:
        counts = Table(title=title, title_justify="left")
        for heading in ("split", "images", "expected", "with labels", "with mask", "manifest"):
            counts.add_column(heading, justify="left" if heading == "manifest" else "right")
        for split in prepared.splits:
            numbers = (split.images, split.expected, split.with_labels, split.with_mask)
            counts.add_row(split.name, *map(str, numbers), Text(split.manifest))
        console.print(counts)
    if prepared.missing:
        missing = Table(title="missing", title_justify="left")
        for heading in ("what", "needed", "what to do"):
            missing.add_column(heading, overflow="fold")
        for entry in prepared.missing:
            needed = "yes" if entry.needed else "no"
            missing.add_row(Text(entry.what), needed, Text(entry.remedy))
        console.print(missing)
    state = "complete" if prepared.complete else "not complete"
    touched = "" if prepared.changed else ", nothing had to be changed"
    style = "bold green" if prepared.complete else "bold red"
    console.print(Text(f"{title}: {state}{touched}", style=style))
