"""The sweep of `tests.faults.sweep`, at a few positions of each command; always the same ones."""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.faults.commands import COMMANDS
from tests.faults.sweep import in_shim

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("cc") is None,
    reason="faults are made by a C library that Linux loads first; needs a C compiler",
)


@pytest.mark.parametrize(
    ("options", "cases"),
    [
        (["--most", "1", *(name for name in COMMANDS if name != "train")], 28),
        pytest.param(["--most", "1", "--kinds", "full", "train"], 1, marks=pytest.mark.rare),
    ],
    ids=["all but train", "train"],
)
def test_every_fault_is_recovered_from(options, cases):
    done = in_shim("-m", "tests.faults.sweep", "--inside", *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{cases} cases, 0 findings" in done.stdout


@pytest.mark.rare
def test_the_sweep_finds_what_it_is_for():
    code = (
        "from weaktr import cli\n"
        "from weaktr.data import manifest\n"
        "from tests.faults.sweep import sweep\n"
        "cli._exit_code = lambda error: None\n"
        "print({finding.what for finding in sweep(['write'], ['full'], None).findings})\n"
        "cli._exit_code = lambda error: 0\n"
        "manifest.write_bytes = lambda path, content: path.exists() or path.write_bytes(content)\n"
        "print({finding.what for finding in sweep(['write'], ['half'], None).findings})\n"
    )
    done = in_shim("-c", code)
    assert "{'ended with 99'}" in done.stdout, done.stdout + done.stderr
    assert "{'other results: manifest.json'}" in done.stdout, done.stdout + done.stderr
