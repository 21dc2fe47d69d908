"""Exports of Label Studio: JSON, JSON-MIN and CSV.

Choices count, and so do the labels of boxes, polygons, brushes and the like. A task that nobody has
annotated, or that was skipped, is left out: it is not a photograph without classes.

Source: Label Studio's documentation, "Export annotations" and "Label Studio JSON format".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from weaktr.data.label_files import Row
from weaktr.data.layout import ALL_SUFFIXES
from weaktr.data.tags.form import Form, Tags, fault, row
from weaktr.files import parse_json
from weaktr.messages import brief

#: Keys of JSON-MIN and CSV that say nothing of what a photograph shows.
ABOUT = {"id", "annotation_id", "annotator", "created_at", "updated_at", "lead_time", "agreement"}


def is_tasks(content: Any) -> bool:
    """Whether a JSON is a list of tasks with data and annotations."""
    return _has(content, "data", "annotations")


def is_small(content: Any) -> bool:
    """Whether a JSON is a list as JSON-MIN has it."""
    return _has(content, "annotation_id")


def is_table(text: str) -> bool:
    """Whether a CSV has the columns that Label Studio writes."""
    header = next(csv.reader(io.StringIO(text, newline="")), [])
    return {"annotation_id", "lead_time"} <= set(header)


def _has(content: Any, *keys: str) -> bool:
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and all(key in first for key in keys)


def read_tasks(path: Path, content: list[Any]) -> Tags:
    """The JSON export.

    Raises:
        DataError: a task is not of the form; names it.
    """
    rows, several, without = [], 0, 0
    for number, task in enumerate(content):
        where = f"{path}[{number}]"
        try:
            done = [one for one in task["annotations"] if not one.get("was_cancelled")]
            results = [result for one in done for result in one["result"]]
            labels = [label for result in results for label in _labels(result.get("value"))]
            image = _image(task["data"])
        except (KeyError, TypeError, AttributeError) as error:
            message = (
                f"expected a task with data and annotations, got {brief(task)} ({error!r:.60})"
            )
            raise fault(path, where, message) from error
        if image is None:
            raise fault(path, where, "expected the path or address of an image in data")
        several += len(done) > 1
        without += not done
        if done:
            rows.append(row(image, labels, where))
    doubts = [
        f"{several} tasks have several annotations, whose labels count together",
        f"{without} tasks are not annotated or were skipped, and left out",
    ]
    told = [text for text, count in zip(doubts, (several, without), strict=True) if count]
    return Tags(path, "Label Studio's JSON", rows, doubts=tuple(told))


def read_small(path: Path, content: list[Any]) -> Tags:
    """The JSON-MIN export.

    Raises:
        DataError: an entry is not of the form; names it.
    """
    rows = [_row(path, f"{path}[{number}]", entry) for number, entry in enumerate(content)]
    return Tags(path, "Label Studio's JSON-MIN", rows)


def read_table(path: Path, text: str) -> Tags:
    """The CSV export.

    Raises:
        DataError: a line is not of the form; names it.
    """
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="")
    rows = []
    try:
        for line in reader:
            where = f"{path}:{reader.line_num}"
            rows.append(_row(path, where, {key: _cell(cell, where) for key, cell in line.items()}))
    except csv.Error as error:
        raise fault(path, f"{path}:{reader.line_num}", f"expected CSV, got: {error}") from error
    return Tags(path, "Label Studio's CSV", rows)


def _cell(text: Any, where: str) -> Any:
    """What a cell of the CSV holds: JSON where it begins so, else a text."""
    if not isinstance(text, str) or text[:1] not in ("[", "{"):
        return text
    try:
        return parse_json(text, where)
    except ValueError:
        return text


def _row(path: Path, where: str, entry: Any) -> Row:
    """The row of an entry in which everything but `ABOUT` and the image is labels."""
    image = _image(entry) if isinstance(entry, Mapping) else None
    if image is None:
        message = f"expected an entry with the path or address of an image, got {brief(entry)}"
        raise fault(path, where, message)
    values = [value for key, value in entry.items() if key not in ABOUT]
    labels = [
        label
        for value in values
        if not (isinstance(value, str) and _path(value) == image)
        for label in ([value] if isinstance(value, str) else _labels(value))
    ]
    return row(image, labels, where)


def _labels(value: Any) -> Iterator[str]:
    """The names in the lists ``choices`` and ``...labels`` of a value, or of a list of them."""
    for part in value if isinstance(value, list) else [value]:
        for key, names in part.items() if isinstance(part, Mapping) else ():
            if key == "choices" or key.endswith("labels"):
                yield from filter(None, (n for n in names if isinstance(n, str)))


def _image(entry: Mapping[str, Any]) -> str | None:
    """The path of the image in an entry: that of the key ``image``, else the first that is one."""
    texts = [entry.get("image"), *entry.values()]
    paths = [_path(text) for text in texts if isinstance(text, str)]
    return next((path for path in paths if path.lower().endswith(ALL_SUFFIXES)), None)


def _path(text: str) -> str:
    """The path in an address: of ``/data/local-files/?d=a/b.jpg`` what is behind ``d=``."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return text
    if not parts.scheme and not parts.path.startswith("/data/"):
        return text
    asked = parse_qs(parts.query).get("d", [])
    return asked[0] if asked else unquote(parts.path)


TASKS = Form("Label Studio's JSON", is_tasks, read_tasks)
SMALL = Form("Label Studio's JSON-MIN", is_small, read_small)
CSV = Form("Label Studio's CSV", is_table, read_table)
