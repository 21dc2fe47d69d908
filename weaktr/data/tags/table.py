"""Tables: weaktr's own CSV and JSON, and others with one column of paths and one of labels."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import replace
from itertools import dropwhile
from pathlib import Path
from typing import Any

from weaktr.data.label_files import Row, header_of, read_label_file, table_rows, without_preface
from weaktr.data.layout import ALL_SUFFIXES, flag
from weaktr.data.names import HEADINGS
from weaktr.data.problems import DataError, Problem
from weaktr.data.tags.form import Form, Tags, fault, row
from weaktr.messages import counted, few, one_line

#: What a column of paths is called; one of labels is called by the others of `HEADINGS`.
PATHS = {
    *("image", "images", "image_path", "image_name", "image_id", "imagename", "imagepath"),
    *("file", "file_name", "filename", "filepath", "path", "photo", "photograph", "picture"),
}
LABELS = HEADINGS - PATHS
OWN = "weaktr's own form"
#: Number and cells of a line.
Line = tuple[int, list[str]]
#: What tells columns of one kind apart: ``label_2``, ``label.1``.
_NUMBER = re.compile(r"[\W\d_]+$")
#: Parts the labels in a cell.
_BETWEEN = re.compile("[;|]")
_BREAK = re.compile(r"[\r\n]")


def is_own_table(text: str) -> bool:
    """Whether a CSV has a header that `weaktr.data.label_files` reads."""
    before, text, separator = _split(text)
    header = [cell.strip() for cell in header_of(text, separator)]
    labels = {cell.casefold() for cell in header[1:]}
    is_known = header[1:] == ["labels"] or LABELS.isdisjoint(labels)
    return before == 0 and header[:1] == ["image"] and is_known


def is_own_json(content: Any) -> bool:
    """Whether a JSON is an object of lists of names."""
    return (
        isinstance(content, dict)
        and bool(content)
        and all(isinstance(names, list) for names in content.values())
        and all(isinstance(name, str) for names in content.values() for name in names)
    )


def read_own(path: Path, _: Any) -> Tags:
    """A file that `weaktr.data.label_files` reads.

    Raises:
        DataError: names every line that is wrong.
    """
    faults: list[Problem] = []
    content = read_label_file(path, faults)
    if faults:
        raise DataError(faults)
    return _parted_at_commas(Tags(path, OWN, content.rows, content.columns))


def read_table(path: Path, text: str) -> Tags:
    """A table with a column of paths and one of labels, or a column of 0 and 1 for each class.

    Without a header, the first line has a path and labels. Columns that are not read are told.

    Raises:
        DataError: no such columns, or several of labels with a cell that is filled; names the
            header. Or lines have more or fewer cells; names all of them.
    """
    lines = _cells(path, text)
    if not lines:
        raise fault(path, "", "expected at least one image, found none")
    source, header = lines[0]
    while not header[-1]:
        header.pop()
    lower = [cell.casefold() for cell in header]
    paths = _column_of_paths(lower, lines[1:])
    if paths is None and len(header) == 2 and lower[0].endswith(ALL_SUFFIXES):
        form = "a table of path and labels without header"
        rows = _labelled(path, lines, 0, 1)
        return _parted_at_commas(Tags(path, form, rows, doubts=_of_several_lines(path, lines)))
    labels = next((k for k, cell in enumerate(lower) if cell in LABELS), None)
    if paths is not None and labels is not None:
        alike = [k for k, cell in enumerate(lower) if _NUMBER.sub("", cell) in LABELS]
        filled = [k for k in alike if any(line[k] for _, line in lines[1:] if k < len(line))]
        labels = filled[0] if filled else labels
        if len(filled) > 1:
            headings = few([header[k] for k in filled])
            raise fault(
                path, f"{path}:{source}",
                f"expected one column of labels, got {headings}: put labels that belong together "
                "into one cell, parted by ; or |, and call columns that have none otherwise",
            )  # fmt: skip
        form = f"a table with the columns {header[paths]!r:.60} and {header[labels]!r:.60}"
        rows = _labelled(path, lines, paths, labels)[1:]
        doubts = (*_unread(lines, {paths, labels}), *_of_several_lines(path, lines))
        return _parted_at_commas(Tags(path, form, rows, doubts=doubts))
    others = [
        k for k, cell in enumerate(lower)
        if k != paths and (cell not in PATHS or _has_flags(lines[1:], k))
    ]  # fmt: skip
    if paths is None or not others or not all(_has_flags(lines[1:], k) for k in others):
        raise fault(
            path, f"{path}:{source}",
            "expected a column of paths (called image or filename) and one of labels (called "
            f"labels), or columns of 0 and 1; got {header[:9]}",
        )  # fmt: skip
    rows = [
        row(line[paths], [header[k] for k in others if flag(line[k])], f"{path}:{number}")
        for number, line in _whole(path, lines, len(header))[1:]
    ]
    form = f"a table of 0 and 1, a column for each of {len(others)} classes"
    names = tuple(header[k] for k in others)
    doubts = (*_unread(lines, {paths, *others}), *_of_several_lines(path, lines))
    return Tags(path, form, rows, names, doubts)


def _unread(lines: Sequence[Line], read: Collection[int]) -> tuple[str, ...]:
    """A sentence on the columns behind a header of which nothing is read; none if all are."""
    header = lines[0][1]
    others = [cell or f"column {k + 1}" for k, cell in enumerate(header) if k not in read]
    if not others:
        return ()
    are = counted(len(others), "column is", "columns are")
    return (f"{are} not read: {few(others, 20)}",)


def _of_several_lines(path: Path, lines: Sequence[Line]) -> tuple[str, ...]:
    """A sentence on rows with line breaks in their cells, which may have swallowed others."""
    rows = [number for number, cells in lines if any(_BREAK.search(cell) for cell in cells)]
    if not rows:
        return ()
    have = counted(len(rows), "row has", "rows have")
    return (
        f"{have} line breaks within a cell ({few([f'{path.name}:{number}' for number in rows])}): "
        "see that no other rows are in it, as where a quote is not closed",
    )


def _column_of_paths(header: Sequence[str], lines: Sequence[Line]) -> int | None:
    """The column called as paths are in which most cells look like one, else the first of them."""
    called = [k for k, cell in enumerate(header) if cell in PATHS]
    cells = {k: [line[k].lower() for _, line in lines if k < len(line)] for k in called}
    return max(
        called, key=lambda k: sum(cell.endswith(ALL_SUFFIXES) for cell in cells[k]), default=None
    )


def _has_flags(lines: Sequence[Line], column: int) -> bool:
    return all(flag(line[column]) is not None for _, line in lines if column < len(line))


def _labelled(
    path: Path, lines: Sequence[tuple[int, list[str]]], at: int, labels: int
) -> list[Row]:
    """The rows of lines with a path in one column and labels in another; see `_whole`."""
    whole = _whole(path, lines, max(at, labels) + 1)
    return [row(line[at], _BETWEEN.split(line[labels]), f"{path}:{n}") for n, line in whole]


def _parted_at_commas(tags: Tags) -> Tags:
    """Tags of a table whose labels are parted at commas, where none are by ; or |."""
    together = [own.labels[0] for own in tags.rows if any("," in label for label in own.labels)]
    is_parted = tags.classes or any(len(own.labels) > 1 for own in tags.rows)
    if not together or is_parted or tags.path.suffix.lower() == ".json":
        return tags
    rows = [
        row(own.image, [part for label in own.labels for part in label.split(",")], own.source)
        for own in tags.rows
    ]
    doubt = (
        f"labels are parted at commas, {counted(len(together), 'cell has', 'cells have')} several, "
        f"such as {one_line(together[0])!r:.80}; a class with a comma in its name needs a JSON"
    )
    form = f"{tags.form}, labels parted at commas"
    return replace(tags, form=form, rows=rows, doubts=(*tags.doubts, doubt))


def _whole(path: Path, lines: Sequence[Line], least: int) -> list[Line]:
    """The lines that are not empty.

    Raises:
        DataError: lines have fewer columns than `least`, or more than the first; names them all.
    """
    filled = [(number, line) for number, line in lines if any(line)]
    most = len(lines[0][1])
    faults = []
    for number, line in filled:
        message = ""
        if len(line) < least:
            message = f"expected at least {least} columns, got {len(line)}"
        elif any(line[most:]):
            message = (
                f"expected {most} columns, got {len(line)}; part several labels by ; or |, or "
                "give the column a heading"
            )
        if message:
            faults.append(Problem(str(path), f"{path}:{number}", message, kind="number of columns"))
    if faults:
        raise DataError(faults)
    return filled


def _split(text: str) -> tuple[int, str, str]:
    """See `without_preface`; columns are parted by commas where nothing else is known."""
    before, text, separator = without_preface(text)
    return before, text, separator if separator and separator in ",;\t|" else ","


def _cells(path: Path, text: str) -> list[Line]:
    """Number and cells of every row of a table, from the first that is not empty."""
    before, text, separator = _split(text)
    rows = table_rows(path, text, separator, before)
    lines = [(number, [cell.strip() for cell in cells]) for number, cells in rows]
    return list(dropwhile(lambda line: not any(line[1]), lines))


OWN_TABLE = Form(OWN, is_own_table, read_own)
OWN_JSON = Form(OWN, is_own_json, read_own)
TABLE = Form("a table", lambda text: bool(text.strip()), read_table)
