"""Which photograph a path means that a tool wrote, on another computer and in another folder."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
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
        missing: rows of which there is no photograph.
        unclear: rows that may mean several, with these.
        otherwise: (path as it is written, path of the photograph) where these differ.
    """

    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)
    missing: list[Row] = field(default_factory=list)
    unclear: list[tuple[Row, list[str]]] = field(default_factory=list)
    otherwise: list[tuple[str, str]] = field(default_factory=list)


def matched(rows: Iterable[Row], photographs: Sequence[str]) -> Matched:
    """Find the photographs of rows, by path, else by the end of the path that only one has.

    Nothing is opened: a path that leads elsewhere is compared with the photographs like any other.

    Args:
        rows: labels of several rows of a photograph add up.
        photographs: paths below their folder, their parts parted by /.
    """
    known, by_name, result = set(photographs), _by_name(photographs), Matched()
    for row in rows:
        plain = row.image.strip().replace("\\", "/")
        written = row.image if row.image in known else plain
        meant = [written] if written in known else _ends_alike(plain, by_name)
        if not meant:
            result.missing.append(row)
        elif len(meant) > 1:
            result.unclear.append((row, meant))
        else:
            if meant[0] != written:
                result.otherwise.append((row.image, meant[0]))
            labels = result.labels.get(meant[0], ())
            result.labels[meant[0]] = tuple(dict.fromkeys((*labels, *row.labels)))
    return result


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
