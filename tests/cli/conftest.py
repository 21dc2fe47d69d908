"""What the tests of the commands share."""

from __future__ import annotations

import pytest

from weaktr.progress import set_up_logging


@pytest.fixture(autouse=True, scope="session")
def logging_is_set_up() -> None:
    """Or `caplog` would miss what the first command says, which sets up logging itself."""
    set_up_logging()
