"""What reaches a GPU's driver by `weaktr.kernels.launching` and by Triton alone.

A program, because Triton decides at import whether it interprets: it ends without output where all
launches are the same.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.compiler import compiler

from tests.kernels.compile_kernels import MOST_SHARED, AbsentGPU

reached: list[tuple[Any, ...]] = []


class Recorder:
    """In the place of what Triton launches with."""

    def __init__(self, source: Any, _: Any) -> None:
        self.source = source

    def __call__(self, x: int, y: int, z: int, stream: int, function: Any, *rest: Any) -> None:
        reached.append((self.source, (x, y, z), rest[4:]))  # after what hooks get


class RecordingGPU(AbsentGPU):
    """A driver for it."""

    launcher_cls = Recorder
    utils = SimpleNamespace(load_binary=lambda *_: (1, 1, 32, 0, 1024))


@triton.jit(do_not_specialize=["count"])
def add_kernel(x, strides, y, count, step, factor, WIDTH: tl.constexpr, TWICE: tl.constexpr):
    places = tl.arange(0, WIDTH)
    value = tl.load(x + places * strides[0] + step, mask=places < count) * factor
    if TWICE:
        value *= 2
    tl.store(y + places, value, mask=places < count)


def kinds() -> list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]]:
    """Launches that Triton compiles differently, and some that it does not."""
    x, y = torch.zeros(64), torch.zeros(64)
    half, wide = x.half(), x.double()
    options = {"WIDTH": 16, "TWICE": False, "num_warps": 4}
    usual = (x, (1,), y, 5, 3, 0.5)
    return [
        ((2,), usual, options),
        ((2, 3), usual, options),
        ((2, 3, 4), usual, options),
        ((2,), (half, *usual[1:]), options),
        ((2,), (wide, *usual[1:]), options),
        ((2,), (x[1:], *usual[1:]), options),
        ((2,), (x, (16,), *usual[2:]), options),
        ((2,), (x, (7,), *usual[2:]), options),
        ((2,), (*usual[:3], 6, 3, 0.5), options),
        ((2,), (*usual[:3], 5, 1, 0.5), options),
        ((2,), (*usual[:3], 5, 32, 0.5), options),
        ((2,), (*usual[:3], 5, 2**40, 0.5), options),
        ((2,), (*usual[:5], 0.25), options),
        ((2,), usual, {**options, "TWICE": True}),
        ((2,), usual, {"num_warps": 8, "TWICE": False, "WIDTH": 32}),
    ]


def main() -> None:
    """Raises AssertionError where a launch is another one."""
    torch.cuda.is_available = lambda: True
    triton.runtime.driver.set_active(RecordingGPU())
    compiler.max_shared_mem = lambda _: MOST_SHARED
    from weaktr.kernels import launching

    for _ in range(3):
        for grid, arguments, options in kinds():
            reached.clear()
            add_kernel[grid](*arguments, **options)
            launching.launch(add_kernel, grid, *arguments, **options)
            (expected, expected_grid, wanted), (source, own_grid, given) = reached
            assert source is expected
            assert own_grid == expected_grid
            assert len(wanted) == len(given)
            assert all(one is two or one == two for one, two in zip(wanted, given, strict=True))
    aligned = len(kinds()) - 3  # two grids are of one kind; one address is not aligned
    assert len(launching._known) == aligned

    launching.MOST_KINDS = aligned
    x = torch.zeros(64)
    launching.launch(add_kernel, (1,), x, (9,), x, 5, 3, 0.5, WIDTH=16, TWICE=False)
    assert len(launching._known) == 1


if __name__ == "__main__":
    main()
