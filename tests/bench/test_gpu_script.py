"""bench/gpu.sh without a GPU: every command is a stub that notes how it was called."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
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
    for name in ("python", "nvcc", "nvidia-smi", "compute-sanitizer", "ncu"):
        (stubs / name).write_text(STUB)
        (stubs / name).chmod(0o755)

    def run(*arguments, fail="nothing fails", wheels=""):
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = os.environ | {
            "PATH": f"{stubs}:{os.environ['PATH']}",
            "PYTHON": str(stubs / "python"),
            "CUDACXX": str(stubs / "nvcc"),
            "CALLS": str(calls),
            "FAIL": fail,
            "WHEELS": str(wheels),
        }
        process = subprocess.run(
            ["sh", SCRIPT, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return process.returncode, process.stdout + process.stderr, calls.read_text()

    return run


def results(folder, number):
    """The files in the archive of a run: name -> content."""
    with tarfile.open(folder / f"results{number}.tgz") as archive:
        return {
            Path(member.name).name: archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }


@pytest.mark.parametrize("number", [1, 2])
def test_every_step_is_taken_and_summed_up(script, tmp_path, number):
    code, said, calls = script(number, tmp_path / "out")
    files = results(tmp_path / "out", number)
    summary = json.loads(files["summary.json"])
    codes = {row["step"]: row["code"] for row in summary["steps"]}
    if number == 1:
        assert codes.pop("check_blocks") == 127  # the stub of nvcc makes no program
        assert code == 1 and "failed: check_blocks" in said
    else:
        assert code == 0, said
    assert set(codes.values()) == {0}
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"results{number}.tgz"]
    assert not [name for name in files if name.endswith(".step")]
    for name in ("cam_cuda", "attention", "clipped_cross_entropy", "dense_crf_cuda"):
        assert f"{name}.json" in files
    assert calls.index("setup.py") < calls.index("bench/label_trace.py")


def test_the_second_run_looks_for_faults(script, tmp_path):
    _, _, calls = script(2, tmp_path / "out")
    for tool in ("memcheck", "racecheck"):
        assert calls.count(f"compute-sanitizer --tool {tool} --error-exitcode 9") == 2
    assert calls.index("setup.py") < calls.index("tests/ops/test_dense_crf_cuda.py")
    assert "bench/bench_label.py" in calls and "--all-cells" in calls


@pytest.mark.parametrize("number", [1, 2])
def test_files_that_it_names_are_there(script, tmp_path, number):
    root = SCRIPT.parents[1]
    _, _, calls = script(number, tmp_path / "out")
    words = {word for word in calls.split() if word.endswith((".py", ".cpp", ".cu"))}
    assert len(words) > 10
    assert not [word for word in words if not (root / word).is_file()]
    assert (root / "tests" / "ops" / "short_run.py").is_file()


def test_what_fails_is_named_and_nothing_is_left_out(script, tmp_path):
    code, said, calls = script(2, tmp_path / "out", fail="tests/ops/test_fuse_heads.py")
    assert code == 1
    assert "failed: fuse_heads_tests" in said and "stub fails" in said
    assert "bench/bench_attention.py" in calls
    steps = json.loads(results(tmp_path / "out", 2)["summary.json"])["steps"]
    assert next(row["code"] for row in steps if row["step"] == "fuse_heads_tests") == 3


def test_wheels_are_installed_before_anything_runs(script, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").write_text("")
    _, _, calls = script(1, tmp_path / "out", wheels=tmp_path / "wheels")
    first, second = calls.splitlines()[1:3]
    assert "pip install" in first and "one.whl" in first
    assert "weaktr.cli env" in second


@pytest.mark.parametrize("arguments", [(), (1,), (3, "out"), ("out",)])
def test_run_and_folder_are_asked_for(script, arguments):
    code, said, calls = script(*arguments)
    assert code == 2
    assert "usage: bench/gpu.sh 1|2 FOLDER" in said and not calls
