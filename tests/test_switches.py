"""What a program has told torch is set aside while weaktr computes, and comes back."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from weaktr.models.precision import autocast
from weaktr.switches import own_switches

CPU = torch.device("cpu")


def losses():
    """Of four steps in bf16."""
    torch.manual_seed(0)
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    told = []
    for _ in range(4):
        optimizer.zero_grad()
        with autocast("bf16", CPU):
            loss = model(x).float().square().mean()
        loss.backward()
        optimizer.step()
        told.append(loss.item())
    return told


@pytest.mark.parametrize("enabled", [True, False])
def test_weights_cast_in_a_program_under_autocast_follow_their_steps(enabled):
    """Torch keeps what it casts until the outermost autocast ends, however weights change."""
    expected = losses()
    assert len(set(expected)) == 4
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        nn.Linear(8, 8)(torch.randn(4, 8))
        with own_switches():
            assert losses() == expected
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu") == enabled and torch.is_autocast_cache_enabled()


def test_the_default_type_comes_back_when_the_last_thread_leaves():
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with own_switches():
            inside.set()
            leave.wait(10)
            types.append(torch.get_default_dtype())

    types = []
    torch.set_default_dtype(torch.float64)
    try:
        other = threading.Thread(target=stay)
        with own_switches():
            other.start()
            assert inside.wait(10)
        types.append(torch.get_default_dtype())
        leave.set()
        other.join()
        assert types == [torch.float32, torch.float32]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_all_comes_back():
    with torch.device("meta"), torch.inference_mode():
        with own_switches(CPU):
            assert torch.zeros(1).device == CPU and torch.is_grad_enabled()
            assert not torch.zeros(1).is_inference()
        assert torch.zeros(1).is_meta and torch.is_inference_mode_enabled()
