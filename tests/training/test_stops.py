"""Signals and ruined weights at moments other than the midst of an epoch."""

from __future__ import annotations

import os
import signal

import pytest
import torch

from tests.training.loops import loop_in
from weaktr.stopping import Stopped, ended_by_signals
from weaktr.training import loop as loop_module
from weaktr.training.loss_log import LossLog
from weaktr.training.state import STATE, load_state


def losses_of(loop):
    """Of eight numbers in four batches: losses that a small model learns."""
    return lambda x: {"loss": (loop.model.weight.sum() - x).pow(2).mean()}


def stop_before(monkeypatch, place, name, number=signal.SIGTERM):
    """Send this process a signal when something is about to be done, the first time."""
    do = getattr(place, name)
    sent = []

    def doing(*arguments, **options):
        if not sent:
            sent.append(number)
            os.kill(os.getpid(), number)
        return do(*arguments, **options)

    monkeypatch.setattr(place, name, doing)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    ("place", "name"),
    [(loop_module, "save_state"), (LossLog, "end_epoch"), (loop_module.TrainingLoop, "_log_epoch")],
)
def test_a_signal_at_an_epochs_end_loses_nothing(tmp_path, monkeypatch, place, name, number):
    loop = loop_in(tmp_path, epochs=3, ema_decay=None)
    stop_before(monkeypatch, place, name, number)
    with ended_by_signals(), pytest.raises(Stopped) as stopped:
        loop.train(losses_of(loop))
    assert stopped.value.number == number
    assert "epoch 1, step 4 is saved: " in str(stopped.value)
    assert load_state(tmp_path / STATE)["position"][:3] == [1, 0, 4]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_scores_are_computed_says_what_is_saved(tmp_path, number):
    loop = loop_in(tmp_path, epochs=3, validate_every=2)

    def validate(_):
        os.kill(os.getpid(), number)
        pytest.fail("went on")

    with ended_by_signals(), pytest.raises(Stopped, match=r"epoch 2, step 8 is saved: ") as stopped:
        loop.train(losses_of(loop), validate)
    assert stopped.value.number == number
    assert load_state(tmp_path / STATE)["position"][:3] == [1, 4, 8]
    again = loop_in(tmp_path, epochs=3, validate_every=2)
    scored = []
    again.train(losses_of(again), lambda _: scored.append(again.step) or {"score": 1.0})
    assert scored == [8] and again.step == 12


def test_a_signal_before_anything_is_saved_names_no_place(tmp_path, monkeypatch):
    loop = loop_in(tmp_path)
    stop_before(monkeypatch, loop_module.TrainingLoop, "_choose_workers")
    with ended_by_signals(), pytest.raises(Stopped, match=r"^stopped by SIGTERM; start"):
        loop.train(losses_of(loop))


@pytest.mark.parametrize(("step", "kept"), [(4, None), (8, [1, 0, 4])])
def test_weights_that_a_step_has_ruined_are_not_saved(tmp_path, step, kept):
    """The loss before that step was finite; the checkpoint before it stays."""
    loop = loop_in(tmp_path, epochs=2)

    def ruining(x):
        losses = losses_of(loop)(x)
        if loop.step == step - 1:  # 0 whose gradient is infinite times 0
            losses = {"loss": losses["loss"] + (loop.model.weight.sum() * 0).sqrt()}
        return losses

    told = (
        "Nothing is saved yet" if kept is None else "goes on after epoch 1, step 4, other settings"
    )
    expected = rf"weights not finite after step {step} \(weight\). Try a lower .*{told}"
    with pytest.raises(ValueError, match=expected):
        loop.train(ruining)
    state = load_state(tmp_path / STATE)
    assert (None if state is None else state["position"][:3]) == kept
    if state is not None:
        assert torch.isfinite(state["model"]["weight"]).all()


def test_a_training_that_fp16_skips_altogether_is_told(tmp_path):
    loop = loop_in(tmp_path, epochs=9, ema_decay=None)
    loop.scaler = torch.amp.GradScaler("cpu")
    weight = loop.model.weight.detach().clone()

    def losses(_):  # 0 whose gradient is infinite times 0
        return {"loss": (loop.model.weight.sum() * 0).sqrt()}

    with pytest.raises(ValueError, match=r"not finite in fp16 up to step 28, .*\(now 0.000244\)"):
        loop.train(losses)
    assert loop.model.weight.equal(weight)
    assert load_state(tmp_path / STATE)["position"][:3] == [6, 0, 24]


def test_a_checkpoint_that_is_late_is_written_once(tmp_path, monkeypatch):
    """What one of several processes says counts a step later; by then it may be answered."""
    loop, said, saved = loop_in(tmp_path, epochs=2, ema_decay=None), [[0, 0]], []

    def largest(own):
        said.append(list(own))
        return said.pop(0)

    monkeypatch.setattr(loop._agreement, "largest", largest)
    monkeypatch.setattr(loop._agreement, "forget", lambda: said.__setitem__(0, [0, 0]))
    monkeypatch.setattr(loop_module, "save_state", lambda *_: saved.append(loop.step))
    loop._saved_at -= 1e6
    loop.train(losses_of(loop))
    assert saved == [2, 4, 8]
