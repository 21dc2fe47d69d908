"""Files that are written whole or not at all, and the names of those in a folder."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: The name of a file that is being written, and of a folder that is being removed.
UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.(part|removed)")

#: Bytes at both ends of a file among which its mark is looked for.
ENDS = 2**16


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a file whole or not at all: whatever happens, `path` is the old file or the new one.

    Args:
        path: the file; its folder is created if missing.
        durable: flush file and folder to the disk, and clear what killed processes left of this
            file. Without it a power failure (not a killed process) may lose the file, and its
            readers must check a digest; leftovers are cleared with the whole folder
            (`weaktr.outputs.clear_unfinished`).

    Yields:
        The path of an empty file in the same folder, to be written. It becomes `path` at the end
        of the ``with`` statement, and is deleted if that raises. Its permissions are those of any
        new file (the umask's), whatever the writer does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    target, writer = _digits(path.name, 10), _digits(socket.gethostname(), 6)
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
            _flush(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        _flush(path.parent)


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


def require_replaceable(path: Path, mark: bytes = b"weaktr") -> None:
    """Refuse to write a file where there is one that weaktr did not write.

    Args:
        path: the file to be written.
        mark: stands near the beginning or the end of such a file of weaktr's.

    Raises:
        ValueError: there is such a file, or something that is no file.
    """
    if not os.path.lexists(path):
        return
    if path.is_file() and not path.is_symlink():
        with open(path, "rb") as file:
            head = file.read(ENDS)
            file.seek(max(0, file.seek(0, os.SEEK_END) - ENDS))
            if not head or mark in head or mark in file.read():
                return
    raise ValueError(
        f"{path}: is there already, and weaktr did not write it; choose another name, or delete it"
    )


def write_json(path: Path, content: Any) -> None:
    """Write JSON, indented, as a whole file."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: there is no such file or it is not JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got: {error}") from error


def names_in(folder: Path, *suffixes: str) -> tuple[list[str], str]:
    """The names of all files with the first suffix of `suffixes` that any file has; that suffix.

    Args:
        folder: searched at any depth.
        suffixes: such as ".npz", in the order in which they are tried.

    Returns:
        Paths relative to the folder, without suffix, ascending; and the suffix.

    Raises:
        ValueError: there are none; says which suffixes were expected.
    """
    for suffix in suffixes:
        paths = folder.rglob(f"*{suffix}") if folder.is_dir() else ()
        if names := [p.relative_to(folder).with_suffix("").as_posix() for p in paths]:
            return sorted(names), suffix
    wanted = " or ".join(suffix.removeprefix(".").upper() for suffix in suffixes)
    raise ValueError(f"no {wanted} in {folder}")


def _digits(text: str, count: int) -> str:
    """Hexadecimal digits that stand for a text."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:count]


def _clear_leftovers(folder: Path, prefix: str) -> None:
    """Remove what processes of this machine that are no more had begun to write."""
    for path in folder.glob(f".{prefix}{'[0-9a-f]' * 16}.part"):
        if not _is_running(int(path.name[len(prefix) + 1 :][:8], 16)):
            path.unlink(missing_ok=True)


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


def _flush(path: Path) -> None:
    """Flush a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
