"""Parts of work for several processes; how they meet and end is in cli/test_train_together.py."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.processes import free_port
from weaktr import processes


@pytest.fixture
def as_process(monkeypatch):
    """Have this process count as one of several, which it cannot reach."""

    def choose(index, count):
        group = processes._Group(index, count, control=None, store=None)
        monkeypatch.setattr(processes._state, "now", group)

    return choose


def test_alone_nothing_is_shared():
    assert (processes.count(), processes.index(), processes.is_first()) == (1, 0, True)
    assert processes.part("abc") == "abc"
    assert processes.rows(4) == slice(0, 4)
    assert processes.of_each({"a": 1}) == [{"a": 1}]
    assert processes.of_first(lambda: 0.1) == 0.1
    own = np.ones(3)
    assert processes.rows_of_all(own, 3) is own
    assert processes.Agreement().largest([0, 2]) == [0, 2]


def test_what_one_process_says_counts_a_call_later_unless_it_is_answered(as_process, monkeypatch):
    as_process(0, 2)
    work = SimpleNamespace(wait=lambda: None)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda *_, **__: work)
    agreement = processes.Agreement()
    agreement.forget()
    told = [agreement.largest([said, 0]) for said in (1, 2, 3)]
    agreement.forget()
    told += [agreement.largest([said, 0]) for said in (4, 5)]
    assert told == [[0, 0], [1, 0], [2, 0], [0, 0], [4, 0]]


@pytest.mark.parametrize(("batch", "count"), [(4, 2), (7, 3), (3, 3), (64, 5)])
def test_every_image_of_a_batch_has_one_process(as_process, batch, count):
    found, sizes = [], []
    for index in range(count):
        as_process(index, count)
        own = list(range(batch))[processes.rows(batch)]
        found += own
        sizes.append(len(own))
    assert found == list(range(batch))
    assert max(sizes) - min(sizes) <= 1 and min(sizes) > 0


@pytest.mark.parametrize("number", [0, 1, 5, 6])
def test_parts_come_back_in_order(as_process, monkeypatch, number):
    items = np.arange(2.0 * number).reshape(number, 2)
    shares = []
    monkeypatch.setattr(processes, "total", lambda values: shares.append(values) or values)
    for index in range(3):
        as_process(index, 3)
        processes.rows_of_all(processes.part(items), number)
    assert sum(shares).numpy().tolist() == items.tolist()


def test_fewer_images_than_processes_are_refused(as_process):
    as_process(1, 3)
    with pytest.raises(ValueError, match="batch_size: expected at least 3, one for each process"):
        processes.rows(2)


def test_what_one_process_does_alone_reaches_no_other(as_process):
    as_process(1, 3)
    with processes.alone():
        assert processes.count() == 1
    assert processes.count() == 3


@pytest.mark.parametrize(
    ("told", "is_refused"),
    [
        (["a cuda GPU-1", "a cuda GPU-2"], False),  # each sees one alone
        (["a cuda:0 GPU-1", "a cuda:1 GPU-2", "b cuda:0 GPU-3"], False),
        (["a cuda GPU-1", "a cuda GPU-1"], True),
        (["a cuda:0 GPU-1", "a cuda:1 GPU-1"], True),  # two containers of one machine
        (["", ""], False),
    ],
)
def test_a_gpu_has_one_process(monkeypatch, told, is_refused):
    monkeypatch.setattr(processes, "of_each", lambda own: told)
    device = torch.device("cpu")
    if not is_refused:
        processes.require_own_gpus(device)
        return
    with pytest.raises(ValueError, match=r"a GPU for each process, got a cuda.* GPU-1, a cuda"):
        processes.require_own_gpus(device)


def test_what_a_process_tells_of_its_gpu(monkeypatch):
    told = []
    monkeypatch.setattr(processes, "of_each", lambda own: told.append(own) or [own])
    monkeypatch.setattr(processes.socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="5e-9f")
    )
    for device in (torch.device("cuda"), torch.device("cuda", 1), torch.device("cpu")):
        processes.require_own_gpus(device)
    assert told == ["node7 cuda 5e-9f", "node7 cuda:1 5e-9f", ""]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"RANK": "1"}, "as torchrun sets them, got RANK='1', WORLD_SIZE='2'"),
        (
            {"RANK": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"},
            "expected RANK from 0 to WORLD_SIZE - 1, got RANK='2'",
        ),
    ],
)
def test_variables_that_do_not_fit_are_told(monkeypatch, given, told):
    for name in processes.LAUNCHER:
        monkeypatch.delenv(name, raising=False)
    with processes.together():  # no launcher
        assert processes.count() == 1
    for name, value in ({"WORLD_SIZE": "2"} | given).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=told), processes.together():
        pass


def test_after_an_error_the_processes_do_no_other_run(monkeypatch):
    """One that went on would take for answers what the others, still in the first, tell it."""
    group = processes._Group(0, 2, control=None, store=None)
    monkeypatch.setattr(processes, "_state", processes._State(met=group))
    monkeypatch.setattr(processes, "_turn_to_speak", lambda group: 1)
    monkeypatch.setattr(processes.atexit, "register", lambda function: None)
    values = ("0", "2", "127.0.0.1", "1")
    for name, value in zip(processes.LAUNCHER, values, strict=True):
        monkeypatch.setenv(name, value)
    with pytest.raises(OSError, match="full"), processes.together():
        raise OSError("full")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="start the processes anew"), processes.together():
            pass


#: Processes forked from one that has imported torch, which takes seconds; each is sent the signal
#: once it has said that it waits. Prints how it ended and what it said.
WAITING = """
import json, logging, os, sys
import torch.distributed
from weaktr import processes
from weaktr.stopping import ended_by_signals
processes.LATE = 0.1
for rank, port, number in json.loads(sys.argv[1]):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(writing, 2)
        logging.basicConfig()
        values = (str(rank), "2", "127.0.0.1", str(port))
        os.environ |= dict(zip(processes.LAUNCHER, values, strict=True))
        with ended_by_signals(), processes.together():
            pass
        os._exit(0)
    os.close(writing)
    lines = os.fdopen(reading)
    said = next((line for line in lines if "weaktr" in line), "")  # torch warns of much
    os.kill(child, number)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([ended, said]), flush=True)
"""


def test_a_process_that_waits_for_the_others_says_so_and_can_be_stopped():
    cases = [
        (rank, free_port(), number) for rank in (0, 1) for number in (signal.SIGTERM, signal.SIGINT)
    ]
    command = [sys.executable, "-c", WAITING, json.dumps(cases)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    for (rank, port, number), line in zip(cases, run.stdout.splitlines(), strict=True):
        ended, said = json.loads(line)
        assert f"process {rank} of 0..1 waits for the others at 127.0.0.1:{port}" in said
        assert ended == -number
