"""Which photograph a path means that a tool wrote, on another computer and in another folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from weaktr.data.label_files import Row
from weaktr.data.layout import ALL_SUFFIXES

#: What Label Studio puts before the name of an uploaded file.
_UPLOADED = re.compile(r"[0-9a-f]{8}-(?=.)")


@dataclass
class Matched:
    """The photographs that rows speak of.

    Args:
        labels: path of each photograph that was found -> its class names, in the order of rows.
        missing: rows of which there is no photograph, or one that has a row of its own.
        unclear: rows that may mean several, with these.
        disputed: photographs that several paths may mean whose labels differ, with the rows.
        otherwise: (path as it is written, path of the photograph) where these differ.
    """

    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing: list[Row] = field(default_factory=list)
    unclear: list[tuple[Row, list[str]]] = field(default_factory=list)
    disputed: list[tuple[str, list[Row]]] = field(default_factory=list)
    otherwise: list[tuple[str, str]] = field(default_factory=list)


def matched(rows: Iterable[Row], photographs: Sequence[str]) -> Matched:
    """Find the photographs of rows, by path, else by the end of the path that only one has.

    Nothing is opened: a path that leads elsewhere is compared with the photographs like any other.
    Where a row has the very path of a photograph, no row with another path means it.

    Args:
        rows: labels of several rows of a photograph add up.
        photographs: paths below their folder, their parts parted by /.
    """
    known, by_name, result = set(photographs), _by_name(photographs), Matched()
    looser: dict[str, list[Row]] = {}
    for row in rows:
        written = _written(row, known)
        meant = [written] if written in known else _ends_alike(written, by_name)
        if not meant:
            result.missing.append(row)
        elif len(meant) > 1:
            result.unclear.append((row, meant))
        elif meant[0] != written:
            looser.setdefault(meant[0], []).append(row)
        else:
            _add(result.labels, meant[0], row)
    for path, group in looser.items():
        if path in result.labels:
            result.missing += group
        elif len({_written(row, known) for row in group}) > 1 and _differ(group):
            result.disputed.append((path, group))
        else:
            for row in group:
                result.otherwise.append((row.image, path))
                _add(result.labels, path, row)
    return result


def _written(row: Row, known: Container[str]) -> str:
    """The path of a row, as it is where there is such a photograph."""
    return row.image if row.image in known else row.image.strip().replace("\\", "/")


def _differ(rows: Sequence[Row]) -> bool:
    """Whether the paths of some rows have not the same labels."""
    of_path: dict[str, set[str]] = {}
    for row in rows:
        of_path.setdefault(row.image, set()).update(row.labels)
    return any(labels != of_path[rows[0].image] for labels in of_path.values())


def _add(labels: dict[str, tuple[str, ...]], path: str, row: Row) -> None:
    labels[path] = tuple(dict.fromkeys((*labels.get(path, ()), *row.labels)))


def _by_name(photographs: Sequence[str]) -> dict[str, list[str]]:
    """The photographs by file name, and by file name without suffix, in no certain case."""
    found: dict[str, list[str]] = {}
    for path in photographs:
        name = _plain(PurePosixPath(path).name)
        for key in {name, PurePosixPath(name).stem}:
            found.setdefault(key, []).append(path)
    return found


def _ends_alike(written: str, by_name: dict[str, list[str]]) -> list[str]:
    """The photographs that share most of the end of a path, at least the file name."""
    parts = [_plain(part) for part in written.split("/") if part not in ("", ".", "..")]
    for name in (parts[-1], _UPLOADED.sub("", parts[-1], count=1)) if parts else ():
        found = by_name.get(name, []) if name.endswith(ALL_SUFFIXES) or "." not in name else []
        if found:
            own = [*parts[:-1], name]
            shared = {path: _shared_end(own, _plain(path).split("/")) for path in found}
            return [path for path in found if shared[path] == max(shared.values())]
    return []


def _shared_end(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts at their end two paths have in common."""
    pairs = zip(reversed(one), reversed(other), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
