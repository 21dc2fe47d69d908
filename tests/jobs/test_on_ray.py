"""How the pool of workers deals shards out; with a Ray that runs everything at once, in order."""

from __future__ import annotations

from collections import Counter, deque
from pathlib import Path
from types import SimpleNamespace

import pytest

from weaktr.jobs import on_ray
from weaktr.jobs.folder import Task
from weaktr.jobs.shards import ShardTask
from weaktr.labelling.shard_report import ELSEWHERE, MADE, ShardsReport
from weaktr.progress import Meter


class Remote:
    """A method of an actor: what it returns is there when it is asked for."""

    def __init__(self, method):
        self.method = method

    def remote(self, *arguments):
        return Reference(self.method, arguments)


class Reference:
    def __init__(self, method, arguments):
        self.method, self.arguments = method, arguments


class Actor:
    def __init__(self, ray):
        self.ray, self.ready, self.make = ray, Remote(lambda: 1), Remote(self._make)

    def _make(self, name):
        self.ray.calls[name] += 1
        what = ELSEWHERE if self.ray.calls[name] <= self.ray.busy.get(name, 0) else MADE
        return ShardsReport(shards=Counter({what: 1}))


class Ray:
    """One reference is ready at each turn.

    Where the first one of a shard `lost` is not, since its worker is gone, nothing is ready at
    every other turn, for so long that open shards are dealt out again.
    """

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayActorError=OSError)

    def __init__(self, monkeypatch, busy=None, lost=None):
        self.calls, self.busy, self.seconds = Counter(), busy or {}, 0.0
        self.lost, self.gone, self.turns = lost, None, 0
        self.resources, self.asked = {"CPU": 2}, []
        monkeypatch.setattr(on_ray.time, "monotonic", lambda: self.seconds)

    def cluster_resources(self):
        return self.resources

    def remote(self, _):
        made = SimpleNamespace(remote=lambda *_: Actor(self))

        def options(max_restarts, max_task_retries, **asked):
            self.asked.append(asked)
            return made

        return SimpleNamespace(options=options)

    def wait(self, references, num_returns, timeout):
        self.turns += 1
        assert self.turns < 200, "no worker is left for what is open"
        if self.lost and self.turns % 2:
            self.seconds += on_ray.STALLED + 1
            return [], references
        for reference in references:
            if self.gone is None and reference.arguments == (self.lost,):
                self.gone = reference
        ready = [reference for reference in references if reference is not self.gone][:1]
        return ready, [reference for reference in references if reference not in ready]

    def get(self, reference):
        return reference.method(*reference.arguments)


def task_of(folder, device="auto"):
    own = Task(folder / "model.safetensors", folder / "images", folder / "out", device=device)
    return ShardTask("label", own, str(folder / "images"))


def run(ray, names, size=2, device="auto"):
    report = ShardsReport()
    with Meter("", len(names), is_minor=True) as meter:
        on_ray._Pool(ray, task_of(Path("x"), device), size, meter).run(deque(names), report)
    return report


def test_all_shards_are_made_once(monkeypatch):
    ray = Ray(monkeypatch)
    report = run(ray, list("abcdefgh"))
    assert report.shards == {MADE: 8}
    assert ray.calls == Counter("abcdefgh")


def test_a_shard_that_another_worker_holds_is_counted_once(monkeypatch):
    report = run(Ray(monkeypatch), list("abc"), size=3)
    assert report.shards == {MADE: 3}
    report = run(Ray(monkeypatch, busy={"b": 99}), list("abc"), size=3)
    assert report.shards == {MADE: 2, ELSEWHERE: 1}


def test_a_shard_whose_worker_is_gone_is_made_by_another(monkeypatch):
    for size in (2, 3):
        for lost in "abcde":
            report = run(Ray(monkeypatch, lost=lost), list("abcde"), size)
            assert report.shards == {MADE: 5}


@pytest.mark.parametrize(
    ("resources", "where", "workers", "asked"),
    [
        ({"CPU": 8, "GPU": 4}, "auto", 4, {"num_gpus": 1, "num_cpus": 1}),
        ({"CPU": 8, "GPU": 4}, "cuda", 4, {"num_gpus": 1, "num_cpus": 1}),
        ({"CPU": 8, "GPU": 4}, "cpu", 8, {"num_cpus": 1}),
        ({"CPU": 8}, "auto", 8, {"num_cpus": 1}),
    ],
)
def test_workers_get_what_they_may_use(monkeypatch, resources, where, workers, asked):
    ray = Ray(monkeypatch)
    ray.resources = resources
    assert on_ray._fitting(ray, task_of(Path("x"), where)) == workers
    run(ray, list("ab"), size=workers, device=where)
    assert ray.asked == [asked] * workers


def test_ray_gives_out_the_gpus(tmp_path):
    with pytest.raises(ValueError, match="--device: expected auto, cpu or cuda with --engine ray"):
        on_ray.run_on_ray(task_of(tmp_path, "cuda:1"))
