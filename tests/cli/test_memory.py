"""Freed memory: given back by default, kept by a command."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc, on Linux")

#: Prints MiB that stay with the process after a tensor of 256 MiB is gone: at first, and kept.
SCRIPT = """
import sys
from pathlib import Path
import torch
from weaktr.cli import main
from weaktr.cli.memory import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

def left_over():
    before = resident()
    tensor = torch.ones(2**26)
    del tensor
    return resident() - before

print(left_over())
if sys.argv[1] == "command":
    main(["env"])
elif not keep_freed_memory():
    print("unknown")
print(left_over())
"""


@pytest.mark.parametrize("how", ["call", "command"])
def test_given_back_by_default_and_kept_by_a_command(how):
    command = [sys.executable, "-c", SCRIPT, how]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    if "unknown" in lines:
        pytest.skip("the C library has no mallopt")
    assert float(lines[0]) < 64
    assert float(lines[-1]) > 192
