"""How the pool of workers deals shards out; with a Ray that runs everything at once, in order."""

from __future__ import annotations

from collections import Counter, deque
from types import SimpleNamespace

from weaktr.progress import Meter
from weaktr.stages import on_ray
from weaktr.stages.shard_report import ELSEWHERE, MADE, ShardsReport


class Remote:
    """A method of an actor: what it returns is there when it is asked for."""

    def __init__(self, method):
        self.method = method

    def remote(self, *arguments):
        return lambda: self.method(*arguments)


class Actor:
    def __init__(self, ray):
        self.ray, self.ready, self.make = ray, Remote(lambda: 1), Remote(self._make)

    def _make(self, name):
        self.ray.calls[name] += 1
        what = ELSEWHERE if self.ray.calls[name] <= self.ray.busy.get(name, 0) else MADE
        return ShardsReport(shards=Counter({what: 1}))


class Ray:
    """One reference is ready at each turn, the newest; none in the turns of `pauses`."""

    exceptions = SimpleNamespace(RayTaskError=KeyError, RayActorError=OSError)

    def __init__(self, monkeypatch, busy=None):
        self.calls, self.busy, self.seconds = Counter(), busy or {}, 0.0
        monkeypatch.setattr(on_ray.time, "monotonic", lambda: self.seconds)

    def cluster_resources(self):
        return {"CPU": 2}

    def remote(self, _):
        made = SimpleNamespace(remote=lambda *_: Actor(self))
        return SimpleNamespace(options=lambda **_: made)

    def wait(self, references, num_returns, timeout):
        self.seconds += on_ray.STALLED + 1  # so that open shards are always dealt out again
        return references[-1:], references[:-1]

    def get(self, reference):
        return reference()


def run(ray, names, size=2):
    report = ShardsReport()
    with Meter("", len(names), is_minor=True) as meter:
        on_ray._Pool(ray, None, size, meter).run(deque(names), report)
    return report


def test_all_shards_are_made_though_they_are_dealt_out_again_and_again(monkeypatch):
    ray = Ray(monkeypatch)
    report = run(ray, list("abcdefgh"))
    assert report.shards == {MADE: 8}
    assert set(ray.calls) == set("abcdefgh")


def test_a_shard_that_another_worker_holds_is_counted_once(monkeypatch):
    report = run(Ray(monkeypatch), list("abc"), size=3)
    assert report.shards == {MADE: 3}
    report = run(Ray(monkeypatch, busy={"b": 99}), list("abc"), size=3)
    assert report.shards == {MADE: 2, ELSEWHERE: 1}
