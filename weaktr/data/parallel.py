"""Work on images in threads: results in order, memory bounded."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def usable_cores() -> int:
    """CPU cores that this process may use: a batch system or ``taskset`` may have kept some."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 2


def cores_of_this_process() -> int:
    """Cores for one of the processes that work together; torchrun says how many a machine has."""
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, usable_cores() // max(1, int(local) if local.isdecimal() else 1))


#: Threads for image files and the CRF.
THREADS = max(2, min(16, usable_cores()))


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], threads: int = THREADS
) -> Iterator[R]:
    """``map(function, items)`` in threads, a few items ahead; errors are raised in order."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
