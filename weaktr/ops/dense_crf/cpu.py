"""Wrappers of the compiled extension; importing this raises ImportError where it was not built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from weaktr import _native
from weaktr.ops.dense_crf.problem import LabelMap, Output, Pairwise, Problem
from weaktr.ops.registry import BackendUnavailable


def dense_crf_cpu(
    problems: Sequence[Problem], *, iterations: int, num_threads: int, output: Output = "marginals"
) -> list[tuple[Tensor, ...]]:
    """`weaktr.ops.dense_crf` in C++; arguments and results like `dense_crf_torch`.

    Args:
        problems: checked, on the CPU.
        iterations: mean-field steps.
        num_threads: >= 1; images side by side, or several threads on one image.
        output: what to return for each problem.

    Raises:
        BackendUnavailable: tensors on another device.
    """
    for problem in problems:
        if problem.device.type != "cpu":
            raise BackendUnavailable(
                f"backend 'cpu' of dense_crf runs on CPU tensors, got {problem.device}"
            )
    solved = _native.dense_crf_cpu(
        [_as_dict(problem) for problem in problems], iterations, num_threads, output=output
    )
    return [
        tuple(torch.from_numpy(part) for part in (found if isinstance(found, tuple) else (found,)))
        for found in solved
    ]


def release_memory() -> None:
    """Free the work space and the lattices of positions that are kept from call to call."""
    _native.release_memory()


def _as_dict(problem: Problem) -> dict[str, Any]:
    unary = problem.unary
    label_map = unary if isinstance(unary, LabelMap) else None
    return {
        "shape": problem.shape,
        "image": _as_array(problem.image),
        "unary": None if isinstance(unary, LabelMap) else _as_array(unary),
        "labels": _as_array(label_map.labels) if label_map else None,
        "table": _as_array(label_map.table) if label_map else None,
        "kernels": [_kernel_dict(kernel) for kernel in problem.kernels],
    }


def _kernel_dict(kernel: Pairwise) -> dict[str, Any]:
    return {
        "deviations": kernel.deviations,
        "features": _as_array(kernel.features),
        "compat": _as_array(kernel.compat),
        "normalization": kernel.normalization,
    }


def _as_array(tensor: Tensor | None) -> Any:
    """The same memory where it is contiguous."""
    return None if tensor is None else tensor.cpu().contiguous().numpy()
