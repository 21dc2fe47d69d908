"""The compiled ops on torch's own threads.

PyTorch's OpenMP threads keep their cores busy for a while after each op; an op of ours that came
next with threads of its own would share the cores with them. Import this once before such an op.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

from weaktr import _native


def openmp_of_torch() -> int:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch is linked with, or 0."""
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        try:
            found = ctypes.CDLL(str(library)).GOMP_parallel  # looks in what it is linked with too
        except (OSError, AttributeError):
            continue
        return ctypes.cast(found, ctypes.c_void_p).value or 0
    return 0


_native.use_openmp(openmp_of_torch())
