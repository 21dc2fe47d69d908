"""Files that say which classes photographs show, by name.

* CSV ``image,labels`` with a header (in any case, behind empty lines and Excel's ``sep=;``), its
  columns separated by commas, semicolons or tabs; several labels are separated by ``;`` or ``|``::

      image,labels
      cats/001.jpg,cat;sofa

* CSV with a column of 0 and 1 for each class: ``image,cat,dog``;
* JSON ``{"cats/001.jpg": ["cat", "sofa"]}``.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weaktr.data.layout import flag, read_text
from weaktr.data.names import HEADINGS
from weaktr.data.problems import DataError, Problem

_SEPARATOR = re.compile("[;|]")
#: The first cell of a CSV and what parts it from the next.
_FIRST_CELL = re.compile(r'\s*"?image"?[ ]*([,;\t])', re.IGNORECASE)
#: Empty lines, and the one by which Excel knows what parts the columns.
_PREFACE = re.compile(r'(?:[^\S\r\n]*[\r\n])*(?:"?sep=([,;\t|])"?[^\S\r\n]*[\r\n]+)?')
#: What may part the columns of a table -> its name. Of several in a line the first counts.
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "|", ":": ":", " ": "a blank"}


@dataclass(frozen=True)
class Row:
    """One image of a label file: its path as written, its class names, its file and line."""

    image: str
    labels: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class LabelFile:
    """A label file.

    Args:
        path: of the file.
        rows: its images.
        columns: the class names of its header, where it has a column for each; else ().
    """

    path: Path
    rows: list[Row]
    columns: tuple[str, ...] = ()


def read_label_file(path: Path, faults: list[Problem]) -> LabelFile:
    """The content of a label file; `faults` gets what is wrong in single lines.

    Raises:
        ValueError: another suffix.
        DataError: not of one of the forms, or without any image.
    """
    if path.suffix.lower() == ".csv":
        content = _read_csv(path, faults)
    elif path.suffix.lower() == ".json":
        content = LabelFile(path, _read_json(path, faults))
    else:
        raise ValueError(f"labels_file: expected a .csv or .json, got {str(path)!r}")
    if not content.rows and not faults:
        raise DataError(Problem(str(path), "", "expected at least one image, found none"))
    return content


def _read_csv(path: Path, faults: list[Problem]) -> LabelFile:
    before, text, _ = without_preface(read_text(path, line_ends=True))
    first = _FIRST_CELL.match(text)
    delimiter = first[1] if first else ","
    rows_of_cells = table_rows(path, text, delimiter, before)
    lines = [(f"{path}:{number}", cells) for number, cells in rows_of_cells]
    place, first_line = lines[0] if lines else (f"{path}:1", [])
    header = [cell.strip() for cell in first_line]
    is_known = [cell.casefold() for cell in header[:1]] == ["image"] and len(header) > 1
    if not is_known or ("labels" in header and len(header) != 2):
        message = f"expected the header image,labels or image,<class>,<class>,..., got {header[:9]}"
        raise DataError(Problem(str(path), place, message + _separator_hint(text)))
    if not all(header):
        message = f"expected a name for every column, got none for column {header.index('') + 1}"
        raise DataError(Problem(str(path), place, message))
    columns = () if _lists_names(header, lines[1:]) else tuple(header[1:])
    if len(set(columns)) != len(columns):
        raise DataError(Problem(str(path), place, f"a class stands twice in {header[:9]}"))
    _require_flags(path, columns, lines[1:])
    rows = []
    for source, cells in lines[1:]:
        values = [cell.strip() for cell in cells]
        if not any(values):
            continue
        if values == header:
            faults.append(Problem(str(path), source, "the header stands here a second time"))
        elif len(values) != len(header):
            message = _wrong_count(values, len(header), bool(columns), delimiter)
            faults.append(Problem(str(path), source, message, kind="number of columns"))
        elif not columns:
            labels = (label.strip() for label in _SEPARATOR.split(values[1]))
            rows.append(Row(cells[0], tuple(filter(None, labels)), source))
        else:
            if wrong := [value for value in values[1:] if flag(value) is None]:
                message = f"expected 0 or 1 in the class columns, got {wrong[0]!r:.60}"
                faults.append(Problem(str(path), source, message, kind="no 0 or 1"))
            pairs = zip(columns, values[1:], strict=True)
            shown = tuple(name for name, value in pairs if flag(value))
            rows.append(Row(cells[0], shown, source))
    return LabelFile(path, rows, columns)


def _lists_names(header: Sequence[str], lines: Sequence[tuple[str, list[str]]]) -> bool:
    """Whether the second of two columns has names of classes: it is called labels.

    Where it is called so in another case, and holds 0 and 1 alone, it is a class of that name.
    """
    if len(header) != 2 or header[1].casefold() != "labels":
        return False
    cells = (line[1] for _, line in lines if len(line) > 1)
    return header[1] == "labels" or any(flag(cell) is None for cell in cells)


def _wrong_count(values: Sequence[str], expected: int, has_flags: bool, delimiter: str) -> str:
    """The message about a line that has not the header's number of columns."""
    message = f"expected {expected} columns, got {len(values)}"
    other = separator_of(values[0]) if len(values) == 1 else None
    if other not in (None, " ", ":"):
        return (
            f"{message}: {SEPARATORS[other]} parts them here, {SEPARATORS[delimiter]} in the header"
        )
    if has_flags or len(values) <= 2:
        return message
    quotes = "" if delimiter == "," else f" in quotes, since {delimiter!r} parts the columns"
    return f"{message}; part several labels by ; or |{quotes}"


def _separator_hint(text: str) -> str:
    """What to do about columns that something else parts than a comma, a semicolon or a tab."""
    found = separator_of(text)
    if found in (None, ",", ";", "\t"):
        return ""
    return (
        f"; its columns seem to be parted by {SEPARATORS[found]}: expected a comma, a semicolon or "
        "a tab; save it with one of these"
    )


def separator_of(text: str) -> str | None:
    """What parts the columns in the first line of a table: one of `SEPARATORS`; None = nothing.

    What stands in quotes does not count.
    """
    line = re.sub('"[^"]*"', "", text.lstrip().partition("\n")[0].strip())
    return next((separator for separator in SEPARATORS if separator in line), None)


def without_preface(text: str) -> tuple[int, str, str | None]:
    """A table without empty first lines and Excel's ``sep=;``.

    Returns:
        The number of lines that were left out, the others, and what parts their columns.
    """
    preface = _PREFACE.match(text)
    start = preface.end() if preface else 0
    rest = text[start:]
    told = preface[1] if preface else None
    return len(text[:start].splitlines()), rest, told or separator_of(rest)


def header_of(text: str, delimiter: str) -> list[str]:
    """The cells of the first row of a table; [] if there is none, or it is no table."""
    try:
        return next(_reader(io.StringIO(text, newline=""), delimiter), [])
    except csv.Error:
        return []


def table_rows(
    path: Path, text: str, delimiter: str, before: int = 0
) -> Iterator[tuple[int, list[str]]]:
    """The number of its first line, and the cells, of every row of a table.

    Args:
        path: of the file, for messages.
        text: the table, see `without_preface`.
        delimiter: what parts its columns.
        before: lines of the file before `text`.

    Raises:
        DataError: a quote is not closed, or what else is no table; names the row's first line.
    """
    lines: list[str] = []  # of a row

    def noted() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            lines.append(line)
            yield line

    number = before + 1
    try:
        for cells in _reader(noted(), delimiter):
            if len(lines) > 1 and len([*_reader([*lines, "another row"], delimiter)]) == 1:
                raise csv.Error("a quote that no other closes")
            yield number, cells
            number += len(lines)
            lines.clear()
    except csv.Error as error:
        message = f"expected CSV, got: {error}; is a quote here not closed?"
        raise DataError(Problem(str(path), f"{path}:{number}", message)) from error


def _reader(lines: Iterable[str], delimiter: str) -> Iterator[list[str]]:
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def _require_flags(
    path: Path, columns: Sequence[str], lines: Sequence[tuple[str, list[str]]]
) -> None:
    """Raise `DataError` where the one column is called as headings are and holds other than 0 or 1.

    A column ``label`` of 0 and 1 is one class of that name; other numbers, and names, are not.
    """
    if len(columns) != 1 or columns[0].casefold() not in HEADINGS:
        return
    for source, cells in lines:
        value = cells[1] if len(cells) == 2 else ""
        if flag(value) is None:
            message = (
                f"expected the header image,labels before names of classes, got image,{columns[0]} "
                f"and then {value.strip()!r:.60}: call the column labels"
            )
            if value.strip().isdecimal():
                message += " and write names in place of numbers"
            raise DataError(Problem(str(path), source, message))


def _read_json(path: Path, faults: list[Problem]) -> list[Row]:
    pairs: list[tuple[str, Any]] = []

    def outermost(items: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = items  # called last for the outermost object; keeps keys that occur twice
        return dict(items)

    try:
        content = json.loads(read_text(path), object_pairs_hook=outermost)
    except json.JSONDecodeError as error:
        raise DataError(Problem(str(path), f"{path}:{error.lineno}", error.msg)) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; too deep
        raise DataError(Problem(str(path), "", f"expected JSON, got: {error}")) from error
    if not isinstance(content, dict):
        message = f'expected {{"image": ["label", ...]}}, got a {type(content).__name__}'
        raise DataError(Problem(str(path), "", message))
    rows = []
    for image, labels in pairs:
        source = f"{path}[{json.dumps(image, ensure_ascii=False)}]"
        if not isinstance(labels, list) or not all(
            isinstance(label, str) and label.strip() for label in labels
        ):
            message = f"expected a list of class names, got {labels!r:.60}"
            faults.append(Problem(str(path), source, message, kind="no list of class names"))
        else:
            rows.append(Row(image, tuple(label.strip() for label in labels), source))
    return rows
