"""Files inside of tar archives, by paths that go on behind the archive: ``shards/000.tar/dog.jpg``.

Such a path can stand wherever a photograph or a mask is read. A tar has no table of contents: its
headers are read once for each process, and its files by their offsets, in any order.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from weaktr.files import require_file

#: Bytes of a block, of which a tar is made.
BLOCK = 512
#: Files of archives whose places are kept, of all archives together.
KEPT_MEMBERS = 2_000_000
SUFFIX = ".tar"
#: What names of compressed tars end in, which cannot be read from their middle.
PACKED = (".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.lz4", ".tar.br", ".tgz")
IS_PACKED = (
    "expected a tar without compression, from which files are read at random: unpack it to a .tar"
)
#: How files begin that gzip, bzip2, xz and zstd wrote.
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")

_ZEROS = bytes(BLOCK)
_OCTAL = re.compile(rb"([0-7]+)[ \0]+")
#: Length and key of a line of a PAX header, whose value follows.
_RECORD = re.compile(rb"([1-9][0-9]{0,9}) ([^=\n]+)=")
_WITHOUT_EFFECT = (b"mtime", b"atime", b"ctime", b"uid", b"gid", b"uname", b"gname", b"comment")


class Member(NamedTuple):
    """A file in a tar."""

    name: str  #: as it is written there, without "." and double "/" between its parts
    offset: int  #: of its first byte in the archive
    size: int  #: in bytes
    missing: str = ""  #: of a link what it leads to, if that is not in the archive


class Status(NamedTuple):
    """What tells without reading it that a file is the same still: fields of `os.stat_result`."""

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_ino: int


def members_of(archive: Path) -> Sequence[Member]:
    """The files in a tar, in its order; folders and devices are passed over.

    A link is a file with the content of what it leads to; one that leads out of the archive is
    among them, too, and who reads it says so.

    Raises:
        ValueError: it is no tar, is compressed, was cut off, or goes on behind its end; names it.
        OSError: it cannot be read.
    """
    return _table(archive)[0]


def contents_of(archive: Path, members: Iterable[Member]) -> Iterator[bytes]:
    """The content of several files of a tar, one after the other; opens it once.

    Raises:
        ValueError: it ends within one of them.
        OSError: it cannot be read.
    """
    with open(archive, "rb") as file:
        for member in members:
            yield _read(file, archive, member)


def archive_of(path: Path) -> tuple[Path, str] | None:
    """The archive in which a path leads, and the name of the file in it; None = it is in none."""
    for above in path.parents:
        if above.is_file():
            return above, path.relative_to(above).as_posix()
        if above.is_dir():
            return None
    return None


def places_of(paths: Iterable[Path]) -> tuple[set[Path], set[Path]]:
    """Where files are: the tars, and the folders of those that are in none."""
    folders = {path.parent for path in paths}
    inside = {folder: archive_of(folder / "file") for folder in folders}
    archives = {place[0] for place in inside.values() if place is not None}
    return archives, {folder for folder in folders if inside[folder] is None}


def is_file(path: Path) -> bool:
    """Whether a path leads to a file, which may be in a tar."""
    if os.path.isfile(path):
        return True
    try:
        inside = archive_of(path)
        return inside is not None and inside[1] in _table(inside[0])[1]
    except (OSError, ValueError):
        return False


def opened(path: Path) -> Path | BinaryIO:
    """What to open in place of a path: the bytes of a file in a tar, else the path itself.

    Raises:
        FileNotFoundError: there is no such file, or the archive holds none.
        ValueError: it is no file (`weaktr.files.require_file`); or see `members_of`.
    """
    try:
        require_file(path)
    except NotADirectoryError:  # which costs ordinary files nothing
        return io.BytesIO(_inside(path))
    return path


def read_bytes(path: Path) -> bytes:
    """The content of a file, which may be in a tar; errors as of `opened`."""
    try:
        return path.read_bytes()
    except NotADirectoryError:
        return _inside(path)


def status(path: Path | str) -> Status:
    """The status of a file; of one in a tar its size, and the rest of the archive.

    Raises:
        OSError: it is not there.
        ValueError: see `members_of`.
    """
    try:
        own = os.stat(path)
    except NotADirectoryError:
        inside = archive_of(Path(path))
        if inside is None:
            raise
        member = _member(*inside)
        own = os.stat(inside[0])
        # files of one archive differ by their offsets, as files of a disk by their inodes
        return Status(member.size, own.st_mtime_ns, own.st_ctime_ns, own.st_ino + member.offset)
    return _status_of(own)


def _status_of(own: os.stat_result) -> Status:
    return Status(own.st_size, own.st_mtime_ns, own.st_ctime_ns, own.st_ino)


def _inside(path: Path) -> bytes:
    """The content of a file in a tar."""
    inside = archive_of(path)
    if inside is None:
        raise FileNotFoundError(f"{path}: there is no such file")
    archive, name = inside
    with open(archive, "rb") as file:  # whose headers count, whatever takes its place meanwhile
        return _read(file, archive, _member(archive, name, file))


def _read(file: BinaryIO, archive: Path, member: Member) -> bytes:
    if member.missing:
        told = f"is a link to {member.missing}, which the archive does not hold"
        raise ValueError(f"{archive}: {member.name} {told}")
    file.seek(member.offset)
    content = file.read(member.size)
    if len(content) < member.size:
        raise ValueError(f"{archive}: ends within {member.name}")
    return content


def _member(archive: Path, name: str, file: BinaryIO | None = None) -> Member:
    try:
        return _table(archive, file)[1][name]
    except KeyError:
        raise FileNotFoundError(f"{archive}: holds no {name}") from None


_Table = tuple[list[Member], dict[str, Member]]
_tables: OrderedDict[str, tuple[Status, _Table]] = OrderedDict()
_lock = threading.Lock()


def _table(archive: Path, file: BinaryIO | None = None) -> _Table:
    """The files of an archive, which may be open; read again where it has changed."""
    key = os.path.abspath(archive)
    now = _status_of(os.stat(archive) if file is None else os.fstat(file.fileno()))
    with _lock:  # while headers are read too: threads that need the same ones wait for them
        before = _tables.get(key)
        if before is not None and before[0] == now:
            _tables.move_to_end(key)
            return before[1]
        require_file(archive)
        with open(archive, "rb") if file is None else nullcontext(file) as own:
            now = _status_of(os.fstat(own.fileno()))
            members = _read_plain(own)
            if members is None:
                members = _read_headers(archive, own)
            _require_end(archive, own)
        table = members, {member.name: member for member in members}
        _tables[key] = now, table
        while len(_tables) > 1 and sum(len(t[0]) for _, t in _tables.values()) > KEPT_MEMBERS:
            _tables.popitem(last=False)
    return table


def forget(archive: Path) -> None:
    """Drop what is known of an archive that will not be read again."""
    with _lock:
        _tables.pop(os.path.abspath(archive), None)


def _after_fork() -> None:
    """In a new process no other thread holds the lock."""
    global _lock  # noqa: PLW0603
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def _read_plain(file: BinaryIO) -> list[Member] | None:
    """The files of a tar of files alone, PAX headers included; 3 to 5 times as fast as `tarfile`.

    Returns:
        None = there is something else in it, or it is damaged.

    Source: POSIX.1-2017, pax, "pax Header Block" and "ustar Interchange Format".
    """
    members: list[Member] = []
    place, path, is_described = 0, None, False
    while True:
        file.seek(place)
        header = file.read(BLOCK)
        if header == _ZEROS:
            return None if is_described else members
        size = _OCTAL.fullmatch(header, 124, 136)
        checksum = _OCTAL.fullmatch(header, 148, 156)
        if size is None or checksum is None or header[257:265] != b"ustar\x0000":
            return None
        if int(checksum[1], 8) != sum(header) - sum(header[148:156]) + 8 * ord(" "):
            return None
        kind, length = header[156:157], int(size[1], 8)
        try:
            if kind == b"x" and not is_described:
                path, is_described = _pax_path(file.read(length)), True
            elif kind == b"0":
                prefix, name = header[345:500].rstrip(b"\0"), header[:100].rstrip(b"\0")
                own = (prefix + b"/" + name if prefix else name).decode() if path is None else path
                if "\0" in own:
                    return None
                members.append(Member(_plain(own), place + BLOCK, length))
                path, is_described = None, False
            else:
                return None
        except ValueError:
            return None
        place += BLOCK + -(-length // BLOCK) * BLOCK


def _pax_path(records: bytes) -> str | None:
    """The path in a PAX header; None = there is none.

    Raises:
        ValueError: it has something else of effect, or is damaged.
    """
    path, place = None, 0
    while place < len(records):
        match = _RECORD.match(records, place)
        end = 0 if match is None else place + int(match[1])
        if (
            match is None
            or not match.end() < end <= len(records)
            or records[end - 1 : end] != b"\n"
        ):
            raise ValueError("damaged")
        if match[2] == b"path":
            path = records[match.end() : end - 1].decode().rstrip("/")
        elif match[2] not in _WITHOUT_EFFECT:
            raise ValueError("of effect")
        place = end
    return path


def _read_headers(archive: Path, file: BinaryIO) -> list[Member]:
    """The files of any tar; `file` is then at its end."""
    members: list[Member] = []
    links: dict[str, str] = {}  #: name -> what it leads to
    file.seek(0)
    head = file.read(BLOCK)
    if any(head.startswith(start) for start in COMPRESSED):
        raise ValueError(f"{archive}: {IS_PACKED}")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.issparse():
                    raise ValueError(
                        f"{archive}: {info.name} is stored with holes: write the tar without "
                        "--sparse"
                    )
                name = _plain(info.name)
                if info.isfile():
                    links.pop(name, None)
                    members.append(Member(name, info.offset_data, info.size))
                elif info.islnk() or info.issym():
                    above = "" if info.islnk() else posixpath.dirname(name)
                    links[name] = posixpath.normpath(posixpath.join(above, info.linkname))
                    members.append(Member(name, 0, 0, links[name]))
            end = tar.offset
    except (tarfile.TarError, EOFError, UnicodeError) as error:
        raise ValueError(f"{archive}: expected a tar without compression, got: {error}") from error
    file.seek(end)
    if file.read(BLOCK) != _ZEROS:
        raise ValueError(f"{archive}: is cut off, or damaged: a tar ends with a block of zeros")
    files = {member.name: member for member in members if not member.missing}
    return [_followed(member, files, links) if member.missing else member for member in members]


def _followed(link: Member, files: Mapping[str, Member], links: Mapping[str, str]) -> Member:
    """The file that a link, or a chain of links, leads to, under the name of the first one."""
    target, seen = link.missing, set[str]()
    while target in links and target not in seen:
        seen.add(target)
        target = links[target]
    found = files.get(target)
    return link if found is None else found._replace(name=link.name)


def _require_end(archive: Path, file: BinaryIO) -> None:
    """Refuse a tar behind whose end, where `file` is, there is more than zeros."""
    while piece := file.read(2**20):
        if piece.strip(b"\0"):
            raise ValueError(
                f"{archive}: goes on behind its end, as tars do that were joined as files: "
                "its further photographs would be passed over; part it, or write it anew"
            )


def _plain(name: str) -> str:
    """A name as it comes back from a path; ``..`` stays, and a ``/`` in front."""
    is_plain = "./" not in name and "//" not in name and not name.endswith("/.")
    return name if is_plain else PurePosixPath(name).as_posix()
