"""A fixed part of what `make fuzz` runs: damaged files for every reader; and what it finds."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.fuzz import run
from tests.fuzz.readers import READERS, Reader
from tests.fuzz.workers import ROOT, case_of, run_cases

CASES = 600
ROW = re.compile(r"^(\S.*?) +(\d+) cases +(\d+) read +(\d+) refused +0 findings", re.MULTILINE)


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path):
    """In a process of its own: the workers are its copies, which have no threads of other tests."""
    command = [sys.executable, "-m", "tests.fuzz.run", "--cases", str(CASES)]
    process = subprocess.run(
        [*command, "--findings", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    rows = {
        name: [int(number) for number in numbers] for name, *numbers in ROW.findall(process.stdout)
    }
    assert rows.keys() == READERS.keys()
    for cases, read, refused in rows.values():
        assert cases == read + refused
    _, *totals = map(sum, zip(*rows.values(), strict=True))
    assert min(totals) > CASES / 10


# ---- the fuzzer itself --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in READERS if name != "mat"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(name, tmp_path):
    reader = READERS[name]
    for path, content in reader.whole().items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    (tmp_path / reader.file).unlink()
    os.mkfifo(tmp_path / reader.file)

    def give_up(*_: object) -> None:
        pytest.fail("it waits")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(10)
    try:
        reader.read(tmp_path)
    except reader.allowed as error:
        assert str(tmp_path) in str(error)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _crash(_: Path) -> None:
    ctypes.string_at(0)


def _hang(_: Path) -> None:
    while True:
        time.sleep(0.01)


def _flood(_: Path) -> None:
    pieces = [bytes(1 << 24)]
    while True:
        pieces.append(pieces[-1] + b"x")


def _stray(_: Path) -> None:
    raise KeyError("x")


def _unnamed(_: Path) -> None:
    raise ValueError("wrong")


def _lines(root: Path) -> None:
    raise ValueError(f"{root}/a.txt: wrong\nand why")


def _refusal(root: Path) -> None:
    raise ValueError(f"{root}/a.txt: wrong\n{root}/a.txt: wrong there too")


FAULTS = {
    _crash: ("SIGSEGV", "tests/fuzz/test_readers.py"),
    _hang: ("hang", ""),
    _flood: ("stray", "MemoryError tests/fuzz/test_readers.py"),
    _stray: ("stray", "KeyError tests/fuzz/test_readers.py"),
    _unnamed: ("unnamed", "ValueError tests/fuzz/test_readers.py"),
    _lines: ("lines", "ValueError tests/fuzz/test_readers.py"),
    _refusal: None,
}
LIMITS = {_hang: 1.0}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_each_kind_of_fault_is_found(fault, tmp_path, monkeypatch):
    """In the case that has it; the others are run, and the kept files show it again."""

    def read(root: Path) -> None:
        if (root / "a.txt").read_bytes() == b"3":
            fault(root)

    reader = Reader("faulty", "a.txt", "bytes", lambda: {"a.txt": b"0"}, read, memory=1 << 27)
    result = run_cases(
        reader, lambda number: {"a.txt": b"%d" % number}, 0, 6, limit=LIMITS.get(fault, 30.0)
    )
    if FAULTS[fault] is None:
        assert (result.read, result.refused, result.findings) == (5, 1, [])
        return
    (finding,) = result.findings
    assert (finding.number, finding.kind) == (3, FAULTS[fault][0])
    assert finding.where.startswith(FAULTS[fault][1])
    assert result.read == 5
    kept = run.save(finding, {"a.txt": b"3"}, tmp_path)
    monkeypatch.setitem(READERS, "faulty", reader)
    monkeypatch.setattr(run, "LIMIT", LIMITS.get(fault, 30.0))
    (again,) = run.replay(kept)
    assert (again.kind, again.where) == (finding.kind, finding.where)


def test_a_reader_that_hangs_again_and_again_is_given_up(monkeypatch):
    monkeypatch.setattr("tests.fuzz.workers.MOST_HANGS", 2)
    reader = Reader("faulty", "a.txt", "bytes", lambda: {"a.txt": b"0"}, _hang)
    result = run_cases(reader, lambda _: reader.whole(), 0, 100, limit=0.2)
    assert [finding.number for finding in result.findings] == [0, 1]


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("name", READERS)
def test_a_case_is_the_same_at_any_time(name, monkeypatch):
    reader = READERS[name]
    cases = [case_of(reader, 5, number) for number in range(10)]
    assert len({case[reader.file] for case in cases}) > 5
    monkeypatch.setattr(time, "time", lambda: 2e9)
    if hasattr(reader.whole, "cache_clear"):
        reader.whole.cache_clear()
    assert [case_of(reader, 5, number) for number in range(10)] == cases
