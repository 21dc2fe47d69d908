"""Runs whose second stage starts from a discriminant of the pseudo labels."""

from __future__ import annotations

import pytest
import torch

from tests.stages import tiny
from tests.stages.test_patches import PATCHES, faults
from tests.stages.test_patches import recipe as patches_recipe
from weaktr.data.datasets import SegDataset
from weaktr.models import Segmenter, checkpoints
from weaktr.stages import train_seg as stage
from weaktr.stages.pipeline import run_recipe
from weaktr.stages.run import MODEL, Run

STAGES = ("train_cam", "label", "train_seg")


def recipe(root, train_seg=None, seg_model=None, **changes):
    soft = {"soft": True, "soft_temperature": 1.0, "soft_stride": 4}
    return patches_recipe(
        root, STAGES, {"layers": [0]}, label=soft,
        seg_model={"decoder": "linear", "layers": [0, -1], **(seg_model or {})},
        train_seg={
            "labels": "soft", "loss": "soft_ce", "start": "discriminant", "epochs": 0,
            "augment": {"short_side": PATCHES["short_side"]}, **(train_seg or {}),
        },
        **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", count=12)


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """Not trained at all beyond its start."""
    run = Run(recipe(root), tmp_path_factory.mktemp("run"))
    assert run_recipe(run.recipe, run.folder) == 0
    return run


def agreement(run, model):
    """The share of patches whose most likely label is that of the pseudo labels."""
    dataset = SegDataset(
        stage.supervision(run).images, None, patch_size=8, soft=stage.supervision(run).soft
    )
    rows = [*stage.labelled_patches(model, dataset, run)]
    return sum(
        float((model.decoder(x[None])[0].argmax(0) == shares.argmax(1)).float().mean())
        for x, shares in rows
    ) / len(rows)


def test_it_knows_the_labels_before_it_is_trained(run):
    model = run.segmenter().eval()
    assert isinstance(model, Segmenter) and model.config.layers == (0, -1)
    assert agreement(run, model) > 0.8
    torch.nn.init.normal_(model.decoder.head.weight)
    assert agreement(run, model) < 0.7


def test_both_stages_share_what_the_backbone_gave(run):
    """Stage 1 keeps the last block too: each photograph went through it once."""
    assert len(list((run.folder / "features").glob("*.npz"))) == 12


def test_a_training_does_not_hold_what_the_backbone_gave(run, tmp_path):
    agreement(run, run.segmenter().eval())
    assert run.cache.memory_bytes > 0
    stage.train_seg(run, tmp_path)
    assert run.cache.memory_bytes == 0


def test_a_resumed_run_does_not_start_again(root, tmp_path, monkeypatch):
    tree = recipe(root, {"epochs": 2}, checkpoint_steps=1)
    unbroken = Run(tree, tmp_path / "unbroken")
    assert run_recipe(tree, unbroken.folder) == 0
    broken = Run(tree, tmp_path / "broken")
    losses, calls = stage.segmenter_losses, []

    def stopped(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return losses(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stage, "segmenter_losses", stopped)
        run_recipe(tree, broken.folder)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "start_decoder", None)
        assert run_recipe(tree, broken.folder) == 0
    first, second = (run.segmenter().state_dict() for run in (unbroken, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_hard_labels_too(root, tmp_path):
    tree = recipe(root, {"labels": "hard"})
    run = Run(tree, tmp_path / "run")
    assert run_recipe(tree, run.folder) == 0
    model, _ = checkpoints.load(run.of("train_seg") / MODEL)
    assert agreement(run, model) > 0.8


def test_what_does_not_fit_is_said(root, tmp_path):
    with pytest.raises(ValueError, match=r"train_seg\.start: expected random unless"):
        recipe(root, seg_model={"decoder": "mask_transformer"})
    told = faults(recipe(root, seg_model={"layers": [0, 7]}), tmp_path)
    assert any("seg_model.layers: expected blocks" in line for line in told), told
