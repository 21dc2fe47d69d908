"""How long many shards take on workers that die: shares fixed beforehand, or a pool that pulls.

    python bench/scale_simulation.py            # 10,000 shards, 64 workers: a table in Markdown
    python bench/scale_simulation.py --check    # beside two real processes, one of which dies

A simulation of events. A worker goes through its shards one after the other; dies at random (a
Poisson process), and is back after a delay. What it had made of its shard stays, as the journal of
``weaktr label`` keeps it (`weaktr.shards.output`), but for the photographs in flight; without a
journal the whole shard is made again.

static  rank i of N makes every N-th shard, from shard i on (torchrun, Slurm, ``--shard i/N``). Its
        shards wait until it is back.
pool    a worker that is free takes the next shard (``--engine ray``). Who has died takes its
        shard again when it is back; others that are free take it before, after some patience.
array   as static, but in more shares than workers, which a batch system starts one after the
        other: each begins with a start of its own.

The ideal is the work of all shards divided by the speed of all workers: nothing dies, and all end
at the same moment. "Use" is the ideal divided by the time until the last shard is whole: the share
of the workers' power that went into it. For arrays the journal is always kept.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from pathlib import Path
from typing import Literal

import numpy as np

HOUR = 3600.0
Way = Literal["static", "pool"]


class Kind(IntEnum):
    """What happens to a worker; of several at one moment the lowest comes first."""

    DIED = 0
    WHOLE = 1
    FREED = 2  #: the shard of a dead worker is given to others
    BEGINS = 3
    READY = 4


@dataclass(frozen=True)
class Plan:
    """What is simulated; times in seconds.

    Args:
        work: of each shard, on a worker of speed 1.
        speeds: of each worker.
        start: of a worker: imports, model; also after it died.
        deaths: moments at which each worker dies, ascending. One while it is away counts not.
        away: from a death until the worker starts again.
        keeps: whether what was made of a shard stays.
        lost: work in flight that a death loses, although it keeps the rest.
        patience: of the pool: after so long a dead worker's shard goes to others that are free.
    """

    work: Sequence[float]
    speeds: Sequence[float]
    start: float = 0.0
    deaths: Sequence[Sequence[float]] = ()
    away: float = 0.0
    keeps: bool = True
    lost: float = 0.0
    patience: float = 120.0

    @property
    def ideal(self) -> float:
        """Seconds if all workers were busy until all end together."""
        return sum(self.work) / sum(self.speeds)


@dataclass
class Outcome:
    """What a simulation gives.

    Args:
        makespan: seconds until the last shard is whole.
        lost: work that was made twice, in seconds at speed 1.
        deaths: that happened before the end.
        ended: when each worker made its last shard whole.
    """

    makespan: float = 0.0
    lost: float = 0.0
    deaths: int = 0
    ended: list[float] = field(default_factory=list)


class _Simulation:
    """The workers and shards of a plan at a moment."""

    def __init__(self, plan: Plan, way: Way) -> None:
        self.plan, self.way = plan, way
        workers, shards = len(plan.speeds), range(len(plan.work))
        self.left = list(plan.work)  #: work of each shard
        if way == "static":
            self.queues = [deque(shards[rank::workers]) for rank in range(workers)]
        else:
            self.queues = [deque(shards)] * workers  # one for all
        self.deaths = [deque(own) for own in plan.deaths] or [deque() for _ in range(workers)]
        self.outcome = Outcome(ended=[0.0] * workers)
        self.events: list[tuple[float, Kind, int, int]] = []  #: moment, kind, worker, shard or -1
        self.took = [0.0] * workers  #: when each worker took its shard
        self.held: dict[int, int] = {}  #: worker that has died -> its shard
        self.waiting: list[int] = []  #: workers for which there is no shard

    def run(self) -> Outcome:
        for worker in range(len(self.plan.speeds)):
            self.add(0.0, Kind.BEGINS, worker)
        todo = len(self.left)
        while todo:
            now, kind, worker, shard = heapq.heappop(self.events)
            if kind == Kind.BEGINS:
                self.begin(worker, now)
            elif kind == Kind.READY:
                self.take(worker, now)
            elif kind == Kind.WHOLE:
                todo -= 1
                self.finish(worker, shard, now)
            elif kind == Kind.DIED:
                self.die(worker, shard, now)
            elif self.held.get(worker) == shard:
                self.give_back(worker, now)
        return self.outcome

    def add(self, moment: float, kind: Kind, worker: int, shard: int = -1) -> None:
        heapq.heappush(self.events, (moment, kind, worker, shard))

    def next_death(self, worker: int, now: float) -> float:
        """When a worker dies next; deaths while it was away, or had nothing to do, are dropped."""
        own = self.deaths[worker]
        while own and own[0] < now:
            own.popleft()
        return own[0] if own else float("inf")

    def begin(self, worker: int, now: float) -> None:
        """A process of a worker starts."""
        ready = now + self.plan.start
        death = self.next_death(worker, now)
        if death < ready:
            self.outcome.deaths += 1
            self.deaths[worker].popleft()
            self.add(death + self.plan.away, Kind.BEGINS, worker)
        else:
            self.add(ready, Kind.READY, worker)

    def take(self, worker: int, now: float) -> None:
        """A worker takes the shard that it had, or the next one."""
        if worker in self.held:
            shard = self.held.pop(worker)
        elif self.queues[worker]:
            shard = self.queues[worker].popleft()
        else:
            self.waiting.append(worker)
            return
        self.took[worker] = now
        end = now + self.left[shard] / self.plan.speeds[worker]
        if self.next_death(worker, now) < end:
            self.add(self.deaths[worker].popleft(), Kind.DIED, worker, shard)
        else:
            self.add(end, Kind.WHOLE, worker, shard)

    def finish(self, worker: int, shard: int, now: float) -> None:
        """A shard is whole."""
        self.outcome.makespan = self.outcome.ended[worker] = now
        self.take(worker, now)

    def die(self, worker: int, shard: int, now: float) -> None:
        """A worker dies amid a shard."""
        plan, speed = self.plan, self.plan.speeds[worker]
        made = (now - self.took[worker]) * speed
        kept = max(0.0, made - plan.lost) if plan.keeps else 0.0
        self.left[shard] -= kept
        self.outcome.lost += made - kept
        self.outcome.deaths += 1
        self.held[worker] = shard
        self.add(now + plan.away, Kind.BEGINS, worker)
        if self.way == "pool":
            self.add(now + plan.patience, Kind.FREED, worker, shard)

    def give_back(self, worker: int, now: float) -> None:
        """The shard of a worker that has died goes to whoever is free."""
        self.queues[worker].appendleft(self.held.pop(worker))
        if self.waiting:
            self.take(self.waiting.pop(), now)


def simulate(plan: Plan, way: Way) -> Outcome:
    """Go through all events until the last shard is whole."""
    return _Simulation(plan, way).run()


def as_tasks(plan: Plan, tasks: int) -> Plan:
    """Shares of shards as one piece of work each, with a start of their own, for the pool.

    So Slurm does an array of more tasks than it has machines: ``--array=0-639%64``.
    """
    work = [plan.start + sum(plan.work[number::tasks]) for number in range(tasks)]
    return replace(plan, work=work, start=0.0, patience=plan.away)


def deaths_of(
    rng: np.random.Generator, workers: int, an_hour: float, until: float
) -> list[list[float]]:
    """Moments of a Poisson process for each worker."""
    if an_hour <= 0:
        return [[] for _ in range(workers)]
    moments = []
    for _ in range(workers):
        gaps = rng.exponential(HOUR / an_hour, 16 + int(4 * an_hour * until / HOUR))
        moments.append([float(moment) for moment in np.cumsum(gaps) if moment < until])
    return moments


def plan_of(options: argparse.Namespace, *, an_hour: float, keeps: bool, slow: float) -> Plan:
    """A plan drawn at random; the same seed gives the same shards and workers."""
    rng = np.random.default_rng(options.seed)
    spread = options.spread
    work = rng.lognormal(-(spread**2) / 2, spread, options.shards) * options.seconds
    speeds = np.ones(options.workers)
    speeds[: round(slow * options.workers)] = options.slow_speed
    rng.shuffle(speeds)
    until = 20 * work.sum() / speeds.sum()
    deaths = deaths_of(rng, options.workers, an_hour, until)
    return Plan(work.tolist(), speeds.tolist(), options.start, deaths, options.away, keeps,
                options.lost)  # fmt: skip


def table(options: argparse.Namespace) -> list[str]:
    """All cases, in Markdown."""
    lines = [
        f"{options.shards:,} shards of {options.seconds:,.0f} s on average (lognormal, sigma "
        f"{options.spread:g}), {options.workers} workers; start {options.start:g} s, away "
        f"{options.away:g} s after a death, {options.lost:g} s in flight; array: "
        f"{options.tasks} tasks a worker; seed {options.seed}.",
        "",
        "| deaths an hour and worker | slow workers | journal | ideal, h | static, h | array, h "
        "| pool, h | use: static | array | pool | lost, static | deaths, static |",
        "|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for an_hour, slow, keeps in [
        (0.0, 0.0, True),
        (0.0, options.slow, True),
        (options.deaths, 0.0, True),
        (options.deaths, 0.0, False),
        (options.deaths, options.slow, True),
        (10 * options.deaths, 0.0, True),
        (10 * options.deaths, 0.0, False),
    ]:
        plan = plan_of(options, an_hour=an_hour, keeps=keeps, slow=slow)
        static, pool = simulate(plan, "static"), simulate(plan, "pool")
        array = simulate(
            as_tasks(replace(plan, keeps=True), options.tasks * options.workers), "pool"
        )
        told = f"{slow:.0%} at {options.slow_speed:g}x" if slow else "none"
        used = [plan.ideal / one.makespan for one in (static, array, pool)]
        journal = ("yes" if keeps else "no") if an_hour else ""
        lines.append(
            f"| {an_hour:g} | {told} | {journal} | {plan.ideal / HOUR:.1f} "
            f"| {static.makespan / HOUR:.1f} | {array.makespan / HOUR:.1f} "
            f"| {pool.makespan / HOUR:.1f} | {' | '.join(f'{each:.1%}' for each in used)} "
            f"| {static.lost / sum(plan.work):.2%} | {static.deaths} |"
        )
    return lines


# ---- beside a real run --------------------------------------------------------------------------


@dataclass
class RealRun:
    """Two ranks, of which the first was killed and started again; seconds since their start.

    Args:
        makespan: until the last shard was whole.
        ready: when each rank, and the first one again, began its first shard.
        killed, back: when the first rank was killed and started again.
        seconds: of each shard, by its record; of one that was begun twice, of the second time.
        ended: when each rank made its last shard whole.
        cut: the shard at which the rank was killed.
    """

    makespan: float
    ready: list[float]
    killed: float
    back: float
    seconds: list[float]
    ended: list[float]
    cut: int


def real_run(
    label: Sequence[str], out: Path, logs: Path, shards: int, kill_in: int, away: float
) -> RealRun:
    """Run them.

    Args:
        label: the command of ``weaktr``, without ``--shard``.
        out: the folder of results.
        logs: a file for what they say.
        shards: how many there are.
        kill_in: the first rank is killed some time after it began this shard.
        away: seconds until it is started again.
    """
    import scale_work

    def start(rank: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "weaktr.cli", *label, "--shard", f"{rank}/2"]
        with open(logs, "ab") as log:
            return subprocess.Popen(command, env=scale_work.environment(1), stdout=log, stderr=log)

    def journals(rank: int) -> set[Path]:
        return {path for path in (out / "unfinished").glob("*/*.jsonl")
                if int(path.parent.name) % 2 == rank}  # fmt: skip

    def journal_size() -> int:
        return sum(path.stat().st_size for path in journals(0) if int(path.parent.name) == kill_in)

    began = time.time()
    ranks = [start(0), start(1)]
    ready: list[float | None] = [None, None, None]
    killed = back = None
    before: set[Path] = set()
    while any(process.poll() is None for process in ranks) or back is None:
        now = time.time() - began
        for rank in (0, 1):
            if ready[rank] is None and journals(rank):
                ready[rank] = now
        if killed is None and ranks[0].poll() is not None:
            raise SystemExit(logs.read_text())
        with suppress(FileNotFoundError):  # the shard is whole
            if killed is None and journal_size() > 20_000:  # some dozens of photographs
                before = journals(0)
                ranks[0].kill()  # as a machine that loses its power
                ranks[0].wait()
                killed = now
        if killed is not None and back is None and now >= killed + away:
            ranks[0], back = start(0), now
        if back is not None and ready[2] is None and journals(0) - before:
            ready[2] = now
        time.sleep(0.01)
    if any(process.returncode for process in ranks) or None in ready or killed is None:
        raise SystemExit(logs.read_text())
    files = [out / "index" / f"{shard:05}.json" for shard in range(shards)]
    whole = [file.stat().st_mtime - began for file in files]
    seconds = [json.loads(file.read_text())["seconds"] for file in files]
    assert back is not None
    return RealRun(max(whole), [moment for moment in ready if moment is not None], killed, back,
                   seconds, [max(whole[rank::2]) for rank in (0, 1)], kill_in)  # fmt: skip


def check(options: argparse.Namespace) -> dict[str, float]:
    """The simulated makespan of the rank that dies beside the real one.

    The simulation gets what was measured in the same run: the seconds of each shard, of the starts,
    the moments of death and restart. The shard that was cut counts as the mean of the rank's
    others; what passes between shards (opening the tar, writing records) is that of the rank that
    nobody kills.
    """
    import scale_work

    shards, images = 20, options.check_images
    with tempfile.TemporaryDirectory(prefix="weaktr-bench-") as folder:
        scratch = Path(folder)
        model = scale_work.write_model(scratch / "model", scale_work.TINY)
        tars = scale_work.write_tars(
            scratch / "tars", range(shards * images), images, scale_work.tiny_jpeg
        )
        out = scratch / "out"
        label = ["label", str(model), str(tars), "--out", str(out), *scale_work.QUICK]
        real = real_run(label, out, scratch / "log", shards, 10, options.check_away)
    others = [real.seconds[shard] for shard in range(0, shards, 2) if shard != real.cut]
    work = list(real.seconds)
    work[real.cut] = sum(others) / len(others)
    between = (real.ended[1] - real.ready[1] - sum(work[1::2])) / (shards // 2)
    work = [seconds + between for seconds in work]
    start = real.ready[0]
    away = real.ready[2] - start - real.killed  # so that it is ready when it really was
    lost = 8 * sum(work) / (shards * images)  # about as many photographs are in flight
    ways = {}
    for name, keeps in {"simulated": True, "simulated without a journal": False}.items():
        plan = Plan(work, [1.0, 1.0], start, [[real.killed], []], away, keeps, lost)
        ways[name] = simulate(plan, "static").ended[0]
    return {
        "real": real.ended[0],
        **ways,
        "a shard, mean": sum(work) / shards,
        "start": start,
        "killed after": real.killed,
        "started again after": real.back,
        "ready again after": real.ready[2],
    }


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=100.0, help="of a shard, on average")
    parser.add_argument("--spread", type=float, default=0.3, help="sigma of their logarithms")
    parser.add_argument("--slow", type=float, default=0.05, help="share of slow workers")
    parser.add_argument("--slow-speed", type=float, default=0.5, help="of these; others: 1")
    parser.add_argument("--deaths", type=float, default=0.02, help="an hour and worker")
    parser.add_argument("--away", type=float, default=600.0, help="seconds after a death")
    parser.add_argument("--start", type=float, default=20.0, help="seconds: imports, the model")
    parser.add_argument("--lost", type=float, default=1.0, help="seconds of work in flight")
    parser.add_argument("--tasks", type=int, default=10, help="of the array, for each worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="beside two real processes")
    parser.add_argument("--check-images", type=int, default=300, help="of each of 20 shards")
    parser.add_argument("--check-away", type=float, default=5.0, help="seconds until the restart")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> None:
    options = parsed(arguments)
    if options.check:
        facts = check(options)
        print("| | s |\n|---|---:|")
        print("\n".join(f"| {name} | {seconds:.1f} |" for name, seconds in facts.items()))
        print(f"\nsimulated / real: {facts['simulated'] / facts['real']:.3f}")
        return
    print("\n".join(table(options)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
