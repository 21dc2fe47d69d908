"""Downloads that survive network failures: cuts, stalls, restarts, wrong files.

Bytes go to ``NAME.part``; a later attempt, or a later run, asks the server for the rest with HTTP
Range, guarded by If-Range so that parts of two different files are never joined. No more bytes
are taken than the file has. Only a file of the right size and checksum gets its name; after a
wrong one the next address is asked.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from filelock import FileLock, Timeout

from weaktr.data.prepare.archives import ArchiveError, verify
from weaktr.data.prepare.meters import megabytes
from weaktr.data.prepare.official import MOST_BYTES, Archive
from weaktr.files import read_json_object, write_bytes
from weaktr.messages import one_line
from weaktr.progress import log

_CHUNK = 1 << 20
#: HTTP answers after which the same request may succeed later.
_TEMPORARY = {408, 425, 429, 500, 502, 503, 504}
_RANGE_REFUSED = 416
#: What is said of files whose size is not in `weaktr.data.prepare.official`.
_AT_MOST = f"expected {MOST_BYTES} at most, twice those of the largest official archive"


@dataclass(frozen=True)
class Patience:
    """How hard to try.

    Args:
        timeout: seconds without a single byte after which the connection is given up; a slow
            server that keeps sending is not cut off.
        attempts: give up after so many attempts in a row that bring nothing new.
        pause: seconds before the second attempt; doubled each time.
    """

    timeout: float = 60.0
    attempts: int = 6
    pause: float = 1.0


class _DownloadFailed(Exception):
    """The file cannot be downloaded from this address; the message says why."""


def download(archive: Archive, folder: Path, patience: Patience | None = None) -> Path:
    """Download a file, or the rest of one whose download was interrupted.

    Args:
        archive: what to get.
        folder: for the file; created if missing.
        patience: None = `Patience()`.

    Returns:
        ``folder/archive.name``, verified.

    Raises:
        ArchiveError: no address has the file; what came with another size or checksum is deleted.
            Says what to do.
        OSError: the disk is full or not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder, archive.name):
        path = folder / archive.name
        if path.exists():  # another process has downloaded it meanwhile
            verify(path, archive)
            return path
        return _download(archive, path, patience or Patience())


@contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Have the download of a file to oneself; that of another process is waited for.

    Where a file system has no locks nobody is seen.
    """
    lock = FileLock(folder / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("%s: another process downloads it: waiting for that", folder / name)
        lock.acquire()
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        if lock.is_locked:
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _download(archive: Archive, path: Path, patience: Patience) -> Path:
    """See `download`."""
    folder, part = path.parent, path.with_name(f"{path.name}.part")
    reasons, waiting = [], list(archive.urls)
    while waiting:
        url = waiting.pop(0)
        was_begun = _size(part) > 0
        try:
            _fetch(url, archive, part, patience)
        except _DownloadFailed as error:
            reasons.append(one_line(f"{url}: {error}"))
            continue
        try:
            verify(part, archive)
        except ArchiveError as error:
            _delete(part)
            reasons.append(f"{url}: {error}")
            if was_begun:  # elsewhere or of an older file: what is here may still be right
                waiting.insert(0, url)
            continue
        os.replace(part, path)
        _delete(part)
        return path
    raise ArchiveError(
        f"cannot download {archive.name}: {'; '.join(reasons)}. Start again to go on, or put the "
        f"file into {folder} yourself"
    )


class _WebOnly(HTTPRedirectHandler):
    """Follows redirects to http and https alone, and from https to https alone."""

    def redirect_request(
        self, req: Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        _require_web(newurl, ("https",) if req.type == "https" else ("http", "https"))
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _require_web(url: str, schemes: tuple[str, ...] = ("http", "https")) -> None:
    """Raise `_DownloadFailed` unless this is an address of one of these schemes."""
    if urlsplit(url).scheme not in schemes:
        message = f"expected an address of {' or '.join(schemes)}, got {url!r:.200}"
        raise _DownloadFailed(message)


def _opener() -> OpenerDirector:
    """What opens addresses: of http and https, and no others."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        HTTPDefaultErrorHandler(),
        _WebOnly(),
        HTTPErrorProcessor(),
        UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _open(url: str, part: Path, start: int, timeout: float) -> Any:
    """The answer to a request for the bytes from `start` on.

    Raises:
        _DownloadFailed: `url`, or what it redirects to, is no address.
        HTTPError, URLError, OSError, http.client.HTTPException: there is no answer.
    """
    try:
        _require_web(url)
        return _opener().open(_request(url, part, start), timeout=timeout)
    except ValueError as error:  # from the parts of urllib that take addresses apart
        raise _DownloadFailed(f"no address, or it leads to none ({error!s:.200})") from error


def _fetch(url: str, archive: Archive, part: Path, patience: Patience) -> None:
    """Fill `part` from one address, over as many connections as needed.

    Raises:
        _DownloadFailed: the server refuses, or nothing more comes.
    """
    most, failures = _size(part), 0
    while True:
        try:
            if _receive(url, archive, part, patience.timeout):
                return
            reason = f"the connection ended after {_size(part)} bytes"
        except HTTPError as error:
            reason = f"HTTP {error.code} {_brief(error.reason)}"
            if error.code == _RANGE_REFUSED:
                _delete(part)
            elif error.code not in _TEMPORARY:
                raise _DownloadFailed(reason) from error
        except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, URLError) else error
            reason = _brief(cause) or type(cause).__name__
        failures = 0 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= patience.attempts:
            raise _DownloadFailed(f"{reason} ({failures} attempts in a row brought nothing)")
        log.info("%s: %s; going on", archive.name, reason)
        time.sleep(min(60.0, patience.pause * 2 ** max(0, failures - 1)))


def _brief(reason: object) -> str:
    """What a server or the system says, cut to a length that can be shown."""
    return f"{one_line(str(reason)):.200}"


def _receive(url: str, archive: Archive, part: Path, timeout: float) -> bool:
    """Append to `part` what one connection brings.

    Returns:
        Whether the file is now whole.
    """
    start = _size(part)
    if archive.size is not None and start >= archive.size:
        if start == archive.size:
            return True
        _delete(part)
        start = 0
    with _open(url, part, start, timeout) as response:
        start, total = _span(response, start)
        if archive.size is not None and total not in (None, archive.size):
            raise _DownloadFailed(f"the server's file has {total} bytes, expected {archive.size}")
        if archive.size is None and (total or 0) > MOST_BYTES:
            raise _DownloadFailed(f"the server's file has {total} bytes, {_AT_MOST}")
        total = total if total is not None else archive.size
        needed = (total or 0) - start
        free = shutil.disk_usage(part.parent).free
        if needed > free:
            raise ArchiveError(
                f"{part.parent}: {needed / 1e9:.1f} GB are still to come, {free / 1e9:.1f} GB are "
                "free; make room or choose another --root"
            )
        _write_note(part, url, response)
        _append(response, part, start, total, archive.name)
    if _size(part) > (MOST_BYTES if total is None else total):
        _delete(part)
        if total is None:
            raise _DownloadFailed(f"the server tells no size and sends more, {_AT_MOST}")
        raise _DownloadFailed(f"the server sends more than the expected {total} bytes")
    if total is None:
        log.warning("%s: the server does not tell its size; taken as whole", archive.name)
    return total is None or _size(part) == total


def _request(url: str, part: Path, start: int) -> Request:
    """A request for the bytes from `start` on, or for the whole file if it has changed."""
    from weaktr import __version__

    request = Request(url, headers={"User-Agent": f"weaktr/{__version__}"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        note = _read_note(part)
        version = note.get("version")
        if note.get("url") == url and isinstance(version, str) and version.isprintable():
            request.add_header("If-Range", version)
    return request


def _span(response: Any, start: int) -> tuple[int, int | None]:
    """(first byte that comes, bytes of the whole file or None) of an answer."""
    if response.status != 206:  # the whole file: no Range asked for, not understood, or changed
        length = re.fullmatch(r"\d{1,18}", response.headers.get("Content-Length", ""), re.ASCII)
        return 0, None if length is None else int(length[0])
    span = response.headers.get("Content-Range", "")
    match = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18}|\*)", span, re.ASCII)
    if match is None or int(match[1]) != start:
        raise _DownloadFailed(f"asked for bytes from {start}, got {span!r:.100}")
    return start, None if match[2] == "*" else int(match[2])


def _append(response: Any, part: Path, start: int, total: int | None, title: str) -> None:
    """Write the bytes of an answer to `part`, from `start` on.

    At most one more than `total`, or than `MOST_BYTES` where that is not known.
    """
    with open(part, "r+b" if part.exists() else "wb") as file:
        file.truncate(start)
        file.seek(start)
        end = (MOST_BYTES if total is None else total) + 1
        with megabytes(f"downloading {title}", total or start, start) as advance_to:
            while chunk := response.read1(min(_CHUNK, end - file.tell())):
                file.write(chunk)
                advance_to(file.tell())
        file.flush()
        os.fsync(file.fileno())


def _write_note(part: Path, url: str, response: Any) -> None:
    """Note beside `part` the address and the version of the file that it is a part of."""
    etag = response.headers.get("ETag", "")
    version = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    note = json.dumps({"url": url, "version": version})
    write_bytes(_note_file(part), note.encode(), durable=False)


def _read_note(part: Path) -> dict[str, Any]:
    """What `_write_note` wrote; empty where there is no note."""
    try:
        return read_json_object(_note_file(part))
    except ValueError:
        return {}


def _note_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _delete(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
