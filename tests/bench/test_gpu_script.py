"""bench/gpu.sh without a GPU: every command is a stub that notes how it was called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "gpu.sh"
#: Notes the call and writes what a benchmark would; fails where FAIL occurs in the call.
STUB = """#!/bin/sh
echo "$(basename "$0") $*" >> "$CALLS"
for argument in "$@"; do
  case "$argument" in --benchmark-json=*) echo '{}' > "${argument#--benchmark-json=}" ;; esac
done
case "$*" in *"$FAIL"*) echo "stub fails"; exit 3 ;; esac
"""

pytestmark = pytest.mark.skipif(shutil.which("timeout") is None, reason="needs coreutils' timeout")


@pytest.fixture
def script(tmp_path):
    """Runs the script: (exit code, output, its folder, calls)."""
    stubs = tmp_path / "bin"
    stubs.mkdir()
    for name in ("python", "nvcc", "nvidia-smi", "compute-sanitizer"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)

    def run(*arguments, fail="nothing fails"):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = os.environ | {
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "PYTHON": str(stubs / "python"),
            "CUDACXX": str(stubs / "nvcc"),
            "CALLS": str(calls),
            "FAIL": fail,
        }
        process = subprocess.run(
            ["sh", SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        return process.returncode, process.stdout + process.stderr, calls.read_text()

    return run


def test_every_step_is_taken_and_summed_up(script, tmp_path):
    code, said, calls = script(tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    codes = {row["step"]: row["code"] for row in summary["steps"]}
    assert codes.pop("check_blocks") == 127  # the stub of nvcc makes no program
    assert set(codes.values()) == {0}
    assert code == 1 and "failed: check_blocks, see" in said
    for tool in ("memcheck", "racecheck"):
        assert f"compute-sanitizer --tool {tool} --error-exitcode 9" in calls
        assert codes[f"kernels_{tool}"] == codes[f"check_blocks_{tool}"] == 0
    for name in ("cam_cuda", "attention", "clipped_cross_entropy", "dense_crf_cuda", "cam"):
        assert (tmp_path / "out" / f"{name}.json").is_file()
    assert not list((tmp_path / "out").glob("*.step"))


def test_files_that_it_names_are_there(script, tmp_path):
    root = SCRIPT.parents[1]
    _, _, calls = script(tmp_path / "out")
    words = {word for word in calls.split() if word.endswith((".py", ".cpp", ".cu"))}
    assert len(words) > 12
    assert not [word for word in words if not (root / word).is_file()]
    assert (root / "tests" / "ops" / "short_run.py").is_file()


def test_what_fails_is_named_and_nothing_is_left_out(script, tmp_path):
    code, said, calls = script(tmp_path / "out", fail="tests/ops/test_fuse_heads.py")
    assert code == 1
    assert "failed: fuse_heads_tests, see" in said and "stub fails" in said
    assert "bench/kernel_times.py" in calls
    steps = json.loads((tmp_path / "out" / "summary.json").read_text())["steps"]
    assert next(row["code"] for row in steps if row["step"] == "fuse_heads_tests") == 3


def test_folder_is_asked_for(script):
    code, said, calls = script()
    assert code == 2
    assert "usage: bench/gpu.sh FOLDER" in said and not calls
