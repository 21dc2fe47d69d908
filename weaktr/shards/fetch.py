"""Shards of other places (``s3://``, ``https://``, ...) come to this machine, one by one."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import fsspec

from weaktr.messages import one_line

log = logging.getLogger("weaktr")
T = TypeVar("T")
R = TypeVar("R")

#: How often a shard is asked for, and the seconds between, which double.
ATTEMPTS, PAUSE = 4, 1.0
#: Facts by which places say that a file is another one.
_MARKS = (
    "ETag", "etag", "md5Hash", "sha256", "checksum", "generation", "mtime", "LastModified",
    "last_modified", "updated", "modified", "created",
)  # fmt: skip


def is_address(text: str) -> bool:
    """Whether a text is the address of a place other than this machine's folders."""
    return "://" in text or "::" in text


def marks_of(address: str) -> dict[str, Any]:
    """What tells that a file of another place is the same still: its size, and what else is known.

    Raises:
        OSError: it cannot be asked for; names the address.
    """
    facts = asked(address, lambda place, path: place.info(path))
    known = {name: str(facts[name]) for name in _MARKS if facts.get(name) is not None}
    return {"bytes": facts.get("size"), **known}


@contextmanager
def fetched(address: str, folder: Path | None = None) -> Iterator[Path]:
    """A file of another place as one of this machine, until the end of the ``with`` statement.

    Args:
        address: of the file.
        folder: gets it; None = the system's folder for temporary files.

    Raises:
        OSError: it cannot be had after `ATTEMPTS`, or came incomplete; names the address.
    """
    with tempfile.TemporaryDirectory(prefix="weaktr-", dir=folder) as own:
        target = Path(own) / os.path.basename(address.rstrip("/"))
        asked(address, partial(_get, target))
        yield target


def fetch_beside(address: str, local: Path, *, required: bool) -> None:
    """Bring the label file that stands beside a tar of another place.

    Raises:
        OSError: there is none, and it is required; or it cannot be had.
    """
    for suffix in (".csv", ".json"):
        with suppress(FileNotFoundError):
            asked(address.removesuffix(".tar") + suffix, partial(_get, local.with_suffix(suffix)))
            return
    if required:
        raise FileNotFoundError(f"{address}: no file of labels stands beside it")


def _get(target: Path, place: Any, path: str) -> None:
    size = place.info(path).get("size")
    place.get_file(path, str(target))
    if size is not None and target.stat().st_size != size:
        raise OSError(f"expected {size} bytes, got {target.stat().st_size}")


def asked(address: str, ask: Callable[[Any, str], R]) -> R:
    """What `ask` returns of a file system and a path in it; asked again where that fails.

    Raises:
        OSError: it failed `ATTEMPTS` times, or the file is not there; names the address.
        ValueError: no such kind of address, or its library is not installed.
    """
    try:
        place, path = fsspec.core.url_to_fs(address)
    except (ImportError, ValueError) as error:
        raise ValueError(f"{address}: cannot be opened: {one_line(str(error))}") from error
    for attempt in range(ATTEMPTS):
        try:
            return ask(place, path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{address}: no such file") from error
        except PermissionError as error:
            raise PermissionError(f"{address}: may not be read: {one_line(str(error))}") from error
        except Exception as error:  # of the many libraries behind it
            if attempt == ATTEMPTS - 1:
                told = one_line(str(error)) or type(error).__name__
                raise OSError(f"{address}: cannot be had: {told}") from error
            log.warning("%s: %s; is asked for again", address, one_line(str(error)))
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError


def one_ahead(function: Callable[[T], R], items: Sequence[T]) -> Iterator[Callable[[], R]]:
    """What gives ``function(item)`` for each item, while the next one is already being worked on.

    An error is raised by the call for its item, so that the caller can go on with the next.
    """
    with ThreadPoolExecutor(1) as pool:
        following = [pool.submit(function, item) for item in items[:1]]
        for number in range(len(items)):
            current = following.pop()
            following += [pool.submit(function, item) for item in items[number + 1 : number + 2]]
            yield current.result
