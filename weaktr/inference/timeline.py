"""What each part of a pipeline does when: shares of waiting, and a trace to look at."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from weaktr.files import write_bytes

#: The part of a timeline to which the work of a GPU is added.
GPU = "GPU"


class GpuSpan(NamedTuple):
    """A step on a GPU, between two events of its stream."""

    name: str
    begin: torch.cuda.Event
    end: torch.cuda.Event


@dataclass
class Timeline:
    """Seconds that parts worked, summed over the threads of each; thread-safe.

    Args:
        keep_spans: keep every span, for `write_trace`.
    """

    keep_spans: bool = False

    def __post_init__(self) -> None:
        self.started = time.perf_counter()
        self.ended: float | None = None
        self.threads: dict[str, int] = {}
        self._lock = threading.Lock()
        self._worked: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
        self._rows: dict[tuple[str, str], int] = {}
        self._spans: list[dict[str, Any]] = []
        self._gpu_spans: deque[GpuSpan] = deque()
        self._gpu_start: tuple[torch.cuda.Event, float] | None = None

    @contextmanager
    def working(self, part: str, work: str) -> Iterator[None]:
        """Count the body of a ``with`` statement as work of a part, on a row of this thread."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, work, start, time.perf_counter() - start)

    @contextmanager
    def waiting(self, part: str, reason: str) -> Iterator[None]:
        """Show the body of a ``with`` statement in the trace as waiting of a part."""
        start = time.perf_counter()
        try:
            yield
        finally:
            row, seconds = threading.current_thread().name, time.perf_counter() - start
            with self._lock:
                self._keep(part, row, f"waits for {reason}", start, seconds)

    def add(
        self, part: str, work: str, start: float, seconds: float, row: str | None = None
    ) -> None:
        """Count work that was timed elsewhere.

        Args:
            part: which.
            work: in a word.
            start: `time.perf_counter` at its beginning.
            seconds: that it took.
            row: of the trace; None = one of the current thread.
        """
        with self._lock:
            self._worked[part][work] += seconds
            self._keep(part, row or threading.current_thread().name, work, start, seconds)

    def _keep(self, part: str, row: str, name: str, start: float, seconds: float) -> None:
        if not self.keep_spans or seconds < 1e-5:
            return
        number = self._rows.setdefault((part, row), len(self._rows))
        self._spans.append(
            {
                "name": name,
                "cat": part,
                "ph": "X",
                "pid": 0,
                "tid": number,
                "ts": 1e6 * (start - self.started),
                "dur": 1e6 * seconds,
            }
        )

    def start_gpu(self, stream: torch.cuda.Stream) -> None:
        """Note when the GPU's clock starts; waits for the GPU the first time."""
        if self._gpu_start is None:
            event = torch.cuda.Event(enable_timing=True)
            event.record(stream)
            event.synchronize()
            self._gpu_start = event, time.perf_counter()

    def expect(self, spans: Sequence[GpuSpan]) -> None:
        """Count these spans as work of the GPU once they have run."""
        with self._lock:
            self._gpu_spans += spans

    def settle(self) -> None:
        """Count the expected spans that have run, in the order in which they were expected.

        A fault of the GPU is left to the model's part, which meets it too and names the image.
        """
        ended = []
        with self._lock, suppress(RuntimeError):
            while self._gpu_spans and self._gpu_spans[0].end.query():
                ended.append(self._gpu_spans.popleft())
        for name, begin, end in ended:
            assert self._gpu_start is not None
            event, start = self._gpu_start
            seconds = begin.elapsed_time(end) / 1000
            self.add(GPU, name, start + event.elapsed_time(begin) / 1000, seconds, row=GPU)

    def begin(self, threads: dict[str, int]) -> None:
        """Start the clock for parts of so many threads."""
        self.started, self.threads = time.perf_counter(), threads

    def end(self) -> None:
        """Stop the clock."""
        self.ended = time.perf_counter()

    def busy(self, part: str) -> float:
        """The share of the time from `begin` to `end`, or so far, in which a part worked: 0..1."""
        elapsed = (self.ended or time.perf_counter()) - self.started
        seconds = sum(self.work(part).values())
        return min(1.0, seconds / max(elapsed * self.threads.get(part, 1), 1e-9))

    def work(self, part: str) -> dict[str, float]:
        """Seconds of each kind of work of a part."""
        with self._lock:
            return dict(self._worked[part])

    def write_trace(self, path: Path) -> None:
        """Write the spans in the trace format of Chrome and Perfetto, a row for each thread."""
        with self._lock:
            names = [
                {
                    "name": "thread_name",
                    "ph": "M",
                    "pid": 0,
                    "tid": number,
                    "args": {"name": part if row == "model" else row},
                }
                for (part, row), number in self._rows.items()
            ]
            content = json.dumps({"otherData": OTHER_DATA, "traceEvents": names + self._spans})
        write_bytes(path, content.encode(), durable=False)


#: By which `require_replaceable` knows a trace.
OTHER_DATA = {"written by": "weaktr"}
TRACE_MARK = b'"written by": "weaktr"'


class Steps:
    """Times the steps of one batch: on a CPU as they run, on a GPU by events, without waiting.

    Args:
        device: where the steps run.
        timeline: gets their seconds; None = nothing is timed.
    """

    def __init__(self, device: torch.device, timeline: Timeline | None) -> None:
        self._timeline, self._device = timeline, device
        self._on_gpu = device.type == "cuda"
        if timeline is not None and self._on_gpu:
            timeline.start_gpu(torch.cuda.current_stream(device))

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """One step, the body of a ``with`` statement."""
        if self._timeline is None:
            yield
        elif not self._on_gpu:
            with self._timeline.working(name, name):
                yield
        else:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            stream = torch.cuda.current_stream(self._device)
            begin.record(stream)
            yield
            end.record(stream)
            self._timeline.expect([GpuSpan(name, begin, end)])
