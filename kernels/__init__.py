"""Triton kernels, one file per op, each the twin of the definition in `weaktr.ops`.

Importing this raises ImportError, with the reason, where no kernel can run. Triton's interpreter
runs them on the CPU, slowly, where ``TRITON_INTERPRET=1`` is set before Python starts.
"""

from __future__ import annotations

if __name__ != "weaktr.kernels":
    raise ImportError(
        f"this folder is weaktr.kernels and was imported as {__name__}: import weaktr.kernels"
    )

import torch

try:
    import triton
except ImportError as error:
    raise ImportError(f"Triton is not installed ({error})") from error

#: Kernels run in Triton's interpreter, on tensors of any device.
INTERPRETED: bool = triton.knobs.runtime.interpret

if not INTERPRETED and not torch.cuda.is_available():
    raise ImportError("Triton finds no GPU; TRITON_INTERPRET=1 runs its kernels on the CPU, slowly")
