"""Shards on Ray: the same files as one process makes, also where a worker is killed."""

from __future__ import annotations

import os
import signal
import tarfile
import threading
import time
from pathlib import Path

import pytest
import torch

from tests.faults.commands import prepare
from weaktr.cli import main

pytest.importorskip("ray", reason="Ray is not installed")

SETTINGS = ["--set", "scales=[1.0]", "--set", "flip=false", "--emit", "confidence"]
SHARDS, COPIES = 6, 12


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("ray")
    prepare(home)
    for shard in range(SHARDS):
        with tarfile.open(home / f"{shard:03d}.tar", "w") as tar:
            for copy in range(COPIES):
                tar.add(home / "photos" / f"{'abc'[copy % 3]}.png", f"{shard}_{copy}.png")
                (home / "cls").write_text("cat")
                tar.add(home / "cls", f"{shard}_{copy}.cls")
    return home


def label(home: Path, out: str, *options: str) -> int:
    tars = str(home / "{000..005}.tar")
    arguments = [str(home / "cam.safetensors"), tars, "--out", str(home / out), *SETTINGS]
    return main(["label", *arguments, *options])


def files_of(out: Path) -> dict[str, bytes]:
    kinds = (".tar", ".parquet")
    files = [path for path in out.rglob("*") if path.suffix in kinds]
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(files)}


def kill_a_worker(unfinished: Path, killed: list[int]) -> None:
    """Kill the first process that has begun a shard and noted three photographs of it."""
    while not killed:
        for journal in unfinished.rglob("*.jsonl"):
            try:
                lines = journal.read_bytes().count(b"\n")
            except FileNotFoundError:
                continue
            if lines > 3:
                process = int(journal.name.split("-")[1])
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
        time.sleep(0.002)


@pytest.mark.slow
def test_two_workers_of_which_one_is_killed_make_what_one_process_makes(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as each worker has
    try:
        assert label(home, "here") == 0
    finally:
        torch.set_num_threads(threads)
    killed: list[int] = []
    killer = threading.Thread(
        target=kill_a_worker, args=(home / "ray" / "unfinished", killed), daemon=True
    )
    killer.start()
    assert label(home, "ray", "--engine", "ray", "--workers", "2") == 0
    assert len(killed) == 1, "no worker was killed"
    assert files_of(home / "ray") == files_of(home / "here")
    assert not (home / "ray" / "unfinished").exists()
