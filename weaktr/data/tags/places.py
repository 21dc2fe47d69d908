"""Which photograph a path means that a tool wrote, on another computer and in another folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, takewhile
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
    unclear: list[tuple[Row, Sequence[str]]] = field(default_factory=list)
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
    known, ends, result = set(photographs), _Ends(photographs), Matched()
    looser: dict[str, list[Row]] = {}
    for row in rows:
        written = _written(row, known)
        meant = [written] if written in known else ends.alike(written)
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


class _Ends:
    """Photographs by the ends of their paths, in no certain case.

    Args:
        photographs: as for `matched`. Each is under its file name, its last two parts, and so on.
    """

    def __init__(self, photographs: Iterable[str]) -> None:
        self._by_end: dict[str, list[str]] = {}
        self._by_stem: dict[str, list[str]] = {}  #: file names without suffix
        for path in photographs:
            parts = _plain(path).split("/")
            for end in accumulate(reversed(parts), _before):
                self._by_end.setdefault(end, []).append(path)
            self._by_stem.setdefault(PurePosixPath(parts[-1]).stem, []).append(path)

    def alike(self, written: str) -> Sequence[str]:
        """The photographs that share most of the end of a path, at least the file name."""
        parts = [_plain(part) for part in written.split("/") if part not in ("", ".", "..")]
        for name in (parts[-1], _UPLOADED.sub("", parts[-1], count=1)) if parts else ():
            if name.endswith(ALL_SUFFIXES) or "." not in name:
                ends = accumulate((name, *reversed(parts[:-1])), _before)
                shared = [*takewhile(bool, (self._by_end.get(end) for end in ends))]
                if found := shared[-1] if shared else self._by_stem.get(name):
                    return found
        return []


def _before(end: str, part: str) -> str:
    return f"{part}/{end}"


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()
