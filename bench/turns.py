"""Rows that run in turns, each in a process of its own.

A busy moment of the machine meets all rows of a group, and no row finds memory that another left.
The program of a row answers each line of standard input with a line of JSON (`serve`):

    first      run once to warm up and once more: {"result": FILE.pt, "peak": MIB}
    again      run once more: {"seconds": ...}
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from conftest import largest_difference, peak_mib, synchronize
from torch import Tensor

from weaktr.cli.memory import keep_freed_memory

#: Ends the name of a way whose process keeps what it frees, as ours does; the published code does
#: not.
KEPT = ", memory kept"


class Process:
    """One way in a process of its own, which waits until it is asked.

    Args:
        program: such as ``cam_work.py``.
        arguments: of its `main`.
    """

    def __init__(self, program: str, *arguments: object) -> None:
        command = [sys.executable, program, *map(str, arguments)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: str) -> dict[str, Any]:
        """The program's answer to a line, such as "first" or "again"."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()


class Measured(NamedTuple):
    """What was measured of a row."""

    seconds: list[float]
    peak: float | None
    error: float
    scale: float  #: largest number of the right result


def in_turns(
    rows: Sequence[str], program: str, work: Sequence[object], *rest: object, rounds: int = 5
) -> dict[str, Measured]:
    """Run every row in turns; their results are compared with that of the first.

    Args:
        rows: the ways.
        program, work, rest: a process is ``program *work ROW *rest``.
        rounds: times that are taken of each.
    """
    processes = {row: Process(program, *work, row, *rest) for row in rows}
    first = {row: process.ask("first") for row, process in processes.items()}
    results = {row: taken(answer) for row, answer in first.items()}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(rounds):
        for row, process in processes.items():
            seconds[row].append(process.ask("again")["seconds"])
    for process in processes.values():
        process.end()
    right = results[rows[0]]
    return {
        row: Measured(
            seconds[row],
            first[row]["peak"],
            largest_difference(results[row], right),
            float(right.abs().max()),
        )
        for row in rows
    }


def taken(answer: dict[str, Any]) -> Tensor:
    """The result of the answer to "first"; its file goes."""
    result: Tensor = torch.load(answer["result"], weights_only=True)
    Path(answer["result"]).unlink()
    return result


def keeps_memory(way: str) -> bool:
    """Whether the process of a way keeps the memory that it frees; see `KEPT`."""
    return way.endswith(KEPT) or not way.startswith("published")


def serve(way: str, make: Callable[[str], Callable[[], Tensor]]) -> None:
    """Answer the questions of a `Process` until there are no more.

    Args:
        way: of the row.
        make: a way without `KEPT` -> one piece of work; returns what is compared.
    """
    if keeps_memory(way):
        keep_freed_memory()
    call = make(way.removesuffix(KEPT))
    for line in sys.stdin:
        if line.strip() == "first":
            call()
            result, peak = peak_mib(call)
            file, name = tempfile.mkstemp(suffix=".pt")
            os.close(file)
            torch.save(result.cpu(), name)
            answer: dict[str, Any] = {"result": name, "peak": peak}
        else:
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer), flush=True)
