"""Whether a model is run, traced or exported."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Whether a graph is being exported, for which models keep to what exporters know.

    `torch.compiler.is_exporting`, which in torch 2.11 is also true of everything that
    `torch.compile` traces; asked outside of the trace it is not.
    """
    return torch.compiler.is_exporting()


_AS_IT_IS = nullcontext()


def needs_operator(*tensors: Tensor) -> bool:
    """Whether a computation on them has to be an operator that torch knows.

    It has to be where it is traced and where a gradient is wanted. Otherwise calling what the
    operator calls saves tens of microseconds of dispatch.
    """
    return (
        torch.compiler.is_compiling()
        or {*map(type, tensors)} != {Tensor}
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """autocast switched off, at no cost where it is not on."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return _AS_IT_IS
