"""Files that are written whole or not at all, text and JSON, and the names of those in a folder."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import logging
import math
import os
import re
import socket
import stat
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path, PurePath
from typing import Any, TypeGuard

from weaktr.messages import counted, few
from weaktr.seals import BLANK, is_sealed, sealed

log = logging.getLogger("weaktr")

#: The name of a file that is being written, and of a folder that is being removed.
UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.(part|removed)")

#: What the system says of paths that lead to nothing, or to another kind of thing than expected.
WRONG_PATHS = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
#: What to do where a file cannot be written.
ADVICE = {
    errno.ENOSPC: "make room there and start the same command again",
    errno.EDQUOT: "make room there and start the same command again",
    errno.EROFS: "take a folder that can be written to",
    errno.EACCES: "take a folder that can be written to",
}
#: The system's numbers for a disk without room.
FULL = (errno.ENOSPC, errno.EDQUOT)
#: Bytes at both ends of a file among which its mark is looked for.
ENDS = 2**16
#: Seconds after which a file that is being written, and has not grown, is abandoned.
ABANDONED_AFTER = 24 * 3600


@contextmanager
def whole_file(path: Path, *, durable: bool = True, is_new: bool = False) -> Iterator[Path]:
    """Write a file whole or not at all: whatever happens, `path` is the old file or the new one.

    Args:
        path: the file; its folder is created if missing.
        durable: flush file and folder to the disk, and clear what killed processes left of this
            file. Without it a power failure (not a killed process) may lose the file, and its
            readers must check a digest; leftovers are cleared with the whole folder
            (`clear_abandoned`, `weaktr.outputs.clear_unfinished`).
        is_new: never replace a file.

    Raises:
        FileExistsError: `path` is there, and `is_new`.
        OSError: there is a folder of that name, or the file cannot be written.

    Yields:
        The path of an empty file in the same folder, to be written. It becomes `path` at the end
        of the ``with`` statement, and is deleted if that raises. Its permissions are those of any
        new file (the umask's), whatever the writer does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder is where a file is to be written; move it away")
    target, writer = _digits(path.name, 10), _this_machine()
    if durable:
        _clear_leftovers(path.parent, target + writer)
    temporary = path.with_name(f".{target}{writer}{os.getpid():08x}{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.touch(exist_ok=False)
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(stat.S_IMODE(mode))
        if durable:
            flush(temporary)
        if is_new:
            _name_once(temporary, path)
        else:
            temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if (
            isinstance(error, OSError)
            and error.filename in (None, str(temporary))
            and error.errno is not None
            and error.strerror
        ):
            advice = ADVICE.get(error.errno)
            told = f"{error.strerror}; {advice}" if advice else error.strerror
            raise OSError(error.errno, told, str(path)) from error
        raise
    if durable:
        flush(path.parent)


def _name_once(temporary: Path, path: Path) -> None:
    """Give a file a name that no file has yet.

    Raises:
        FileExistsError: one has it.
    """
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError(f"{path}: is there already") from None
        temporary.replace(path)
    else:
        temporary.unlink()


@contextmanager
def written_by_library(path: Path) -> Iterator[None]:
    """Let what a library raises while it writes a file be an OSError that names the file."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # torch and safetensors have kinds of their own for a full disk
        raise OSError(f"{path}: cannot be written; is the disk full? ({error!s:.80})") from error


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file of this content; arguments as in `whole_file`."""
    with whole_file(path, durable=durable) as temporary:
        temporary.write_bytes(content)


def csv_bytes(rows: Iterable[Sequence[object]]) -> bytes:
    """Rows as CSV in UTF-8, its lines ended by line feeds, that every reader takes as they are.

    A row with a carriage return, or with blanks around a cell, is quoted: Python's writer would
    leave these bare, to be taken for the end of a line, or left out.
    """
    text = io.StringIO(newline="")
    bare = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        cells = [cell for cell in row if isinstance(cell, str)]
        is_odd = any(cell != cell.strip() or "\r" in cell for cell in cells)
        (quoted if is_odd else bare).writerow(row)
    return text.getvalue().encode()


def write_once(path: Path, content: bytes) -> None:
    """Write a file unless it is there: of several processes that do so at once, one succeeds."""
    with suppress(FileExistsError), whole_file(path, is_new=True) as temporary:
        temporary.write_bytes(content)


def keep_lines(path: Path, size: int | None = None) -> None:
    """Prepare a file of lines for further ones; nothing where there is none.

    Where something has to be cut off, or the file has other names (hard links, which a backup may
    be), it is replaced by a copy, so that those stay as they are.

    Args:
        path: the file.
        size: bytes that stay; None = all whole lines.
    """
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1 if size is None else size
    if whole < len(content) or path.stat().st_nlink > 1:
        write_bytes(path, content[:whole])


def require_replaceable(path: Path, mark: bytes | None = None) -> None:
    """Refuse to write a file where there is one that weaktr did not write.

    Args:
        path: the file to be written.
        mark: stands near the beginning or the end of such a file of weaktr's; None = it is known
            by its seal.

    Raises:
        ValueError: there is such a file, or something that is no file.
    """
    if not os.path.lexists(path):
        return
    if mark is None and is_sealed(path):
        return
    if mark is not None and path.is_file() and not path.is_symlink():
        with open(path, "rb") as file:
            head = file.read(ENDS)
            file.seek(max(0, file.seek(0, os.SEEK_END) - ENDS))
            if not head or mark in head or mark in file.read():
                return
    raise ValueError(
        f"{path}: is there already, and weaktr did not write it, or somebody has changed it; "
        "choose another name, or move it away"
    )


def write_json(path: Path, content: Any, *, seal: bool = False, is_new: bool = False) -> None:
    """Write JSON, indented, as a whole file; an object gets a seal, if wanted, as first value.

    With `is_new` a file that is there stays (`write_once`).
    """
    content = {"seal": BLANK, **content} if seal else content
    text = json_bytes(content)
    write = write_once if is_new else write_bytes
    write(path, sealed(text) if seal else text)


def json_bytes(content: Any) -> bytes:
    """JSON, indented; names of files that are not in UTF-8 are escaped."""
    try:
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(content, indent=1) + "\n").encode()


#: What is not a file, in words.
_NO_FILES = {
    stat.S_IFDIR: "folder",
    stat.S_IFIFO: "pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def require_file(path: Path) -> None:
    """Refuse what is no file, before it is opened: a pipe would be waited for without end.

    Raises:
        ValueError: it is something else; names it.
        OSError: there is no such file, or it may not be looked at.
    """
    kind = _NO_FILES.get(stat.S_IFMT(path.stat().st_mode))
    if kind is not None:
        raise ValueError(f"{path}: expected a file, got a {kind}")


def is_outside_input(error: BaseException) -> TypeGuard[OSError]:
    """Whether the system refuses a file (permissions, a full or broken disk): no fault of an input.

    Libraries raise `OSError` for damaged files too, without the system's number.
    """
    return (
        isinstance(error, OSError)
        and error.errno not in (None, errno.EINVAL)
        and not isinstance(error, WRONG_PATHS)
    )


def require_readable(path: Path) -> None:
    """Say in words of our own that a file may not be read, before a library says something else.

    Raises:
        ValueError: see `require_file`.
        OSError: it is there and cannot be opened; names it and why.
    """
    try:
        require_file(path)
        with open(path, "rb"):
            pass
    except WRONG_PATHS:  # which the caller has words for
        return
    except OSError as error:
        own = type(error)(f"{path}: {refusal(error)}")
        own.errno = error.errno
        raise own from error


def refusal(error: OSError) -> str:
    """That the system does not let a file be read, and why."""
    return f"cannot be read: {(error.strerror or str(error)).lower()}"


def read_text(path: Path, *, line_ends: bool = False) -> str:
    """The text of a file in UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        line_ends: keep the line ends that it has, instead of a line feed for each.

    Raises:
        ValueError: it is no file, or not text in UTF-8; names it.
        OSError: there is no such file, or it may not be read.
    """
    require_file(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8: {error}; save it as UTF-8") from error
    except MemoryError as error:
        raise ValueError(f"{path}: the file is larger than the memory") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        message = f"expected text in UTF-8, got a zero byte in line {line}; save it as UTF-8"
        raise ValueError(f"{path}: {message}")
    return text if line_ends else text.replace("\r\n", "\n").replace("\r", "\n")


def read_json(path: Path, *, finite: bool = True) -> Any:
    """Read a JSON file; an object that has a key twice is refused, since one of them would be lost.

    Args:
        path: the file.
        finite: refuse NaN and infinite numbers. False where the caller looks at every number, so
            that one wrong number is not the end of the file (and large files are read faster).

    Raises:
        ValueError: there is no such file, it is not JSON, or too deep; names the file.
        OSError: it may not be read.
    """
    try:
        text = read_text(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    return parse_json(text, str(path), finite=finite)


def parse_json(text: str, where: str, *, finite: bool = True) -> Any:
    """The value of a JSON text; see `read_json`.

    Args:
        text: the JSON.
        where: what messages begin with: its file, and its line.
        finite: see `read_json`.

    Raises:
        ValueError: it is not JSON, or too deep; begins with `where`.
    """
    checks: dict[str, Any] = {"parse_constant": _finite, "parse_float": _finite} if finite else {}
    try:
        return json.loads(text, object_pairs_hook=_unique, **checks)
    except RecursionError as error:
        raise ValueError(f"{where}: expected JSON, got one that is nested too deep") from error
    except MemoryError as error:
        raise ValueError(f"{where}: the JSON is larger than the memory") from error
    except ValueError as error:
        raise ValueError(f"{where}: expected JSON, got: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        ValueError: see `read_json`; or it holds something else.
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got a {type(content).__name__}")
    return content


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"expected finite numbers, got {text}")
    return number


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key in content if counts[key] > 1)
        raise ValueError(f"the key {twice!r:.60} stands twice in an object")
    return content


def is_clutter(relative: str | PurePath) -> bool:
    """Whether a file is one that systems and programs put beside data.

    These are hidden files and what is in hidden folders (``._a.jpg``, ``.DS_Store``,
    ``.thumbnails/a.png``), macOS's ``__MACOSX``, Windows' ``Thumbs.db``, ``desktop.ini`` and
    ``$RECYCLE.BIN``, and the thumbnails of network drives in ``@eaDir``.

    Args:
        relative: the path below the folder that was named, so that one may be in a hidden folder.
    """
    return any(map(_is_clutter, PurePath(relative).parts))


def _is_clutter(name: str) -> bool:
    return name.startswith(".") or name.lower() in _CLUTTER


_CLUTTER = {"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "@eadir"}


def files_below(folder: Path, *, follow: bool = False) -> Iterator[Path]:
    """`paths_below` as paths, which takes twice as long."""
    return map(Path, paths_below(folder, follow=follow))


def paths_below(
    folder: Path, *, follow: bool = False, without: Collection[Path] = ()
) -> Iterator[str]:
    """The files below a folder, at any depth and in any order, without clutter (`is_clutter`).

    A file that cannot be looked at, such as a link to one that is not there, is among them: who
    reads it says so. So is a folder that cannot be listed, in place of its files.

    Args:
        folder: where to look.
        follow: look into folders behind links as well, into each once; those that are passed over
            are logged (see `_Places`). Not where files may be removed.
        without: folders below it that are not looked into.

    Raises:
        OSError: `folder` itself cannot be listed; one that is not there has no files.
    """
    apart = set(map(str, without))
    closed: list[str] = []

    def note(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        closed.append(error.filename)

    places = _Places(folder)
    onerror = note if folder.is_dir() else None
    for top, folders, files in os.walk(folder, onerror=onerror, followlinks=follow):
        folders[:] = (name for name in folders if not _is_clutter(name))
        if follow:
            folders[:] = (one for one in sorted(folders) if places.is_new(top, one))
        if apart:
            folders[:] = (one for one in folders if os.path.join(top, one) not in apart)
        paths = (os.path.join(top, name) for name in files if not _is_clutter(name))
        yield from filter(_may_be_file, paths)
    yield from closed
    if places.passed_over:
        _log_passed_over(folder, tuple(places.passed_over))


class _Places:
    """The folders that a walk along links looks into, each once and none for ever.

    Args:
        root: the folder in which it begins.

    Attributes:
        passed_over: links that lead to a folder that is seen anyway, to one in such a folder, or to
            one above `root` or above the link itself.
    """

    def __init__(self, root: Path) -> None:
        self._root = os.path.realpath(root)
        self._seen = {self._root}
        self.passed_over: list[str] = []

    def is_new(self, top: str, name: str) -> bool:
        """Whether to look into a folder or a link to one; the link's place is then seen."""
        path = os.path.join(top, name)
        if not os.path.islink(path):
            return len(self._seen) == 1 or os.path.realpath(path) not in self._seen
        place = os.path.realpath(path)
        around = _and_above(self._root) | _and_above(os.path.realpath(top))
        if place in around or not self._seen.isdisjoint(_and_above(place)):
            self.passed_over.append(path)
            return False
        self._seen.add(place)
        return True


def _and_above(folder: str) -> set[str]:
    """A folder and all that it is in."""
    return {folder, *map(str, PurePath(folder).parents)}


@cache
def _log_passed_over(folder: Path, links: Sequence[str]) -> None:
    """Name links that were passed over, once however often a folder is looked at."""
    told = [f"{os.path.relpath(link, folder)} -> {os.path.realpath(link)}" for link in links]
    log.warning(
        "%s: passed over: %s to folders that are looked into anyway, or lie above: %s",
        folder, counted(len(links), "link", "links"), few(told),
    )  # fmt: skip


def require_listed(path: Path) -> None:
    """Refuse what `files_below` gives for a folder that cannot be listed.

    Raises:
        OSError: names it and why.
    """
    if path.is_dir():
        try:
            os.scandir(path).close()
        except OSError as error:
            raise type(error)(f"{path}: {refusal(error)}") from error


def _may_be_file(path: str) -> bool:
    """Whether this is no pipe, device or socket, as far as can be seen."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return True


def names_in(folder: Path, *suffixes: str) -> tuple[list[str], str]:
    """The names of all files with the one suffix of `suffixes` that files have; that suffix.

    Args:
        folder, suffixes: see `files_in`.

    Returns:
        Paths relative to the folder, without suffix, ascending; and the suffix.

    Raises:
        ValueError, OSError: see `files_in`.
    """
    files = files_in(folder, *suffixes)
    return list(files), next(iter(files.values())).suffix


def files_in(folder: Path, *suffixes: str) -> dict[str, Path]:
    """All files with the one suffix of `suffixes` that files have, in small or capital letters.

    Args:
        folder: searched at any depth, see `files_below`.
        suffixes: such as ".npz".

    Returns:
        Path relative to the folder, without suffix, ascending -> the file.

    Raises:
        ValueError: there is no such folder; there are none, says which suffixes were expected and
            which there are; files of two suffixes, one of which would have to be left out; or two
            of one name.
        OSError: a folder in it cannot be listed.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: expected a folder, there is none of that name")
    files: dict[str, Path] = {}
    kinds, others = set[str](), set[str]()
    for path in files_below(folder):
        require_listed(path)
        others.add(path.suffix or path.name)
        if path.suffix in suffixes:
            kinds.add(path.suffix.lower())
            name = path.relative_to(folder).with_suffix("").as_posix()
            if name in files and files[name].suffix.lower() == path.suffix.lower():
                two = sorted([files[name].name, path.name])
                raise ValueError(f"{path.parent}: expected one file of a name, got {few(two)}")
            files[name] = path
    if len(kinds) > 1:
        raise ValueError(f"{folder}: expected files of one kind, got {' and '.join(sorted(kinds))}")
    if files:
        return dict(sorted(files.items()))
    wanted = list(dict.fromkeys(suffix.lower() for suffix in suffixes))
    told = f" ({', '.join(wanted)}), there are {few(sorted(others))}" if others else ""
    kind = " or ".join(suffix.removeprefix(".").upper() for suffix in wanted)
    raise ValueError(f"no {kind} in {folder}{told}")


def _digits(text: str, count: int) -> str:
    """Hexadecimal digits that stand for a text."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:count]


@cache
def _this_machine() -> str:
    """Of the processes that can see each other: machines and containers may share a name."""
    facts = [socket.gethostname()]
    with suppress(OSError):  # not Linux
        facts += [
            Path("/proc/sys/kernel/random/boot_id").read_text(),
            os.readlink("/proc/self/ns/pid"),
        ]
    return _digits(" ".join(facts), 6)


def _clear_leftovers(folder: Path, prefix: str) -> None:
    """Remove what processes of this machine that are no more had begun to write."""
    for path in folder.glob(f".{prefix}{'[0-9a-f]' * 16}.part"):
        if _is_abandoned(path.name):
            path.unlink(missing_ok=True)


def clear_abandoned(folder: Path) -> None:
    """Remove what processes that are no more had begun to write below a folder.

    Those of this machine, and whatever nobody has written to for `ABANDONED_AFTER`. Other processes
    may be at work there; where none is, `weaktr.outputs.clear_unfinished` removes everything.
    """
    for place, _, names in os.walk(folder):
        for name in filter(UNFINISHED.fullmatch, names):
            path = Path(place) / name
            if name.endswith(".part") and (_is_abandoned(name) or _is_old(path)):
                path.unlink(missing_ok=True)


def _is_abandoned(name: str) -> bool:
    """Whether the writer of a file that `whole_file` named was a process that is no more."""
    return name[11:17] == _this_machine() and not _is_running(int(name[17:25], 16))


def _is_old(path: Path) -> bool:
    """Whether nobody has written a file for so long that its writer is no more."""
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_AFTER
    except OSError:
        return False


def _is_running(process: int) -> bool:
    if os.name == "nt":  # where signal 0 would end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's
        pass
    return True


def flush(path: Path) -> None:
    """Flush a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
