"""Photographs through three parts that work at the same time, joined by bounded queues.

    samples ─▶ readers ──▶ [ready] ──▶ model ──▶ [results] ──▶ writers ──▶ [written] ──▶ index
               threads                 one thread              threads                   one thread

The calling thread waits for them, so that Ctrl-C is heard at once: compiled code that takes seconds
cannot be interrupted.

Every sample passes every queue, in the order of the samples; one that cannot be labelled passes as
a `Problem`. What comes out does not depend on the number of threads or the size of the queues.

A batch for which the memory does not suffice is halved, and those after it are smaller.

An error in a part, or Ctrl-C, ends all of them: readers at once, the model after its batch, the
writers after what the model has handed over.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch

from weaktr.data import DataError, Problem, Sample
from weaktr.data.parallel import cores_of_this_process
from weaktr.inference.timeline import Timeline
from weaktr.models.memory import is_out_of_memory

log = logging.getLogger("weaktr")

READERS, MODEL, WRITERS = "readers", "model", "writers"
#: Seconds that an interrupted pipeline gives its writers to end, and then the index.
PATIENCE = 1.2, 0.5
#: How many written images may wait to be recorded, for each writer.
WRITTEN_A_WRITER = 4
MIB = 2**20


class Sized(Protocol):
    """What waits in a queue: it says how much memory it takes."""

    @property
    def nbytes(self) -> int:
        """Bytes of its arrays and tensors."""
        ...


T = TypeVar("T")
Read = TypeVar("Read", bound=Sized)
Result = TypeVar("Result", bound=Sized)
Written = TypeVar("Written")


class PipelineError(RuntimeError):
    """A part failed; names the image."""


@dataclass(frozen=True)
class Parts(Generic[Read, Result, Written]):
    """The work of each part.

    Args:
        read: sample -> what the model takes; in several threads. `DataError` leaves the sample out.
        fits: whether a further image may join a batch; decides on the batches.
        compute: a batch -> a result for each; in one thread. `ValueError`, or too little
            memory, leaves an image out that fails by itself.
        write: writes a result; in several threads.
        record: notes what was written, or why nothing was; in the order of the samples, in one
            thread.
    """

    read: Callable[[Sample], Read]
    fits: Callable[[Sequence[Read], Read], bool]
    compute: Callable[[Sequence[Read]], Sequence[Result]]
    write: Callable[[Result], Written]
    record: Callable[[Sample, Written | Problem], None]


@dataclass(frozen=True)
class Limits:
    """How many threads the parts have, and how much may wait between them.

    Args:
        readers, writers: threads.
        queue_bytes: of the images before the model, and of the results after it, each.
    """

    readers: int = 2
    writers: int = 2
    queue_bytes: int = 64 * MIB


def limits_for(device: torch.device, queue_mb: int) -> Limits:
    """Threads of readers and writers: a few beside a GPU; on a CPU the model needs the cores."""
    cores = cores_of_this_process()
    if device.type == "cpu":
        return Limits(1, 1, queue_mb * MIB)
    return Limits(max(2, min(12, cores - 2)), max(2, min(8, cores // 2)), queue_mb * MIB)


def run_pipeline(
    samples: Sequence[Sample],
    parts: Parts[Read, Result, Written],
    limits: Limits,
    timeline: Timeline | None = None,
) -> None:
    """Run all samples through the parts; returns when everything is written and recorded.

    Raises:
        PipelineError: a part failed (its cause is the error); what was written before is recorded.
        DataError: likewise, where a file other than the photograph is at fault.
        KeyboardInterrupt: likewise, within the seconds of `PATIENCE`.
    """
    Pipeline(samples, parts, limits, timeline or Timeline()).run()


@dataclass
class _State:
    """What the parts share: one lock, and whether they are to stop."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    stopping: bool = False
    error: BaseException | None = None

    def stop(self, error: BaseException | None = None) -> None:
        """Let readers and model end; the first error is kept."""
        with self.changed:
            self.stopping = True
            self.error = self.error or error
            self.changed.notify_all()


class _Stopped(Exception):
    """Ends a part that waits in a pipeline that stops."""


class OrderedQueue(Generic[T]):
    """Numbered values, handed out by number: a value waits until all smaller numbers have passed.

    A value is refused for as long as the queue would hold more than its limit, unless it is the
    next to be handed out, on which the others wait.

    Args:
        state: of the pipeline.
        total: how many values pass; their numbers are 0..total-1.
        limit: bytes that it may hold.
    """

    def __init__(self, state: _State, total: int, limit: int) -> None:
        self._state, self._total, self._limit = state, total, limit
        self._values: dict[int, tuple[T, int]] = {}
        self._held, self._next, self._is_closed = 0, 0, False

    def put(self, number: int, value: T, size: int = 0) -> None:
        """Hand in a value of `size` bytes; waits for room.

        Raises:
            _Stopped: the pipeline stops.
        """
        with self._state.changed:
            while (
                self._held + size > self._limit
                and self._held
                and size
                and number != self._next
                and not self._state.stopping
            ):
                self._state.changed.wait()
            if self._state.stopping:
                raise _Stopped
            self._insert(number, value, size)

    def keep(self, number: int, value: T) -> None:
        """Hand in a value that counts as one byte; waits for room unless the pipeline stops."""
        with self._state.changed:
            while (
                self._held >= self._limit
                and number != self._next
                and not self._state.stopping
                and not self._is_closed
            ):
                self._state.changed.wait()
            self._insert(number, value, 1)

    def _insert(self, number: int, value: T, size: int) -> None:
        self._values[number] = (value, size)
        self._held += size
        self._state.changed.notify_all()

    def close(self) -> None:
        """No more values come: what is held is handed out, gaps are passed over."""
        with self._state.changed:
            self._is_closed = True
            self._state.changed.notify_all()

    def get(self, *, ends_when_stopping: bool) -> tuple[int, T] | None:
        """The next value and its number, None at the end; waits for it.

        Raises:
            _Stopped: the pipeline stops, where `ends_when_stopping`.
        """
        with self._state.changed:
            while True:
                if ends_when_stopping and self._state.stopping:
                    raise _Stopped
                if self._is_closed and self._values:
                    self._next = min(self._values)
                if self._next in self._values:
                    break
                if self._is_closed or self._next >= self._total:
                    return None
                self._state.changed.wait()
            number = self._next
            value, size = self._values.pop(number)
            self._held -= size
            self._next += 1
            self._state.changed.notify_all()
            return number, value


class Pipeline(Generic[Read, Result, Written]):
    """See `run_pipeline`, whose arguments these are. One run only."""

    def __init__(
        self,
        samples: Sequence[Sample],
        parts: Parts[Read, Result, Written],
        limits: Limits,
        timeline: Timeline,
    ) -> None:
        self.samples, self.parts, self.limits, self.timeline = samples, parts, limits, timeline
        self.state = _State()
        arguments = self.state, len(samples), limits.queue_bytes
        self.ready: OrderedQueue[Read | Problem] = OrderedQueue(*arguments)
        self.results: OrderedQueue[Result | Problem] = OrderedQueue(*arguments)
        self.written: OrderedQueue[Written | Problem] = OrderedQueue(
            self.state, len(samples), WRITTEN_A_WRITER * limits.writers
        )
        self._numbers = iter(range(len(samples)))
        self._most_bytes: float = math.inf  #: of a batch, once the memory has not held one

    def run(self) -> None:
        """Run all parts, and wait for them."""
        threads = {READERS: self.limits.readers, MODEL: 1, WRITERS: self.limits.writers}
        self.timeline.begin(threads)
        _start("reader", self.limits.readers, self._read_all, self.state)
        writers = _start("writer", self.limits.writers, self._write_all, self.state)
        (index,) = _start("index", 1, self._record_all, self.state)
        model = _start("model", 1, self._compute_all, self.state)
        try:
            _join(model)
            if isinstance(self.state.error, KeyboardInterrupt):
                raise self.state.error
            self.results.close()
            _join(writers)
            self.written.close()
            _join([index])
        except BaseException:  # Ctrl-C
            self.state.stop()
            self.results.close()
            _join(writers, PATIENCE[0])
            self.written.close()
            _join([index], PATIENCE[1])
            raise
        finally:
            self.timeline.end()
        if self.state.error is not None:
            raise self.state.error

    # ---- readers

    def _read_all(self) -> None:
        while (number := self._next_number()) is not None:
            sample = self.samples[number]
            with self._failing("reading", sample.name):
                try:
                    with self.timeline.working(READERS, "read"):
                        value: Read | Problem = self.parts.read(sample)
                except DataError as error:
                    value = error.problems[0]
                except (MemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    value = problem_of(sample, error)
            size = 0 if isinstance(value, Problem) else value.nbytes
            with self.timeline.waiting(READERS, "room"):
                self.ready.put(number, value, size)

    def _next_number(self) -> int | None:
        with self.state.changed:
            return None if self.state.stopping else next(self._numbers, None)

    # ---- model

    def _compute_all(self) -> None:
        batch: list[tuple[int, Read]] = []
        while True:
            with self.timeline.waiting(MODEL, "images"):
                item = self.ready.get(ends_when_stopping=True)
            if item is None:
                break
            number, value = item
            if isinstance(value, Problem):
                self.results.put(number, value)
                continue
            if batch and not self._fits([one for _, one in batch], value):
                self._compute(batch)
                batch = []
            batch.append((number, value))
        if batch:
            self._compute(batch)

    def _fits(self, batch: Sequence[Read], further: Read) -> bool:
        nbytes = sum(one.nbytes for one in batch) + further.nbytes
        return nbytes <= self._most_bytes and self.parts.fits(batch, further)

    def _compute(self, batch: Sequence[tuple[int, Read]]) -> None:
        names = ", ".join(self.samples[number].name for number, _ in batch)
        with self._failing("computing", names), self.timeline.working(MODEL, "compute"):
            results = self._results_of(batch)
        with self.timeline.waiting(MODEL, "writers"):
            for (number, _), result in zip(batch, results, strict=True):
                size = 0 if isinstance(result, Problem) else result.nbytes
                self.results.put(number, result, size)

    def _results_of(self, batch: Sequence[tuple[int, Read]]) -> list[Result | Problem]:
        """Of one batch; where it fails by its images, of these one by one, and where the memory
        does not suffice, of its halves."""
        half = (len(batch) + 1) // 2
        halves = batch[:half], batch[half:]
        if len(batch) > 1 and _bytes_of(batch) > self._most_bytes:
            return [result for part in halves for result in self._results_of(part)]
        try:
            return list(self.parts.compute([value for _, value in batch]))
        except (MemoryError, RuntimeError, ValueError) as error:
            is_too_large = is_out_of_memory(error)
            if not (isinstance(error, ValueError) or is_too_large):
                raise
            if len(batch) == 1:
                return [problem_of(self.samples[batch[0][0]], error)]
        if not is_too_large:
            return [result for one in batch for result in self._results_of([one])]
        if self._most_bytes == math.inf:
            log.warning(
                "the memory does not hold %d photographs at a time: batches are smaller from now "
                "on, which is slower and changes no result; a smaller batch_tokens or batch_size "
                "saves the attempt", len(batch),
            )  # fmt: skip
        self._most_bytes = max(map(_bytes_of, halves))
        return [result for part in halves for result in self._results_of(part)]

    # ---- writers

    def _write_all(self) -> None:
        while True:
            with self.timeline.waiting(WRITERS, "results"):
                item = self.results.get(ends_when_stopping=False)
            if item is None:
                return
            number, result = item
            value: Written | Problem
            if isinstance(result, Problem):
                value = result
            else:
                sample = self.samples[number]
                with (
                    self._failing("writing", sample.name),
                    self.timeline.working(WRITERS, "write"),
                ):
                    try:
                        value = self.parts.write(result)
                    except MemoryError as error:
                        value = problem_of(sample, error)
            self.written.keep(number, value)

    def _record_all(self) -> None:
        while (item := self.written.get(ends_when_stopping=False)) is not None:
            number, value = item
            sample = self.samples[number]
            with self._failing("recording", sample.name):
                self.parts.record(sample, value)

    @contextmanager
    def _failing(self, work: str, names: str) -> Iterator[None]:
        """Turn an error of the body of a ``with`` statement into one that names the images."""
        try:
            yield
        except DataError as error:  # it names its file
            self.state.stop(error)
            raise _Stopped from error
        except Exception as error:
            failure = PipelineError(f"{names}: {work} failed: {error or type(error).__name__}")
            failure.__cause__ = error
            self.state.stop(failure)
            raise _Stopped from error


def _bytes_of(batch: Sequence[tuple[int, Sized]]) -> int:
    return sum(value.nbytes for _, value in batch)


def _start(
    name: str, count: int, work: Callable[[], None], state: _State
) -> list[threading.Thread]:
    gpu = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def run() -> None:
        try:
            if gpu is not None:  # a thread's own; without it CUDA's calls are for the first GPU
                torch.cuda.set_device(gpu)
            work()
        except _Stopped:  # by another part, or by `Pipeline._failing`
            pass
        except Exception as error:
            failure = PipelineError(f"{name} failed: {error or type(error).__name__}")
            failure.__cause__ = error
            state.stop(failure)
        except BaseException as error:
            state.stop(error)

    threads = [
        threading.Thread(target=run, name=f"{name} {i + 1}" if count > 1 else name, daemon=True)
        for i in range(count)
    ]
    for thread in threads:
        thread.start()
    return threads


def _join(threads: Sequence[threading.Thread], seconds: float | None = None) -> None:
    """Wait for threads, no longer than so many seconds for all of them."""
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    for thread in threads:
        while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            thread.join(min(left, 0.1))  # in turns, since not every system wakes it for Ctrl-C


def problem_of(sample: Sample, error: BaseException) -> Problem:
    """What is wrong with an image whose values the model refuses, or which does not fit."""
    if isinstance(error, DataError) and error.problems:
        return error.problems[0]
    message = f"cannot be worked on: {error}"
    if is_out_of_memory(error):
        message = f"does not fit the memory; set max_side to a smaller number of pixels ({error})"
    return Problem(str(sample.image), sample.source, message)
