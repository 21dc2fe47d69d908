"""A run with soft labels: written, made again, corrected by hand, learnt from, resumed."""

from __future__ import annotations

import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests.stages import tiny
from tests.training.lines import read_metrics
from weaktr.config import LabelConfig, Recipe, TrainSegConfig
from weaktr.data import Classes, DataError, Manifest, Sample
from weaktr.data.datasets import SegDataset
from weaktr.data.io import read_stored_labels
from weaktr.data.stored_maps import SoftLabels, npz_of_soft_labels, read_soft_labels
from weaktr.labelling.store import soft_file
from weaktr.models import checkpoints
from weaktr.outputs import fingerprint
from weaktr.ranges import SettingsError
from weaktr.recipes import identity
from weaktr.stages.pipeline import check_recipe, run_recipe
from weaktr.stages.run import MODEL, Run, without_masks
from weaktr.stages.train_seg import shares_of_labels, supervision
from weaktr.training.segmenter_losses import balancing, segmenter_losses
from weaktr.training.state import set_seeds

CRF = {"crf": {"gaussian": [3, 3], "bilateral": None, "iterations": 2}}
SOFT = {"labels": "soft", "loss": "collision", "loss_warmup": 0.5}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", count=8)


def soft_recipe(root: Path, **train_seg: object) -> Recipe:
    return tiny.recipe(
        root,
        label=CRF | {"soft": True, "soft_stride": 4},
        seg_model={"image_head": True, "decoder": "linear"},
        train_seg=SOFT | {"encoder_lr": 0.0} | train_seg,
    )


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A finished run from soft labels."""
    run = tmp_path_factory.mktemp("run")
    run_recipe(soft_recipe(root), run)
    return run


@pytest.fixture
def run(root, finished, tmp_path):
    """A copy of it."""
    return Run(soft_recipe(root), shutil.copytree(finished, tmp_path / "run"))


def read(run: Run, name: str) -> SoftLabels:
    return read_soft_labels(soft_file(run.of("label"), name), 4, (32, 32))


def test_a_run_from_soft_labels(run):
    for name in "01234567":
        soft = read(run, name)
        assert soft.shares.shape == (2, 8, 8)
        hard = read_stored_labels(run.of("label") / "masks" / f"{name}.png")
        assert set(np.unique(hard)) <= set(soft.labels)
        means = (hard == soft.labels[1]).reshape(8, 4, 8, 4).mean((1, 3))
        decided = abs(means - 0.5) > 0.3  # the CRF's confidence is above a half
        assert ((soft.shares[1] > soft.shares[0]) == (means > 0.5))[decided].all()
    rows = read_metrics(run.of("train_seg") / "metrics.jsonl")
    assert len(rows) == 4
    assert all(row.keys() >= {"soft", "image", "loss"} for row in rows)
    model, description = checkpoints.load(run.of("train_seg") / MODEL)
    assert model.image_head is not None and description["config"]["image_head"] is True
    backbone = checkpoints.load(run.of("train_cam") / MODEL)[0].vit.state_dict()
    for name, value in model.vit.state_dict().items():
        if name.startswith("blocks"):
            assert torch.equal(value, backbone[name])  # frozen
    assert (run.folder / "metrics.json").is_file()


def test_a_warm_up_is_the_cross_entropy_and_ends(root, finished, tmp_path):
    """The first half of the steps has the losses of soft_ce, the second half others."""
    losses = {}
    for loss in ("soft_ce", "collision"):
        run = shutil.copytree(finished, tmp_path / loss)
        shutil.rmtree(run / "train_seg")
        run_recipe(soft_recipe(root, loss=loss), run, only="train_seg")
        losses[loss] = [r["soft"] for r in read_metrics(run / "train_seg" / "metrics.jsonl")]
    assert losses["soft_ce"][:2] == losses["collision"][:2]
    assert losses["soft_ce"][2] > losses["collision"][2]  # of the same weights: Jensen's inequality


def test_missing_and_damaged_files_are_made_again(run, caplog):
    whole = {path.name: path.read_bytes() for path in run.of("label").glob("soft/*.npz")}
    stamps = {path: path.stat().st_mtime_ns for path in run.of("label").glob("masks/*.png")}
    soft_file(run.of("label"), "1").unlink()
    soft_file(run.of("label"), "2").write_bytes(whole["2.npz"][:70])
    soft_file(run.of("label"), "3").write_bytes(b"")
    caplog.set_level(logging.INFO, "weaktr")
    run_recipe(run.recipe, run.folder)
    for name in "123":
        assert soft_file(run.of("label"), name).read_bytes() == whole[f"{name}.npz"]
    again = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert {path.stem for path in again} == {"1", "2", "3"}
    assert "train_seg: finished before, nothing has changed" in caplog.text


def test_a_mask_corrected_by_hand_wins(run):
    labels = np.zeros((32, 32), np.uint8)
    labels[8:24, :8], labels[:, 28:] = 2, 255
    Image.fromarray(labels).save(run.of("label") / "masks" / "3.png")
    soft_file(run.of("label"), "3").unlink()  # needs none
    images, left_out, soft = supervision(run)
    assert (left_out, len(images)) == (0, 8)
    assert soft.keys() == {*"0124567"}
    recipe = replace(run.recipe, stages=("train_seg",))
    assert not [f for part in check_recipe(recipe, run.folder, force=True) for f in part.faults]
    dataset = SegDataset(images, lambda *both: both, patch_size=8, soft=soft)
    shares = dataset[[sample.name for sample in images].index("3")][1]
    assert shares[2].tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert (shares.sum(0) == 1).all()  # the last four columns of pixels are ignored


def test_soft_labels_that_somebody_has_changed_are_used(run):
    """And those that are none stop the training by name."""
    mine = SoftLabels(np.full((1, 2, 2), 255, np.uint8), (3,))
    path = soft_file(run.of("label"), "5")
    np.savez(path, soft=mine.shares, labels=mine.labels, size=[32, 32])
    before = path.read_bytes()
    stamp = (run.of("train_seg") / "finished.json").stat().st_mtime_ns
    run_recipe(run.recipe, run.folder)
    assert path.read_bytes() == before
    assert (run.of("train_seg") / "finished.json").stat().st_mtime_ns > stamp  # trained again
    np.savez(path, notes=np.ones(3))
    with pytest.raises(DataError, match=r"5\.npz: no soft labels"):
        run_recipe(run.recipe, run.folder)
    assert path.is_file()


def test_labels_without_soft_ones_say_what_to_do(run):
    """In training, and in the check of a run whose recipe does not label."""
    soft_file(run.of("label"), "4").unlink()
    fault = r"1 images have no soft labels \(4\): run label again"
    with pytest.raises(ValueError, match=fault):
        supervision(run)
    recipe = replace(run.recipe, stages=("train_seg",))
    told = [line for part in check_recipe(recipe, run.folder, force=True) for line in part.faults]
    assert len(told) == 1 and re.search(fault, told[0])


@pytest.mark.parametrize("changes", [{}, {"loss": "soft_ce", "balance": 0.5}])
def test_resumed_equals_unbroken(root, finished, tmp_path, monkeypatch, changes):
    """Stopped by an error after the warm-up, in mid-epoch."""
    recipe = replace(soft_recipe(root, epochs=4, **changes), checkpoint_steps=1)
    for name in ("unbroken", "broken"):
        shutil.rmtree(shutil.copytree(finished, tmp_path / name) / "train_seg")
    run_recipe(recipe, tmp_path / "unbroken", only="train_seg")
    with tiny.interrupted(monkeypatch, torch.optim.SGD, step=6):
        run_recipe(recipe, tmp_path / "broken", only="train_seg")
    set_seeds(99)
    run_recipe(recipe, tmp_path / "broken", only="train_seg")
    logs = [tmp_path / run / "train_seg" / "metrics.jsonl" for run in ("broken", "unbroken")]
    assert logs[0].read_bytes() == logs[1].read_bytes()
    assert len(read_metrics(logs[0])) == 8
    models = [load_file(tmp_path / run / "train_seg" / MODEL) for run in ("broken", "unbroken")]
    assert all(torch.equal(models[0][name], value) for name, value in models[1].items())


def test_shares_of_labels_are_those_of_what_is_learnt(run):
    """Soft labels, also of masks where they win nowhere, and corrected masks; each photograph as
    large as any other, and what is undecided of none.
    """
    masks = [np.zeros((32, 32), np.uint8) for _ in range(8)]
    masks[0][:8], masks[3][:, 30:], masks[5][:] = 1, 2, 255
    for index, mask in enumerate(masks):
        Image.fromarray(mask).save(run.of("label") / "masks" / f"{index}.png")
    hard = SegDataset(supervision(run).images, lambda *both: both)
    counts = [sum(int((mask == label).sum()) for mask in masks) for label in range(4)]
    expected = torch.tensor(counts) / (7 * 32 * 32)
    torch.testing.assert_close(shares_of_labels(hard), expected)
    assert counts[3] == 0 and balancing(shares_of_labels(hard), 1.0).isfinite().all()
    soft = SoftLabels(np.array([[[204]], [[51]]], np.uint8), (0, 3))  # 3 wins nowhere
    path = soft_file(run.of("label"), "7")
    path.write_bytes(npz_of_soft_labels(soft, (32, 32)))
    learnt = SegDataset(supervision(run).images, lambda *both: both, patch_size=8, soft={"7": path})
    expected += torch.tensor([-0.2, 0, 0, 0.2]) / 7
    torch.testing.assert_close(shares_of_labels(learnt), expected)
    for index in range(8):
        Image.fromarray(masks[5]).save(run.of("label") / "masks" / f"{index}.png")
    assert shares_of_labels(hard).tolist() == [0.25] * 4


def test_photographs_of_other_sizes_count_the_same(tmp_path):
    samples = []
    for name, (side, label) in {"large": (64, 0), "small": (8, 1)}.items():
        files = [tmp_path / f"{name}.jpg", tmp_path / f"{name}.png"]
        Image.new("RGB", (side, side)).save(files[0])
        Image.fromarray(np.full((side, side), label, np.uint8)).save(files[1])
        samples.append(Sample(name, files[0], None, files[1], ""))
    images = Manifest("own", "train", Classes(("thing",)), tuple(samples))
    dataset = SegDataset(images, lambda *both: both)
    assert shares_of_labels(dataset).tolist() == [0.5, 0.5]


def test_rare_labels_count_more_where_the_recipe_says_so(root, finished, tmp_path, monkeypatch):
    """By the soft labels that are learnt; without balance these are not even looked at."""
    seen = []

    def recorded(*arguments, weights, batch):
        seen.append(weights)
        return segmenter_losses(*arguments, weights=weights, batch=batch)

    monkeypatch.setattr("weaktr.stages.train_seg.segmenter_losses", recorded)
    for balance in (0.0, 0.5):
        folder = shutil.copytree(finished, tmp_path / str(balance))
        recipe = soft_recipe(root, loss="soft_ce", balance=balance, epochs=1)
        run_recipe(recipe, folder, only="train_seg")
    shares = np.zeros(4)
    for soft in (read(Run(recipe, folder), name) for name in "01234567"):
        shares[[*soft.labels]] += (soft.shares / soft.shares.sum(0)).mean((1, 2)) / 8
    assert seen[:2] == [None, None] and len(seen) == 4
    for weights in seen[2:]:
        torch.testing.assert_close(weights, balancing(torch.tensor(shares).float(), 0.5))
    assert weights.max() > 2 * weights.min()


@pytest.mark.parametrize("loss", ["soft_ce", "collision"])
@pytest.mark.parametrize("decoder", ["mask_transformer", "multi_mask_transformer"])
def test_losses_of_patches_take_hard_labels_and_any_decoder(
    root, finished, tmp_path, loss, decoder
):
    recipe = soft_recipe(root, labels="hard", loss=loss, epochs=1, encoder_lr=0.1)
    recipe = replace(recipe, seg_model=replace(recipe.seg_model, decoder=decoder))
    run = shutil.copytree(finished, tmp_path / "run")
    run_recipe(recipe, run, only="train_seg")
    assert len(read_metrics(run / "train_seg" / "metrics.jsonl")) == 2


def test_an_image_head_needs_image_level_labels(tmp_path):
    root = tiny.squares(tmp_path / "squares", count=4)
    recipe = tiny.recipe(root, stages=["train_seg"], seg_model={"image_head": True})
    manifest = without_masks(Run(recipe, tmp_path).train)
    unlabelled = replace(manifest.samples[2], labels=None)
    samples = (*manifest.samples[:2], unlabelled, manifest.samples[3])
    replace(manifest, samples=samples).save(tmp_path / "data" / "train.json")
    source = {"source": "manifest", "root": str(tmp_path / "data"), "val_split": "train"}
    recipe = replace(recipe, data=replace(recipe.data, **source))
    told = [line for part in check_recipe(recipe, tmp_path / "run") for line in part.faults]
    assert sum("2.png" in line and "which an image head trains from" in line for line in told) == 1


# ---- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"train_seg": {"labels": "soft", "loss": "clipped"}}, "train_seg.loss: expected soft_ce"),
        ({"train_seg": SOFT | {"masks": "truth"}}, "train_seg.labels: expected hard for true"),
        ({"train_seg": SOFT}, "label.soft: expected true for train_seg.labels: soft"),
        (
            {"train_seg": SOFT | {"balance": 0.5}},
            "train_seg.balance: expected 0 for the loss 'coll",
        ),
        ({"train_seg": {"balance": 0.5}}, "train_seg.balance: expected 0 for the loss 'clipped'"),
    ],
)
def test_settings_that_do_not_go_together(root, changes, fault):
    with pytest.raises(ValueError, match=fault):
        tiny.recipe(root, **changes)


def test_a_run_of_the_later_stages_alone_may_have_soft_labels(root):
    recipe = tiny.recipe(root, stages=["train_seg"], train_seg=SOFT)
    assert recipe.train_seg.labels == "soft" and not recipe.label.soft


def test_finished_runs_stay_finished():
    """Their fingerprints do not have the new settings."""
    for settings, names in (
        (LabelConfig(), {"soft", "soft_temperature", "soft_stride"}),
        (TrainSegConfig(), {"labels", "loss", "loss_warmup", "balance"}),
        (Recipe().seg_model, {"image_head"}),
        (Recipe().predict, {"image_weight"}),
    ):
        assert not names & identity(settings).keys()
    changed = replace(TrainSegConfig(), loss="collision")
    assert fingerprint(identity(changed)) != fingerprint(identity(TrainSegConfig()))
    with pytest.raises(SettingsError, match="soft_temperature"):
        LabelConfig(soft_temperature=0.0)
