"""Threads that wait sleep soon, unless somebody has decided otherwise; torch is not there yet."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from weaktr.cli.threads import ROUNDS, let_threads_sleep


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"GOMP_SPINCOUNT": str(ROUNDS)}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_what_is_set(given, expected):
    environment = dict(given)
    let_threads_sleep(environment)
    assert environment == expected


@pytest.mark.parametrize("program", ["program", "train_program"])
def test_programs_set_it_before_torch_is_imported(program):
    code = (
        "import os, sys; from weaktr import cli; cli.main = cli.train_main = lambda: print("
        f"os.environ['GOMP_SPINCOUNT'], 'torch' in sys.modules) or 0; cli.{program}()"
    )
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(ROUNDS), "False"]
