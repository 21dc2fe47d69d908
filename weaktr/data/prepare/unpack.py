"""Archives and folders read alike, and unpacked so that nothing gets outside one folder.

Archives are not trusted: absolute names, ``..``, links of both kinds and devices are refused, and
so is a way out through a link that is already on the disk.
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
from weaktr.files import whole_file

#: What zipfile, tarfile and the decompressors raise on archives that are not whole.
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
        name: its relative path, parted by ``/``, without ``..``.
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

    macOS's own entries (``__MACOSX``, ``._*``, ``.DS_Store``) and folders are left out.

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


def extent(path: Path) -> int:
    """Bytes of an archive, or of all files in a folder: the end of `Member.position`."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def unpack(path: Path, folder: Path, place: Callable[[str], str | None]) -> int:
    """Write the members of an archive into a folder; goes on where an earlier run stopped.

    A file appears under its name only when it is whole; one that is there with the right size is
    left alone.

    Args:
        path: the archive.
        folder: nothing is written outside it; made where it is missing.
        place: from a member's name to its place below `folder`, or None to leave it out.

    Returns:
        The number of files written.

    Raises:
        ArchiveError: damaged or unsafe; names the member.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base, written = folder.resolve(), 0
    with megabytes(f"unpacking {path.name}", extent(path)) as reach:
        for member in members(path):
            reach(member.position)
            relative = place(member.name)
            if relative is None:
                continue
            written += _write(member, base, _safe(relative, path), path)
        reach(extent(path))
    return written


def _write(member: Member, base: Path, relative: str, archive: Path) -> bool:
    target = base / relative
    if not target.parent.resolve().is_relative_to(base):
        raise ArchiveError(f"{archive}: {member.name!r} would be written outside {base}")
    if target.is_file() and target.stat().st_size == member.size:
        return False
    with whole_file(target, durable=False) as temporary:
        member.copy_to(temporary)
    return True


def _safe(name: str, archive: Path) -> str:
    """A member's name with ``/`` and without ``./``.

    Raises:
        ArchiveError: it leads out of the folder.
    """
    clean = re.sub(r"^(\./)+", "", name.replace("\\", "/"))
    if not is_inside(clean) or "\0" in clean or re.match(r"[A-Za-z]:", clean):
        raise ArchiveError(f"{archive}: refused, {name!r} leads out of the folder")
    return clean


def _is_clutter(name: str) -> bool:
    *folders, last = name.split("/")
    return "__MACOSX" in folders or last.startswith("._") or last == ".DS_Store"


def _folder_members(path: Path) -> Iterator[Member]:
    position = 0
    for file in sorted(path.rglob("*")):
        name = file.relative_to(path).as_posix()
        if not file.is_file() or _is_clutter(name):
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
            if info.is_dir() or _is_clutter(name):
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
            if _is_clutter(name):
                continue
            if not info.isreg():
                raise ArchiveError(f"{path}: refused, {name!r} is a link or device")
            yield Member(name, info.size, raw.tell(), path, partial(_open_tar, archive, info))


def _open_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(info)
    assert opened is not None  # it is a regular file
    return opened
