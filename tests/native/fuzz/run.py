"""Compile the fuzzer of the dense CRF with sanitizers, and run it.

    python -m tests.native.fuzz.run --cases 200000              # make fuzz CASES=200000
    python -m tests.native.fuzz.run --first 4711 --cases 1      # one case again

The first failure ends it, with the stack or the broken promise and the number of the case.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "build" / "fuzz"
#: Instruction set -> compiler flags; like CMakeLists.txt.
AVX2 = ("-mavx2", "-mfma", "-mbmi2")
AVX512 = (*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl")
LEVELS: dict[str, tuple[str, ...]] = {"scalar": ()}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {"avx2": AVX2, "avx512": AVX512}
elif platform.machine() in ("aarch64", "arm64"):
    LEVELS |= {"neon": ()}
FLAGS = ("-std=c++17", "-g1", "-pthread", "-ffp-contract=off", "-fno-math-errno")
CHECKS = ("-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS")
#: What stands for an instruction set that is left out: nobody asks for it.
LEFT_OUT = """
#include <cstdlib>
#include "dense_crf/cpu/isa.hpp"
namespace weaktr {
namespace WEAKTR_ISA {
void solve(const Problem&, const Kernel*, int, int, Workspace&, Team&) { std::abort(); }
}
}
"""


def compiler() -> str:
    return os.environ.get("CXX", "g++")


def build(
    levels: Sequence[str],
    sanitizers: str = "address,undefined",
    optimize: str = "-O1",
    folder: Path = FOLDER,
) -> Path:
    """Compile the driver.

    Args:
        levels: instruction sets to compile; the others cannot be fuzzed then.
        sanitizers: of the compiler, comma-separated.
        optimize: the compiler's flag; "-O0" compiles fastest.
        folder: for the objects and the program.

    Returns:
        The program.

    Raises:
        subprocess.CalledProcessError: something does not compile; the compiler has said what.
    """
    folder.mkdir(parents=True, exist_ok=True)
    left_out = folder / "left_out.cpp"
    left_out.write_text(LEFT_OUT)
    csrc = ROOT / "csrc"
    jobs: list[tuple[Path, str, tuple[str, ...]]]
    jobs = [(Path(__file__).parent / "fuzz_dense_crf.cpp", "fuzz_dense_crf", ())]
    jobs += [(csrc / "common" / "isa.cpp", "isa", ())]
    jobs += [
        (csrc / "dense_crf" / "cpu" / f"{name}.cpp", name, ())
        for name in ("driver", "memory", "team")
    ]
    for name, flags in LEVELS.items():
        source = csrc / "dense_crf" / "cpu" / "isa.cpp" if name in levels else left_out
        jobs.append((source, name, (*flags, f"-DWEAKTR_ISA={name}")))
    common = [compiler(), *FLAGS, f"-I{csrc}", optimize, f"-fsanitize={sanitizers}", *CHECKS]

    def compile_one(job: tuple[Path, str, tuple[str, ...]]) -> str:
        source, name, flags = job
        target = str(folder / f"{name}.o")
        subprocess.run([*common, *flags, "-c", str(source), "-o", target], check=True)
        return target

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    program = folder / "fuzz_dense_crf"
    subprocess.run([*common, *objects, "-o", str(program)], check=True)
    return program


def usable_levels() -> list[str]:
    """The instruction sets that this processor runs, best first."""
    facts = Path("/proc/cpuinfo")
    flags = set(facts.read_text().split()) if facts.exists() else set()
    needed = {
        "avx512": {"avx2", "fma", "bmi2", "avx512f", "avx512dq", "avx512bw", "avx512vl"},
        "avx2": {"avx2", "fma", "bmi2"},
    }
    return [name for name in reversed(LEVELS) if needed.get(name, set()) <= flags]


def command(program: Path, levels: Sequence[str], seed: int, first: int, cases: int) -> list[str]:
    """What runs cases `first`, `first` + 1, ... of a seed."""
    return [str(program), *map(str, (seed, first, cases)), *levels]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Fuzz the dense CRF under sanitizers.")
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sanitizers", default="address,undefined", help='or "thread"')
    parser.add_argument("--isa", nargs="+", default=usable_levels(), choices=list(LEVELS))
    options = parser.parse_args(arguments)
    program = build(options.isa, options.sanitizers)
    wanted = command(program, options.isa, options.seed, options.first, options.cases)
    environment = {"UBSAN_OPTIONS": "print_stacktrace=1"} | os.environ
    return subprocess.run(wanted, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
