"""Read archives and folders in the same way, and unpack them without writing outside one folder.

Archives are not trusted: absolute names, ``..``, symbolic and hard links and devices are refused,
and so is a path that leaves the folder through a link already on the disk.
"""

from __future__ import annotations

import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from weaktr.data.manifest import is_inside
from weaktr.data.prepare.archives import ArchiveError
from weaktr.data.prepare.meters import megabytes
from weaktr.files import is_clutter, whole_file

#: What zipfile, tarfile and the decompressors raise on damaged archives.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


@dataclass(frozen=True)
class Member:
    """A file in an archive or folder.

    Args:
        name: its relative path with ``/``, without ``..``.
        size: bytes.
        position: bytes of the archive that come before it, for progress.
        origin: the archive or folder.
        open: opens it for reading.

    Read a member before asking for the next one.
    """

    name: str
    size: int
    position: int
    origin: Path
    open: Callable[[], IO[bytes]]

    def copy_to(self, path: Path) -> None:
        """Write the content to a new file.

        Raises:
            ArchiveError: the archive is damaged there.
        """
        path.unlink(missing_ok=True)
        try:
            with self.open() as source, open(path, "xb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
                size = sink.tell()
            if size != self.size:
                raise EOFError(f"expected {self.size} bytes, got {size}")
        except _DAMAGE as error:
            path.unlink(missing_ok=True)
            message = f"{self.origin}: damaged at {self.name!r}: {error}"
            raise ArchiveError(f"{message}; delete it and get it again") from error


def members(path: Path) -> Iterator[Member]:
    """The files in a ``.zip``, a ``.tar`` (any compression) or a folder.

    Folders are left out, and hidden files and the like (`weaktr.files.is_clutter`).

    Raises:
        ArchiveError: not an archive, damaged, or a member is unsafe; names it.
    """
    if path.is_dir():
        yield from _folder_members(path)
        return
    try:
        yield from _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path)
    except _DAMAGE as error:
        message = f"{path}: cannot be read as an archive (zip, tar, tar.gz): {error}"
        raise ArchiveError(f"{message}; delete it and get it again") from error


def total_bytes(path: Path) -> int:
    """Bytes of an archive, or of all files in a folder: the upper end of `Member.position`."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def unpack(path: Path, folder: Path, place: Callable[[str], str | None]) -> int:
    """Write the members of an archive into a folder, except those that an earlier run has written.

    A file appears under its name only when it is whole; one of the right size is not written
    again.

    Args:
        path: the archive.
        folder: nothing is written outside it; created if missing.
        place: from a member's name to its path below `folder`, or None to leave it out.

    Returns:
        The number of files written.

    Raises:
        ArchiveError: damaged or unsafe; names the member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, written = folder.resolve(), 0
    with megabytes(f"unpacking {path.name}", total_bytes(path)) as advance_to:
        for member in members(path):
            advance_to(member.position)
            relative = place(member.name)
            if relative is None:
                continue
            target = base / _safe(relative, path)
            if not target.parent.resolve().is_relative_to(base):
                raise ArchiveError(f"{path}: {member.name!r} would be written outside {base}")
            if target.is_file() and target.stat().st_size == member.size:
                continue
            with whole_file(target, durable=False) as temporary:
                member.copy_to(temporary)
            written += 1
        advance_to(total_bytes(path))
    return written


def _safe(name: str, archive: Path) -> str:
    """A member's name with ``/`` and without ``./``.

    Raises:
        ArchiveError: it leads out of the folder.
    """
    clean = re.sub(r"^(\./)+", "", name.replace("\\", "/"))
    if not is_inside(clean) or "\0" in clean or re.match(r"[A-Za-z]:", clean):
        raise ArchiveError(f"{archive}: refused, {name!r} leads out of the folder")
    return clean


def _folder_members(path: Path) -> Iterator[Member]:
    position = 0
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if not file.is_file() or is_clutter(name):
            continue
        size = file.stat().st_size
        yield Member(name, size, position, path, partial(_open_file, file))
        position += size


def _open_file(path: Path) -> IO[bytes]:
    return open(path, "rb")


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = _safe(info.filename, path)
            if info.is_dir() or is_clutter(name):
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise ArchiveError(f"{path}: refused, {name!r} is a link or device")
            opener = partial(archive.open, info)
            yield Member(name, info.file_size, info.header_offset, path, opener)


def _tar_members(path: Path) -> Iterator[Member]:
    with open(path, "rb") as raw, tarfile.open(fileobj=raw) as archive:
        for info in archive:
            if info.isdir():
                continue
            name = _safe(info.name, path)
            if is_clutter(name):
                continue
            if not info.isreg():
                raise ArchiveError(f"{path}: refused, {name!r} is a link or device")
            yield Member(name, info.size, raw.tell(), path, partial(_open_tar, archive, info))


def _open_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(info)
    assert opened is not None  # it is a regular file
    return opened
