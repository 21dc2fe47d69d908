"""ThreadSanitizer watches the emulation of the CUDA code."""

from __future__ import annotations

import subprocess

import pytest

from tests.native import compiler

FLAGS = ("-O1", "-fsanitize=thread")


@pytest.mark.rare
def test_no_races() -> None:
    """Two blocks at a time, each with several threads."""
    problem = compiler.problem(*FLAGS)
    if problem:
        pytest.skip(problem)
    sources = [
        compiler.Source(compiler.NATIVE / "sanitizers" / "check_blocks.cpp"),
        compiler.Source(compiler.NATIVE / "emulation" / "emulation.cpp"),
    ]
    program = compiler.build("check_blocks", sources, FLAGS)
    process = subprocess.run([program], capture_output=True, text=True, check=False)
    if "unexpected memory mapping" in process.stderr:
        pytest.skip("ThreadSanitizer does not run on this kernel")
    assert process.returncode == 0, process.stdout + process.stderr
