"""How long many shards take on workers that die: shares fixed beforehand, or a pool that pulls.

    python bench/scale_simulation.py            # 10,000 shards, 64 workers: a table in Markdown
    python bench/scale_simulation.py --check    # beside a real run: two processes, one is killed

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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
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


class _Worker:
    """A real process that makes its shards, and is started again after it was killed.

    Args:
        arguments: of ``weaktr label``.
        log: gets what it says.
    """

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.arguments, self.log = list(arguments), log
        self.began = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        import scale_work

        self.began = time.time()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "weaktr.cli", *self.arguments],
                env=scale_work.environment(1), stdout=log, stderr=log,
            )  # fmt: skip

    def kill(self) -> None:
        """As a machine that loses its power would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def real_run(
    label: Sequence[str], out: Path, scratch: Path, kill_at: float | None, away: float
) -> tuple[float, float]:
    """Two ranks; the first is killed, and started again: (seconds, its start in seconds).

    Args:
        label: the command of ``weaktr``, without ``--shard``.
        out: the folder of results.
        scratch: gets logs.
        kill_at: seconds after the start; None = nobody is killed.
        away: seconds until it is started again.
    """
    ranks = [_Worker([*label, "--shard", f"{i}/2"], scratch / f"rank{i}.log") for i in (0, 1)]
    began = time.time()
    for rank in ranks:
        rank.start()
    started: float | None = None
    back = None if kill_at is None else began + kill_at + away
    while True:
        now = time.time()
        if started is None and any((out / "unfinished").glob("*/*.jsonl")):
            started = now - began
        if kill_at is not None and now - began >= kill_at:
            ranks[0].kill()
            kill_at = None
        if back is not None and now >= back:
            ranks[0].start()
            back = None
        running = [one for one in ranks if one.process is not None and one.process.poll() is None]
        if not running and back is None:
            break
        time.sleep(0.01)
    if any(rank.process is None or rank.process.returncode for rank in ranks):
        raise SystemExit("".join(rank.log.read_text() for rank in ranks))
    last = max(path.stat().st_mtime for path in (out / "index").glob("*.json"))
    return last - began, started or 0.0


def check(options: argparse.Namespace) -> dict[str, float]:
    """The simulated makespan beside that of two real processes.

    A first run without a death gives the seconds of each shard (its record has them) and of the
    start; the simulation gets these, and the moment of the death.
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
        quiet, start = real_run(label, out, scratch, None, 0.0)
        records = (json.loads(path.read_text()) for path in sorted((out / "index").glob("*.json")))
        work = [record["seconds"] for record in records]
        speeds = [1.0, 1.0]
        # reading a shard's tar and writing its records are outside of its seconds: those of a rank
        # without a death are spread over its shards
        between = (quiet - start - max(sum(work[rank::2]) for rank in (0, 1))) / (shards / 2)
        work = [seconds + max(0.0, between) for seconds in work]
        shutil.rmtree(out)
        kill_at = start + 0.45 * (quiet - start)
        real, _ = real_run(label, out, scratch, kill_at, options.check_away)
        in_flight = 8 * sum(work) / (shards * images)
        plans = {
            "quiet": Plan(work, speeds, start),
            "killed": Plan(work, speeds, start, [[kill_at], []], options.check_away, True,
                           in_flight),
        }  # fmt: skip
        simulated = {name: simulate(plan, "static").makespan for name, plan in plans.items()}
    return {
        "real, no death": quiet,
        "simulated, no death": simulated["quiet"],
        "real, one death": real,
        "simulated, one death": simulated["killed"],
        "start": start,
        "killed at": kill_at,
        "away": options.check_away,
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
        ratio = facts["simulated, one death"] / facts["real, one death"]
        print(f"\nsimulated / real with one death: {ratio:.3f}")
        return
    print("\n".join(table(options)))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(sys.argv[1:])
