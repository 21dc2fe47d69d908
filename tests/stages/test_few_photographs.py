"""What is for few photographs, in one run: each part works beside all the others."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.data.proposals import proposal
from tests.models import small
from tests.stages import tiny
from weaktr.config import LabelConfig
from weaktr.data import unlabelled
from weaktr.data.masks import MaskFolder
from weaktr.data.stored_maps import read_soft_labels
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.labels import label_maps
from weaktr.inference.soft_labels import Softening
from weaktr.inference.threshold import read_choice
from weaktr.labelling.store import soft_file
from weaktr.models import checkpoints
from weaktr.refine import choose_refiners
from weaktr.stages.pipeline import check_recipe, run_recipe
from weaktr.stages.run import MODEL, Run

SQUARE = np.zeros((32, 32), bool)
SQUARE[4:20, 4:20] = True
PROPAGATION = {"propagation": {"neighbours": 9}}


def proposals_for(folder, *names):
    """The refiner that snaps to one square in these photographs."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.json").write_text(json.dumps([proposal(SQUARE)]))
    return {"proposals": {"file": str(folder)}}


def test_a_run_with_everything(tmp_path):
    """Frozen features, an epoch and a threshold that are chosen, all refiners, soft labels."""
    root = tiny.squares(tmp_path / "data", count=8)
    snapped = proposals_for(tmp_path / "proposals", *range(7))
    crf = {"crf": {"start": "scores", "gaussian": [3, 3], "iterations": 1}}
    augment = {"scale": [1.0, 1.0], "ratio": [1.0, 1.0], "randaugment": False, "erasing": 0.0}
    recipe = tiny.recipe(
        root,
        cam_model={"drop_path": 0.0},
        train_cam={
            "backbone_lr": 0.0, "class_tokens": "frozen", "augment": augment, "epochs": 2,
            "validate_every": 1, "choose": "fisher",
        },
        label={
            "threshold": "auto", "refiners": [PROPAGATION, snapped, crf], "soft": True,
            "soft_stride": 4,
        },
        seg_model={"image_head": True, "decoder": "linear"},
        train_seg={"labels": "soft", "loss": "collision", "encoder_lr": 0.0},
        predict={"refiners": [PROPAGATION, snapped]},
    )  # fmt: skip
    out = tmp_path / "run"
    run = Run(recipe, out)
    assert not [fault for part in check_recipe(recipe, out) for fault in part.faults]
    assert run_recipe(recipe, out) == 0
    assert any((out / "features").glob("*.npz"))
    choice = read_choice(out / "label")
    assert choice is not None and choice.way == "auto"
    for name in MaskFolder(out / "label").entries:
        soft = read_soft_labels(soft_file(out / "label", name), 4, (32, 32))
        assert np.abs(soft.shares.sum(0).astype(int) - 255).max() <= len(soft.labels)
    assert checkpoints.load(run.of("train_seg") / MODEL)[0].image_head is not None
    conditions = json.loads((out / "metrics.json").read_text())["conditions"]
    assert f"threshold auto: {choice.threshold:g}" in conditions["pseudo_label_miou"]
    before = {stage: (out / stage / "finished.json").stat().st_mtime_ns for stage in recipe.stages}
    assert run_recipe(recipe, out) == 0
    for stage, stamp in before.items():
        assert (out / stage / "finished.json").stat().st_mtime_ns == stamp


@pytest.fixture
def batch(tmp_path):
    """A source of CAMs with features and views, what it has read, and the labels' refiners."""
    root = tiny.squares(tmp_path / "data", count=3)
    snapped = proposals_for(tmp_path / "proposals", 0, 1)
    settings = LabelConfig(
        predict_above=0.0, refiners=(PROPAGATION, snapped, "crf"), scales=(1.0, 1.5)
    )
    source = CamsOfModel(
        small.tiny_cam_model(), settings, settings.predict_above,
        with_features=True, with_views=True,
    )  # fmt: skip
    samples = unlabelled(root / "images").samples
    return source, [source.read(sample) for sample in samples], choose_refiners(settings)


def test_soft_labels_do_not_depend_on_what_else_is_written(batch):
    """Stability is written in place of the CRF's confidence, by which soft labels are made."""
    source, inputs, refiners = batch
    softening = Softening(0.05, 4)
    alone, beside = (
        label_maps(source, inputs, "auto", refiners, softening=softening, **options)
        for options in ({}, {"emit": ["confidence"], "confidence": "stability"})
    )
    for one, other in zip(alone, beside, strict=True):
        assert "confidence" not in one.arrays()
        np.testing.assert_array_equal(one.arrays()["soft"], other.arrays()["soft"])
        np.testing.assert_array_equal(one.arrays()["refined"], other.arrays()["refined"])
    shares = np.unique(beside[0].arrays()["confidence"])
    ways = 7 + 4 + 2  # thresholds, views, refined
    np.testing.assert_allclose(shares * ways, np.round(shares * ways), atol=1e-4)
