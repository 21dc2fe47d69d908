"""Progress of bytes: speed and time left, in megabytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weaktr.progress import Meter

MEGABYTE = 1_000_000


@contextmanager
def megabytes(title: str, total: int, start: int = 0) -> Iterator[Callable[[int], None]]:
    """A meter of bytes.

    Args:
        title: of the work.
        total: bytes in all.
        start: bytes that an earlier run has processed.

    Yields:
        A function to call with the number of bytes processed so far; a smaller number than before
        is ignored.
    """
    units = max(1, -(-total // MEGABYTE))
    with Meter(title, units, done=start // MEGABYTE, unit="MB") as meter:

        def advance_to(position: int) -> None:
            now = units if position >= total else position // MEGABYTE
            if now > meter.done:
                meter.advance(now - meter.done)

        yield advance_to
