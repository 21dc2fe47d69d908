"""A fixed part of what `make fuzz` runs: random calls of the dense CRF under sanitizers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import unavailable
from tests.native import compiler
from tests.native.fuzz import run as fuzzer

CASES = 400
#: One instruction set, the best: compiling takes most of the time. `make fuzz` has them all.
LEVELS = fuzzer.usable_levels()[:1]


@pytest.fixture(scope="module")
def program() -> Path:
    """The driver with AddressSanitizer and UBSan."""
    problem = compiler.problem() or compiler.problem(f"-fsanitize={fuzzer.SANITIZERS}")
    if problem:
        unavailable("cpu", problem)
    return fuzzer.build(LEVELS, optimize="-O0")


def run(program: Path, levels: list[str], first: int, cases: int) -> subprocess.CompletedProcess:
    command = fuzzer.command(program, levels, seed=0, first=first, cases=cases)
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.rare
def test_random_calls(program):
    process = run(program, LEVELS, first=0, cases=CASES)
    assert process.returncode == 0, process.stdout + process.stderr
    solved, refused, too_wide, out_of_memory = map(int, re.findall(r"\d+", process.stdout))
    assert solved + refused + too_wide == CASES
    assert min(solved, refused, too_wide, out_of_memory) > 0


@pytest.mark.rare
def test_a_case_can_be_repeated(program):
    """The number that a failure names is enough, and a failure is seen."""
    process = run(program, ["no-such-isa"], first=17, cases=1)
    assert process.returncode == 1
    assert "isa: expected auto or one of" in process.stderr
    assert "case 17 of seed 0" in process.stderr
