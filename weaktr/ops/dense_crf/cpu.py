"""`dense_crf` in C++; importing this raises ImportError where the extension was not built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weaktr import _native
from weaktr.ops.dense_crf.problem import Output, Problem, as_dict


def dense_crf_cpu(
    problems: Sequence[Problem], *, iterations: int, num_threads: int, output: Output = "marginals"
) -> list[tuple[Tensor, ...]]:
    """`weaktr.ops.dense_crf` in C++; arguments and results like `dense_crf_torch`.

    Args:
        problems: checked, on the CPU.
        iterations: mean-field steps.
        num_threads: >= 1; images side by side, or several threads on one image.
        output: what to return for each problem.
    """
    dicts = [as_dict(problem, as_array) for problem in problems]
    solved = _native.dense_crf_cpu(dicts, iterations, num_threads, output=output)
    parts = (maps if isinstance(maps, tuple) else (maps,) for maps in solved)
    return [tuple(torch.from_numpy(part) for part in maps) for maps in parts]


def as_array(tensor: Tensor) -> Any:
    """An array of the same memory where it is contiguous."""
    return tensor.contiguous().numpy()


def release_memory() -> None:
    """Free the work space and the lattices of positions that are kept from call to call."""
    _native.release_memory()
