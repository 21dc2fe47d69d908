"""sdist -> wheel -> import, both outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: What belongs to a checkout but not into a build.
IGNORED = (".git", ".venv", "runs", "build", "*.egg-info", ".*_cache", "__pycache__")
BUILD = "from setuptools import build_meta as b; import sys; print(getattr(b, sys.argv[1])('out'))"


def build(source: Path, kind: str) -> Path:
    """Run one PEP 517 hook in `source`; returns the archive."""
    (source / "out").mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, kind], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return source / "out" / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from an unpacked sdist built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(
        ROOT, folder / "checkout", symlinks=True, ignore=shutil.ignore_patterns(*IGNORED)
    )
    with tarfile.open(build(folder / "checkout", "build_sdist")) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.glob("weaktr-*")
    return build(unpacked, "build_wheel")


def run_from(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with nothing of the checkout on its path."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import weaktr, pathlib, weaktr.recipes as r;"
        "print(pathlib.Path(weaktr.__file__).parent, *r.recipe_names())"
    )
    done = run_from(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    where, *recipes = done.stdout.split()
    assert Path(where) == tmp_path / "weaktr"
    assert set(recipes) == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    assert (tmp_path / "weaktr" / "py.typed").exists()


def test_wheel_carries_no_tests_and_both_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (entry_points,) = (n for n in names if n.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
    assert {name.split("/")[0] for name in names} == {"weaktr", names[-1].split("/")[0]}
    assert "weaktr = weaktr.cli:main" in commands
    assert "weaktr-train = weaktr.cli:train_main" in commands
