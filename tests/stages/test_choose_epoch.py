"""Which epoch's weights stage 1 saves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.stages import tiny
from tests.training.lines import read_metrics
from weaktr.config import TrainCamConfig
from weaktr.models import checkpoints
from weaktr.stages import train_cam as stage
from weaktr.stages.run import MODEL, Run
from weaktr.stages.train_cam import contrast, train_cam


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", count=8)


def of(root, folder, **settings):
    changes = {"epochs": 4, "validate_every": 1, "choose": "fisher", "lr": 3e-3} | settings
    recipe = tiny.recipe(root, train_cam=changes)
    return Run(replace(recipe, stages=("train_cam", "label")), folder)


def scores_in(folder):
    return [entry for entry in read_metrics(folder / "metrics.jsonl") if "fisher" in entry]


def test_the_saved_model_is_the_one_with_the_largest_contrast(root, tmp_path):
    run = of(root, tmp_path)
    train_cam(run, tmp_path)
    logged = scores_in(tmp_path)
    assert [entry["epoch"] for entry in logged] == [0, 1, 2, 3]
    assert all("cam_miou" in entry for entry in logged)
    best = max(logged, key=lambda entry: entry["fisher"])
    model, _ = checkpoints.load(tmp_path / MODEL)
    assert contrast(model, run) == pytest.approx((best["fisher"], best["fisher_threshold"]))
    assert len({entry["fisher"] for entry in logged}) == 4


@pytest.fixture
def planted(monkeypatch):
    """Contrasts of the epochs, and the weights at each."""
    values, weights = [0.2, 0.5, 0.3, 0.4], []

    def take(model, run):
        value = values[len(weights)]
        if value is None:
            raise KeyboardInterrupt
        weights.append({name: part.clone() for name, part in model.state_dict().items()})
        return value, 0.5

    monkeypatch.setattr(stage, "contrast", take)
    return values, weights


def is_saved(folder, weights):
    state = checkpoints.load(folder / MODEL)[0].state_dict()
    return all(torch.equal(state[name], part) for name, part in weights.items())


def test_a_training_that_was_stopped_keeps_the_best_epoch(root, tmp_path, planted):
    values, weights = planted
    values[2] = None
    with pytest.raises(KeyboardInterrupt):
        train_cam(of(root, tmp_path), tmp_path)
    values[2] = 0.3
    train_cam(of(root, tmp_path), tmp_path)
    assert [entry["fisher"] for entry in scores_in(tmp_path)] == values
    assert is_saved(tmp_path, weights[1]) and not is_saved(tmp_path, weights[3])
    train_cam(of(root, tmp_path), tmp_path)  # killed before it was marked as finished
    assert is_saved(tmp_path, weights[1])


def test_the_last_epoch_is_saved_by_default(root, tmp_path, planted):
    train_cam(of(root, tmp_path, choose="last"), tmp_path)
    assert not scores_in(tmp_path) and not planted[1]
    plain = checkpoints.load(tmp_path / MODEL)[0].state_dict()
    train_cam(of(root, tmp_path / "chosen"), tmp_path / "chosen")
    assert all(torch.equal(plain[name], part) for name, part in planted[1][3].items())


def test_without_validation_nothing_can_be_chosen(root):
    with pytest.raises(ValueError, match="choose: expected last where validate_every is 0"):
        TrainCamConfig(choose="fisher")
