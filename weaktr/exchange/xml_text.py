"""What text XML can hold."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Characters that XML 1.0 has no way to write.
_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def fits_xml(text: str) -> bool:
    """Whether XML can hold a text."""
    return _IMPOSSIBLE.search(text) is None


def require_xml(names: Iterable[str]) -> None:
    """Raise `ValueError` for a class whose name XML cannot hold."""
    for name in names:
        if not fits_xml(name):
            raise ValueError(
                f"classes: expected names that XML can hold, got {name!a}; choose a format "
                "of JSON, such as coco"
            )
