"""Read archives and folders in the same way, and unpack them without writing outside one folder.

Archives are not trusted: absolute names, ``..``, symbolic and hard links, devices and files with
holes are refused, and so is a path that leaves the folder through a link already on the disk, a
name that cannot be printed, and an archive that claims to hold far more than it can
(`most_inflated`, `most_members`).
"""

from __future__ import annotations

import errno
import logging
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

from weaktr.data.arrays import most_inflated
from weaktr.data.manifest import is_inside
from weaktr.data.prepare.archives import ArchiveError
from weaktr.data.prepare.meters import megabytes
from weaktr.files import is_clutter, require_file, whole_file
from weaktr.messages import brief, few

log = logging.getLogger("weaktr")

#: What zipfile, tarfile and the decompressors raise on damaged archives.
_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    LookupError,
    ValueError,
)
#: Bytes that are read at once; also the most of a header in a tar, such as a long name.
MOST_PART = 1 << 16
#: Bytes of a path in an archive, so that the folder's own path has room before it.
MOST_PATH = 1024
#: Entries that the headers for all further members of a tar make; git writes one.
MOST_ENTRIES = 100
#: What zipfile reads, and what it says of members that are encrypted or patched.
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_ENCRYPTED_OR_PATCHED = 0x01 | 0x20 | 0x40


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
            with open(path, "xb") as sink:
                for part in self._parts():
                    sink.write(part)
        except ArchiveError:
            path.unlink(missing_ok=True)
            raise

    def read(self, most: int) -> bytes:
        """The content, of `most` bytes at most.

        Raises:
            ArchiveError: the archive is damaged there, or there is more.
        """
        if self.size > most:
            raise ArchiveError(f"{self.origin}: {brief(self.name)} has more than {most} bytes")
        return b"".join(self._parts())

    def _parts(self) -> Iterator[bytes]:
        """The content, piece by piece.

        Raises:
            ArchiveError: the archive is damaged there.
        """
        size = 0
        try:
            with self.open() as source:
                while part := source.read(MOST_PART):
                    size += len(part)
                    yield part
            if size != self.size:
                raise EOFError(f"expected {self.size} bytes, got {size}")
        except (*_DAMAGE, OSError) as error:
            _refuse_damage(error, f"{self.origin}: damaged at {self.name!r:.200}")


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
        require_file(path)
    except ValueError as error:
        raise ArchiveError(str(error)) from error
    try:
        yield from _zip_members(path) if zipfile.is_zipfile(path) else _tar_members(path)
    except ArchiveError:
        raise
    except _Sparse as error:
        raise ArchiveError(
            f"{path}: refused, it has files with holes; unpack it and repack it without --sparse"
        ) from error
    except (*_DAMAGE, OSError) as error:
        _refuse_damage(error, f"{path}: cannot be read as an archive (zip, tar, tar.gz)")


def _refuse_damage(error: Exception, place: str) -> NoReturn:
    """Raise an error of reading: the disk's own as it is, any other as an ArchiveError."""
    if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
        raise error
    reason = " ".join(str(error).split()) or type(error).__name__
    raise ArchiveError(f"{place}: {reason:.300}; delete it and get it again") from error


def total_bytes(path: Path) -> int:
    """Bytes of an archive, or of all files in a folder: the upper end of `Member.position`."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


class _Stays(Exception):
    """A file that is there is no beginning of what the archive has."""


def unpack(path: Path, folder: Path, place: Callable[[str], str | None]) -> int:
    """Write the members of an archive into a folder, except those that an earlier run has written.

    A file appears under its name only when it is whole. One that is there is not written again,
    unless it is cut off, as a power failure may leave it; the log names those that somebody seems
    to have corrected.

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
    base, written, other = folder.resolve(), 0, list[str]()
    with megabytes(f"unpacking {path.name}", total_bytes(path)) as advance_to:
        for member in members(path):
            advance_to(member.position)
            relative = place(member.name)
            if relative is None:
                continue
            target = base / _safe(relative, path)
            if not target.parent.resolve().is_relative_to(base):
                raise ArchiveError(f"{path}: {brief(member.name)} would be written outside {base}")
            is_there = target.is_file() and not target.is_symlink()
            if is_there and target.stat().st_size == member.size:
                continue
            try:
                with whole_file(target, durable=False) as temporary:
                    member.copy_to(temporary)
                    if is_there and not temporary.read_bytes().startswith(target.read_bytes()):
                        raise _Stays
            except _Stays:
                other.append(relative)
                continue
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                message = f"{path}: {brief(member.name)} is both a file and a folder"
                raise ArchiveError(message) from error
            written += 1
        advance_to(total_bytes(path))
    if other:
        log.warning(
            "%s: %d files are there with other content and stay (%s); delete them to unpack them",
            path.name, len(other), few(other),
        )  # fmt: skip
    return written


def _safe(name: str, archive: Path) -> str:
    """A member's name with ``/`` and without ``./``.

    Raises:
        ArchiveError: it leads out of the folder, or is no name for a file.
    """
    clean = re.sub(r"^(\./)+", "", name.replace("\\", "/"))
    if not is_inside(clean) or "\0" in clean or re.match(r"[A-Za-z]:", clean):
        raise ArchiveError(f"{archive}: refused, {name!r:.200} leads out of the folder")
    if (
        not clean.isprintable()
        or len(clean.encode()) > MOST_PATH
        or any(len(part.encode()) > 255 for part in clean.split("/"))
    ):
        raise ArchiveError(f"{archive}: refused, {name!r:.200} is no name for a file")
    return clean


def most_members(size: int) -> int:
    """The most members of a tar of `size` bytes.

    Headers of empty files shrink to a few bytes; files with some content in them need more.
    """
    return max(50_000, size // 32)


def _refuse_bomb(path: Path, size: int, claimed: int) -> None:
    """Raise ArchiveError where an archive of `size` bytes claims more than `most_inflated`."""
    if claimed > most_inflated(size):
        raise ArchiveError(f"{path}: refused, {size} bytes that claim to hold {claimed}")


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
        size = path.stat().st_size
        _refuse_bomb(path, size, sum(info.file_size for info in archive.infolist()))
        for info in archive.infolist():
            name = _safe(info.filename, path)
            if info.is_dir() or is_clutter(name):
                continue
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise ArchiveError(f"{path}: refused, {brief(name)} is a link or device")
            if info.compress_type not in _COMPRESSIONS or info.flag_bits & _ENCRYPTED_OR_PATCHED:
                raise ArchiveError(
                    f"{path}: {brief(name)} is encrypted, or compressed in a way that cannot be "
                    "read (such as Deflate64); unpack the archive and repack it with Deflate"
                )
            opener = partial(archive.open, info)
            yield Member(name, info.file_size, info.header_offset, path, opener)


def _tar_members(path: Path) -> Iterator[Member]:
    size = path.stat().st_size
    with open(path, "rb") as raw, _Tar.open(fileobj=raw) as archive:
        for count, info in enumerate(iter(archive.next, None), 1):
            _refuse_bomb(path, size, archive.offset)
            if count > most_members(size):
                raise ArchiveError(f"{path}: refused, {size} bytes with {count} members and more")
            if info.isdir():
                continue
            name = _safe(info.name, path)
            if is_clutter(name):
                continue
            if not info.isreg():
                raise ArchiveError(f"{path}: refused, {brief(name)} is a link or device")
            yield Member(name, info.size, raw.tell(), path, partial(_open_tar, archive, info))


class _Sparse(Exception):
    """A member is a file with holes: its map may be of any length, and is read at once."""


class _Info(tarfile.TarInfo):
    """A header; what tarfile does with those of files with holes is to refuse them."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise _Sparse

    _proc_sparse = _proc_gnusparse_00 = _proc_gnusparse_01 = _proc_gnusparse_10 = _refuse


class _Tar(tarfile.TarFile):
    """A tar whose headers have at most `MOST_PART` bytes, whatever they claim, and lead forward."""

    tarinfo = _Info

    def next(self) -> tarfile.TarInfo | None:
        """The next member.

        Raises:
            tarfile.ReadError: it has less than no bytes, so that what follows it would be itself;
                or there are more than `MOST_ENTRIES`, each of which every member gets.
            _Sparse: it is a file with holes.
        """
        self.members.clear()  # type: ignore[attr-defined] # not in the stub
        info = super().next()
        if info is not None and (info.size < 0 or self.offset <= info.offset):
            raise tarfile.ReadError(f"a member of {brief(info.size)} bytes")
        if len(self.pax_headers) > MOST_ENTRIES:
            raise tarfile.ReadError(f"{len(self.pax_headers)} entries for all members")
        return info

    @classmethod
    def taropen(cls, name: Any, mode: Any = "r", fileobj: Any = None, **options: Any) -> Any:
        """What all kinds of compression end in."""
        short: Any = _Short(fileobj)
        return super().taropen(name, mode, short, **options)


class _Short:
    """A file of which no more than `MOST_PART` bytes are read at once.

    Args:
        file: what is read.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, size: int) -> bytes:
        """At most `size` bytes; tarfile.ReadError where that is too much."""
        if not 0 <= size <= MOST_PART:
            raise tarfile.ReadError(f"a header of {size} bytes")
        content: bytes = self._file.read(size)
        return content


def _open_tar(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    opened = archive.extractfile(info)
    assert opened is not None  # it is a regular file
    return opened
