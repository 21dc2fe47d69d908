"""Run cases in other processes, so that a crash, a hang or a flood of memory is a finding."""

from __future__ import annotations

import faulthandler
import mmap
import multiprocessing
import os
import re
import resource
import shutil
import signal
import struct
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from tests.fuzz.mutate import mutated
from tests.fuzz.readers import Files, Reader

#: Seconds that one case may take.
LIMIT = 20.0
#: After so many hangs the rest of a reader's cases is left out.
MOST_HANGS = 3
#: Where the files of the cases are written: in memory, where the system has a folder for that.
MEMORY = Path("/dev/shm") if Path("/dev/shm").is_dir() else None
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Finding:
    """A case that was neither read nor refused as it should be.

    Args:
        reader: its name.
        number: of the case.
        kind: "hang"; the name of a signal; "stray" = an exception that is none of
            `Reader.allowed`; "unnamed" = a message without the file; "lines" = one of several.
        where: the exception and the innermost line of ours. Findings that agree in kind and
            place are taken as one fault.
        message: of the exception.
    """

    reader: str
    number: int
    kind: str
    where: str
    message: str = ""


@dataclass
class Result:
    """What became of a reader's cases."""

    read: int = 0
    refused: int = 0
    findings: list[Finding] = field(default_factory=list)


class _Progress:
    """What a worker is doing, in memory that outlives it."""

    _FORM = struct.Struct("qdqq")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._FORM.size)

    def set(self, number: int, read: int, refused: int) -> None:
        """The case that begins now, and how many were read and refused before."""
        self._memory[:] = self._FORM.pack(number, time.monotonic(), read, refused)

    def get(self) -> tuple[int, float, int, int]:
        """Number of the case, when it began (0 = none has), how many were read, and refused."""
        number, began, read, refused = self._FORM.unpack(self._memory[:])
        return number, began, read, refused


def case_of(reader: Reader, seed: int, number: int) -> Files:
    """The files of a case: always the same for a number and a seed."""
    whole = reader.whole()
    rng = Random(f"{seed} {reader.name} {number}")
    content = mutated(rng, whole[reader.file], reader.kind, [whole[reader.file], *reader.others()])
    return whole | {reader.file: content}


def run_cases(
    reader: Reader, files_of: Callable[[int], Files], first: int, count: int, limit: float = LIMIT
) -> Result:
    """Run the cases `first`, `first` + 1, ... of a reader.

    Args:
        reader: what is tried.
        files_of: the files of a case by its number.
        first: number of the first case.
        count: of cases.
        limit: seconds that each may take.
    """
    result, end = Result(), first + count
    while first < end:
        first = _run_until_one_fails(reader, files_of, range(first, end), limit, result)
        if sum(finding.kind == "hang" for finding in result.findings) >= MOST_HANGS:
            break
    return result


def _run_until_one_fails(
    reader: Reader, files_of: Callable[[int], Files], cases: range, limit: float, result: Result
) -> int:
    """Run cases in one process, until it dies; returns the number of the case to go on with."""
    progress = _Progress()
    receiver, sender = multiprocessing.Pipe(duplex=False)
    with tempfile.TemporaryDirectory(prefix="fuzz.", dir=MEMORY) as place:
        work = (reader, files_of, cases, Path(place), progress, sender)
        process = multiprocessing.get_context("fork").Process(target=_work, args=work)
        process.start()
        sender.close()
        died_of = ""
        while True:
            number, began, *_ = progress.get()
            if receiver.poll(0.1):
                try:
                    result.findings.append(receiver.recv())
                except EOFError:
                    break
            elif began and time.monotonic() - began > limit:
                process.kill()
                died_of = "hang"
                break
        process.join()
        number, _, read, refused = progress.get()
        result.read += read
        result.refused += refused
        if process.exitcode == 0:
            return cases.stop
        died_of = died_of or _signal(process.exitcode or 0)
        result.findings.append(Finding(reader.name, number, died_of, _last_line(Path(place))))
        return number + 1


def _signal(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit {code}"


def _last_line(place: Path) -> str:
    """The innermost line of ours in the trace that a dead worker has left."""
    trace = (place / "trace").read_text() if (place / "trace").exists() else ""
    found = re.search(rf'File "{re.escape(str(ROOT))}/(\S+)", line (\d+) in (\w+)', trace)
    return f"{found[1]}:{found[2]} {found[3]}" if found else ""


# ---- in the worker ------------------------------------------------------------------------------


def _work(
    reader: Reader,
    files_of: Callable[[int], Files],
    cases: range,
    place: Path,
    progress: _Progress,
    sender: Connection,
) -> None:
    """Run cases and send findings."""
    silence = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silence, stream)
    with open(place / "trace", "w") as trace:
        faulthandler.enable(trace, all_threads=False)
        warnings.simplefilter("ignore")
        _limit_memory(reader.memory)
        read = refused = 0
        root = place / "case"
        for number in cases:
            progress.set(number, read, refused)
            _write(root, files_of(number))
            finding, is_refused = _try(reader, root, number)
            refused += is_refused
            read += not is_refused and finding is None
            if finding is not None:
                sender.send(finding)
        progress.set(cases.stop, read, refused)
        faulthandler.disable()


def _limit_memory(further: int) -> None:
    """Allow so many bytes beside those that are taken now; where the system cannot, any number."""
    status = Path("/proc/self/status")
    if status.exists():
        taken = re.search(r"VmData:\s+(\d+) kB", status.read_text())
        if taken is not None:
            limit = int(taken[1]) * 1024 + further
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _write(root: Path, files: Files) -> None:
    if root.exists():
        shutil.rmtree(root)
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _try(reader: Reader, root: Path, number: int) -> tuple[Finding | None, bool]:
    """What is wrong with how a case ends, if anything; whether the file was refused."""
    try:
        reader.read(root)
    except reader.allowed as error:
        kind = _fault_of_message(reader, str(error), str(root))
        finding = Finding(reader.name, number, kind, _where(error), str(error)[:300])
        return finding if kind else None, True
    except BaseException as error:
        return Finding(reader.name, number, "stray", _where(error), _text(error)), False
    return None, False


def _fault_of_message(reader: Reader, message: str, root: str) -> str:
    """What is wrong with the message of a refusal, "" = nothing.

    It names a file, and each of its lines does where several faults are told at once.
    """
    if not reader.names_the_file:
        return ""
    if root not in message and Path(reader.file).name not in message:
        return "unnamed"
    further = message.split("\n")[1:]
    return (
        "lines" if not all(root in line or line.startswith("... and") for line in further) else ""
    )


def _text(error: BaseException) -> str:
    try:
        return str(error)[:300]
    except Exception as unreadable:  # of a message that was made from the file
        return f"a message that cannot be read: {unreadable}"


def _where(error: BaseException) -> str:
    """The exception and the innermost line of ours."""
    ours = [
        f"{Path(frame.filename).relative_to(ROOT)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(ROOT) and "workers.py" not in frame.filename
    ]
    return f"{type(error).__name__} {ours[-1] if ours else ''}".strip()
