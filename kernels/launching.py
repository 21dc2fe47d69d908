"""Launches of the kernels, the second and later ones of a kind without Triton's search.

For every launch Triton looks at all arguments (which dtypes, what is aligned, which numbers are 1
or multiples of 16) to find what it has compiled for such ones. That takes the host longer than a
short kernel takes the GPU. What was found is kept here under all numbers as they are, which is one
lookup.

Triton's switches for debugging and instrumentation are heeded where they are set before a launch of
a kind, and only then; profilers' hooks around launches always.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from triton import knobs
from triton.compiler import CompiledKernel

#: Bytes to which Triton wants an address aligned, to compile for that.
ALIGNMENT = 16
#: Kinds of launches that are kept; sizes that change from batch to batch make ever new ones.
MOST_KINDS = 4096

#: Function of a kernel -> which of its arguments are tensors, or may be None in place of one.
_tensors: dict[Any, tuple[int, ...]] = {}
#: kind -> what Triton found, and the constants that follow the arguments.
_known: dict[tuple[Any, ...], tuple[CompiledKernel, tuple[Any, ...]]] = {}


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """What `kernel[grid](*arguments, **options)` does.

    Args:
        kernel: as ``@triton.jit`` returns it.
        grid: programs along up to three axes.
        arguments: all that are no constants, in the kernel's order; the first one is a tensor. One
            that is a tensor is None or a tensor in every launch of the kernel.
        options: the kernel's constants, and how it is compiled (``num_warps``, ...).
    """
    kind = _kind(kernel, arguments, options)
    known = _known.get(kind) if kind else None
    if known is None:
        compiled = kernel[grid](*arguments, **options)
        # Triton's interpreter compiles nothing
        if kind and isinstance(compiled, CompiledKernel) and not _is_debugged(kernel):
            _keep(kind, compiled, _constants(kernel, len(arguments), options))
        return
    compiled, constants = known
    compiled[(*grid, 1, 1)](*arguments, *constants)


def _kind(
    kernel: Any, arguments: tuple[Any, ...], options: Mapping[str, Any]
) -> tuple[Any, ...] | None:
    """All that Triton's choice depends on; None where an address is not aligned."""
    function, addresses, parts = kernel.fn, 0, list(arguments)
    places = _tensors.get(function)
    if places is None:
        places = tuple(i for i, x in enumerate(arguments) if x is None or isinstance(x, Tensor))
        _tensors[function] = places
    for index in places:
        tensor = arguments[index]
        if tensor is not None:
            addresses |= tensor.data_ptr()
            parts[index] = tensor.dtype
    if addresses % ALIGNMENT:
        return None
    types = map(type, arguments)  # 2, 2.0 and True are equal
    return function, arguments[0].get_device(), *types, *parts, *options.items()


def _is_debugged(kernel: Any) -> bool:
    """Whether Triton compiles or launches otherwise than usual, for now."""
    instrumented = knobs.compilation.instrumentation_mode or knobs.runtime.debug
    return bool(instrumented or kernel.pre_run_hooks)


def _keep(kind: tuple[Any, ...], compiled: CompiledKernel, constants: tuple[Any, ...]) -> None:
    if len(_known) >= MOST_KINDS:
        _known.clear()
    _known[kind] = compiled, constants


def _constants(kernel: Any, arguments: int, options: Mapping[str, Any]) -> tuple[Any, ...]:
    """The options that are constants of the kernel, in its order."""
    return tuple(options[name] for name in kernel.arg_names[arguments:])
