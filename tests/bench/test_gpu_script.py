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


def results(folder):
    """The files in the archive of a run: name -> content."""
    with tarfile.open(folder / "results.tgz") as archive:
        return {
            Path(member.name).name: archive.extractfile(member).read()
            for member in archive
            if member.isfile()
        }


def steps(folder):
    """Step -> exit code, as the summary has them."""
    return {
        row["step"]: row["code"] for row in json.loads(results(folder)["summary.json"])["steps"]
    }


def test_every_step_is_taken_and_summed_up(script, tmp_path):
    code, said, calls = script(tmp_path / "out")
    codes = steps(tmp_path / "out")
    assert code == 0, said
    assert set(codes.values()) == {0} and len(codes) > 30
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["results.tgz"]
    files = results(tmp_path / "out")
    assert not [name for name in files if name.endswith(".step")]
    for name in ("cam_cuda", "training_cuda", "attention", "clipped_cross_entropy"):
        assert f"{name}.json" in files
    for tool in ("memcheck", "racecheck"):
        assert calls.count(f"compute-sanitizer --tool {tool} --error-exitcode 9") == 2


def test_parts_can_be_chosen(script, tmp_path):
    _, _, calls = script(tmp_path / "out", 60, "tests")
    assert "tests/ops/test_dense_crf_cuda.py" in calls
    assert "compute-sanitizer" not in calls and "bench/" not in calls


def test_it_builds_what_is_not_built_before_anything_that_imports_it(script, tmp_path):
    _, _, calls = script(tmp_path / "out")
    assert "setup.py" not in calls
    _, _, calls = script(tmp_path / "out", fail="import weaktr.ops.dense_crf.cuda")
    assert calls.index("setup.py") < calls.index("tests/ops/test_dense_crf_cuda.py")
    assert calls.index("setup.py") < calls.index("bench/label_trace.py")


def test_files_that_it_names_are_there(script, tmp_path):
    root = SCRIPT.parents[1]
    _, _, calls = script(tmp_path / "out")
    words = {word for word in calls.split() if word.endswith((".py", ".cpp", ".cu"))}
    assert len(words) > 10
    assert not [word for word in words if not (root / word).is_file()]
    assert (root / "tests" / "ops" / "short_run.py").is_file()


def test_what_fails_is_named_and_nothing_is_left_out(script, tmp_path):
    code, said, calls = script(tmp_path / "out", fail="tests/ops/test_fuse_heads.py")
    assert code == 1
    assert "failed: test_fuse_heads" in said and "stub fails" in said
    assert "bench/bench_attention.py" in calls
    assert steps(tmp_path / "out")["test_fuse_heads"] == 3


def test_what_has_no_time_left_is_noted(script, tmp_path):
    code, _, calls = script(tmp_path / "out", 0)
    assert code == 1 and "bench/bench_attention.py" not in calls
    assert set(steps(tmp_path / "out").values()) == {124}


def test_wheels_are_installed_before_anything_runs(script, tmp_path):
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "one.whl").write_text("")
    _, _, calls = script(tmp_path / "out", wheels=tmp_path / "wheels")
    first, second = calls.splitlines()[1:3]
    assert "pip install" in first and "one.whl" in first
    assert "weaktr.cli env" in second


@pytest.mark.parametrize("arguments", [(), ("out", "soon"), ("out", 60, "all")])
def test_folder_seconds_and_parts_are_checked(script, arguments):
    code, said, calls = script(*arguments)
    assert code == 2
    assert "usage: bench/gpu.sh FOLDER [SECONDS" in said and not calls
