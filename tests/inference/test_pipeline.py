"""The pipeline: order, overlap, bounded memory, errors and interruptions, with stand-ins."""

from __future__ import annotations

import _thread
import json
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from weaktr.data import DataError, Problem, Sample
from weaktr.inference.pipeline import (
    MODEL,
    PATIENCE,
    READERS,
    WRITERS,
    WRITTEN_A_WRITER,
    Limits,
    Parts,
    PipelineError,
    run_pipeline,
)
from weaktr.inference.timeline import Timeline

COUNT = 12


@dataclass
class Item:
    """A stand-in for a photograph and for its result."""

    number: int
    nbytes: int = 10


def samples(count=COUNT):
    return [
        Sample(f"photo{number}", Path(f"photo{number}.jpg"), None, None, f"list:{number}")
        for number in range(count)
    ]


def number_of(sample):
    return int(sample.name.removeprefix("photo"))


class Run:
    """A run whose parts note what they do, and do something else where a test says so."""

    def __init__(self, count=COUNT, batch=3, nbytes=10, **changed):
        self.samples, self.batch, self.nbytes = samples(count), batch, nbytes
        self.batches, self.recorded, self.left_out = [], [], {}
        self.in_flight, self.most_in_flight = 0, 0
        self.changed, self.lock = changed, threading.Lock()

    def _maybe(self, part, number):
        if part in self.changed:
            self.changed[part](number)

    def read(self, sample):
        self._maybe("read", number_of(sample))
        with self.lock:
            self.in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self.in_flight)
        return Item(number_of(sample), self.nbytes)

    def compute(self, batch):
        for one in batch:
            self._maybe("compute", one.number)
        self._maybe("computed", len(batch))
        self.batches.append([one.number for one in batch])
        with self.lock:
            self.in_flight -= len(batch)
        return [Item(one.number) for one in batch]

    def write(self, result):
        self._maybe("write", result.number)
        return 10 * result.number

    def record(self, sample, written):
        self._maybe("record", number_of(sample))
        if isinstance(written, Problem):
            self.left_out[sample.name] = written.message
        else:
            assert written == 10 * number_of(sample)
            self.recorded.append(number_of(sample))

    def go(self, readers=2, writers=2, queue_bytes=1000, timeline=None):
        parts = Parts(
            self.read, lambda batch, _: len(batch) < self.batch, self.compute, self.write,
            self.record,
        )  # fmt: skip
        run_pipeline(self.samples, parts, Limits(readers, writers, queue_bytes), timeline)
        return self


@pytest.mark.parametrize("queue_bytes", [1, 25, 1000])
@pytest.mark.parametrize(("readers", "writers"), [(1, 1), (2, 3), (7, 5)])
def test_everything_is_recorded_in_order(readers, writers, queue_bytes):
    """Whoever is first: later images are read and written faster than earlier ones."""

    def unequal(number):
        time.sleep(0.002 * (COUNT - number))

    run = Run(read=unequal, write=unequal).go(readers, writers, queue_bytes)
    assert run.recorded == list(range(COUNT))
    assert run.batches == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_nothing_to_do():
    assert Run(count=0).go().recorded == []


def test_the_slowest_part_sets_the_time():
    """A stand-in device of fixed times: one after the other, each would be busy for a third."""

    def part(_):
        time.sleep(0.03)

    timeline = Timeline()
    Run(count=20, batch=1, read=part, compute=part, write=part).go(1, 1, timeline=timeline)
    assert all(timeline.busy(name) > 0.4 for name in (READERS, MODEL, WRITERS))


def test_a_trace_shows_that_the_parts_overlap(tmp_path):
    def part(_):
        time.sleep(0.01)

    timeline = Timeline(keep_spans=True)
    Run(read=part, compute=part, write=part, batch=1).go(1, 1, timeline=timeline)
    timeline.write_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    rows = {e["args"]["name"] for e in events if e["ph"] == "M"}
    assert {"reader", "model", "writer"} <= rows
    spans = {
        part: [(e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == work]
        for part, work in ((READERS, "read"), (MODEL, "compute"), (WRITERS, "write"))
    }
    assert all(len(own) == COUNT for own in spans.values())

    def overlaps(one, other):
        return any(a < d and c < b for a, b in spans[one] for c, d in spans[other])

    assert overlaps(READERS, MODEL)
    assert overlaps(MODEL, WRITERS)


def test_memory_is_bounded():
    """Readers wait for the model. Alive are at most what the queue holds and the one on which all
    wait, a batch and the image after it, and one image a reader."""
    run = Run(count=40, batch=2, nbytes=100, computed=lambda _: time.sleep(0.01))
    run.go(readers=3, queue_bytes=400)
    assert run.most_in_flight <= (4 + 1) + (2 + 1) + 3
    assert run.recorded == list(range(40))


def test_an_image_above_the_bound_passes_alone():
    run = Run(nbytes=10**9).go(queue_bytes=10)
    assert run.recorded == list(range(COUNT))


def test_unreadable_images_are_left_out_by_name():
    def read(number):
        if number in (0, 5, COUNT - 1):
            raise DataError(Problem(f"photo{number}.jpg", "", "is broken"))

    run = Run(read=read).go()
    assert run.left_out == {f"photo{n}": "is broken" for n in (0, 5, COUNT - 1)}
    assert run.recorded == [n for n in range(COUNT) if n not in (0, 5, COUNT - 1)]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no room"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        torch.distributed.DistBackendError("Last error:\nCuda failure 2 'out of memory'"),
        torch.distributed.DistBackendError("Last error:\nFailed to CUDA calloc async 608 bytes"),
    ],
)
def test_an_image_that_does_not_fit_alone_is_left_out_by_name(error):
    """And the others of its batch are computed."""

    def compute(number):
        if number == 4:
            raise error

    run = Run(compute=compute).go()
    assert run.recorded == [n for n in range(COUNT) if n != 4]
    assert list(run.left_out) == ["photo4"]
    assert "does not fit the memory" in run.left_out["photo4"]


def test_a_batch_that_does_not_fit_is_halved_and_so_are_those_after_it(caplog):
    tried = []

    def computed(count):
        tried.append(count)
        if count > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    run = Run(count=16, batch=6, computed=computed).go()
    assert run.recorded == list(range(16))
    assert tried == [6, 3, 2, 1, 2, 1, *[2] * 5]
    (record,) = caplog.records
    assert "the memory does not hold 6 photographs at a time" in record.getMessage()


def test_batches_after_one_that_did_not_fit_are_as_large_as_their_bytes_allow():
    def computed(count):
        if count > 6:
            raise torch.OutOfMemoryError("CUDA out of memory")

    run = Run(count=20, batch=8, computed=computed).go()
    assert [len(batch) for batch in run.batches] == [4] * 5


@pytest.mark.parametrize("gpu", [None, 3])
def test_every_thread_works_with_the_gpu_of_the_one_that_started_it(gpu, monkeypatch):
    """Otherwise CUDA's calls take memory on the first GPU."""
    chosen = {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: gpu is not None)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: gpu)
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda own: chosen.update({threading.current_thread().name: own})
    )
    Run().go(1, 2)
    names = ["reader", "model", "writer 1", "writer 2", "index"]
    assert chosen == ({} if gpu is None else dict.fromkeys(names, 3))


def test_an_image_that_the_model_refuses_is_left_out_by_name():
    """By itself: its neighbours in the batch are computed again without it."""

    def compute(number):
        if number == 4:
            raise ValueError("no numbers")
        if number == 9:
            raise DataError(Problem("photo9.jpg", "", "is broken"))

    run = Run(compute=compute).go()
    assert run.left_out == {"photo4": "cannot be worked on: no numbers", "photo9": "is broken"}
    assert run.recorded == [n for n in range(COUNT) if n not in (4, 9)]
    assert run.batches == [[0, 1, 2], [3], [5], [6, 7, 8], [10], [11]]


@pytest.mark.parametrize("part", ["read", "write"])
def test_without_memory_to_read_or_write_it_an_image_is_left_out(part):
    def fail(number):
        if number == 4:
            raise MemoryError

    run = Run(**{part: fail}).go()
    assert list(run.left_out) == ["photo4"]
    assert run.recorded == [n for n in range(COUNT) if n != 4]


@pytest.mark.parametrize("part", ["read", "compute", "write", "record"])
def test_an_error_names_the_image_and_keeps_what_is_done(part):
    before = threading.active_count()

    def fail(number):
        if number == 7:
            raise OSError("disk full")

    run = Run(**{part: fail})
    with pytest.raises(PipelineError, match=r"photo7.*disk full") as caught:
        run.go(1, 1)
    assert isinstance(caught.value.__cause__, OSError)
    assert run.recorded == list(range(len(run.recorded)))
    if part != "read":  # whose error may come before the model has begun
        assert len(run.recorded) >= 6  # the batches before that of the image
    deadline = time.monotonic() + 2
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_what_the_model_has_handed_over_is_written_after_an_error():
    def compute(number):
        if number == 9:
            raise KeyError("bug")

    run = Run(compute=compute, write=lambda _: time.sleep(0.02))
    with pytest.raises(PipelineError, match="photo9"):
        run.go(1, 1)
    assert run.recorded == list(range(9))


@pytest.mark.parametrize("hangs", ["read", "write"])
def test_an_interruption_ends_all_parts_soon(hangs):
    """Even where a reader or a writer hangs."""

    def compute(number):
        if number == 3:
            raise KeyboardInterrupt

    def hang(number):
        if number >= 3 and hangs == "read" and number > 5:
            time.sleep(30)
        if hangs == "write" and number == 2:
            time.sleep(30)

    run = Run(batch=1, compute=compute, **{hangs: hang})
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.go(2, 1)
    assert time.monotonic() - start < sum(PATIENCE) + 1
    assert run.recorded == ([0, 1, 2] if hangs == "read" else [0, 1])


def test_what_is_written_is_recorded_although_one_writer_hangs():
    """After an interruption: all but the image that hangs, and those after it in its batch."""

    def compute(number):
        if number == 30:
            time.sleep(0.3)
            raise KeyboardInterrupt

    def hang(number):
        if number == 8:
            time.sleep(30)

    run = Run(count=40, batch=1, compute=compute, write=hang)
    with pytest.raises(KeyboardInterrupt):
        run.go(2, 3)
    assert set(run.recorded) >= set(range(8))
    assert 8 not in run.recorded
    assert len(run.recorded) >= 15  # those that passed before `written` was full


def test_few_written_images_wait_to_be_recorded():
    """Where recording is slow (scores), the writers wait for it."""
    most, waiting, lock = 0, 0, threading.Lock()

    def write(number):
        nonlocal most, waiting
        with lock:
            waiting += 1
            most = max(most, waiting)

    def record(number):
        nonlocal waiting
        time.sleep(0.005)
        with lock:
            waiting -= 1

    run = Run(count=60, write=write, record=record).go(readers=2, writers=2)
    assert run.recorded == list(range(60))
    assert most <= 2 * (WRITTEN_A_WRITER + 1) + 2


def test_a_fault_of_the_pipeline_itself_ends_it():
    class Odd(Item):
        @property
        def nbytes(self):
            raise TypeError("no size")

        @nbytes.setter
        def nbytes(self, value):
            pass

    run = Run()
    run.read = lambda sample: Odd(number_of(sample))
    with pytest.raises(PipelineError, match=r"reader.*no size"):
        run.go(1, 1)


def test_an_interruption_is_heard_while_compiled_code_runs():
    """Which Python cannot interrupt: the model's part has a thread of its own."""
    run = Run(batch=1, compute=lambda number: time.sleep(5 if number == 2 else 0))
    threading.Timer(0.3, _thread.interrupt_main).start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.go(1, 1)
    assert time.monotonic() - start < 0.3 + 2
    assert run.recorded == [0, 1]
