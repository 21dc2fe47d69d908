"""Which device models run on."""

from __future__ import annotations

import pytest
import torch

from weaktr.models.precision import choose_device


def test_a_gpu_with_a_number_becomes_the_current_one(monkeypatch):
    """Stand-ins for a machine with GPUs: events and kernels go to the current device."""
    chosen = []
    monkeypatch.setattr(torch, "empty", lambda *_, device: None)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert chosen == [torch.device("cuda", 1)]
    for name in ("cuda", "cpu"):
        assert choose_device(name) == torch.device(name)
    assert len(chosen) == 1


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="device: 'nonsense' cannot be used here"):
        choose_device("nonsense")
