"""What the tests of the commands share."""

from __future__ import annotations

import pytest

from tests.cli.photographs import arguments, photo, tiny_models, with_labels
from tests.cli.test_train import said
from weaktr import cli
from weaktr.data.masks import MaskFolder
from weaktr.progress import set_up_logging


@pytest.fixture(autouse=True, scope="session")
def logging_is_set_up() -> None:
    """Or `caplog` would miss what the first command says, which sets up logging itself."""
    set_up_logging()


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """A tiny model for each command, which no test changes."""
    return tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def photos(tmp_path):
    for name in "abc":
        photo(tmp_path / "photos" / f"{name}.png", 50, 40, seed=ord(name))
    return with_labels(tmp_path / "photos")


@pytest.fixture
def run(models, photos, tmp_path):
    """Run a command on the photographs; gives exit code, text in one line, and the masks."""

    def call(command, *more, own=models, out=tmp_path / "out"):
        code, text = said(cli.main, *arguments(command, own, photos, out, *more))
        masks = MaskFolder(out, verify=True) if out.is_dir() and code != cli.WRONG_INPUT else None
        return code, " ".join(text.split()), masks

    return call
