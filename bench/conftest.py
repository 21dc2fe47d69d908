"""What every benchmark shares: collection, machine facts, peak memory, `measure` and `record`."""

from __future__ import annotations

import ctypes
import gc
import platform
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from weaktr import __version__

MIB = 2**20
Call = Callable[[], Any]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("python_files", "bench_*.py")
    config.addinivalue_line("python_functions", "bench_*")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all-cells", action="store_true", help="the long form of bench_dense_crf.py")


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    """Facts that a number means nothing without."""
    machine_info["weaktr"] = __version__
    machine_info["torch"] = torch.__version__
    machine_info["threads"] = torch.get_num_threads()
    machine_info["platform"] = platform.platform()
    if torch.cuda.is_available():
        machine_info["gpu"] = torch.cuda.get_device_name()


@pytest.fixture
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def data() -> Path:
    """The folder of stored pictures and outputs."""
    return Path(__file__).parents[1] / "tests" / "golden"


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mib(call: Call) -> tuple[Any, float | None]:
    """Run `call` once: (its result, MiB that it needed at its peak beyond what was there).

    With a GPU: of torch's allocator. Otherwise: resident memory of the process, on Linux; None
    elsewhere.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        result = call()
        synchronize()
        return result, (torch.cuda.max_memory_allocated() - before) / MIB
    if sys.platform != "linux":
        return call(), None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc: give freed memory back, or it hides what comes
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    result = call()
    return result, (resident("VmHWM") - before) / MIB


def resident(field: str) -> int:
    """Bytes in a field of this process's status; "VmHWM": the most so far, on Linux."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise LookupError(f"/proc/self/status has no {field}")


def largest_difference(actual: Any, expected: Any) -> float:
    """max |actual - expected| over one or several tensors."""
    if isinstance(expected, Sequence):
        pairs = zip(actual, expected, strict=True)
        return max(largest_difference(got, wanted) for got, wanted in pairs)
    actual, expected = (torch.as_tensor(x).detach().cpu().double() for x in (actual, expected))
    return float((actual - expected).abs().max())


class Replay:
    """A clock for pytest-benchmark that shows times which were taken before."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.time = 0.0
        self.coming = iter(seconds)

    def now(self) -> float:
        return self.time

    def next_round(self) -> None:
        self.time += next(self.coming)


def describe(
    benchmark: Any,
    *,
    group: str,
    row: str,
    error: float,
    within: float,
    peak: float | None = None,
    baseline: bool = False,
    items: int = 1,
    **facts: Any,
) -> None:
    """Note what a row's times are of.

    Args:
        benchmark: the fixture of pytest-benchmark.
        group: the work, with its shape; implementations of a group are compared.
        row: the implementation: a backend, a package, or "published".
        error: largest difference from the result of the definition.
        within: largest `error` with which a time is still worth reporting.
        peak: MiB needed, where known.
        baseline: what the group's other rows are compared with.
        items: images per call.
        facts: shape, dtype and whatever else explains the number.
    """
    benchmark.group = group
    benchmark.extra_info.update(
        row=row,
        baseline=baseline,
        items=items,
        error=error,
        within=within,
        peak_mib=peak,
        threads=torch.get_num_threads(),
    )
    benchmark.extra_info.update(facts)


def device_ms(call: Call) -> float | None:
    """Milliseconds that the GPU computes for a call, however long the host takes; None without one.

    The sum over its kernels and copies, as CUPTI clocks them.
    """
    if not torch.cuda.is_available():
        return None
    synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        call()
        synchronize()
    return sum(event.self_device_time_total for event in profiled.key_averages()) / 1000


def require_right(benchmark: Any) -> None:
    """Fail a row that differs from the definition by more than it may.

    After its times were taken: on a GPU that is there for minutes, both are worth knowing.
    """
    facts = benchmark.extra_info
    error, within = facts["error"], facts["within"]
    assert error <= within, (
        f"{facts['row']} differs from the definition by {error:.3g}, more than {within:.3g}"
    )


def add_device_time(benchmark: Any, call: Call, floor: float | None) -> None:
    """Note how long the GPU computes, and both times as multiples of the floor (seconds)."""
    facts, computed = benchmark.extra_info, device_ms(call)
    if computed is not None:
        facts["device_ms"] = computed
    if floor is not None:
        median = benchmark.stats.stats.median
        facts.update(floor_ms=1000 * floor, times_the_floor=median / floor)
        if computed is not None:
            facts["device_times_the_floor"] = computed / (1000 * floor)


@pytest.fixture
def record(request: pytest.FixtureRequest) -> Callable[..., None]:
    """``record(seconds, group=..., row=..., ...)``: see the inner function."""

    def run(seconds: Sequence[float], **description: Any) -> None:
        """Hand in times that were taken in turns with the group's other rows.

        Args:
            seconds: of each round.
            description: see `describe`.
        """
        clock = Replay(seconds)
        request.node.add_marker(pytest.mark.benchmark(timer=clock.now))
        benchmark = request.getfixturevalue("benchmark")
        describe(benchmark, **description)
        benchmark.pedantic(clock.next_round, rounds=len(seconds))
        require_right(benchmark)

    return run


@pytest.fixture
def measure(benchmark: Any) -> Callable[..., None]:
    """``measure(call, group=..., row=..., ...)``: see the inner function."""

    def run(
        call: Call,
        *,
        expected: Tensor | Sequence[Tensor],
        floor: float | None = None,
        **description: Any,
    ) -> None:
        """Time, and check: a row that is wrong fails, and the table leaves it out.

        Args:
            call: one piece of work; returns what is compared with `expected`.
            expected: the result of the definition.
            floor: seconds that the work takes at least (see `floor.py`), where known.
            description: see `describe`; `error` and `peak` are measured here.
        """
        result, peak = peak_mib(call)
        error = largest_difference(result, expected)
        describe(benchmark, error=error, peak=peak, **description)

        def timed() -> None:
            call()
            synchronize()

        benchmark(timed)
        if benchmark.stats is not None:  # None: --benchmark-disable
            add_device_time(benchmark, call, floor)
        require_right(benchmark)

    return run
