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
from pathlib import Path

from tests.native import compiler

#: Instruction set -> compiler flags; like CMakeLists.txt.
AVX2 = ("-mavx2", "-mfma", "-mbmi2")
AVX512 = (*AVX2, "-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl")
LEVELS: dict[str, tuple[str, ...]] = {"scalar": ()}
if platform.machine() in ("x86_64", "AMD64"):
    LEVELS |= {"avx2": AVX2, "avx512": AVX512}
elif platform.machine() in ("aarch64", "arm64"):
    LEVELS |= {"neon": ()}
CHECKS = ("-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-D_GLIBCXX_ASSERTIONS")
SANITIZERS = "address,undefined"
FOLDER = Path(__file__).parent
CPU = compiler.CSRC / "dense_crf" / "cpu"


def build(levels: Sequence[str], sanitizers: str = SANITIZERS, optimize: str = "-O1") -> Path:
    """Compile the driver.

    Args:
        levels: instruction sets to compile; the others cannot be fuzzed then.
        sanitizers: of the compiler, comma-separated.
        optimize: the compiler's flag; "-O0" compiles fastest.

    Returns:
        The program.

    Raises:
        subprocess.CalledProcessError: something does not compile; the compiler has said what.
    """
    sources = [
        compiler.Source(FOLDER / "fuzz_dense_crf.cpp"),
        compiler.Source(compiler.CSRC / "common" / "isa.cpp"),
        *(compiler.Source(CPU / f"{name}.cpp") for name in ("driver", "memory", "team")),
    ]
    for name, flags in LEVELS.items():
        code = CPU / "isa.cpp" if name in levels else FOLDER / "left_out.cpp"
        sources.append(compiler.Source(code, (*flags, f"-DWEAKTR_ISA={name}")))
    flags = (optimize, f"-fsanitize={sanitizers}", *CHECKS)
    return compiler.build("fuzz_dense_crf", sources, flags)


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
    parser.add_argument("--sanitizers", default=SANITIZERS, help='or "thread"')
    parser.add_argument("--isa", nargs="+", default=usable_levels(), choices=list(LEVELS))
    options = parser.parse_args(arguments)
    program = build(options.isa, options.sanitizers)
    wanted = command(program, options.isa, options.seed, options.first, options.cases)
    environment = {"UBSAN_OPTIONS": "print_stacktrace=1"} | os.environ
    return subprocess.run(wanted, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
