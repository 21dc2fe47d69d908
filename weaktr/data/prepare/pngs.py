"""Whether a PNG is whole, from its two ends."""

from __future__ import annotations

import struct
from pathlib import Path

from weaktr.files import require_file

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
#: The last chunk of every PNG: length 0, its name, its checksum.
_END = b"\0\0\0\0IEND\xaeB`\x82"


def is_whole_png(path: Path, size: tuple[int, int] | None = None) -> bool:
    """Whether a file begins and ends like a PNG.

    Args:
        path: the file; may be missing.
        size: (H, W) that its header must state; None = any.

    Returns:
        True if it does. Pixels are not decoded, so a hundred thousand files take seconds.
    """
    try:
        require_file(path)
        with open(path, "rb") as file:
            head = file.read(24)
            file.seek(-len(_END), 2)
            end = file.read()
    except (OSError, ValueError):
        return False
    if len(head) < 24 or not head.startswith(_SIGNATURE) or end != _END:
        return False
    width, height = struct.unpack(">II", head[16:24])
    return size is None or (height, width) == size
