"""Processes of torchrun, and workers of Ray of which one is killed: the files of one process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from tests.shards import work
from tests.shards.work import files_in, label

ROOT = Path(__file__).parents[2]
SHARDS, EACH = 6, 12
BESIDE = ("--emit", "confidence")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, tars of photographs, and what one process makes of them."""
    home = tmp_path_factory.mktemp("engines")
    work.model(home / "cam.safetensors")
    work.tars(home / "tars", SHARDS, EACH)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each process below has
    try:
        assert label(home, *BESIDE, images="tars", out="one") == 0
    finally:
        torch.set_num_threads(threads)
    return home


def label_as_command(home: Path, out: str, *options: str, launcher: Sequence[str] = ()) -> str:
    """``weaktr label`` in a process of its own, with one thread; what it says."""
    settings = [part for setting in work.SETTINGS for part in ("--set", setting)]
    model, tars = str(home / "cam.safetensors"), str(home / "tars")
    arguments = ["label", model, tars, "--out", str(home / out), *settings, *BESIDE, *options]
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    ended = subprocess.run(
        [sys.executable, *launcher, "-m", "weaktr.cli", *arguments],
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stderr


@pytest.mark.rare  # tests/cli/test_train_together.py starts processes as torchrun does
@pytest.mark.slow
def test_processes_of_torchrun_make_what_one_makes(home: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    said = label_as_command(home, "torchrun", launcher=launcher)
    for rank in range(2):
        assert f"process {rank} of 0..1 (RANK and WORLD_SIZE)" in said
    assert files_in(home / "torchrun") == files_in(home / "one")
    assert "index.parquet" in files_in(home / "torchrun")


def kill_a_worker(unfinished: Path, killed: list[int]) -> None:
    """Kill the first process that has begun a shard and noted three photographs of it."""
    while not killed:
        for journal in unfinished.rglob("*.jsonl"):
            try:
                lines = journal.read_bytes().count(b"\n")
            except FileNotFoundError:
                continue
            if 3 < lines <= EACH:
                process = int(journal.name.split("-")[1])
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
        time.sleep(0.002)


@pytest.mark.rare
@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_workers_of_ray_of_which_one_is_killed_make_what_one_process_makes(home: Path) -> None:
    """Not in the process of the tests: Ray replaces `print` and what answers signals there."""
    out, killed = home / "ray", list[int]()
    watch = threading.Thread(target=kill_a_worker, args=(out / "unfinished", killed), daemon=True)
    watch.start()
    label_as_command(home, "ray", "--engine", "ray", "--workers", "2")
    assert len(killed) == 1, "no worker was killed"
    assert files_in(out) == files_in(home / "one")
    assert not (out / "unfinished").exists()
