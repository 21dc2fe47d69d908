"""Arrays that took long to compute: kept in memory, then in files of a folder, both bounded.

Passes over photographs meet them in one order again and again. A cache that replaced what it has
met longest ago would never hold what comes next, so here who comes first stays.
"""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from weaktr.data.arrays import read_npz
from weaktr.files import clear_abandoned, write_bytes
from weaktr.seals import is_sealed, sealed_zip

log = logging.getLogger("weaktr")

Arrays = Mapping[str, np.ndarray]

#: The name of an entry's file: its key, 32 hexadecimal digits.
ENTRY = re.compile(r"([0-9a-f]{32})\.npz")
#: What an entry's file calls the array that holds its own key.
KEY = "key"
#: Files that are written before those of other processes are counted again.
COUNT_EVERY = 64
MIB, GIB = 2**20, 2**30


class _Entry(NamedTuple):
    """A file of the folder."""

    used_ns: int  #: when it was written or last read
    size: int
    path: Path


class ArrayCache:
    """Groups of arrays under keys of 32 hexadecimal digits; usable in threads.

    What is in the memory stays there; what no longer fits goes to the files alone. Several
    processes may share the folder. Where it is full, files that nobody has used since this process
    opened it are removed, the oldest first; once only files in use are left, no more are written.

    A file that is damaged, half-written, changed by hand or of another key counts as missing, and
    is written again. A disk that takes no files costs time, nothing else: the log says so once.

    Args:
        folder: of the files, created with the first of them; None = memory alone.
        memory_mb: MiB of arrays in memory.
        disk_gb: GiB of files in the folder. Processes that fill it at the same time may exceed it
            by `COUNT_EVERY` files each.
    """

    def __init__(
        self, folder: Path | None = None, *, memory_mb: float = 2048, disk_gb: float = 20
    ) -> None:
        self.folder = folder
        self._limits = memory_mb * MIB, disk_gb * GIB
        self._memory: dict[str, Arrays] = {}
        self._memory_bytes = 0
        self._used: set[str] = set()  #: keys whose files this process has read or written
        self._opened_ns = time.time_ns()
        self._disk_bytes, self._uncounted = 0, COUNT_EVERY
        self._takes_files = folder is not None
        self._lock = threading.Lock()
        #: whether an entry has found no room, neither in memory nor in a file
        self.is_full = False
        if folder is not None:
            with suppress(OSError):
                clear_abandoned(folder)

    @property
    def memory_bytes(self) -> int:
        """Bytes of the arrays in memory."""
        return self._memory_bytes

    def __contains__(self, key: str) -> bool:
        """Whether there is an entry, as far as is known without reading its file."""
        return key in self._memory or (self.folder is not None and self._path(key).is_file())

    def is_in_memory(self, key: str) -> bool:
        """Whether `get` reads no file."""
        return key in self._memory

    def get(self, key: str) -> Arrays | None:
        """The arrays of an entry, which are not to be written to; None = there is none."""
        arrays = self._memory.get(key)
        if arrays is None and self.folder is not None:
            arrays = self._read(key)
            if arrays is not None:
                self._keep(key, arrays)
        return arrays

    def put(self, key: str, arrays: Arrays) -> None:
        """Keep the arrays of an entry where there is room: in memory, and in a file."""
        is_kept = self._keep(key, arrays)
        if self._takes_files:
            is_kept |= self._write(key, arrays)
        self.is_full |= not is_kept

    def _write(self, key: str, arrays: Arrays) -> bool:
        """Keep the arrays in a file, where there is room; whether there was."""
        buffer = io.BytesIO()
        np.savez(buffer, **{**arrays, KEY: np.frombuffer(key.encode(), np.uint8)})  # type: ignore[arg-type] # numpy's own stub
        content = sealed_zip(buffer.getvalue())
        try:
            has_room = self._has_room(key, len(content))
            if has_room:
                write_bytes(self._path(key), content, durable=False)
            return has_room
        except OSError as error:
            self._takes_files = False
            log.warning(
                "%s: takes no further files (%s); what does not fit memory_mb is computed again "
                "each time", self.folder, error.strerror or error,
            )  # fmt: skip
            return False

    def forget(self) -> None:
        """Let go of what is in the memory; files stay."""
        with self._lock:
            self._memory.clear()
            self._memory_bytes = 0

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.npz"

    def _keep(self, key: str, arrays: Arrays) -> bool:
        """Keep the arrays in memory, where there is room; whether they are there."""
        size = sum(array.nbytes for array in arrays.values())
        with self._lock:
            if key not in self._memory and self._memory_bytes + size <= self._limits[0]:
                self._memory[key] = arrays
                self._memory_bytes += size
            return key in self._memory

    def _read(self, key: str) -> Arrays | None:
        """The arrays in the file of a key; None where it is missing or not what was written."""
        path = self._path(key)
        try:
            if not is_sealed(path):
                return None
            arrays = read_npz(path)
            if arrays.pop(KEY).tobytes() != key.encode():
                return None
        except (OSError, ValueError, LookupError):
            return None
        with suppress(OSError):  # a folder that may only be read
            os.utime(path)
        with self._lock:
            self._used.add(key)
        return arrays

    def _has_room(self, key: str, size: int) -> bool:
        """Whether a file of this size may be written; older ones may have been removed for it."""
        with self._lock:
            self._uncounted += 1
            if self._uncounted > COUNT_EVERY or self._disk_bytes + size > self._limits[1]:
                entries = self._entries()
                self._disk_bytes, self._uncounted = sum(entry.size for entry in entries), 0
                for entry in sorted(entries):
                    if self._disk_bytes + size <= self._limits[1]:
                        break
                    if entry.used_ns < self._opened_ns and entry.path.stem not in self._used:
                        entry.path.unlink(missing_ok=True)
                        self._disk_bytes -= entry.size
            if self._disk_bytes + size > self._limits[1]:
                self._takes_files = False
                log.warning(
                    "%s: is full at disk_gb %.3g; what fits neither there nor into memory_mb is "
                    "computed again each time", self.folder, self._limits[1] / GIB,
                )  # fmt: skip
                return False
            self._disk_bytes += size
            self._used.add(key)
            return True

    def _entries(self) -> list[_Entry]:
        """The files of entries in the folder."""
        assert self.folder is not None
        entries = []
        for file in os.scandir(self.folder) if self.folder.is_dir() else ():
            if ENTRY.fullmatch(file.name):
                with suppress(FileNotFoundError):  # removed by another process meanwhile
                    stat = file.stat(follow_symlinks=False)
                    entries.append(_Entry(stat.st_mtime_ns, stat.st_size, Path(file.path)))
        return entries
