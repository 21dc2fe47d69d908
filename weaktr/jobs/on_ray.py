"""The shards of a task on a cluster of Ray: a fixed pool of workers, each with the model.

What travels is the name of a shard and a report; photographs and masks never do. A worker whose
process or machine dies is started again by Ray, where there is room, and its shard is gone on with.
A worker gets its first shard when its model is loaded, so that one for which there is no room yet
holds up nothing.
"""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from weaktr.jobs.shards import ShardJob, ShardTask, ready_job
from weaktr.labelling.shard_report import ELSEWHERE, WHOLE, ShardsReport
from weaktr.labelling.worker import make_shards
from weaktr.progress import Meter, set_up_logging
from weaktr.shards.inputs import absolute
from weaktr.shards.output import clear_whole

log = logging.getLogger("weaktr")

#: How often Ray gives a shard to a worker again whose process or machine has died.
RETRIES = 5
#: Seconds without a result after which idle workers are given the shards of others too; a shard
#: that another worker holds is left at once.
STALLED = 120.0
#: Bytes of the object store of a Ray of one's own: reports are small.
STORE_BYTES = 80 * 2**20


class Worker:
    """An actor: holds the model, and makes a shard at a time.

    Args:
        task: with absolute paths.
        threads: CPU threads for the model; None = as it is.
    """

    def __init__(self, task: ShardTask, threads: int | None) -> None:
        import torch

        set_up_logging(logging.WARNING)
        if threads is not None:
            torch.set_num_threads(threads)
        self.job = ready_job(task)
        self.scratch = tempfile.TemporaryDirectory(prefix="weaktr-")

    def ready(self) -> int:
        """The process, once the model is loaded."""
        return os.getpid()

    def make(self, name: str) -> ShardsReport:
        """Make one shard."""
        scratch = Path(self.scratch.name)
        return make_shards(self.job.maker, self.job.shards, [name], scratch)


def run_on_ray(task: ShardTask, workers: int | None = None) -> tuple[ShardsReport, ShardJob]:
    """Make the masks of all shards.

    Args:
        task: see `weaktr.jobs.shards`.
        workers: how many actors; None = one for each GPU, or each CPU where there are none.

    Raises:
        ValueError: something does not fit; or Ray is not installed.
        PipelineError: see `weaktr.labelling.worker.make_shards`.
    """
    task = with_absolute_paths(task)
    if task.task.device.startswith("cuda:"):  # Ray shows each worker its own GPU alone
        raise ValueError(
            f"--device: expected auto, cpu or cuda with --engine ray, got {task.task.device}: Ray "
            "gives out the GPUs; CUDA_VISIBLE_DEVICES at its start chooses among them"
        )
    job = ready_job(replace(task, task=replace(task.task, device="cpu")))
    report, todo = ShardsReport(), deque[str]()
    for name in job.shards.names:
        if (record := job.maker.done_record(job.shards, name)) is not None:
            report.add(WHOLE, record)
        else:
            todo.append(name)
    clear_whole(job.maker.layout, set(job.shards.names) - set(todo))
    log.info("%d shards are whole, %d to do", report.shards[WHOLE], len(todo))
    if todo:
        with _ray() as ray, Meter(job.maker.maker.title, len(todo), unit="shards") as meter:
            _Pool(ray, task, min(workers or _fitting(ray, task), len(todo)), meter).run(
                todo, report
            )
    return report, job


def with_absolute_paths(task: ShardTask) -> ShardTask:
    """A task that means the same in every folder."""
    own, files = task.task, dict[str, Any]()
    for name in ("source", "images", "out", "teacher"):
        if (path := getattr(own, name)) is not None:
            files[name] = Path(os.path.abspath(path))
    labels = task.labels
    is_word = labels in ("auto", "inside", "beside", "none")
    return replace(
        task,
        task=replace(own, **files),
        photographs=absolute(task.photographs),
        labels=labels if is_word else os.path.abspath(labels),
        names=None if task.names is None else Path(os.path.abspath(task.names)),
    )


@dataclass
class _Pool:
    """The actors, and what each works on."""

    ray: Any
    task: ShardTask
    size: int
    meter: Meter
    waiting: dict[Any, tuple[Any, str | None]] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)

    def run(self, todo: deque[str], report: ShardsReport) -> None:
        """Have all shards made."""
        open_shards = set(todo)
        for _ in range(self.size):
            self._start()
        latest = time.monotonic()
        while open_shards:
            ready, _ = self.ray.wait(list(self.waiting), num_returns=1, timeout=STALLED / 4)
            for reference in ready:
                actor, name = self.waiting.pop(reference)
                result = self._result(reference, name, report)
                latest = time.monotonic()
                if result is not None and name in open_shards:
                    is_twice = any(other == name for _, other in self.waiting.values())
                    if not (result.shards[ELSEWHERE] and is_twice):
                        open_shards.discard(name)
                        report.merge(result)
                        self.meter.advance(note=report.in_words())
                self.idle.append(actor)
            if not todo and time.monotonic() - latest > STALLED:
                todo.extend(sorted(open_shards))
                latest = time.monotonic()
            while self.idle and todo:
                name = todo.popleft()
                if name in open_shards:
                    actor = self.idle.pop()
                    self.waiting[actor.make.remote(name)] = actor, name
            if not self.waiting:
                break

    def _start(self) -> None:
        """Start an actor; Ray starts it again when it dies."""
        gpus, cpus = _resources(self.ray, self.task)
        threads = None if gpus else max(1, cpus // self.size)
        options = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": threads}
        kind = self.ray.remote(Worker)
        actor = kind.options(max_restarts=-1, max_task_retries=RETRIES, **options).remote(
            self.task, threads
        )
        self.waiting[actor.ready.remote()] = actor, None

    def _result(
        self, reference: Any, name: str | None, report: ShardsReport
    ) -> ShardsReport | None:
        """What a worker reports; a shard on which workers die is noted as broken."""
        try:
            result = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self.ray.exceptions.RayActorError as error:
            if name is None:
                raise
            why = str(error).partition("\n")[0]
            report.broken[name] = f"workers died on it {RETRIES + 1} times: {why}"
            log.error("shard %s is left out: %s", name, report.broken[name])
            return ShardsReport()
        return result if name is not None else None


def _fitting(ray: Any, task: ShardTask) -> int:
    """As many workers as there are GPUs, or CPUs where none are used."""
    gpus, cpus = _resources(ray, task)
    return max(1, gpus or cpus)


def _resources(ray: Any, task: ShardTask) -> tuple[int, int]:
    """GPUs that a task may use, and CPUs, of the cluster."""
    cluster = ray.cluster_resources()
    gpus = 0 if task.task.device == "cpu" else int(cluster.get("GPU", 0))
    return gpus, int(cluster.get("CPU", 1))


@contextmanager
def _ray() -> Iterator[Any]:
    """A connection to the cluster that RAY_ADDRESS names, or a Ray of this machine alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray: needs Ray: pip install 'weaktr[ray]'") from error
    is_ours = not ray.is_initialized()
    if is_ours:
        alone: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE_BYTES}
        ray.init(log_to_driver=True, **({} if "RAY_ADDRESS" in os.environ else alone))
    try:
        yield ray
    finally:
        if is_ours:
            ray.shutdown()
