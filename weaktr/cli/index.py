"""``weaktr index OUT``: masks counted, checked, and found by what they show."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from weaktr.cli.common import FAILED, check_files
from weaktr.messages import brief, counted, duration, few, one_line
from weaktr.progress import console, log

if TYPE_CHECKING:
    import pyarrow as pa

    from weaktr.shards.query import Query
    from weaktr.shards.records import Results

HELP = """\
Count, check and find masks of `weaktr label`, also of millions, made in shards.

OUT is --out of `weaktr label`, or a stage in the folder of a run (RUN/label). Without options its
masks are counted, and OUT gets index.parquet (a row for each photograph) and stats.json, once all
shards are whole; before that, the shards that are whole are counted.

Masks that you have changed count as they are now: --status edited finds them. In shards they do so
once labelling has run again. Photographs that could not be labelled have rows in shards alone;
elsewhere `weaktr label` names them, each time it is started.

--verify reads every mask: whether it is there as the index says, and nothing else. A mask that you
have changed is a warning, since it stays; the exit code is 1 if there is an error, or if shards are
missing.

With conditions the photographs are listed that meet all of them. --class is a name or a number in
masks; a class counts as shown from an area of 0.1 % of the mask, but with --min-area or --max-area
from the first pixel. --min-confidence and --max-confidence are of that class, else of the least
confident one in the mask.

examples:
  weaktr index labels/
  weaktr index labels/ --verify
  weaktr index shards/ --status failed --csv failed.csv
  weaktr index labels/ --class dog --max-area 0.01
  weaktr index labels/ --max-confidence 0.3 --names doubtful.txt
  weaktr index shards/ --error "cut off" --shard 00012
"""
STATUSES = ("labelled", "no class", "failed", "edited")
#: Names, and kinds of errors, that are printed.
MOST_NAMES, MOST_KINDS = 10, 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder of masks")
    parser.add_argument("--verify", action="store_true", help="read and check every mask")
    parser.add_argument("--class", dest="label", metavar="NAME", help="masks that show this class")
    parser.add_argument("--status", choices=STATUSES, help="what became of the photograph")
    for name, what in (("area", "share of the mask that the class covers"),
                       ("confidence", "mean score of the class")):  # fmt: skip
        for bound, word in (("min", "least"), ("max", "most")):
            parser.add_argument(
                f"--{bound}-{name}", type=float, metavar=name[0].upper(), help=f"{word} {what}, 0-1"
            )
    parser.add_argument("--shard", metavar="NAME", help="photographs of this shard")
    parser.add_argument("--error", metavar="TEXT", help="photographs whose error has this text")
    parser.add_argument(
        "--names",
        type=Path,
        metavar="FILE",
        help="write the names of these photographs, a line each",
    )
    parser.add_argument(
        "--csv", type=Path, metavar="FILE",
        help="write name, shard, status, area, confidence and error of these photographs",
    )  # fmt: skip


def run(arguments: argparse.Namespace) -> int:
    from weaktr.shards.query import Query
    from weaktr.shards.records import read_layout, read_results

    check_files({"--names": arguments.names, "--csv": arguments.csv}, [arguments.out])
    classes = read_layout(arguments.out).classes
    query = query_of(arguments, classes)
    lists = query != Query() or arguments.names is not None or arguments.csv is not None
    if arguments.verify:
        if lists:
            raise ValueError("--verify: expected without conditions, --names and --csv")
        return run_verify(arguments.out)
    results = read_results(arguments.out)
    if results.layout is None and results.masks.gone:
        gone = results.masks.gone
        told = counted(len(gone), "mask is", "masks are")
        log.warning("%s no longer there, so not counted: %s", told, few(gone))
    if lists:
        require_shard(query.shard, results)
        require_failures(query, results)
        return run_query(results, query, arguments.names, arguments.csv)
    return run_summary(results)


def query_of(arguments: argparse.Namespace, classes: tuple[str, ...] | None) -> Query:
    """The conditions of the command line.

    Raises:
        ValueError: one is wrong; names its option.
    """
    from weaktr.shards.query import Query, label_of

    label = arguments.label
    names = ("status", "min_area", "max_area", "min_confidence", "max_confidence", "shard", "error")
    try:
        return Query(
            label=None if label is None else label_of(label, classes),
            **{name: getattr(arguments, name) for name in names},
        )
    except ValueError as error:
        what, colon, message = str(error).partition(":")
        option = f"min-{what}, --max-{what}" if what in ("area", "confidence") else what
        raise ValueError(f"--{option}{colon}{message}") from error


def require_shard(shard: str | None, results: Results) -> None:
    """Refuse the name of no shard.

    Raises:
        ValueError: there is none of that name; names those of which the name is close.
    """
    if shard is None:
        return
    if results.layout is None:
        raise ValueError(f"--shard: {results.out} has no shards, but one index for all masks")
    shards = results.layout.shards
    if shard not in shards:
        close = difflib.get_close_matches(shard[:100], shards, n=3)
        told = f"did you mean {few(close, between=' or ')}?" if close else f"such as {few(shards)}"
        raise ValueError(f"--shard: no shard is called {brief(shard)}; {told}")


def require_failures(query: Query, results: Results) -> None:
    """Refuse to look for failures where none are noted.

    Raises:
        ValueError: the results are not by shards.
    """
    option = "--status failed" if query.status == "failed" else "--error"
    if results.layout is None and (query.status == "failed" or query.error is not None):
        raise ValueError(
            f"{option}: {results.out} has no shards, but one index, in which photographs that "
            "could not be labelled have no row: start its command again, which tries them and "
            "names them with what is wrong"
        )


# ---- the summary --------------------------------------------------------------------------------


def run_summary(results: Results) -> int:
    """Count all masks; write the index and its statistics if all shards are whole."""
    from weaktr.shards.index import INDEX, STATS, join, stats_of

    if results.missing:
        parts = [dict(record.statistics) for record in results.records]
        stats = stats_of(results, parts, "")
    else:
        stats = join(results)
    print_summary(stats, results)
    if not results.missing:
        log.info("index: %s", results.out / INDEX)
        log.info("statistics: %s", results.out / STATS)
    return 0


def print_summary(stats: Mapping[str, Any], results: Results) -> None:
    """Print what ``stats.json`` holds."""
    statistics, images = stats["statistics"], stats["statistics"]["images"]
    table = Table(title=counted(images, "photograph", "photographs"), title_justify="left")
    table.add_column("status")
    for column in ("photographs", "of all"):
        table.add_column(column, justify="right")
    for status, count in statistics["status"].items():
        table.add_row(status, f"{count:,}", f"{count / max(images, 1):.1%}")
    console.print(table)
    if statistics["labels"]:
        console.print(table_of_labels(statistics, results.classes))
    for kind, error in list(statistics["errors"].items())[:MOST_KINDS]:
        example = one_line(error["example"])[:200]
        console.print(f"failed: {error['images']:,}: {one_line(kind)}, such as: {example}")
    for line in totals_in_words(stats, results):
        console.print(line)


def table_of_labels(statistics: Mapping[str, Any], classes: tuple[str, ...] | None) -> Table:
    """The labels of the masks, the most frequent first."""
    table = Table(title="labels in masks", title_justify="left")
    table.add_column("label")
    for column in ("masks", "of all", "mean area", "mean confidence"):
        table.add_column(column, justify="right")
    rows = [(name_of(int(label), classes), one) for label, one in statistics["labels"].items()]
    for name, one in sorted(rows, key=lambda row: -row[1]["images"]):
        means = [one[key]["mean"] for key in ("area", "confidence")]
        shares = [one["images"] / max(statistics["masks"], 1), means[0]]
        texts = ["" if share is None else f"{share:.1%}" for share in shares]
        confidence = "" if means[1] is None else f"{means[1]:.3f}"
        table.add_row(one_line(name), f"{one['images']:,}", *texts, confidence)
    return table


def name_of(label: int, classes: tuple[str, ...] | None) -> str:
    """The name of a label in masks."""
    from weaktr.data.classes import IGNORE

    if label in (0, IGNORE):
        return "ignore" if label else "background"
    known = classes is not None and label <= len(classes)
    return classes[label - 1] if classes is not None and known else f"class {label - 1}"


def totals_in_words(stats: Mapping[str, Any], results: Results) -> list[str]:
    """Masks and their bytes; time; how many shards are whole."""
    statistics, seconds = stats["statistics"], stats["seconds"]
    size = f"{statistics['bytes'] / 1e6:,.1f} MB, {statistics['pixels'] / 1e6:,.1f} megapixels"
    lines = [f"{counted(statistics['masks'], 'mask', 'masks')}: {size}"]
    if seconds:
        speed = statistics["images"] / seconds
        lines.append(
            f"{duration(seconds)} of all processes together, {speed:,.1f} photographs/s each"
        )
    if results.layout is not None:
        total = len(results.layout.shards)
        lines.append(shards_in_words(results))
        if stats["shards"] < total:
            lines.append("OUT/index.parquet and stats.json are written when all shards are whole")
    return lines


def shards_in_words(results: Results) -> str:
    """``3 of 5 shards are whole``."""
    assert results.layout is not None
    total = len(results.layout.shards)
    return f"{len(results.records):,} of {counted(total, 'shard is', 'shards are')} whole"


# ---- a question ---------------------------------------------------------------------------------


def run_query(results: Results, query: Query, names: Path | None, table: Path | None) -> int:
    """List the photographs that meet conditions.

    Args:
        results: the folder.
        query: the conditions.
        names, table: files that get the names, and the rows as CSV.

    Returns:
        The exit code: 1 if a name cannot stand in a list.

    Raises:
        ValueError: such a file is there already, and holds something else.
    """
    from weaktr.shards.query import Query, count, select

    rows = select(results, query)
    total = count(results, Query())
    console.print(f"{rows.num_rows:,} of {counted(total, 'photograph', 'photographs')}")
    first = rows["name"].slice(0, MOST_NAMES + 1).to_pylist()
    if first:
        more = f" and {rows.num_rows - MOST_NAMES:,} more" if len(first) > MOST_NAMES else ""
        console.print(one_line(", ".join(first[:MOST_NAMES])) + more)
    if results.missing:
        log.info("%s; the others are not among these", shards_in_words(results))
    left_out = 0
    if names is not None:
        listed, unfit = lines_of(rows)
        left_out = len(unfit)
        write_new(names, "".join(f"{line}\n" for line in listed).encode(), "--names")
        log.info("names: %s: %s", names, counted(len(listed), "line", "lines"))
        if unfit:
            log.warning(
                "left out: %s that cannot stand in a line of text: %s",
                counted(left_out, "name", "names"), few(list(map(repr, unfit))),
            )  # fmt: skip
    if table is not None:
        write_new(table, csv_of(rows), "--csv")
        log.info("csv: %s", table)
    return FAILED if left_out else 0


def lines_of(rows: pa.Table) -> tuple[list[str], list[str]]:
    """The names of rows for `weaktr.data.names.read_names`, each once; those that it cannot read.

    The log says where photographs of several shards have the same name.
    """
    from weaktr.data.shard_tables import named_text

    listed: dict[str, None] = {}
    unfit = []
    for name in rows["name"].to_pylist():
        is_line = name == name.strip() and not {"\n", "\r", "\0"} & set(name)
        if is_line and name == named_text(name):
            listed[name] = None
        else:
            unfit.append(named_text(name))
    if same := rows.num_rows - len(listed) - len(unfit):
        log.warning("names: %s of several shards stand once", counted(same, "further one", "names"))
    return list(listed), unfit


def csv_of(rows: pa.Table) -> bytes:
    """Rows as CSV, in UTF-8; what is not known is empty."""
    from weaktr.files import csv_bytes

    columns = ([column.to_pylist() for column in batch.columns] for batch in rows.to_batches())
    lines = (line for batch in columns for line in zip(*batch, strict=True))
    return csv_bytes(chain([rows.schema.names], lines))


def write_new(path: Path, content: bytes, option: str) -> None:
    """Write a file where there is none, or the same.

    Raises:
        ValueError: there is another; names the option.
    """
    from weaktr.files import write_bytes

    if os.path.lexists(path):
        if path.is_file() and not path.is_symlink() and path.read_bytes() == content:
            return
        raise ValueError(f"{option} {path}: is there already; choose another name, or move it away")
    write_bytes(path, content)


# ---- the check ----------------------------------------------------------------------------------


def run_verify(out: Path) -> int:
    """Read and check every mask; returns 1 if there is an error, else 0."""
    from weaktr.data.problems import Findings
    from weaktr.shards.verify import verify

    found = Findings()
    found.extend(verify(out))
    for level in ("error", "warning"):
        for problem in found:
            if problem.level == level:
                console.print(f"{level}: {problem}")
        for (of, kind), total in sorted(found.counts.items()):
            if of == level:
                console.print(f"{level}s in all: {one_line(kind)}: {total:,}")
    errors, warnings = found.count("error"), found.count("warning")
    console.print(one_line(f"{out}: {errors:,} errors, {warnings:,} warnings"))
    return FAILED if errors else 0
