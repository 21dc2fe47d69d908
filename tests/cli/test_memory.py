"""Freed memory: given back by default, kept by a command."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc, on Linux")

#: Prints MiB that stay with the process after a tensor of 256 MiB is gone.
SCRIPT = """
import sys
from pathlib import Path
import torch
from weaktr.cli import main
from weaktr.cli.memory import keep_freed_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

if sys.argv[1] == "command":
    main(["env"])
elif sys.argv[1] == "call" and not keep_freed_memory():
    print("unknown")
before = resident()
tensor = torch.ones(2**26)
del tensor
print(resident() - before)
"""


def left_over(how):
    command = [sys.executable, "-c", SCRIPT, how]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    if "unknown" in lines:
        pytest.skip("the C library has no mallopt")
    return float(lines[-1])


def test_given_back_by_default():
    assert left_over("default") < 64


@pytest.mark.parametrize("how", ["call", "command"])
def test_kept(how):
    assert left_over(how) > 192
