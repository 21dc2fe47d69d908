"""Whether a PNG is whole: by its two ends, or by the checksums and the number of its pixels.

Pillow fills what is missing with 0, which in a mask is background, and makes room for all that a
header claims.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from weaktr import tars

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: The last chunk of every PNG: length 0, its name, its checksum.
_END = b"\0\0\0\0IEND\xaeB`\x82"
#: The chunks of the compressed pixels.
_DATA = b"IDAT"
#: Samples a pixel for each colour type: grey, RGB, palette, grey and RGB with transparency.
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
#: The seven passes of Adam7: first column, first row, step across, step down.
_ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
#: Bytes that are unpacked at a time.
_PIECE = 2**20


def is_whole_png(path: Path, size: tuple[int, int] | None = None) -> bool:
    """Whether a file begins and ends like a PNG.

    Args:
        path: the file; may be missing.
        size: (H, W) that its header must state; None = any.

    Returns:
        True if it does. Pixels are not decoded, so a hundred thousand files take seconds.
    """
    try:
        opened = tars.opened(path)
        with open(opened, "rb") if isinstance(opened, Path) else opened as file:
            head = file.read(24)
            file.seek(-len(_END), 2)
            end = file.read()
    except (OSError, ValueError):
        return False
    if len(head) < 24 or not head.startswith(_SIGNATURE) or end != _END:
        return False
    width, height = struct.unpack(">II", head[16:24])
    return size is None or (height, width) == size


def damage_in_data(png: bytes, *, rows: bool = False) -> str | None:
    """What shows that the compressed pixels of a PNG are not as they were written; None = nothing.

    Pillow looks at no checksum of theirs: where bytes are wrong it may give others, and no error.
    It does look at those of the other chunks that count.

    Args:
        png: the file's content.
        rows: whether to count the pixels, too, for which they are unpacked.

    Source: W3C, "Portable Network Graphics (PNG) Specification", 2003, sections 5.3, 7.2, 8.
    """
    try:
        for kind, content, checksum in _chunks(png):
            if kind == _DATA and zlib.crc32(content, zlib.crc32(_DATA)) != checksum:
                return "it is damaged: its pixels do not fit their checksum"
    except EOFError:  # it was cut off: are pixels missing?
        pass
    if rows and not _holds_all_rows(png):
        return "it is damaged: it holds fewer pixels than its header says"
    return None


def _holds_all_rows(png: bytes) -> bool:
    """Whether the compressed data are at least as long as the header asks for; True where the
    header is none, which decoders find."""
    chunks = _chunks(png)
    try:
        wanted = _length(next(chunks)[1])
        unpack = zlib.decompressobj()
        for kind, content, _ in chunks:
            packed = content if kind == _DATA else b""
            while packed and wanted > 0:
                wanted -= len(unpack.decompress(packed, _PIECE))
                packed = unpack.unconsumed_tail
            if wanted <= 0:  # what follows does not matter
                return True
    except (struct.error, KeyError, StopIteration):
        return True
    except (EOFError, zlib.error):
        pass
    return False


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """Type, content and checksum of the chunks of a PNG; EOFError where one is longer than the
    file."""
    place = 8
    while place + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        end = place + 8 + length
        if end + 4 > len(png):
            raise EOFError
        yield kind, png[place + 8 : end], int.from_bytes(png[end : end + 4], "big")
        place = end + 4


def _length(header: bytes) -> int:
    """Bytes of the pixels that an IHDR chunk describes, with a byte for each row's filter."""
    width, height, bits, colours, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for left, top, across, down in passes:
        columns, rows = len(range(left, width, across)), len(range(top, height, down))
        if columns:
            total += rows * (1 + -(-columns * bits * _SAMPLES[colours] // 8))
    return total
