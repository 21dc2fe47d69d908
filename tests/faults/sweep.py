"""Faults at every file operation of each command: what is done afterwards is the same.

    python -m tests.faults.sweep                       every position (hours)
    python -m tests.faults.sweep --most 40 label       at most 40 positions of each kind

For each position n of each kind of fault, a command runs in a fresh copy of its data with the n-th
file operation failing, then again without a fault. The first run must end in one clear line (or be
gone, where the fault was a kill) with an exit code that says so, the second must give what an
undisturbed run gives; no input may be touched, nothing half-written may stay.

The process forks for each run, since importing torch takes seconds. Linux with a C compiler.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

SHIM = Path(__file__).parent / "shim.c"
#: Kinds of faults by the numbers that the shim knows them by; see there.
KINDS = {"exit": 1, "half": 2, "full": 3, "broken": 4}
KILLED = 137
#: Seconds after which a run counts as hanging.
PATIENCE = 120
#: Exit codes of a run that met a fault and lived.
CODES = (0, 1, 2)


class Command(NamedTuple):
    """A command in its own folder.

    Args:
        arguments: of the program, in a folder HOME with the data.
        results: everything in HOME that must be the same in the end, by name.
        inputs: what nobody may touch, as paths in HOME.
    """

    program: str
    arguments: Callable[[Path], list[str]]
    results: Callable[[Path], dict[str, object]]
    inputs: tuple[str, ...]


@dataclass
class Finding:
    """A run that did not end as it must."""

    command: str
    kind: str
    position: int
    what: str
    output: str = ""

    def __str__(self) -> str:
        return f"{self.command}, {self.kind} at {self.position}: {self.what}\n{self.output}"


@dataclass
class Tally:
    """What a sweep has met."""

    positions: dict[str, int] = field(default_factory=dict)
    cases: int = 0
    findings: list[Finding] = field(default_factory=list)


def sweep(commands: list[str], kinds: list[str], most: int | None, seed: int = 0) -> Tally:
    """Run the faults; must run in a process that loaded the shim (`in_shim`).

    Args:
        commands: names of `commands`.
        kinds: of `KINDS`.
        most: positions of each kind, spread at random; None = all.
        seed: of the choice.
    """
    from tests.faults.commands import COMMANDS, prepare

    shim = ctypes.CDLL(None)
    shim.faults_arm.argtypes = ctypes.c_char_p, ctypes.c_int, ctypes.c_long
    shim.faults_count.restype = ctypes.c_long
    tally = Tally()
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder).resolve()
        _forked(lambda: prepare(home / "data"), home / "log")
        for name in commands:
            runner = Runner(name, COMMANDS[name], home, shim)
            total = runner.count_operations()
            tally.positions[name] = total
            for kind in kinds:
                chosen = range(1, total + 1)
                if most is not None and most < total:
                    chosen = sorted(random.Random(f"{seed} {name} {kind}").sample(chosen, most))
                for position in chosen:
                    tally.cases += 1
                    finding = runner.try_fault(kind, position)
                    if finding is not None:
                        tally.findings.append(finding)
                        print(finding, flush=True)
            print(f"{name}: {total} operations, {tally.cases} cases so far", flush=True)
    return tally


class Runner:
    """Runs one command with faults.

    Args:
        name: of the command.
        command: what runs.
        home: holds ``data``, which every run gets a copy of.
        shim: the library that makes the faults.
    """

    def __init__(self, name: str, command: Command, home: Path, shim: ctypes.CDLL) -> None:
        self.name, self.command, self.home, self.shim = name, command, home, shim
        self.reference: dict[str, object] = {}
        self.inputs: dict[str, bytes] = {}

    def count_operations(self) -> int:
        """How many file operations an undisturbed run has; keeps its results."""
        place = self._fresh()
        self.inputs = self._read_inputs(place)
        code, output = self._run(place, 0, 0)
        if code != 0:
            raise RuntimeError(f"{self.name} fails without a fault: {code}\n{output}")
        self.reference = self.command.results(place)
        count, modules = json.loads((self.home / "told").read_text())
        for module in modules:  # once, not in every child
            importlib.import_module(module)
        gc.freeze()  # children that look for garbage here would copy its memory
        return int(count)

    def try_fault(self, kind: str, position: int) -> Finding | None:
        """One run with a fault and one without."""
        place = self._fresh()
        code, output = self._run(place, KINDS[kind], position)
        problem = self._problem_of(code, output, may_be_killed=kind in ("exit", "half"))
        if problem is None:
            again, output = self._run(place, 0, 0)
            problem = self._problem_afterwards(place, again)
        return problem and Finding(self.name, kind, position, problem, output[-3000:])

    def _problem_of(self, code: int, output: str, *, may_be_killed: bool) -> str | None:
        """What is wrong with the end of the run that met the fault."""
        if may_be_killed and code == KILLED:
            return None
        if code not in CODES:
            return f"ended with {code}"
        if "Traceback" in output:
            return "a traceback"
        if code != 0 and not output.strip():
            return "no word of what is wrong"
        return None

    def _problem_afterwards(self, place: Path, code: int) -> str | None:
        """What is wrong after the run that followed."""
        if code != 0:
            return f"the run that followed ended with {code}"
        if self._read_inputs(place) != self.inputs:
            return "an input was changed"
        results = self.command.results(place)
        if results != self.reference:
            other = [k for k in self.reference | results if results.get(k) != self.reference.get(k)]
            return f"other results: {', '.join(other[:5])}"
        rest = [p for p in place.rglob(".*") if re.search(r"\.(part|removed)$", p.name)]
        return f"left behind: {rest[0].relative_to(place)}" if rest else None

    def _fresh(self) -> Path:
        place = self.home / "place"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.home / "data", place)
        return place

    def _read_inputs(self, place: Path) -> dict[str, bytes]:
        places = [place / name for name in self.command.inputs]
        files = [file for path in places for file in (path, *sorted(path.rglob("*")))]
        return {str(file.relative_to(place)): file.read_bytes() for file in files if file.is_file()}

    def _run(self, place: Path, kind: int, position: int) -> tuple[int, str]:
        """Exit code and everything printed."""

        def command() -> int:
            from weaktr import cli

            program = {"weaktr": cli.main, "weaktr-train": cli.train_main}[self.command.program]
            arguments = self.command.arguments(place)
            self.shim.faults_arm(str(place).encode(), kind, position)
            try:
                return program(arguments)
            finally:
                count = self.shim.faults_count()
                self.shim.faults_arm(b"/nowhere", 0, 0)
                ours = sorted(name for name in sys.modules if name.startswith("weaktr."))
                (self.home / "told").write_text(json.dumps([count, ours]))

        return _forked(command, self.home / "log")


def _forked(work: Callable[[], int | None], log: Path) -> tuple[int, str]:
    """Run `work` in a child process whose output goes to `log`."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            signal.alarm(PATIENCE)
            code = work() or 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, log.read_text(errors="replace")


@contextlib.contextmanager
def built_shim() -> Iterator[Path]:
    """The compiled shim.

    Raises:
        FileNotFoundError: no C compiler.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "shim.so"
        compile_it = ["cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(SHIM), "-ldl"]
        subprocess.run(compile_it, check=True)
        yield library


def in_shim(*arguments: str, captured: bool = True) -> subprocess.CompletedProcess[str]:
    """Run Python with the shim loaded."""
    with built_shim() as library:
        environment = os.environ | {
            "LD_PRELOAD": str(library),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, env=environment, capture_output=captured, text=True, check=False
        )


def main() -> int:
    """The script."""
    from tests.faults.commands import COMMANDS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("commands", nargs="*", help=f"of {', '.join(COMMANDS)} (default: all)")
    parser.add_argument("--kinds", default=",".join(KINDS), help=f"of {', '.join(KINDS)}")
    parser.add_argument("--most", type=int, help="positions of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.inside:
        inside = "-m", "tests.faults.sweep", "--inside", *sys.argv[1:]
        return in_shim(*inside, captured=False).returncode
    tally = sweep(
        options.commands or list(COMMANDS), options.kinds.split(","), options.most, options.seed
    )
    print(f"{tally.cases} cases, {len(tally.findings)} findings; operations: {tally.positions}")
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
