"""A web server on this machine that can misbehave, and archives in the official layouts."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from weaktr.data.prepare import Archive


@dataclass
class Site:
    """What the server has and how it behaves.

    Args:
        files: content of each file name.
        cut_after: bytes of each answer after which the connection is closed; None = whole.
        pause: seconds before every 16 KiB.
        stall_once: the first answer stops in its middle and stays silent.
        ranges: whether it understands Range.
        etag: version that it states.
        status: an error code for every answer; None = serve.
        reason: what it says of errors; None = what is usual.
        errors_first: so many answers with 503 before it serves.
        sends_to: the address to which it redirects every request; None = serve.
        tells_size: whether it states how many bytes come.
        asked: the Range of each request, None where there was none.
        port: where it listens.
    """

    files: dict[str, bytes]
    cut_after: int | None = None
    pause: float = 0.0
    stall_once: bool = False
    ranges: bool = True
    etag: str = '"1"'
    status: int | None = None
    reason: str | None = None
    errors_first: int = 0
    sends_to: str | None = None
    tells_size: bool = True
    asked: list[str | None] = field(default_factory=list)
    port: int = 0
    closing: threading.Event = field(default_factory=threading.Event)

    def archive(self, name: str, *, md5: str | None = "right", size: int | None = -1) -> Archive:
        """`name` as this site has it; -1 = its size, "right" = its MD5."""
        content = self.files[name]
        right = hashlib.md5(content).hexdigest()
        return Archive(
            name,
            (f"http://127.0.0.1:{self.port}/{name}",),
            len(content) if size == -1 else size,
            right if md5 == "right" else md5,
        )


class _Handler(BaseHTTPRequestHandler):
    site: Site

    def do_GET(self) -> None:
        site, wanted = self.site, self.headers.get("Range")
        site.asked.append(wanted)
        content = site.files.get(self.path.lstrip("/"))
        status = site.status or (404 if content is None else None)
        if site.errors_first > 0:
            site.errors_first -= 1
            status = 503
        if status is not None or content is None:
            self.send_error(status or 404, site.reason)
            return
        if site.sends_to is not None:
            self.send_response(302)
            self.send_header("Location", site.sends_to)
            self.end_headers()
            return
        start = 0
        if wanted and site.ranges and self.headers.get("If-Range", site.etag) == site.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self._head(start, len(content))
        with suppress(ConnectionError):  # of who asked and went away
            self._body(content[start:])

    def _head(self, start: int, total: int) -> None:
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if self.site.tells_size:
            self.send_header("Content-Length", str(total - start))
        self.send_header("ETag", self.site.etag)
        self.end_headers()

    def _body(self, content: bytes) -> None:
        site = self.site
        stop = len(content) if site.cut_after is None else site.cut_after
        if site.stall_once:
            stop = len(content) // 2
        for begin in range(0, min(stop, len(content)), 1 << 14):
            time.sleep(site.pause)
            self.wfile.write(content[begin : min(begin + (1 << 14), stop)])
            self.wfile.flush()
        if site.stall_once:
            site.stall_once = False
            site.closing.wait(10)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def serving(site: Site) -> Iterator[Site]:
    """Serve `site` on a free port of this machine."""
    handler = type("Handler", (_Handler,), {"site": site})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.closing.set()
        server.shutdown()
        thread.join()
        server.server_close()
