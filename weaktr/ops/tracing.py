"""Whether a model is run or exported."""

from __future__ import annotations

import torch


@torch.compiler.assume_constant_result
def is_exporting() -> bool:
    """Whether a graph is being exported, for which models keep to what exporters know.

    `torch.compiler.is_exporting`, which in torch 2.11 is also true of everything that
    `torch.compile` traces; asked outside of the trace it is not.
    """
    return torch.compiler.is_exporting()
