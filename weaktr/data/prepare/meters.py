"""Progress of bytes: speed and time left, in megabytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from weaktr.progress import Meter

MEGABYTE = 1_000_000


@contextmanager
def megabytes(title: str, total: int, done: int = 0) -> Iterator[Callable[[int], None]]:
    """A meter of bytes.

    Args:
        title: what is being done.
        total: bytes in all.
        done: bytes that were done before.

    Yields:
        A function that takes the number of bytes done by now; smaller numbers than before are
        ignored.
    """
    units = max(1, -(-total // MEGABYTE))
    with Meter(title, units, done=done // MEGABYTE, unit="MB") as meter:

        def reach(position: int) -> None:
            now = units if position >= total else position // MEGABYTE
            if now > meter.done:
                meter.advance(now - meter.done)

        yield reach
