"""Main memory of a process: whether freed memory is returned to the system."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of glibc's mallopt (malloc.h), and the largest number it takes.
TRIM_THRESHOLD, MMAP_THRESHOLD, ARENA_MAX, LARGEST = -1, -3, -8, 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep the memory that tensors free, for the next tensors.

    By default glibc returns large pieces of memory to the system at once. Every large tensor then
    starts with pages that the system has to clear and map again, which takes a tenth of the time of
    CAMs and of training on a CPU, more where mapping is slow. With the memory kept, the process
    holds the most that it ever needed until it ends: right for a command, but maybe not for a
    program that does other work too. All threads share it, or each would keep its own.

    Returns:
        Whether the C library took the settings: glibc does.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {TRIM_THRESHOLD: LARGEST, MMAP_THRESHOLD: LARGEST, ARENA_MAX: 1}
    return all([bool(mallopt(parameter, value)) for parameter, value in settings.items()])
