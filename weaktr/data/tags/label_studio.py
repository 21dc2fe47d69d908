"""Exports of Label Studio: JSON, JSON-MIN and CSV.

Choices count, and so do the labels of boxes, polygons, brushes and the like, and of a taxonomy the
last name of each path. JSON-MIN and CSV write a single choice as a text, like notes and what else
is known of a photograph: there the name of the column decides. A task that nobody has annotated,
that was skipped, or that has results of other kinds alone, is left out: it is not a photograph
without classes.

Source: Label Studio's documentation, "Export annotations" and "Label Studio JSON format".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from weaktr.data.label_files import header_of, table_rows, without_preface
from weaktr.data.layout import ALL_SUFFIXES
from weaktr.data.tags.form import Form, Tags, fault, row
from weaktr.data.tags.table import LABELS
from weaktr.files import parse_json
from weaktr.messages import brief, counted, few

#: Keys of JSON-MIN and CSV that say nothing of what a photograph shows.
ABOUT = {"id", "annotation_id", "annotator", "created_at", "updated_at", "lead_time", "agreement"}

#: What a result of JSON-MIN and CSV has, of which at least one is there, where it is in no list.
ALONE = {"text", "ranker", "x", "points", "vertices", "rle"}

#: The last word of the names of columns whose texts are choices.
CHOICES = LABELS | {"choice", "choices"}


def is_tasks(content: Any) -> bool:
    """Whether a JSON is a list of tasks with data and annotations."""
    return _has(content, "data", "annotations")


def is_small(content: Any) -> bool:
    """Whether a JSON is a list as JSON-MIN has it."""
    return _has(content, "annotation_id")


def is_table(text: str) -> bool:
    """Whether a CSV has the columns that Label Studio writes."""
    _, rest, separator = _split(text)
    return {"annotation_id", "lead_time"} <= set(header_of(rest, separator))


def _split(text: str) -> tuple[int, str, str]:
    """See `without_preface`; what parts the columns, a spreadsheet may choose."""
    before, rest, separator = without_preface(text)
    return before, rest, separator if separator in (";", "\t") else ","


def _has(content: Any, *keys: str) -> bool:
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, dict) and all(key in first for key in keys)


def read_tasks(path: Path, content: list[Any]) -> Tags:
    """The JSON export.

    Raises:
        DataError: a task is not of the form; names it.
    """
    rows, several, without, other = [], 0, 0, 0
    unread: set[str] = set()
    for number, task in enumerate(content):
        where = f"{path}[{number}]"
        try:
            done = [one for one in task["annotations"] if not one.get("was_cancelled")]
            results = [result for one in done for result in one["result"]]
            labels = [label for result in results for label in _labels(result.get("value"))]
            kinds = {_kind(result) for result in _unlabelled(results)}
            image = _image(task["data"])
        except (KeyError, TypeError, AttributeError) as error:
            message = (
                f"expected a task with data and annotations, got {brief(task)} ({error!r:.60})"
            )
            raise fault(path, where, message) from error
        if image is None:
            raise fault(path, where, "expected the path or address of an image in data")
        unread |= kinds
        several += len(done) > 1
        without += not done
        other += bool(kinds) and not labels
        if labels or (done and not kinds):
            rows.append(row(image, labels, where))
    told = {
        f"{several} tasks have several annotations, whose labels count together": several,
        f"{without} tasks are not annotated or were skipped, and left out": without,
        f"results of these types are not read: {few(sorted(unread))}": len(unread),
        _left_out(other): other,
    }
    doubts = tuple(text for text, count in told.items() if count)
    if not rows and other:
        raise fault(path, "", f"expected choices or labels; {'; '.join(doubts)}")
    return Tags(path, "Label Studio's JSON", rows, doubts=doubts)


def _unlabelled(results: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The results that are not read, but for those, such as shapes, that another result of their
    id gives labels."""
    named = {result.get("id") for result in results if any(_labels(result.get("value")))} - {None}
    for result in results:
        if _is_unread(result.get("value")) and result.get("id") not in named:
            yield result


def _kind(result: Mapping[str, Any]) -> str:
    """What a result of a task is: its type, or the keys of its value."""
    return str(result.get("type") or few(sorted(result["value"])))


def _left_out(tasks: int) -> str:
    is_or_are = "is" if tasks == 1 else "are"
    return f"{counted(tasks, 'task has', 'tasks have')} nothing else and {is_or_are} left out"


def read_small(path: Path, content: list[Any]) -> Tags:
    """The JSON-MIN export.

    Raises:
        DataError: an entry is not of the form; names it.
    """
    entries = [(f"{path}[{number}]", entry) for number, entry in enumerate(content)]
    return _tags(path, "Label Studio's JSON-MIN", entries)


def read_table(path: Path, text: str) -> Tags:
    """The CSV export.

    Raises:
        DataError: a line is not of the form; names it.
    """
    before, rest, separator = _split(text)
    (_, header), *lines = table_rows(path, rest, separator, before)
    entries: list[tuple[str, Any]] = []
    for number, cells in lines:
        where, own, further = f"{path}:{number}", cells[: len(header)], cells[len(header) :]
        entry = {key: _cell(cell, where) for key, cell in zip_longest(header, own)}
        if further:
            entry["cells without a heading"] = further
        if cells:
            entries.append((where, entry))
    return _tags(path, "Label Studio's CSV", entries)


def _cell(text: Any, where: str) -> Any:
    """What a cell of the CSV holds: JSON where it begins so, else a text."""
    if not isinstance(text, str) or text[:1] not in ("[", "{"):
        return text
    try:
        return parse_json(text, where)
    except ValueError:
        return text


def _tags(path: Path, form: str, entries: Sequence[tuple[str, Any]]) -> Tags:
    """The tags of entries, each with its place. Which columns have texts that count is told, and
    which do not.

    Raises:
        DataError: an entry has no image, or no column of labels is known.
    """
    images = [(where, entry, _image_of(path, where, entry)) for where, entry in entries]
    columns = dict.fromkeys(
        key for _, entry, _ in images for key, value in entry.items() if _is_of_labels(key, value)
    )
    texts = [
        key
        for key in columns
        if any(any(_texts(entry.get(key), image)) for _, entry, image in images)
    ]
    if texts:
        form = f"{form}, with the {'columns' if len(texts) > 1 else 'column'} {few(texts)}"
    doubts = (
        (f"texts of the columns {few(texts)} count together: rename those that are no labels",)
        if len(texts) > 1
        else ()
    )
    rows = [row(image, _labels_of(entry, columns, image), where) for where, entry, image in images]
    others = {
        key
        for _, entry, image in images
        for key, value in entry.items()
        if key not in ABOUT
        and (_is_other(value) or (key not in columns and any(_texts(value, image))))
    }
    if not others:
        return Tags(path, form, rows, doubts=doubts)
    told = (
        f"not taken as labels: {few(sorted(others))}; texts count where the column is called "
        "choice, label, class, category or tag, or has lists of choices too"
    )
    if not any(own.labels for own in rows):
        raise fault(path, "", f"expected a column of labels, {told}: rename it")
    known = [
        own for own, (_, entry, _) in zip(rows, images, strict=True)
        if own.labels or not any(map(_is_other, entry.values()))
    ]  # fmt: skip
    other = len(rows) - len(known)
    left_out = (_left_out(other),) if other else ()
    return Tags(path, form, known, doubts=(*doubts, told, *left_out))


def _image_of(path: Path, where: str, entry: Any) -> str:
    image = _image(entry) if isinstance(entry, Mapping) else None
    if image is None:
        message = f"expected an entry with the path or address of an image, got {brief(entry)}"
        raise fault(path, where, message)
    return image


def _is_of_labels(key: str, value: Any) -> bool:
    """Whether a column has labels: by the last word of its name, or a value."""
    words = re.findall(r"[^\W\d_]+", key.casefold())
    return key not in ABOUT and (CHOICES.issuperset(words[-1:] or [key]) or any(_labels(value)))


def _labels_of(entry: Mapping[str, Any], columns: Collection[str], image: str) -> Iterator[str]:
    for key, value in entry.items():
        if key in columns:
            yield from _texts(value, image)
            yield from _labels(value)


def _texts(value: Any, image: str) -> Iterator[str]:
    """The texts of a value, or of a list of them, that are not the image's address."""
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and text.strip() and _path(text) != image:
            yield text


def _labels(value: Any) -> Iterator[str]:
    """The names of `_lists`; of a taxonomy, which has lists of names as paths, the last of each."""
    for name in chain.from_iterable(_lists(value)):
        last = name[-1] if isinstance(name, list) and name else name
        if isinstance(last, str) and last:
            yield last


def _lists(value: Any) -> Iterator[list[Any]]:
    """The lists ``choices``, ``...labels`` and ``taxonomy`` of a value, or of a list of them."""
    for part in value if isinstance(value, list) else [value]:
        for key, names in part.items() if isinstance(part, Mapping) else ():
            if key in ("choices", "taxonomy") or key.endswith("labels"):
                yield names if isinstance(names, list) else [names]


def _is_unread(value: Any) -> bool:
    """Whether a value is a result, or some, of which `_labels` knows none."""
    parts = value if isinstance(value, list) else [value]
    return any(isinstance(part, Mapping) for part in parts) and not any(True for _ in _lists(value))


def _is_other(value: Any) -> bool:
    """Whether a value of JSON-MIN or CSV is unread: results are in lists, but those of
    `ALONE`. Other objects, such as ``{"camera": "left"}``, came with the photograph."""
    return _is_unread(value) and (isinstance(value, list) or not ALONE.isdisjoint(value))


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
