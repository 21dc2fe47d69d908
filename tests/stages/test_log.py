"""What the log of a run says: the plan, a line an epoch, whole names of settings."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from tests.stages import tiny
from tests.training.lines import read_metrics
from weaktr import progress
from weaktr.messages import duration
from weaktr.stages import plan
from weaktr.stages.keys import whole_key, whole_keys
from weaktr.stages.pipeline import run_recipe
from weaktr.training import loop, pace


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("log") / "squares", count=8)


def told(caplog, recipe, folder, **options):
    """The lines that a run logs."""
    caplog.clear()
    with caplog.at_level("INFO", "weaktr"):
        run_recipe(recipe, folder, **options)
    return caplog.messages


def test_the_first_lines_are_the_plan(squares, tmp_path, caplog, monkeypatch):
    recipe = tiny.recipe(squares)
    monkeypatch.setattr(plan, "has_tensorboard", lambda: True)
    lines = told(caplog, recipe, tmp_path / "my run")
    first = next(i for i, line in enumerate(lines) if line.startswith("tiny: "))
    stages = "train_cam, label, train_seg, predict, evaluate"
    assert re.fullmatch(
        rf"tiny: {stages}; into .+/my run; on .+, \d+ threads, (no )?bfloat16 .*", lines[first]
    )
    assert lines[first + 1 : first + 4] == [
        "split train, to learn from: 8 images, 3 classes",
        "split train, to score on: 8 images, 3 classes",
        "split val, to predict: 8 images, 3 classes",
    ]
    assert "train_cam: 8 images, 2 epochs, 2 batches in each" in lines
    assert f"losses as curves: tensorboard --logdir '{tmp_path}/my run'" in lines
    again = told(caplog, recipe, tmp_path / "my run")
    assert not [line for line in again if line.startswith("tiny: ")]
    part = told(caplog, recipe, tmp_path / "my run", only="evaluate", force=True)
    (line,) = [line for line in part if line.startswith("tiny: ")]
    assert line.startswith("tiny: evaluate; into ")
    assert not [line for line in part if "tensorboard" in line]


def test_every_epoch_has_a_line_with_its_losses(squares, tmp_path, caplog):
    recipe = replace(tiny.recipe(squares), log_steps=3)  # no divisor of the steps of an epoch
    lines = told(caplog, recipe, tmp_path)
    for stage, parts in (("train_cam", ("class", "coarse", "fine")), ("train_seg", ("silenced",))):
        entries = read_metrics(tmp_path / stage / "metrics.jsonl")
        assert [entry["epoch"] for entry in entries] == [0, 0, 1, 1]
        of_stage = [line for line in lines if line.startswith(f"{stage}: epoch ")]
        for number, line in enumerate(of_stage, 1):
            own = [entry for entry in entries if entry["epoch"] == number - 1]
            mean = {key: sum(entry[key] for entry in own) / len(own) for key in ("loss", *parts)}
            shown = ", ".join(f"{part} {mean[part]:.4f}" for part in parts)
            expected = f"{stage}: epoch {number} of 2, loss {mean['loss']:.4f} ({shown}), lr "
            assert line.startswith(expected)
            assert re.search(r"lr \S+, [\d.]+ images/s", line)
            assert (" left" in line) == (number == 1)
        assert len(of_stage) == 2


def test_an_epoch_that_was_interrupted_tells_all_its_steps(squares, tmp_path, caplog, monkeypatch):
    recipe = replace(tiny.recipe(squares, stages=["train_cam"]), checkpoint_steps=1, log_steps=1)
    step, calls = loop.TrainingLoop._step, []

    def interrupted(self):
        step(self)
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop.TrainingLoop, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(recipe, tmp_path)
    lines = told(caplog, recipe, tmp_path)
    (line,) = [line for line in lines if line.startswith("train_cam: epoch ")]
    own = [e for e in read_metrics(tmp_path / "train_cam/metrics.jsonl") if e["epoch"] == 1]
    assert len(own) == 2
    assert f"epoch 2 of 2, loss {sum(e['loss'] for e in own) / 2:.4f} " in line


def test_a_long_training_is_estimated_once(squares, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(pace, "ESTIMATE_SECONDS", 0.0)
    lines = told(caplog, tiny.recipe(squares, stages=["train_cam"]), tmp_path)
    (line,) = [line for line in lines if "batches" in line and "about" in line]
    assert re.fullmatch(r"train_cam: about \d+ s left for 2 epochs, by the first 1 batches", line)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (119, "119 s"), (120, "2 min"), (7100, "118 min"), (12_000, "3 h 20 min"),
     (187_200, "2 days 4 h")],
)  # fmt: skip
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("batch_size: 64 is more", "train_cam.batch_size: 64 is more"),
        ("image_size: expected", "cam_model.image_size: expected"),
        ("erasing: expected", "train_cam.augment.erasing: expected"),
        ("augment.erasing: expected", "train_cam.augment.erasing: expected"),
        ("clip_grad=1 helps", "train_cam.clip_grad=1 helps"),
        ("train_cam.batch_size: 64", "train_cam.batch_size: 64"),
        ("photos/1.jpg: not found", "photos/1.jpg: not found"),
        ("nothing known: x", "nothing known: x"),
        ("", ""),
    ],
)
def test_whole_keys(message, told):
    groups = ("train_cam", "cam_model", "seed")
    assert whole_key(message, groups) == told
    with pytest.raises(ValueError, match=f"^{re.escape(told)}$"), whole_keys(groups):
        raise ValueError(message)


def test_errors_of_a_stage_name_whole_keys(squares, tmp_path, monkeypatch):
    """As the check would, where something has changed since it looked."""
    for stage in ("train_cam", "train_seg"):
        recipe = tiny.recipe(squares, **{stage: {"batch_size": 9}})
        monkeypatch.setattr("weaktr.stages.pipeline.require_no_faults", lambda _: None)
        with pytest.raises(ValueError, match=f"^{stage}.batch_size: 9 is more than the 8 samples"):
            run_recipe(recipe, tmp_path)


def test_python_calls_show_their_log_for_their_time_alone(capfd, monkeypatch):
    monkeypatch.setattr(progress.log, "handlers", [])
    monkeypatch.setattr(progress.log, "propagate", False)
    monkeypatch.setattr(progress.log, "level", 0)
    with progress.shown_log():
        progress.log.info("to be seen")
    assert not progress.log.handlers and progress.log.level == 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d to be seen\n", capfd.readouterr().err)
    monkeypatch.setattr(progress.log, "handlers", [progress.logging.NullHandler()])
    with progress.shown_log():
        progress.log.info("as the user has set it up")
    assert not capfd.readouterr().err
