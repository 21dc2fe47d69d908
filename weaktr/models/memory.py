"""How errors say that a device has too little memory."""

from __future__ import annotations

import torch

#: What torch says in a plain RuntimeError: of the CPU's allocator, of pinning, of cuBLAS.
NO_MEMORY = ("can't allocate memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on the CPU or a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in NO_MEMORY)
