"""Main memory of a process: whether what was freed goes back to the system."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of glibc's mallopt (malloc.h), and the largest number it takes.
TRIM_THRESHOLD, MMAP_THRESHOLD, LARGEST = -1, -3, 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep what tensors free, for the tensors to come.

    By default glibc gives large blocks back to the system at once, and every large tensor starts
    with pages that the system has to clear and map again: a tenth of the time of CAMs and of
    training on a CPU, more where that is slow. The process then holds its largest need until it
    ends, which suits a command and may not suit a program that does other things as well.

    Returns:
        Whether the C library took the settings: glibc does.
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(TRIM_THRESHOLD, LARGEST)) and bool(mallopt(MMAP_THRESHOLD, LARGEST))
