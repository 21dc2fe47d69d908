"""A step of either training never waits for its device, but where losses are logged.

The model is on PyTorch's device "meta", which stands for a GPU: its tensors have no values, so that
whatever would have to wait for one fails (`Tensor.item`, `bool(tensor)`, indices by a condition),
as does a copy to the host. A copy to the device must not be waited for either.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.stages import tiny
from weaktr.stages import train_cam as cam
from weaktr.stages import train_seg as seg
from weaktr.stages.run import Run
from weaktr.training import loop, loss_log

META = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)


class NoWaiting(TorchDispatchMode):
    """Fails at a copy between host and device for which the host waits."""

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if function in COPIES:
            other = args[1] if function is COPIES[1] else args[0]
            target = options.get("device") or args[0].device
            waits = not (options.get("non_blocking") or (len(args) > 2 and args[2]))
            if waits and other.device != target:
                raise AssertionError(f"a copy from {other.device} to {target} is waited for")
        return function(*args, **options)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("waiting") / "squares", count=12)


def not_fused(optimizer):
    """The same optimiser in torch's other form for GPUs."""
    return lambda *args, fused, **rest: optimizer(*args, **rest, foreach=True)


@pytest.fixture
def steps(monkeypatch):
    """Trainings on the device "meta" that log and save nothing; the steps that they made."""
    made = []
    step, batches = loop.TrainingLoop._step, loop.TrainingLoop.batches

    def counted(self):
        step(self)
        made.append(self.step)

    def watched(self):
        for batch in batches(self):
            with NoWaiting():
                yield batch

    monkeypatch.setattr(Run, "device", META)
    for name in ("AdamW", "SGD"):  # whose fused forms have no kernel for this device
        monkeypatch.setattr(torch.optim, name, not_fused(getattr(torch.optim, name)))
    monkeypatch.setattr(loop, "autocast", lambda *_: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(loop.TrainingLoop, "_step", counted)
    monkeypatch.setattr(loop.TrainingLoop, "batches", watched)
    monkeypatch.setattr(loss_log.LossLog, "write", lambda self: None)
    monkeypatch.setattr(loop.TrainingLoop, "save", lambda self: None)
    for stage in (cam, seg):
        monkeypatch.setattr(stage, "save_model", lambda *_: None)
    return made


def test_stage_1(root, tmp_path, steps):
    own = {"epochs": 1, "ema_decay": 0.9, "clip_grad": 1.0}
    cam.train_cam(Run(tiny.recipe(root, train_cam=own), tmp_path), tmp_path)
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ({}, {}),
        ({}, {"micro_batch": 1}),
        ({"image_head": True}, {"loss": "collision", "loss_warmup": 0.5}),
        ({"decoder": "linear", "layers": [-2, -1]}, {"loss": "soft_ce", "balance": 1.0}),
    ],
)
def test_stage_2(root, tmp_path, steps, model, settings):
    own = {"epochs": 1, "ema_decay": 0.9, "clip_grad": 1.0, "masks": "truth"}
    changes = {"train_seg": own | settings, "seg_model": model | {"weights": None}}
    seg.train_seg(Run(tiny.recipe(root, **changes), tmp_path), tmp_path)
    assert steps == [1, 2, 3]


@pytest.mark.parametrize(
    "wait",
    [
        lambda loss: loss.item(),
        lambda loss: bool(loss > 0),
        lambda loss: loss[loss > 0],
        lambda loss: loss.cpu(),
        lambda loss: torch.ones(3).to(loss.device),
        lambda loss: loss.copy_(torch.ones(())),
    ],
)
def test_a_step_that_waits_fails(root, tmp_path, steps, monkeypatch, wait):
    losses_of = cam.cam_losses

    def waiting(output, targets, batch):
        losses = losses_of(output, targets, batch)
        wait(losses["class"].detach())
        return losses

    monkeypatch.setattr(cam, "cam_losses", waiting)
    with pytest.raises((RuntimeError, NotImplementedError, AssertionError)):
        cam.train_cam(Run(tiny.recipe(root), tmp_path), tmp_path)
    assert not steps
