"""Processes that run ``weaktr-train`` together, as torchrun starts them, without its seconds."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

#: Where a process starts from, with torch imported: never from pytest's own threads.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["weaktr.cli", "weaktr.stages.pipeline", "weaktr.report.page"])
#: Seconds after which a test gives up.
PATIENCE = 240.0


def _train(arguments: Sequence[str], environment: Mapping[str, str], output: Path) -> None:
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(file, stream)
    import torch

    from weaktr.cli import train_main

    torch.set_num_threads(1)
    try:
        code = train_main(list(arguments))
    except SystemExit as left:
        code = int(left.code or 0)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


class Training:
    """``weaktr-train`` in several processes.

    Args:
        arguments: of the command; a sequence of them = those of each process.
        processes: how many.
        folder: gets what each process says, ``0.txt``, ``1.txt``, ...
        environment: further variables.
    """

    def __init__(
        self,
        arguments: Sequence[str] | Sequence[Sequence[str]],
        processes: int,
        folder: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.outputs = [folder / f"{number}.txt" for number in range(processes)]
        self.processes: list[ForkServerProcess] = []
        port = str(free_port())
        for number, output in enumerate(self.outputs):
            own = arguments if isinstance(arguments[0], str) else arguments[number]
            launched = {
                "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(processes),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
            }  # fmt: skip
            told = {**(launched if processes > 1 else {}), **(environment or {})}
            process = CONTEXT.Process(target=_train, args=(list(own), told, output))
            process.start()
            self.processes.append(process)

    def wait(self) -> list[int]:
        """The exit codes of all processes; minus the signal of one that was killed."""
        end = time.monotonic() + PATIENCE
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill()
        assert not late, f"{len(late)} processes do not end:\n{self.said()}"
        return [process.exitcode or 0 for process in self.processes]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; what all processes have ended before is a failure."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert any(process.is_alive() for process in self.processes), self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)

    def send(self, number: int, *chosen: int) -> None:
        """Send a signal to the chosen processes, or to all."""
        for index in chosen or range(len(self.processes)):
            process = self.processes[index]
            if process.pid is not None and process.is_alive():
                os.kill(process.pid, number)

    def said(self) -> str:
        """What all processes have said."""
        return "".join(output.read_text() for output in self.outputs if output.exists())


def train(arguments: Sequence[str], processes: int, folder: Path) -> Training:
    """Run a training to its end, which must be a good one."""
    training = Training(arguments, processes, folder)
    codes = training.wait()
    assert codes == [0] * processes, f"{codes}\n{training.said()}"
    return training


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
