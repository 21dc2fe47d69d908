"""Threads for image files."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = "import os; os.sched_setaffinity(0, {%d}); from weaktr.data import parallel as p; print(%s)"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_cores_that_a_batch_system_keeps_are_not_counted():
    core = min(os.sched_getaffinity(0))
    code = CODE % (core, "p.usable_cores(), p.THREADS")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 2"
