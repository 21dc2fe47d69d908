"""Files that are written whole or not at all, and the names of those in a folder."""

from __future__ import annotations

import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def whole_file(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Write a file whole or not at all: whatever happens, `path` is the old file or the new one.

    Args:
        path: the file; its folder is created if missing.
        durable: flush file and folder to the disk. Without it a power failure (not a killed
            process) may lose the file, and its readers must check a digest.

    Yields:
        The path of an empty file in the same folder, to be written. It becomes `path` at the end
        of the ``with`` statement, and is deleted if that raises. Its permissions are those of any
        new file (the umask's), whatever the writer does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.part")
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


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file of this content; arguments as in `whole_file`."""
    with whole_file(path, durable=durable) as temporary:
        temporary.write_bytes(content)


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


def _flush(path: Path) -> None:
    """Flush a file's content, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
