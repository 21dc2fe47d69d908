"""Text for people: names that others chose, and lists that are too long to be shown whole."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: Characters that move a terminal's cursor or end a line, and lone halves of characters.
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
#: Those that do not belong in lines of text either, and those that turn the direction of writing.
UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029"
    r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)


def printable(text: str) -> str:
    """A text for the terminal: what it would act on, or cannot show, as Python escapes it."""
    return UNPRINTABLE.sub(lambda match: ascii(match[0])[1:-1], text)


def one_line(text: str) -> str:
    """Text of others on one line: names of files may hold line breaks, and worse (`printable`)."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def brief(value: object, most: int = 100) -> str:
    """A value of others in a message: plain ones cut to `most` characters, others by their type.

    Containers are not looked into: a small file may hold one without an end.
    """
    if isinstance(value, str | bytes):
        more = "..." if len(value) > most else ""
        return f"{value[:most]!r}{more}"
    if isinstance(value, int) and value.bit_length() > 3 * most:
        return "a number of many digits"
    plain = isinstance(value, int | float | None)
    return repr(value) if plain else f"a {type(value).__name__}"


def duration(seconds: float) -> str:
    """A time for people: ``40 s``, ``12 min``, ``3 h 20 min``, ``2 days 4 h``."""
    if round(seconds) < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = round(minutes / 60)
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} days {hours % 24} h"


def size_in_words(size: int) -> str:
    """Bytes for people: ``340 MiB``, ``1.2 GiB``."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.3g} MiB"


def counted(count: int, one: str, many: str) -> str:
    """A number with its words: ``1 image is``, ``2,000 images are``."""
    return f"{count:,} {one if count == 1 else many}"


def few(names: Sequence[object], most: int = 5, *, between: str = ", ") -> str:
    """The first names of a list, for a message: ``a, b, c, d, e and 7 more``."""
    return " ".join([one_line(between.join(map(str, names[:most]))), *_more(names, most)])


def listed(names: Sequence[object]) -> str:
    """All names of a short list, in a sentence: ``a, b and c``."""
    *first, last = map(str, names)
    return one_line(f"{', '.join(first)} and {last}" if first else last)


def first_lines(things: Sequence[object], most: int = 20) -> list[str]:
    """The first of many things, a line each, and a line that says how many more there are."""
    return [*map(str, things[:most]), *(f"... {line}" for line in _more(things, most))]


def _more(things: Sequence[object], shown: int) -> list[str]:
    return [f"and {len(things) - shown:,} more"] if len(things) > shown else []
