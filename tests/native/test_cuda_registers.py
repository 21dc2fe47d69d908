"""What nvcc has made of the dense CRF's programs: registers and memory, also without a GPU."""

from __future__ import annotations

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

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
RESERVED_BYTES = 1024  #: of shared memory, a block; part of what a program needs if it needs any


#: What cuobjdump tells of a program: its symbol, registers, bytes of local and of shared memory.
FACTS = re.compile(r"Function (\w+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+)")


class Needs(NamedTuple):
    """What a program takes."""

    registers: int
    stack: int  #: bytes of local memory, a thread
    shared: int  #: bytes, a block


@pytest.fixture(scope="module")
def programs() -> dict[str, Needs]:
    """Of every program of the extension that is installed here."""
    triton = find_spec("triton")
    if triton is None:
        pytest.skip("cuobjdump comes with Triton, which is not installed")
    native = pytest.importorskip("weaktr._native", exc_type=ImportError)
    if not native.has_cuda():
        pytest.skip("the extension was built without nvcc")
    tool = Path(str(triton.origin)).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    command = [str(tool), "--dump-resource-usage", "--gpu-architecture", "sm_90", native.__file__]
    return parsed(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def parsed(told: str) -> dict[str, Needs]:
    """What cuobjdump tells, by the names of programs: Pass<6>, ForEachQuad<Blur>."""
    return {
        demangled(symbol): Needs(int(registers), int(stack), int(shared))
        for symbol, registers, stack, shared in FACTS.findall(told)
    }


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


@pytest.mark.parametrize(("name", "blocks"), TOGETHER.items())
def test_blocks_share_a_multiprocessor(programs, name, blocks):
    needs = programs[name]
    assert blocks * THREADS * -(-needs.registers // 8) * 8 <= REGISTERS
    assert blocks * max(needs.shared, RESERVED_BYTES) <= SHARED_BYTES


def test_no_program_uses_local_memory(programs):
    assert {"Pass<0>", "Normalize", "LinkVertices"} < set(programs)
    stacks = {name: needs.stack for name, needs in programs.items() if needs.stack}
    # up to two registers of the threads that look at the lattices of a further pair
    assert stacks.keys() <= {"Pass<6>", "Pass<8>"}
    assert all(stack <= 8 for stack in stacks.values())
