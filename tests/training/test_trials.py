"""Steps that are computed before a training to see what they need."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch

from tests.training.loops import loop_in
from weaktr import processes
from weaktr.training import loop as loop_module


class Shared:
    """In the place of what adds up gradients over processes; notes how it is called."""

    def __init__(self, loop):
        self.loop, self.is_apart, self.calls = loop, False, []

    @contextmanager
    def no_sync(self):
        self.is_apart = True
        yield
        self.is_apart = False

    def __call__(self, *batch):
        self.calls.append((self.is_apart, self.loop.part.rows))
        return {"loss": self.loop.model(*batch).sum()}


@pytest.mark.parametrize(("images", "rows"), [(2, slice(2, 4)), (1, slice(0, 1))])
def test_a_trial_computes_like_a_step_of_several_processes(tmp_path, images, rows):
    """By what adds up their gradients, or what is compiled would be compiled again for that; of a
    whole part as that part; and nothing is added up."""
    loop = loop_in(tmp_path)
    loop.part.rows = slice(2, 4)
    shared = Shared(loop)
    loop._try_step(lambda *_: pytest.fail("computed apart"), [torch.ones(images, 3)], shared)
    assert shared.calls == [(True, rows)]
    assert loop.part.rows == slice(2, 4)
    assert all(p.grad is None for p in loop.model.parameters())


def test_processes_meet_on_their_gpus_before_memory_is_tried(tmp_path, monkeypatch):
    """What NCCL takes for itself is then no longer free."""
    events = []
    loop = loop_in(tmp_path)
    monkeypatch.setattr(loop_module, "is_tried", lambda *_: True)
    monkeypatch.setattr(processes, "total", lambda x: events.append(x.device) or x)
    monkeypatch.setattr(loop_module, "most_that_fit", lambda *_: events.append("tried") or 1)
    loop._choose_pieces(lambda *_: {})
    assert events == [torch.device("cpu"), "tried"]
    assert loop.micro.size == 1
