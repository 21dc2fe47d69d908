"""Shards whose process is killed, or that two work on at once: nothing is lost, nothing twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.shards import killed, work
from tests.shards.work import BESIDE, files_in, label
from weaktr.jobs.folder import Task
from weaktr.jobs.shards import ShardTask, ready_job
from weaktr.labelling.worker import make_shards
from weaktr.shards.output import FileLock

ROOT = Path(__file__).parents[2]
#: Photographs, of which three shards have 6, 2 and 4.
COUNT = 12
#: When a process is killed (`tests.shards.killed`), and how many are left to compute then.
MOMENTS = {"add4": 8, "add9": 3, "known3": 0, "table1": 6, "remove3": 0}
OF_TARS = {"publish1": 6, "publish6": 0}
RUNS = {f"{moment}-png": left for moment, left in MOMENTS.items()} | {
    f"{moment}-tar": left for moment, left in (MOMENTS | OF_TARS).items()
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A model and photographs; undisturbed runs of them, and runs that were killed."""
    home = tmp_path_factory.mktemp("home")
    work.model(home / "cam.safetensors")
    work.photographs(home / "photos", COUNT)
    runs = []
    for form in ("png", "tar"):
        assert label(home, "--shard-size", "5", *BESIDE, "--output", form, out=form) == 0
        runs += [f"{moment}:twice-{form}:{form}" for moment in ("add2", "add5")]
    runs += [f"{run.partition('-')[0]}:{run}:{run[-3:]}" for run in RUNS]
    command = [sys.executable, "-m", "tests.shards.killed", str(home), *runs]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert ended.stdout.splitlines() == [f"{run} -9" for run in runs], ended.stderr
    return home


@pytest.fixture
def computed(monkeypatch):
    """The names of the photographs that the model saw, in order."""
    return work.noted_names(monkeypatch)


@pytest.mark.parametrize("run", [*RUNS, "twice-png", "twice-tar"])
def test_a_killed_process_is_gone_on_with(home, run, computed):
    """And what is there is not computed again."""
    form = run[-3:]
    assert label(home, "--shard-size", "5", *BESIDE, "--output", form, out=run) == 0
    assert len(computed) == (RUNS | {f"twice-{form}": COUNT - 5})[run]
    assert len(set(computed)) == len(computed)
    assert files_in(home / run) == files_in(home / form)
    assert not (home / run / "unfinished").exists()


# ---- two processes at one shard -----------------------------------------------------------------


class Worker:
    """The shards of a run, in a thread; stops at a moment until it may go on.

    Args:
        task: of the run.
        moment: see `tests.shards.killed`.
        monkeypatch: of the test.
    """

    def __init__(self, task: ShardTask, monkeypatch: pytest.MonkeyPatch, moment: str = "") -> None:
        self.job, self.reached, self.go_on = ready_job(task), threading.Event(), threading.Event()
        self.report, self.error = None, None
        self.thread = threading.Thread(target=self._run)
        self.moment, self.monkeypatch = moment, monkeypatch

    def _run(self):
        try:
            self.report = make_shards(self.job.maker, self.job.shards, self.job.shards.names)
        except BaseException as error:
            self.error = error
        self.reached.set()

    def until_its_moment(self):
        """Begin, and come to the moment."""
        name = self.moment.rstrip("0123456789")
        owner, attribute = killed.MOMENTS[name]
        real, left = getattr(owner, attribute), int(self.moment[len(name) :])

        def acting(*arguments, **options):
            nonlocal left
            value = real(*arguments, **options)
            if left > 0 and not self.reached.is_set():
                left -= 1
                if left == 0:
                    self.reached.set()
                    assert self.go_on.wait(60)
            return value

        self.monkeypatch.setattr(owner, attribute, acting)
        self.thread.start()
        assert self.reached.wait(60)
        return self

    def to_the_end(self):
        """Go on; the report."""
        if not self.thread.is_alive() and self.thread.ident is None:
            self.thread.start()
        self.go_on.set()
        self.thread.join(60)
        if self.error is not None:
            raise self.error
        return self.report


@pytest.fixture
def task(home, tmp_path):
    """Label the photographs, into tars."""
    own = Task(
        home / "cam.safetensors",
        home / "photos",
        tmp_path / "out",
        work.SETTINGS,
        emit=["confidence"],
    )
    return ShardTask("label", own, str(home / "photos"), output="tar", shard_size=5)


def without_locks(monkeypatch):
    """As on a file system that has none."""

    def acquire(self, *arguments, **options):
        raise NotImplementedError("no locks")

    monkeypatch.setattr(FileLock, "acquire", acquire)


MEETINGS = ["add1", "add3", "add6", "add7", "known1", "publish1", "publish2", "table1", "remove1"]


@pytest.mark.parametrize("moment", MEETINGS)
def test_a_second_process_leaves_a_shard_that_is_worked_on(home, task, moment, computed,
                                                           monkeypatch):  # fmt: skip
    first = Worker(task, monkeypatch, moment).until_its_moment()
    second = Worker(task, monkeypatch).to_the_end()
    report = first.to_the_end()
    assert len(computed) == len(set(computed)) == COUNT
    assert second.is_complete == (moment == "remove1")
    assert report.shards["made"] + second.shards["made"] == 3
    assert report.is_complete
    assert files_in(task.task.out / "masks") == files_in(home / "tar" / "masks")


@pytest.mark.parametrize(
    ("form", "moment"),
    [("tar", m) for m in MEETINGS] + [("png", m) for m in MEETINGS if m[:7] != "publish"],
)
def test_without_locks_two_processes_do_no_harm(home, task, form, moment, monkeypatch):
    without_locks(monkeypatch)
    task = replace(task, output=form)
    first = Worker(task, monkeypatch, moment).until_its_moment()
    second = Worker(task, monkeypatch).to_the_end()
    report = first.to_the_end()
    assert report.is_complete and second.is_complete
    for kind in ("masks", "confidence", "index"):
        ours, theirs = files_in(task.task.out / kind), files_in(home / form / kind)
        assert ours == theirs
    assert label(home, *BESIDE, "--output", form, out=task.task.out) == 0
    assert not (task.task.out / "unfinished").exists()


@pytest.mark.parametrize("moment", ["add1", "add3", "add6", "known1", "publish1", "table1"])
def test_without_locks_a_process_that_began_later_may_end_later(home, task, moment, monkeypatch):
    """It has taken over masks out of files that the first has given other names meanwhile."""
    without_locks(monkeypatch)
    first = Worker(task, monkeypatch, "add5").until_its_moment()
    second = Worker(task, monkeypatch, moment).until_its_moment()
    assert first.to_the_end().is_complete
    assert second.to_the_end().is_complete
    for kind in ("masks", "confidence", "index"):
        assert files_in(task.task.out / kind) == files_in(home / "tar" / kind)


def test_processes_at_once(home, task, computed, monkeypatch):
    """Of all shards each, as where a job was started twice."""
    workers = [Worker(task, monkeypatch) for _ in range(3)]
    for worker in workers:
        worker.thread.start()
    reports = [worker.to_the_end() for worker in workers]
    assert len(computed) == len(set(computed)) == COUNT
    assert sum(report.shards["made"] for report in reports) == 3
    assert files_in(task.task.out / "masks") == files_in(home / "tar" / "masks")


def test_a_process_that_was_killed_holds_no_lock(home, tmp_path):
    shutil.copytree(home / "add4-tar", tmp_path / "out")
    assert label(home, "--shard-size", "5", *BESIDE, "--output", "tar", out=tmp_path / "out") == 0
