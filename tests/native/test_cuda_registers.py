"""What nvcc makes of the dense CRF's programs: registers and memory, on machines without a GPU."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.native.compiler import CSRC

#: Blocks of 256 threads that are to share a multiprocessor of an H100: program -> blocks.
TOGETHER = {
    "Pass<1>": 6,
    "Pass<2>": 4,
    "Pass<4>": 4,
    "Pass<6>": 4,
    "Pass<8>": 3,
    "BuildTiles": 5,
    "ForEachQuad<Pull>": 4,
    "ForEachQuad<Blur>": 4,
}
THREADS = 256
REGISTERS = 65_536  #: of a multiprocessor; a warp gets them in steps of 256
SHARED_BYTES = 227 * 1024  #: of a multiprocessor
RESERVED_BYTES = 1024  #: of shared memory, a block


#: What ptxas says of a program.
FACTS = re.compile(r"(\d+) (registers|bytes stack frame|bytes smem)")


class Needs(NamedTuple):
    """What a program takes, by ptxas."""

    registers: int
    stack: int  #: bytes of local memory, a thread
    shared: int  #: bytes, a block


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Needs]:
    """Of every program; compiled like the extension."""
    compiler = os.environ.get("CUDACXX") or shutil.which("nvcc")
    if compiler is None:
        pytest.skip("there is no nvcc: neither CUDACXX nor PATH has one")
    target = tmp_path_factory.mktemp("cuda") / "launch.cubin"
    flags = ["-std=c++17", "-O3", "-fmad=false", "-arch=sm_90", "-cubin", "-Xptxas", "-v"]
    source = Path(CSRC) / "dense_crf" / "cuda" / "launch.cu"
    command = [compiler, *flags, f"-I{CSRC}", str(source), "-o", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return parsed(done.stdout + done.stderr)


def parsed(log: str) -> dict[str, Needs]:
    """ptxas's report, by the names of programs: Pass<6>, ForEachQuad<Blur>."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        numbers = {what: int(number) for number, what in FACTS.findall(part)}
        found[demangled(part.split("'")[0])] = Needs(
            numbers["registers"], numbers["bytes stack frame"], numbers.get("bytes smem", 0)
        )
    return found


def demangled(symbol: str) -> str:
    """The program that a kernel runs: ...run_programINS_6blocks4PassILi6EEEEEvT_ -> Pass<6>."""
    rest = re.sub(r"S\d*_", "", symbol.partition("run_program")[2])  # repeated namespaces
    names = []
    while match := re.search(r"Li(\d+)E|(\d+)", rest):
        number, length = match.groups()
        end = match.end() + int(length or 0)
        names.append(number or rest[match.end() : end])
        rest = rest[end:]
    own = [name for name in names if name != "blocks"]
    return f"{own[0]}<{own[1]}>" if len(own) > 1 else own[0]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "blocks"), TOGETHER.items())
def test_blocks_share_a_multiprocessor(programs, name, blocks):
    needs = programs[name]
    assert blocks * THREADS * -(-needs.registers // 8) * 8 <= REGISTERS
    assert blocks * (needs.shared + RESERVED_BYTES) <= SHARED_BYTES


@pytest.mark.slow
def test_no_program_uses_local_memory(programs):
    assert {"Pass<0>", "Normalize", "LinkVertices"} < set(programs)
    stacks = {name: needs.stack for name, needs in programs.items() if needs.stack}
    # up to two registers of the threads that look at the lattices of a further pair
    assert stacks.keys() <= {"Pass<6>", "Pass<8>"}
    assert all(stack <= 8 for stack in stacks.values())
