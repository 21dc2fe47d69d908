"""The forecast of a run: what it counts, what it leaves out, and that it changes nothing."""

from __future__ import annotations

import re

import pytest
import torch

from tests.stages import tiny
from weaktr.data import parallel
from weaktr.stages import forecast as module
from weaktr.stages.forecast import forecast, go_on
from weaktr.stages.pipeline import STAGES, run_recipe
from weaktr.stages.plan import time_in_words
from weaktr.stages.run import Run
from weaktr.training import workers

COUNT = 24
PATCHES = {
    "cam_model": {"kind": "patches", "patches": {"layers": [-2, -1], "short_side": 32}},
    "seg_model": {"weights": None},
}
SOFT = {
    "label": {"soft": True},
    "train_seg": {"labels": "soft", "loss": "soft_ce", "epochs": 2, "batch_size": 4},
}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("forecast") / "squares", count=COUNT)


@pytest.fixture
def each_takes_a_second(monkeypatch):
    """Every piece of work that is measured is done, and said to take a second."""

    def second(work, device):
        work()
        return 1.0

    monkeypatch.setattr(module, "_seconds", second)


def seconds_of(recipe, tmp_path):
    return forecast(Run(recipe, tmp_path / "run"), STAGES)


@pytest.mark.usefixtures("each_takes_a_second")
def test_photographs_epochs_and_windows_are_counted(squares, tmp_path):
    changes = {
        "train_cam": {"epochs": 3, "batch_size": 4, "warmup_epochs": 1},
        "train_seg": {"epochs": 5, "batch_size": 12, "crop": 32, "clip_patch": 8},
        "predict": {"ratios": [1.0, 2.0], "flip": True},
    }
    # a step of two images takes a second, so one of four is affordable, one of 12 is not; images
    # are loaded between the steps; 1 and 9 windows of 32 pixels every 16, twice
    assert seconds_of(tiny.recipe(squares, **changes), tmp_path) == {
        "train_cam": 3 * COUNT * (1 / 4 + 1),
        "label": COUNT * 2,
        "train_seg": 5 * COUNT * (1 / 2 + 1),
        "predict": COUNT * (1 + (1 + 9) * 2),
    }


@pytest.mark.usefixtures("each_takes_a_second")
@pytest.mark.parametrize(("cached", "label"), [(True, COUNT), (False, 2 * COUNT)])
def test_a_classifier_of_patches_needs_each_photograph_once(squares, tmp_path, cached, label):
    changes = {**PATCHES, **SOFT}
    if not cached:
        changes["cache"] = {"memory_mb": 0, "disk_gb": 0}
    seconds = seconds_of(tiny.recipe(squares, **changes), tmp_path)
    assert seconds["train_cam"] == COUNT
    assert seconds["label"] == label  # one for reading; all of the other is the encoder's


@pytest.mark.usefixtures("each_takes_a_second")
def test_a_frozen_backbone_passes_once(squares, tmp_path):
    augment = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "randaugment": False, "erasing": 0.0}
    train = {"epochs": 3, "batch_size": 1, "backbone_lr": 0.0, "class_tokens": "frozen"}
    changes = {"train_cam": {**train, "augment": augment}, "cam_model": {"drop_path": 0.0}}
    assert seconds_of(tiny.recipe(squares, **changes), tmp_path)["train_cam"] == COUNT * (1 + 1)


@pytest.mark.usefixtures("each_takes_a_second")
def test_crops_of_a_photograph_are_read_together_and_pieces_are_steps(squares, tmp_path):
    train = {"epochs": 5, "batch_size": 12, "crop": 32, "clip_patch": 8, "crops": 4}
    recipe = tiny.recipe(squares, train_seg={**train, "micro_batch": 1})
    assert seconds_of(recipe, tmp_path)["train_seg"] == 5 * COUNT * 4 * (1 + 1 / 4)


@pytest.mark.parametrize(
    ("kind", "count", "expected"),
    [
        ("cpu", 0, 5.0),  # one after the other
        ("cpu", 1, 4.0),  # loading keeps up no more
        ("cpu", 4, 2.0),  # loading takes a quarter of the cores' time
        ("cpu", "auto", 2.0),
        ("cuda", 0, 5.0),
        ("cuda", 2, 2.0),
        ("cuda", 3, 4 / 3),
        ("cuda", 8, 1.0),
    ],
)
def test_a_training_waits_for_its_images(monkeypatch, kind, count, expected):
    monkeypatch.setattr(parallel, "usable_cores", lambda: 4)
    speed = workers.Speed(loading=4.0, model=1.0)
    assert workers.seconds_an_image(speed, torch.device(kind), count) == expected


@pytest.mark.usefixtures("each_takes_a_second")
def test_stages_that_will_not_run_are_left_out_and_begun_ones_told(squares, tmp_path, monkeypatch):
    recipe = tiny.recipe(squares)
    some = [stage for stage in STAGES if stage.name in ("label", "predict")]
    with monkeypatch.context() as patch:  # no step of a training is done for them
        patch.setattr(module, "_update", None)
        assert [*forecast(Run(recipe, tmp_path), some)] == ["label", "predict"]
    (tmp_path / "train_seg").mkdir()
    (tmp_path / "train_seg/state.pt").touch()
    run = Run(recipe, tmp_path)
    every = ["train_cam", "label", "train_seg", "predict"]
    assert [*forecast(run, STAGES)] == every and go_on(run, STAGES) == ["train_seg"]
    told = time_in_words({"train_seg": 60.0}, go_on(run, STAGES))
    assert told.endswith("train_seg 60 s; less where train_seg goes on where it stopped")


def test_few_photographs_and_failures_have_no_forecast(squares, tmp_path, monkeypatch):
    run = Run(tiny.recipe(tiny.squares(tmp_path / "few", count=3)), tmp_path / "run")
    assert forecast(run, STAGES, 4) == {} != forecast(run, STAGES, 3)

    def failing(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(module, "_seconds", failing)
    assert seconds_of(tiny.recipe(squares), tmp_path) == {}


def test_a_run_says_it_first_and_is_the_same(squares, tmp_path, caplog, monkeypatch):
    recipe = tiny.recipe(squares, stages=["train_cam", "label", "train_seg"])
    with caplog.at_level("INFO", "weaktr"):
        run_recipe(recipe, tmp_path / "told")
    lines = [line for line in caplog.messages if "measured just now" in line]
    pattern = r"about \d+ s on this machine, measured just now: " + ", ".join(
        rf"{stage} \d+ s" for stage in recipe.stages
    )
    assert len(lines) == 1 and re.fullmatch(pattern, lines[0])
    first = next(i for i, m in enumerate(caplog.messages) if m.startswith("train_cam: epoch"))
    assert caplog.messages.index(lines[0]) < first
    monkeypatch.setattr("weaktr.stages.plan.forecast", lambda *_: {})
    run_recipe(recipe, tmp_path / "silent")
    for stage in ("train_cam", "train_seg"):
        told, silent = (
            (tmp_path / run / stage / "model.safetensors").read_bytes()
            for run in ("told", "silent")
        )
        assert told == silent


def test_it_leaves_random_numbers_as_they_are(squares, tmp_path):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    assert seconds_of(tiny.recipe(squares), tmp_path)
    assert torch.rand(1) == expected


def test_the_first_time_does_not_count_unless_it_is_long(monkeypatch):
    calls = []
    module._seconds(lambda: calls.append(1), torch.device("cpu"))
    assert len(calls) == 2
    monkeypatch.setattr(module, "LONG", 0.0)
    module._seconds(lambda: calls.append(1), torch.device("cpu"))
    assert len(calls) == 3
