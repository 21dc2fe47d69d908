"""Which device models run on, and in which precision."""

from __future__ import annotations

import pytest
import torch

from weaktr.models.precision import amp_type, choose_device, inference_amp


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


MPS = pytest.param(
    "mps", marks=pytest.mark.skipif(torch.backends.mps.is_available(), reason="it is there")
)


@pytest.mark.parametrize(
    "name", ["nonsense", "", "meta", "meta:0", MPS, "hpu", "vulkan", "lazy", "cuda:-1"]
)
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ValueError, match=f"device: '{name}' cannot be used here") as caught:
        choose_device(name)
    assert "\n" not in str(caught.value) and "expected auto, cpu, or cuda" in str(caught.value)


@pytest.mark.parametrize(
    ("amp", "kind", "bf16", "training", "inference"),
    [
        ("auto", "cpu", True, None, "bf16"),
        ("auto", "cpu", False, None, "none"),
        ("auto", "cuda", True, torch.float16, "fp16"),
        ("fast", "cpu", True, torch.bfloat16, "bf16"),
        ("fast", "cpu", False, None, "none"),
        ("fast", "cuda", False, torch.float16, "fp16"),
        ("fast", "mps", True, None, "none"),
        ("bf16", "cpu", False, torch.bfloat16, "bf16"),
        ("none", "cuda", True, None, "none"),
    ],
)
def test_precisions(monkeypatch, amp, kind, bf16, training, inference):
    """On CPUs with and without the instructions; "auto" is as published in trainings."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: bf16, raising=False)
    assert amp_type(amp, torch.device(kind)) is training
    assert inference_amp(amp, torch.device(kind)) == inference
