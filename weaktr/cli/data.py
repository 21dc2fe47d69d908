"""``weaktr data ACTION SOURCE``: prepare a data set, look at it, write its manifest or masks."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from weaktr.cli.common import add_debug, check_files, refuse_idle
from weaktr.files import WRONG_PATHS
from weaktr.progress import console, log
from weaktr.recipes import apply_setting

if TYPE_CHECKING:
    from weaktr.data import Manifest
    from weaktr.data.prepare import Prepared
    from weaktr.data.problems import Findings
    from weaktr.progress import PlainConsole

HELP = """\
Prepare a data set, or look at it before training on it.

examples:
  weaktr data prepare voc12 --root data --download
  weaktr data check folder photos/
  weaktr data stats voc12 VOCdevkit/VOC2012 --split train_aug

`weaktr data ACTION --help` says what an action takes.
"""
#: Action -> its help; the first line also stands in the list of actions.
ACTIONS = {
    "check": """\
List all faults of a data set at once, with file and line.

Every file is read. Of one kind of fault the first 20 are listed and the others counted. The exit
code is 1 if there is an error, 0 if there are at most warnings.

examples:
  weaktr data check folder photos/
  weaktr data check voc12 VOCdevkit/VOC2012 --split train_aug
  weaktr data check tar shards/ --split train
  weaktr data check coco14 MSCOCO --split train --option ids=80
""",
    "stats": """\
Count images, labels, sizes and the images of each class.

example:
  weaktr data stats folder photos/ --split train
""",
    "write": """\
Write a data set's manifest as JSON, which `data.source: manifest` of a recipe reads.

example:
  weaktr data write folder photos/ --split train --out train.json
""",
    "masks": """\
Draw the true masks of a COCO instances JSON.

example:
  weaktr data masks coco14 annotations/instances_val2014.json --out masks/ --option ids=80
""",
    "prepare": """\
Download (or find), unpack and complete VOC 2012 or COCO 2014, and say what is missing.

It goes on where it was interrupted.

examples:
  weaktr data prepare voc12 --root data --download
  weaktr data prepare coco14 --root data/coco --archives /mnt/zips --coco-ids 90
""",
}
_STYLES = {"error": "bold red", "warning": "yellow"}
#: Splits that a data set may have; `check` compares them.
SPLITS = ("train", "train_aug", "val", "test")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in ACTIONS.items():
        own = actions.add_parser(
            action,
            help=text.splitlines()[0],
            description=text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if action == "prepare":
            _add_to_prepare(own)
        else:
            _add_to_read(own, action)
        add_debug(own, argparse.SUPPRESS)


def _add_to_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="voc12 or coco14")
    _add_root(parser, "where the data set is, or is to be")
    parser.add_argument(
        "--download", action="store_true", help="get what is missing from the official addresses"
    )
    parser.add_argument(
        "--archives", type=Path, metavar="DIR", help="further folder with downloaded archives"
    )
    parser.add_argument(
        "--sbd",
        type=Path,
        help="of VOC: SegmentationClassAug (folder, zip) or SBD (benchmark.tgz, folder)",
    )
    parser.add_argument(
        "--cls-labels", type=Path, metavar="FILE", help="cls_labels.npy (default: XML or JSON)"
    )
    parser.add_argument(
        "--coco-ids", type=int, choices=(80, 90), help="of COCO: class numbering (default 90)"
    )


def _add_to_read(parser: argparse.ArgumentParser, action: str) -> None:
    """Arguments of an action that reads a data set."""
    if action == "masks":
        parser.add_argument("source", help="coco14")
        _add_root(parser, "the instances JSON")
        parser.add_argument("--out", type=Path, required=True, help="folder of the masks")
        options = "ids (90, 80, json) or images (folder of the photographs)"
    else:
        parser.add_argument("source", help="voc12, coco14, folder, tar, images, scenes, manifest")
        _add_root(parser, "the data set's folder (manifest: the JSON)")
        parser.add_argument("--split", help="default: train")
        options = "further argument of the source, such as ids=80"
    if action == "write":
        parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON")
    parser.add_argument(
        "--option",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help=f"{options}; may be repeated",
    )


def _add_root(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("folder", type=Path, nargs="?", help=what)
    parser.add_argument("--root", type=Path, metavar="DIR", help="the same, by name")


def run(arguments: argparse.Namespace) -> int:
    from weaktr import data
    from weaktr.files import require_replaceable

    root = arguments.root or arguments.folder
    if root is None:
        raise ValueError(f"--root: data {arguments.action} needs the data set's folder")
    if arguments.folder not in (None, root):
        raise ValueError(f"--root: expected one folder, got {arguments.folder} and {root}")
    if arguments.action == "prepare":
        return _prepare(arguments.source, root, arguments)
    options: dict[str, Any] = {}
    for option in arguments.option:
        apply_setting(options, option)
    if arguments.action == "masks":
        return _draw(arguments, root, options)
    given = {"split": arguments.split, "option": arguments.option or None}
    why = "expected without source manifest, whose JSON is one split and says all"
    refuse_idle(arguments.source == "manifest", why, **given)
    split = arguments.split or "train"
    if arguments.action == "check":
        return _check(arguments.source, root, split, options)
    manifest = data.load_manifest(arguments.source, root, split, **options)
    if arguments.action == "stats":
        run_stats(manifest, console)
        return 0
    check_files({"--out": arguments.out})
    place = arguments.out.resolve()
    inside = arguments.source in ("folder", "tar") and place.is_relative_to(root.resolve())
    if inside or place == root.resolve():
        raise ValueError(
            f"--out {arguments.out}: expected a file beside the data, where it is not taken for "
            "one of theirs"
        )
    require_replaceable(arguments.out)
    manifest.save(arguments.out)
    log.info("manifest: %s", arguments.out)
    return 0


def _draw(arguments: argparse.Namespace, json_file: Path, options: dict[str, Any]) -> int:
    """Draw the masks of an instances JSON into a folder that holds nothing else."""
    from weaktr import data, outputs
    from weaktr.data.masks import files_of_others
    from weaktr.data.problems import Findings
    from weaktr.data.sources.coco14 import photographs_of

    out = arguments.out
    if arguments.source != "coco14":
        raise ValueError(f"data masks: expected coco14 INSTANCES.json, got {arguments.source!r}")
    if unknown := options.keys() - {"ids", "images"}:
        raise ValueError(f"--option: data masks takes ids and images, got {min(unknown)}")
    if not isinstance(options.get("images", ""), str):
        raise ValueError(f"--option images: expected a folder, got {options['images']!r}")
    images = options.setdefault("images", photographs_of(json_file))
    outputs.require_apart(out, [json_file], [] if images is None else [Path(images)])
    for path in files_of_others(out, ()):
        raise ValueError(f"{path}: weaktr did not draw it; move it away, or choose another --out")
    found = Findings()
    with outputs.claimed(out):
        outputs.tidy(out)
        written = data.render_masks(json_file, out, problems=found, **options)
    log.info("%d masks in %s", len(written), out)
    return _show(found, f"{json_file}: {len(written)} masks", console) if found else 0


def _check(source: str, root: Path, split: str, options: dict[str, Any]) -> int:
    """Check a split of a data set; the splits beside it are looked at for common images."""
    from weaktr import data
    from weaktr.data.problems import Findings, Problem
    from weaktr.data.splits import PART, family

    found = Findings()
    if source == "manifest":
        manifest = data.Manifest.load(root)
        others = []
        for file in (root.with_name(f"{name}.json") for name in SPLITS):
            with suppress(ValueError):  # another file, or none
                others += [] if file == root else [data.Manifest.load(file)]
        return run_check(manifest, console, problems=found, others=others)
    manifest = data.load_manifest(source, root, split, problems=found, **options)
    others = []
    for name in family(split) if split.endswith(PART) else SPLITS:
        if name != split and _has_split(source, root, name, options):
            try:
                others.append(data.load_manifest(source, root, name, problems=[], **options))
            except ValueError as error:
                message = f"cannot be compared with {split}: {error}"
                found.append(Problem(str(root), f"split {name}", message, "warning"))
    return run_check(manifest, console, problems=found, others=others)


def _has_split(source: str, root: Path, split: str, options: dict[str, Any]) -> bool:
    """Whether a data set of the user's has a file, or shards, of its own for a split."""
    from weaktr.data.sources.tar import has_shards

    if source == "folder" and "labels_file" not in options:
        return any((root / f"{split}{suffix}").is_file() for suffix in (".csv", ".json"))
    if source == "tar":
        return has_shards(root, split)
    places = (root, root / "VOC2012", root / "VOCdevkit/VOC2012")
    lists = (place / f"ImageSets/Segmentation/{split}.txt" for place in places)
    return source == "voc12" and any(file.is_file() for file in lists)


def run_check(
    manifest: Manifest,
    console: PlainConsole,
    *,
    problems: Findings | None = None,
    others: Sequence[Manifest] = (),
    workers: int | None = None,
) -> int:
    """Check a data set and print all problems as one table, of each kind the first few.

    Args:
        manifest: the data set.
        console: where to print.
        problems: faults already met while building the manifest (`load_manifest(problems=...)`).
        others: other splits of it, see `check`.
        workers: threads that decode, see `check`.

    Returns:
        Exit code: 1 if there is an error, 0 if there are at most warnings.
    """
    from weaktr.data import check
    from weaktr.data.problems import Findings

    found = Findings() if problems is None else problems
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("checking", total=len(manifest))
        check(
            manifest,
            others=others,
            workers=workers,
            progress=lambda count, total: progress.update(task, completed=count, total=total),
            problems=found,
        )
    return _show(found, f"{manifest.name} {manifest.split}: {len(manifest)} images", console)


def _show(found: Findings, title: str, console: PlainConsole) -> int:
    """Print problems and their number; returns 1 if there is an error, else 0."""
    from weaktr.messages import one_line

    if found:
        console.print(_table_of(found, one_line(title)))
    errors, warnings = found.count("error"), found.count("warning")
    summary = one_line(f"{title}, {errors} errors, {warnings} warnings")
    console.print(Text(summary, style="bold red" if errors else "bold green"))
    return 1 if errors else 0


def _table_of(found: Findings, title: str) -> Table:
    """The problems, errors first; of the kinds with more than are listed, how many more."""
    from weaktr.data.problems import LISTED
    from weaktr.messages import one_line

    table = Table(title=title, title_justify="left", show_lines=False)
    for heading in ("level", "file", "declared at", "problem"):
        table.add_column(heading, overflow="fold")
    for level in ("error", "warning"):
        style = _STYLES[level]
        for fault in (fault for fault in found if fault.level == level):
            cells = map(one_line, (fault.file, fault.where, fault.message))
            table.add_row(Text(level, style=style), *map(Text, cells))
        for (of, kind), count in found.counts.items():
            if of == level and count > LISTED:
                more = one_line(f"{kind}: {count - LISTED:,} more, {count:,} in all")
                table.add_row(Text(level, style=style), Text("..."), Text(""), Text(more))
    return table


def run_stats(manifest: Manifest, console: PlainConsole) -> None:
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
    """The number of images, labels and masks of a data set, and their sizes."""
    from weaktr.data import DataError
    from weaktr.data.io import image_size

    sizes, unreadable = [], 0
    for sample in manifest:
        try:
            sizes.append(image_size(sample.image, sample.source, sample.exif))
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
    return f"{min(values)} … {int(median(values))} … {max(values)} (least, median, most)"


def _prepare(source: str, root: Path, options: argparse.Namespace) -> int:
    """Prepare a data set and print what is there and what is missing.

    Returns:
        Exit code: 1 if something is missing that is needed, else 0.

    Raises:
        ValueError: an option does not fit the data set, or what the preparation raises.
        OSError: the disk is full, or a file or an address cannot be reached.
    """
    from weaktr.data.prepare import prepare_coco14, prepare_voc12

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
        kind = ValueError if isinstance(error, WRONG_PATHS) else OSError
        raise kind(f"{error}; what is done so far stays, start again to go on") from error
    _print_prepared(prepared)
    return 0 if prepared.complete else 1


def _print_prepared(prepared: Prepared) -> None:
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
