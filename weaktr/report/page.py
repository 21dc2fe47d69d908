"""The report as one HTML file: `gather`'s values, the style and the script in one page.

Whatever names hold, they stay text: they stand in JSON, in which ``<``, ``>`` and ``&`` are
escaped, and the script writes them as text. The page's own policy lets nothing else run and nothing
be fetched.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import logging
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from weaktr.files import require_replaceable, write_bytes
from weaktr.messages import one_line
from weaktr.outputs import REPORT, begin, fingerprint, keep
from weaktr.report.gather import report_of
from weaktr.seals import BLANK, is_sealed, sealed, was_sealed

log = logging.getLogger("weaktr")

#: What stands in the page's place for something.
PLACE = re.compile(r"\{\{(\w+)\}\}")


def write_report(folder: Path, out: Path | None = None, *, full: bool = False) -> Path:
    """Write the report of a folder.

    Args:
        folder: of a run, or ``--out`` of ``weaktr label`` or ``weaktr predict``.
        out: the HTML file; None = ``report.html`` in the folder.
        full: also write larger pictures into a folder beside it: of ``report.html`` into
            ``report_files/``.

    Returns:
        The HTML file. One that somebody has changed is kept under another name.

    Raises:
        ValueError: see `report_of`; or where the report goes there is a file or folder that weaktr
            did not write.
    """
    file = folder / REPORT if out is None else out
    if file.is_symlink() or not was_sealed(file):
        require_replaceable(file)
    values = report_of(folder, _folder_beside(file) if full else None)
    content = page_of(values, with_files=full)
    if file.exists() and not is_sealed(file):
        keep(file)
    write_bytes(file, content)
    return file


def report_at_the_end(folder: Path) -> None:
    """Write the report of a run that has ended well, which no fault of the report changes."""
    try:
        log.info("report: %s", write_report(folder))
    except Exception as error:
        log.warning("no report: %s", one_line(str(error) or type(error).__name__))
        log.debug("no report", exc_info=True)


def page_of(values: dict[str, Any], *, with_files: bool = False) -> bytes:
    """The HTML of a report, sealed.

    Args:
        values: see `report_of`.
        with_files: whether there are pictures beside it, which it may show.
    """
    own = files("weaktr.report")
    style, script = ((own / name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data: file: 'self'" if with_files else "img-src data:",
            f"style-src '{_hash(style)}'",
            f"script-src '{_hash(script)}'",
            "base-uri 'none'; form-action 'none'",
        ]
    )
    parts = {
        "seal": BLANK,
        "policy": policy,
        "title": html.escape(f"{values['name']} - weaktr"),
        "style": style,
        "data": as_json(values),
        "script": script,
    }
    page = (own / "page.html").read_text("utf-8")
    return sealed(PLACE.sub(lambda place: parts[place[1]], page).encode(errors="backslashreplace"))


def as_json(values: Any) -> str:
    """JSON in ASCII that may stand in a script element: nothing in it ends that."""
    text = json.dumps(values, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _hash(text: str) -> str:
    """By which the page's policy knows its own style and script."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _folder_beside(file: Path) -> Path:
    """The folder of the larger pictures, of this page alone.

    Raises:
        ValueError: there is one with files that weaktr did not write, or with links.
    """
    page = file.name.removesuffix(".html")
    folder = file.with_name(f"{page}_files")
    if folder.is_symlink():
        raise ValueError(f"{folder}: expected a folder, got a link; move it away")
    begin(folder, fingerprint("report"))
    return folder
