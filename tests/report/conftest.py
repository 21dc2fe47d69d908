"""Runs that the tests of the report look at."""

from __future__ import annotations

import pytest

from tests.stages import tiny
from weaktr.stages.pipeline import run_recipe


@pytest.fixture(scope="package")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", count=8)


@pytest.fixture(scope="package")
def run(root, tmp_path_factory):
    """Of all stages, with true masks; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    run_recipe(tiny.recipe(root), folder)
    return folder
