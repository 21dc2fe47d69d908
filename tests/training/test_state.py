"""What a training needs to be resumed."""

from __future__ import annotations

import random

import numpy as np
import torch

from weaktr.training.state import load_state, random_state, restore_random_state, save_state


def test_state_restores_all_random_numbers(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()

    np.random.randn()  # leaves a cached normal number behind
    save_state(tmp_path / "state.pt", {"random": random_state(), "step": 3})
    first = draw()
    state = load_state(tmp_path / "state.pt")
    restore_random_state(state["random"])
    assert draw() == first
    assert state["step"] == 3
    assert load_state(tmp_path / "none.pt") is None
