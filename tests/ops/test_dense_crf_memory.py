"""The C++ `dense_crf` where memory is short: an error that says so, and nothing is lost."""

import subprocess
import sys

import pytest

from weaktr.ops.dense_crf import OP
from weaktr.ops.registry import BackendUnavailable

#: An address space with room for 64 MiB more; first more than that is asked for, then little.
SCRIPT = """
import resource
import numpy as np
from weaktr import _native

def labels(height, width):
    kernel = dict(deviations=(3.0, 3.0), features=None, normalization="symmetric",
                  compat=np.full(4, -3, np.float32))
    problem = dict(shape=(height, width), image=None, unary=None, kernels=[kernel],
                   labels=np.zeros((height, width), np.uint8), table=np.eye(4, dtype=np.float32))
    return _native.dense_crf_cpu([problem], 1, 1, output="labels")[0]

lines = open("/proc/self/status").read().splitlines()
limit = next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmSize")) + (64 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    labels(2000, 2000)
except MemoryError as error:
    print("refused:", error)
print("then:", labels(8, 9).shape)
"""


def test_too_large_an_image_is_an_error_and_not_the_end():
    try:
        OP.pick("cpu", "cpu")
    except BackendUnavailable as error:
        pytest.skip(str(error))
    command = [sys.executable, "-c", SCRIPT]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    refused, then = process.stdout.splitlines()
    assert "refused: dense_crf: a buffer of" in refused
    assert "use a smaller image" in refused
    assert then == "then: (8, 9)"
