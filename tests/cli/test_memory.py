"""Freed memory: given back by default, kept by a command."""

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc, on Linux")

#: Prints MiB that stay with a process after a tensor of 256 MiB is gone: of one as it is, one after
#: a call, one after a command. Torch, which takes seconds, is imported once.
SCRIPT = """
import json
import os
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

ways = {"default": lambda: True, "call": keep_freed_memory, "command": lambda: main(["env"]) == 0}
for name, way in ways.items():
    child = os.fork()
    if child == 0:
        done = way()
        print(json.dumps([name, done, left_over()]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_given_back_by_default_and_kept_by_a_command():
    command = [sys.executable, "-c", SCRIPT]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    lines = [json.loads(line) for line in told if line.startswith("[")]
    found = {name: (done, left) for name, done, left in lines}
    if not found["call"][0]:
        pytest.skip("the C library has no mallopt")
    assert found["default"][1] < 64
    assert found["call"][1] > 192
    assert found["command"][0] and found["command"][1] > 192
