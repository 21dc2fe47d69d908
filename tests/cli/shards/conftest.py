"""Photographs, tars of the same, and a model, for ``weaktr label`` by shards."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.shards import work
from tests.shards.work import BESIDE, COUNT, label


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    """A model, photographs, tars of the same, and what a run without shards makes of them."""
    home = tmp_path_factory.mktemp("prepared")
    work.model(home / "cam.safetensors")
    work.photographs(home / "photos", COUNT)
    work.tars(home / "tars", 3, 4)
    assert label(home, *BESIDE, out="plain") == 0
    return home


@pytest.fixture
def home(prepared, tmp_path):
    """A copy."""
    shutil.copytree(prepared, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def computed(monkeypatch):
    """The names of the photographs that the model saw, in order."""
    return work.noted_names(monkeypatch)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", *(n for n in os.environ if n.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)
