"""What reaches a GPU's driver by `weaktr.kernels.launching` and by Triton alone.

A program, because Triton decides at import whether it interprets: it ends without output where all
launches are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
import triton
import triton.language as tl
from triton.compiler import compiler
from triton.runtime.jit import JITFunction

from tests.kernels.compile_kernels import MOST_SHARED, AbsentGPU

#: A kernel's source, its grid, what it is given.
Reached = tuple[Any, tuple[int, ...], tuple[Any, ...]]

reached: list[Reached] = []
#: What `of_ops` launches.
KERNELS = {
    *("_lse_kernel", "_stats_kernel", "spread_kernel", "weights_kernel"),
    *("scale_kernel", "losses_kernel", "tile_sums_kernel", "clip_kernel"),
    *("corners_kernel", "gradient_kernel"),
}


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


Launch = tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]


def kinds() -> list[Launch]:
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
        ((2,), (torch.nn.Parameter(half), *usual[1:]), options),
        ((2,), (x, (16,), *usual[2:]), options),
        ((2,), (x, (7,), *usual[2:]), options),
        ((2,), (*usual[:3], 6, 3, 0.5), options),
        ((2,), (*usual[:3], 5, 1, 0.5), options),
        ((2,), (*usual[:3], 5, 32, 0.5), options),
        ((2,), (*usual[:3], 5, 2**40, 0.5), options),
        ((2,), (*usual[:5], 2), options),
        ((2,), (*usual[:5], 2.0), options),
        ((2,), (*usual[:5], 1.0), options),
        ((2,), (*usual[:5], 1), options),
        ((2,), usual, {**options, "TWICE": True}),
        ((2,), usual, {"num_warps": 8, "TWICE": False, "WIDTH": 32}),
    ]


def of_ops() -> None:
    """The ops, with their gradients: every kernel but the attention's."""
    from weaktr.ops import clipped_cross_entropy, fuse_heads, head_stats

    generator = torch.Generator().manual_seed(0)
    for width in (16, 72):
        q, k = torch.randn(2, 1, 3, 9, width, generator=generator)
        weights = torch.rand(1, 3, generator=generator, requires_grad=True)
        values = torch.rand(1, 6, 2, generator=generator, requires_grad=True)
        stats = head_stats(q, k, num_classes=2, num_patches=6, backend="triton")
        fuse_heads(q, k, stats.lse, weights, values, backend="triton").sum().backward()
    logits = torch.randn(1, 5, 3, 3, generator=generator, requires_grad=True)
    labels = torch.zeros(1, 12, 12, dtype=torch.uint8)
    clipped_cross_entropy(logits, labels, backend="triton").loss.backward()


def is_same(given: Any, wanted: Any) -> bool:
    """Whether a driver is given the same; of tensors, which have been made anew, their dtype."""
    if isinstance(wanted, torch.Tensor):
        return isinstance(given, torch.Tensor) and given.dtype == wanted.dtype
    return type(given) is type(wanted) and given == wanted


def assert_same(given: list[Reached], wanted: list[Reached]) -> None:
    assert len(given) == len(wanted) > 0
    for (source, grid, arguments), (expected, expected_grid, others) in zip(
        given, wanted, strict=True
    ):
        assert source is expected
        assert (*grid, 1, 1)[:3] == expected_grid
        assert len(arguments) == len(others)
        assert all(map(is_same, arguments, others))


def reached_by(run: Callable[[], object]) -> list[Reached]:
    reached.clear()
    run()
    return list(reached)


class Forgets(dict[Any, Any]):
    """Keeps no launch."""

    def __setitem__(self, *_: Any) -> None:
        pass


def main() -> None:
    """Raises AssertionError where a launch is another one."""
    torch.cuda.is_available = lambda: True
    triton.runtime.driver.set_active(RecordingGPU())
    compiler.max_shared_mem = lambda _: MOST_SHARED
    from weaktr.kernels import launching
    from weaktr.ops.registry import Triton

    Triton.device_refusal = lambda *_: ""
    searches = 0
    search = JITFunction.run

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal searches
        searches += 1
        return search(*arguments, **options)

    wanted = [
        reached_by(partial(add_kernel[grid], *arguments, **options))
        for grid, arguments, options in kinds()
    ]
    for expected, (grid, arguments, options) in zip(wanted, kinds(), strict=True):
        launch = partial(launching.launch, add_kernel, grid, *arguments, **options)
        assert_same(reached_by(launch), expected)
    JITFunction.run = counted
    for expected, (grid, arguments, options) in zip(wanted, kinds(), strict=True):
        launch = partial(launching.launch, add_kernel, grid, *arguments, **options)
        assert_same(reached_by(launch), expected)
    assert searches == 0
    x = torch.zeros(64)
    for _ in range(2):  # Triton compiles anew for an address that is not aligned
        launching.launch(add_kernel, (1,), x[1:], (1,), x, 5, 3, 0.5, WIDTH=16, TWICE=False)
    assert searches == 2

    kept, launching._known = launching._known, Forgets()
    expected = reached_by(of_ops)
    launching._known = kept
    assert_same(reached_by(of_ops), expected)
    searches = 0
    assert_same(reached_by(of_ops), expected)
    assert searches == 0
    assert {source.fn.__name__ for source, *_ in expected} == KERNELS

    launching.MOST_KINDS = len(launching._known)
    launching.launch(add_kernel, (1,), x, (9,), x, 5, 3, 0.5, WIDTH=16, TWICE=False)
    assert len(launching._known) == 1


if __name__ == "__main__":
    main()
