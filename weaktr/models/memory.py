"""How errors say that a device has too little memory."""

from __future__ import annotations

import torch

#: What a plain RuntimeError says, in lower case: of the CPU's allocator; of pinning, and of CUDA's
#: driver; of Triton, which loads kernels with it; of cuBLAS and cuDNN; of NCCL.
NO_MEMORY = (
    "can't allocate memory",
    "error: out of memory",
    "[cuda]: out of memory",
    "_status_alloc_failed",
    "failed to cuda calloc",
    "cuda failure 2 'out of memory'",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory, on the CPU or a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(text in said for text in NO_MEMORY)
