"""Models without memory, on torch's device "meta": the shapes of their weights alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

with torch.device("meta"):
    torch.empty(0)  # torch lists what makes tensors now, before anybody replaces one of these
#: What gives a tensor other values and leaves its shape: all that initialises weights.
FILLING = {
    Tensor.add_, Tensor.clamp_, Tensor.erfinv_, Tensor.fill_, Tensor.mul_, Tensor.normal_,
    Tensor.uniform_, Tensor.zero_, init.kaiming_uniform_, init.normal_, init.uniform_,
}  # fmt: skip


class _NothingFilled(TorchFunctionMode):
    """Leaves out what fills tensors without memory: torch takes longer for it than for values."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if function in FILLING:
            tensor: Tensor = args[0] if args else options["tensor"]
            if tensor.is_meta:
                return tensor
        return function(*args, **options)


@contextmanager
def without_memory() -> Iterator[None]:
    """Models that are made meanwhile are on torch's device "meta"."""
    with torch.device("meta"), _NothingFilled():
        yield
