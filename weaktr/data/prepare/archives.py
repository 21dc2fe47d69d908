"""Archives on the disk: find them, verify them, note which are verified and unpacked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from weaktr.data.prepare.meters import megabytes
from weaktr.data.prepare.official import Archive
from weaktr.files import read_json, require_file, write_json

_CHUNK = 1 << 22


class ArchiveError(ValueError):
    """An archive is not available, not what it should be, or not safe to unpack."""


def verify(path: Path, archive: Archive) -> None:
    """Compare size and MD5 of a file with what they should be.

    Raises:
        ArchiveError: they differ, or it is no file; says expected and got.
    """
    try:
        require_file(path)
    except ValueError as error:
        raise ArchiveError(str(error)) from error
    size = path.stat().st_size
    if archive.size is not None and size != archive.size:
        raise ArchiveError(
            f"{path}: expected {archive.size} bytes, got {size}; "
            + (
                f"rename it to {archive.name}.part in the downloads folder and start with "
                "--download to go on with it, or delete it"
                if size < archive.size
                else "delete it and get it again"
            )
        )
    if archive.md5 is None:
        return
    md5 = _md5(path)
    if md5 != archive.md5:
        raise ArchiveError(
            f"{path}: expected MD5 {archive.md5}, got {md5}; the file is damaged or another one: "
            "delete it and get it again"
        )


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with (
        open(path, "rb") as file,
        megabytes(f"verifying {path.name}", path.stat().st_size) as advance_to,
    ):
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            advance_to(file.tell())
    return digest.hexdigest()


def find(name: str, folders: Sequence[Path]) -> Path | None:
    """The first file or folder `name` in one of `folders`, or None."""
    return next((folder / name for folder in folders if (folder / name).exists()), None)


class Ledger:
    """Which steps each archive has passed, so that a second run need not repeat them.

    Notes are in ``ROOT/.prepared/NAME.json``; they are valid as long as size and modification time
    of the archive stay the same.

    Args:
        root: the data set's folder.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / ".prepared"

    def verified(self, path: Path, archive: Archive) -> Path:
        """`path`, after `verify`, which runs once for an archive."""
        if not self.has(path, "verified", archive.md5):
            verify(path, archive)
            self.add(path, "verified", archive.md5)
        return path

    def has(self, path: Path, step: str, detail: str | None = None) -> bool:
        """Whether `add` was called with the same arguments and the file is unchanged."""
        return self._steps(path).get(step) == [_stamp(path), detail]

    def add(self, path: Path, step: str, detail: str | None = None) -> None:
        """Note that the file at `path` has passed `step`."""
        steps = self._steps(path)
        write_json(self._file(path), {**steps, step: [_stamp(path), detail]})

    def _steps(self, path: Path) -> dict[str, Any]:
        """The notes of an archive; none where they are damaged."""
        try:
            steps = read_json(self._file(path))
        except ValueError:
            return {}
        return steps if isinstance(steps, dict) else {}

    def _file(self, path: Path) -> Path:
        return self.folder / f"{path.name}.json"


def _stamp(path: Path) -> list[int]:
    """Size in bytes and modification time in nanoseconds."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
