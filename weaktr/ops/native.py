"""Between torch and the compiled ops: its threads and its memory.

PyTorch's OpenMP threads keep their cores busy for a while after each op. A compiled op that came
next with threads of its own would share the cores with them; on two cores it took twice as long.
Importing this makes compiled ops run on torch's threads.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch
from torch import Tensor

from weaktr import _native


def openmp_of_torch() -> int:
    """Address of ``GOMP_parallel`` in the OpenMP runtime that torch is linked with, or 0."""
    for library in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        try:
            parallel = ctypes.CDLL(str(library)).GOMP_parallel  # or of what it is linked with
        except (OSError, AttributeError):
            continue
        return ctypes.cast(parallel, ctypes.c_void_p).value or 0
    return 0


def with_whole_rows(x: Tensor) -> Tensor:
    """The same memory where the numbers of a row lie side by side, else a copy."""
    return x if x.stride(-1) == 1 else x.contiguous()


_native.use_openmp(openmp_of_torch())
