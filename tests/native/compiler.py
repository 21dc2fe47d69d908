"""Compile the C++ code of the tests: one compiler, one set of flags, results kept in build/tests.

Needs nothing of weaktr, so that it can be compiled for fuzzing where weaktr is not installed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

NATIVE = Path(__file__).parent
ROOT = NATIVE.parents[1]
CSRC = ROOT / "csrc"
FOLDER = ROOT / "build" / "tests"
#: Of all code; like CMakeLists.txt as far as results depend on them.
FLAGS = ("-std=c++17", "-g1", "-pthread", "-ffp-contract=off", "-fno-math-errno")


class Source(NamedTuple):
    """A C++ file, and the flags that it alone is compiled with."""

    path: Path
    flags: tuple[str, ...] = ()


def program() -> str:
    """The C++ compiler: CXX, or g++."""
    return os.environ.get("CXX", "g++")


def problem(*flags: str) -> str | None:
    """Why nothing can be compiled and linked here with these flags; None: it can."""
    if shutil.which(program()) is None:
        return f"no C++ compiler: {program()} (see CXX)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "empty.cpp"
        source.write_text("int main() {}\n")
        trial = [program(), *flags, str(source), "-o", str(Path(folder) / "empty")]
        compiled = subprocess.run(trial, capture_output=True, check=False)
    return f"{program()} does not take {' '.join(flags)}" if compiled.returncode else None


def build(name: str, sources: Sequence[Source], flags: Sequence[str] = ()) -> Path:
    """Compile the sources, several at once, and link them.

    What an earlier call has built of the same code in the same way is returned as it is.

    Args:
        name: file name of the program or library.
        sources: its C++ files.
        flags: of the compiler and the linker, besides `FLAGS`.

    Returns:
        The program or library.

    Raises:
        subprocess.CalledProcessError: something does not compile; the compiler has said what.
    """
    common = [program(), *FLAGS, f"-I{CSRC}", f"-I{NATIVE}", *flags]
    target = FOLDER / _key(common, sources) / name
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        FileLock(target.parent / "lock"),  # of tests in another process that need the same
        tempfile.TemporaryDirectory(dir=target.parent) as folder,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        if target.exists():
            return target
        objects = [str(Path(folder) / f"{i}.o") for i in range(len(sources))]
        jobs = [
            [*common, *source.flags, "-c", str(source.path), "-o", place]
            for source, place in zip(sources, objects, strict=True)
        ]
        list(pool.map(lambda job: subprocess.run(job, check=True), jobs))
        linked = Path(folder) / name
        subprocess.run([*common, *objects, "-o", str(linked)], check=True)
        linked.replace(target)
    return target


def _key(common: Sequence[str], sources: Sequence[Source]) -> str:
    """Names all that a result depends on: the compiler, how it is called, all C++ files."""
    digest = hashlib.sha256()
    version = subprocess.run([program(), "--version"], capture_output=True, check=True)
    digest.update(repr((version.stdout, common, sources)).encode())
    files = (path for folder in (CSRC, NATIVE) for path in folder.rglob("*.*pp"))
    for path in sorted([*files, *CSRC.rglob("*.cuh")]):
        digest.update(str(path.relative_to(ROOT)).encode() + path.read_bytes())
    return digest.hexdigest()[:16]
