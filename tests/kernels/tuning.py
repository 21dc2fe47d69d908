"""Tuning without a GPU: candidates take as long as a test says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest
import torch


@contextmanager
def clocked(
    monkeypatch: pytest.MonkeyPatch, folder: Path, milliseconds: Callable[..., float]
) -> Iterator[None]:
    """As on a GPU where `milliseconds(run)` is the time of a candidate; tables lie in `folder`."""
    tuning = import_module("weaktr.kernels.tuning")
    monkeypatch.setattr(tuning, "INTERPRETED", False)
    monkeypatch.setattr(tuning, "device_milliseconds", milliseconds)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU 9000")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setenv(tuning.FOLDER_VARIABLE, str(folder))
    monkeypatch.delenv(tuning.TUNE_VARIABLE)
    tuning._table.cache_clear()
    yield
    tuning._table.cache_clear()
