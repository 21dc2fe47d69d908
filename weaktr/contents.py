"""The content of files, which is what results depend on: not their names, places or dates.

A file that was read once is not read again while its size, inode and times are the same. Every
write sets the time of its last change (ctime), which no program can choose.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from weaktr import tars
from weaktr.files import require_file, write_bytes

#: Bytes that are read together.
PIECE = 2**20
#: A file that changed so shortly before it was read may change again in the same tick.
SETTLED_AFTER_NS = 2 * 10**9
#: Where a folder of results keeps what it knows of files, for its next start.
CONTENTS = ".contents.json"


class FileState(NamedTuple):
    """A file's content, and what tells without reading it that it is the same still."""

    sha256: str
    size: int
    modified_ns: int
    changed_ns: int  #: 0 = the file was too young, so that only reading it again will tell
    inode: int


class Contents:
    """Digests of files, by reading each only when it may have changed; usable in threads.

    Args:
        file: from which earlier states are read, and to which `save` writes them; None = nowhere. A
            damaged one counts as empty.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._file, self._lock = file, threading.Lock()
        self._states = {} if file is None else _read(file)
        self._is_saved = True

    def digest(self, path: Path) -> str:
        """SHA-256 of a file.

        Raises:
            OSError: it cannot be read.
            ValueError: it is no file; names it.
        """
        key = os.path.abspath(path)
        before = self._states.get(key)
        if before is not None and before.changed_ns and _stamp(tars.status(path)) == before[1:]:
            return before.sha256
        state = _state_of(path)
        with self._lock:
            self._states[key], self._is_saved = state, False
        return state.sha256

    def follow(self, folder: Path, place: Path) -> None:
        """Know files of a folder by their paths in the one to which they were moved."""
        above = os.path.join(os.path.abspath(folder), "")
        with self._lock:
            for path in [path for path in self._states if path.startswith(above)]:
                state = self._states.pop(path)
                self._states[os.path.join(os.path.abspath(place), path[len(above) :])] = state
                self._is_saved = False

    def known(self) -> set[str]:
        """SHA-256 of all files that were read."""
        return {state.sha256 for state in self._states.values()}

    def save(self) -> None:
        """Write the states, where there are new ones."""
        with self._lock:
            if self._file is not None and not self._is_saved:
                write_bytes(self._file, json.dumps(self._states).encode(), durable=False)
                self._is_saved = True


def digest_of(rows: Iterable[tuple[object, ...]]) -> str:
    """One digest of many facts: 32 hexadecimal digits of rows of plain values."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()[:32]


def _state_of(path: Path) -> FileState:
    opened = tars.opened(path)
    if not isinstance(opened, Path):
        return _state_in_tar(path)
    with open(path, "rb") as file:
        stamp = _stamp(os.fstat(file.fileno()))
        digest = hashlib.sha256()
        while piece := file.read(PIECE):
            digest.update(piece)
        if stamp != _stamp(os.fstat(file.fileno())):  # written to meanwhile
            stamp = (*stamp[:2], 0, stamp[3])
    return FileState(digest.hexdigest(), *stamp)


def _state_in_tar(path: Path) -> FileState:
    stamp = _stamp(tars.status(path))
    digest = hashlib.sha256(tars.read_bytes(path)).hexdigest()
    if stamp != _stamp(tars.status(path)):  # another archive meanwhile
        stamp = (*stamp[:2], 0, stamp[3])
    return FileState(digest, *stamp)


def _stamp(stat: os.stat_result | tars.Status) -> tuple[int, int, int, int]:
    is_settled = time.time_ns() - stat.st_ctime_ns > SETTLED_AFTER_NS
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns if is_settled else 0, stat.st_ino


def _read(file: Path) -> dict[str, FileState]:
    try:
        require_file(file)
        rows = json.loads(file.read_bytes())
        return {path: FileState(*row) for path, row in rows.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
