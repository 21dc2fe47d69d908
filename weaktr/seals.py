"""Seals: by which weaktr knows a file that it wrote and that nobody has changed since.

A seal is the word ``weaktr`` and a digest of the rest of the file. It stands where the format has
room for remarks: the text ``Software`` of a PNG, the comment of an archive, a line of YAML, ...

Commands replace what they have sealed. What somebody has saved from Python has a seal with another
word: it may be saved again, and to commands it is a file of the user's.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
import zlib
from pathlib import Path

#: What a file holds until it is sealed: a command's, and one that somebody has saved.
BLANK, SAVED = "weaktr " + 32 * "0", "weaktr-saved " + 32 * "0"
SEAL = re.compile(rb"weaktr ([0-9a-f]{32})")
SEAL_OF_SAVED = re.compile(rb"weaktr-saved ([0-9a-f]{32})")
#: Bytes behind a seal that are not digested: in a PNG they are a check sum of it.
BEHIND = 4
#: Bytes of a PNG before its second chunk; those of a chunk's kind.
PNG_HEAD, KIND = 33, 4
#: Bytes at a file's beginning in which a damaged one still shows its seal.
HEAD = 256


def sealed(content: bytes, blank: str = BLANK) -> bytes:
    """The content of a file, with a seal in place of the first `blank` in it."""
    start = content.index(blank.encode())
    end = start + len(blank)
    digest = _digest(content, start, end)
    return content[: end - len(digest)] + digest + content[end:]


def sealed_png(content: bytes, blank: str = BLANK) -> bytes:
    """A PNG with a seal, of `BLANK` or `SAVED`."""
    kind_and_text = b"tEXtSoftware\0" + blank.encode()
    chunk = (len(kind_and_text) - KIND).to_bytes(4, "big") + kind_and_text + bytes(BEHIND)
    content = sealed(content[:PNG_HEAD] + chunk + content[PNG_HEAD:], blank)
    end = PNG_HEAD + len(chunk) - BEHIND
    check_sum = zlib.crc32(content[end - len(kind_and_text) : end])
    return content[:end] + check_sum.to_bytes(BEHIND, "big") + content[end + BEHIND :]


def sealed_zip(content: bytes) -> bytes:
    """A zip archive without a comment, with a seal."""
    buffer = io.BytesIO(content)
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = BLANK.encode()
    content = buffer.getvalue()
    start = len(content) - len(BLANK)
    return content[:start] + b"weaktr " + _digest(content, start, len(content))


def is_sealed(path: Path) -> bool:
    """Whether a command of weaktr's wrote a file and nobody has changed it since.

    An empty file counts too, and one of zeros, which a power failure may leave.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_symlink() or not path.is_file():
        return False
    return holds_seal(path.read_bytes(), at_end=path.suffix == ".npz")


def is_saved(path: Path) -> bool:
    """Whether somebody has saved a PNG from Python (`SAVED`), and it was not changed since.

    Raises:
        OSError: it cannot be read.
    """
    if path.is_symlink() or not path.is_file():
        return False
    content = path.read_bytes()
    found = SEAL_OF_SAVED.search(content)
    return found is not None and _digest(content, *found.span()) == found[1]


def holds_seal(content: bytes, *, at_end: bool = False) -> bool:
    """What `is_sealed` says of a file's content.

    Args:
        content: of the file.
        at_end: whether the seal is its end, as in an archive.
    """
    if at_end:
        start = len(content) - len(BLANK)
        found = SEAL.match(content, max(0, start))
    else:
        found = SEAL.search(content)
    if found is None:
        return not content.strip(b"\0")
    return _digest(content, *found.span()) == found[1]


def was_sealed(path: Path) -> bool:
    """Whether a PNG, though it may be damaged, is one that weaktr wrote.

    So is one that ends before its seal, where there are no pixels yet.
    """
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        return held_seal(file.read(HEAD))


def held_seal(content: bytes) -> bool:
    """What `was_sealed` says of a file's content, or of the first `HEAD` bytes of it."""
    head = content[:HEAD]
    is_short = len(head) < PNG_HEAD + len(BLANK) and head.startswith(b"\x89PNG")
    return is_short or SEAL.search(head) is not None or not head.strip(b"\0")


def _digest(content: bytes, start: int, end: int) -> bytes:
    """Of a file's content without the seal from `start` to `end`: 32 hexadecimal digits."""
    return hashlib.sha256(content[:start] + content[end + BEHIND :]).hexdigest()[:32].encode()
