"""Downloads that survive what networks do: cuts, stalls, restarts, wrong files.

Bytes go to ``NAME.part``; a later attempt, or a later run, asks the server for the rest with HTTP
Range, guarded by If-Range so that parts of two different files are never joined. Only a file of
the right size and checksum gets its name.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from weaktr.data.prepare.archives import ArchiveError, verify
from weaktr.data.prepare.meters import megabytes
from weaktr.data.prepare.official import Archive
from weaktr.progress import log

_CHUNK = 1 << 20
#: HTTP answers after which the same request may succeed.
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_RANGE_REFUSED = 416


@dataclass(frozen=True)
class Patience:
    """How hard to try.

    Args:
        timeout: seconds without a single byte after which a connection counts as dead; a slow
            server that keeps sending is waited for.
        attempts: attempts in a row that bring nothing new before giving up.
        pause: seconds before the second attempt; doubled each time.
    """

    timeout: float = 60.0
    attempts: int = 6
    pause: float = 1.0


class _GiveUp(Exception):
    """This address will not give the file; the message says why."""


def download(archive: Archive, folder: Path, patience: Patience | None = None) -> Path:
    """Download a file whole, or go on with what is there of it.

    Args:
        archive: what to get.
        folder: where to; made where it is missing.
        patience: None = `Patience()`.

    Returns:
        ``folder/archive.name``, verified.

    Raises:
        ArchiveError: no address gives the file, or what came has another size or checksum (it is
            then deleted). Says what to do.
        OSError: the disk is full or not writable.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / archive.name, folder / f"{archive.name}.part"
    reasons = []
    for url in archive.urls:
        try:
            _fetch(url, archive, part, patience or Patience())
        except _GiveUp as error:
            reasons.append(f"{url}: {error}")
            continue
        try:
            verify(part, archive)
        except ArchiveError:
            _forget(part)
            raise
        os.replace(part, path)
        _forget(part)
        return path
    raise ArchiveError(
        f"cannot download {archive.name}: {'; '.join(reasons)}. Start again to go on, or put the "
        f"file into {folder} yourself"
    )


def _fetch(url: str, archive: Archive, part: Path, patience: Patience) -> None:
    """Fill `part` from one address, over as many connections as it takes.

    Raises:
        _GiveUp: the server says no, or nothing more comes.
    """
    most, failures = _size(part), 0
    while True:
        try:
            if _receive(url, archive, part, patience.timeout):
                return
            reason = f"the connection ended after {_size(part)} bytes"
        except HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            if error.code == _RANGE_REFUSED:
                _forget(part)
            elif error.code not in _PASSING:
                raise _GiveUp(reason) from error
        except (URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            cause = error.reason if isinstance(error, URLError) else error
            reason = str(cause) or type(cause).__name__
        failures = 0 if _size(part) > most else failures + 1
        most = max(most, _size(part))
        if failures >= patience.attempts:
            raise _GiveUp(f"{reason} ({failures} attempts in a row brought nothing)")
        log.info("%s: %s; going on", archive.name, reason)
        time.sleep(min(60.0, patience.pause * 2 ** max(0, failures - 1)))


def _receive(url: str, archive: Archive, part: Path, timeout: float) -> bool:
    """One connection: append to `part` what comes; whether the file is now whole."""
    start = _size(part)
    if archive.size is not None and start >= archive.size:
        if start == archive.size:
            return True
        _forget(part)
        start = 0
    if urlsplit(url).scheme not in ("http", "https"):
        raise _GiveUp("expected an address of http or https")
    with urlopen(_request(url, part, start), timeout=timeout) as response:
        start, total = _span(response, start)
        if archive.size is not None and total not in (None, archive.size):
            raise _GiveUp(f"the server's file has {total} bytes, expected {archive.size}")
        total = total if total is not None else archive.size
        _require_space(part.parent, (total or 0) - start)
        _remember(part, url, response)
        _append(response, part, start, total, archive.name)
    if total is None:
        log.warning("%s: the server does not tell its size; taken as whole", archive.name)
    return total is None or _size(part) == total


def _request(url: str, part: Path, start: int) -> Request:
    from weaktr import __version__

    request = Request(url, headers={"User-Agent": f"weaktr/{__version__}"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        note = _note(part)
        if note.get("url") == url and note.get("version"):
            request.add_header("If-Range", note["version"])
    return request


def _span(response: Any, start: int) -> tuple[int, int | None]:
    """(first byte that comes, bytes of the whole file or None) of an answer."""
    length = response.headers.get("Content-Length")
    if response.status != 206:  # the whole file: no Range asked for, not understood, or changed
        return 0, None if length is None else int(length)
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) != start:
        raise _GiveUp(f"asked for bytes from {start}, got {response.headers['Content-Range']!r}")
    return start, None if match[2] == "*" else int(match[2])


def _append(response: Any, part: Path, start: int, total: int | None, title: str) -> None:
    with open(part, "r+b" if part.exists() else "wb") as file:
        file.truncate(start)
        file.seek(start)
        with megabytes(f"downloading {title}", total or start, start) as reach:
            while chunk := response.read1(_CHUNK):
                file.write(chunk)
                reach(file.tell())
        file.flush()
        os.fsync(file.fileno())


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ArchiveError(
            f"{folder}: {needed / 1e9:.1f} GB are still to come, {free / 1e9:.1f} GB are free; "
            "make room or choose another --root"
        )


def _remember(part: Path, url: str, response: Any) -> None:
    """Note beside `part` which version of the file it is a part of."""
    etag = response.headers.get("ETag", "")
    version = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified")
    _note_file(part).write_text(json.dumps({"url": url, "version": version}))


def _note(part: Path) -> dict[str, Any]:
    try:
        content = json.loads(_note_file(part).read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _note_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note_file(part).unlink(missing_ok=True)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
