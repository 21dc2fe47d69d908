"""Whether a PNG is whole: by its two ends, or by how many pixels it holds.

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


def holds_all_rows(path: Path) -> bool:
    """Whether the compressed data of a PNG are at least as long as its header asks for.

    Args:
        path: the file. True where its chunks are damaged otherwise, which decoders find.

    Source: W3C, "Portable Network Graphics (PNG) Specification", 2003, sections 5.3, 7.2, 8.
    """
    chunks = _chunks(tars.read_bytes(path))
    try:
        wanted = _length(next(chunks)[1])
        unpack = zlib.decompressobj()
        for kind, content in chunks:
            packed = content if kind == b"IDAT" else b""
            while packed and wanted > 0:
                wanted -= len(unpack.decompress(packed, _PIECE))
                packed = unpack.unconsumed_tail
            if wanted <= 0:  # what follows does not matter
                return True
    except (zlib.error, struct.error, KeyError, StopIteration):
        return True
    except EOFError:
        pass
    return False


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Type and content of the chunks of a PNG; EOFError where one is longer than the file."""
    place = 8
    while place + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        if place + 12 + length > len(png):
            raise EOFError
        yield kind, png[place + 8 : place + 8 + length]
        place += length + 12


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
