"""Both trainings on tar shards: losses as of the same photographs in a folder, epochs, resuming."""

from __future__ import annotations

import json
import logging
import tarfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cli.test_train import said
from tests.stages import tiny
from weaktr import cli
from weaktr.config import Recipe
from weaktr.data.datasets import EpochSampler, SegDataset
from weaktr.data.label_files import read_label_file
from weaktr.data.masks import MaskFolder
from weaktr.progress import log
from weaktr.stages.pipeline import run_recipe
from weaktr.stages.run import MODEL, load_split
from weaktr.training.loader import EpochLoader
from weaktr.training.loss_log import METRICS
from weaktr.training.state import set_seeds

COUNT = 24
#: Photographs in each shard.
SIZES = (7, 17)
TRAININGS = ("train_cam", "label", "train_seg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", COUNT)


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    """The photographs of `folder`, in its order, in two shards for each split."""
    root = tmp_path_factory.mktemp("shards")
    rows = read_label_file(folder / "labels.csv", []).rows
    for split in ("train", "val"):
        first = 0
        for number, size in enumerate(SIZES):
            with tarfile.open(root / f"{split}-{number}.tar", "w") as tar:
                for row in rows[first : first + size]:
                    key = Path(row.image).stem
                    (root / "labels").write_text(" ".join(row.labels))
                    tar.add(folder / "images" / row.image, row.image)
                    tar.add(root / "labels", f"{key}.cls")
                    tar.add(folder / "masks" / row.image, f"{key}.mask.png")
            first += size
    (root / "labels").unlink()
    (root / "classes.txt").write_text((folder / "classes.txt").read_text())
    return root


def recipe(root, stages=TRAININGS, **changes):
    """The tiny recipe, usually without stages after stage 2."""
    data = tiny.tree(root)["data"] | {"source": "tar"}
    if (root / "labels.csv").is_file():
        data["source"] = "folder"
    return tiny.recipe(root, data=data, stages=list(stages), **changes)


PATCHES = {"kind": "patches", "patches": {"short_side": 64, "layers": [0, 1]}}
VARIANTS = {
    "heads": {},
    "patches": {
        "cam_model": PATCHES,
        "train_cam": {"patches": {}},
        "label": {"threshold": 0.5, "flip": False, "soft": True},
        "seg_model": {"decoder": "linear"},
        "train_seg": {"labels": "soft", "loss": "soft_ce"},
    },
}


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    """A run on the shards."""
    run = tmp_path_factory.mktemp("run")
    assert run_recipe(recipe(shards), run) == 0
    return run


def require_same(run, other, *trainings):
    """The same losses, and models of the same weights."""
    for training in trainings:
        logs = [(folder / training / METRICS) for folder in (run, other)]
        assert [log.is_file() for log in logs] in ([True, True], [False, False])
        if logs[0].is_file():
            assert logs[0].read_bytes() == logs[1].read_bytes()
        one, two = (load_file(folder / training / MODEL) for folder in (run, other))
        assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("variant", VARIANTS)
def test_photographs_in_tars_give_the_losses_of_those_in_a_folder(
    variant, folder, shards, run, tmp_path
):
    changes = VARIANTS[variant]
    run_recipe(recipe(folder, **changes), tmp_path / "folder")
    if changes:
        run = tmp_path / "shards"
        run_recipe(recipe(shards, **changes), run)
    require_same(run, tmp_path / "folder", "train_cam", "train_seg")
    masks = {place: MaskFolder(place / "label") for place in (run, tmp_path / "folder")}
    ours, theirs = masks.values()
    assert len(ours) == len(theirs) == COUNT
    for entry in ours.entries.values():
        assert (ours.read(entry.name) == theirs.read(entry.name.partition("/")[2])).all()


@pytest.mark.slow
def test_all_stages_and_what_shows_their_results(shards, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "handlers", [logging.NullHandler()])  # so that commands add none
    monkeypatch.setattr(log, "propagate", True)
    run = tmp_path / "run"
    assert run_recipe(recipe(shards, Recipe.stages), run) == 0
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"cam_miou", "pseudo_label_miou"} <= metrics.keys()
    for command in (
        ["show", run],
        ["report", run],
        ["export-masks", run, "--to", "coco", "--images", "link", "--out", tmp_path / "coco"],
        ["export-masks", run, "--to", "labelme", "--images", "none", "--out", tmp_path / "labelme"],
    ):
        code, text = said(cli.main, *command)
        assert code == 0, text
    told = f"{2 * COUNT} photographs are in tars, which other programs do not open"
    assert told in caplog.text
    images = [path for path in (tmp_path / "coco/images").rglob("*") if path.is_file()]
    assert len(images) == 2 * COUNT
    assert not any(path.is_symlink() for path in images)


def test_workers_change_no_result(shards, run, tmp_path):
    run_recipe(replace(recipe(shards), num_workers=2), tmp_path)
    require_same(run, tmp_path, "train_cam", "train_seg")


@pytest.mark.parametrize(
    ("training", "optimizer"),
    [("train_cam", torch.optim.AdamW), ("train_seg", torch.optim.SGD)],
)
@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_training_equals_an_unbroken_one(
    shards, run, tmp_path, monkeypatch, training, optimizer, workers
):
    """Stopped by an error in mid-epoch, after a checkpoint of that epoch."""
    broken = replace(recipe(shards), checkpoint_steps=2, num_workers=workers)
    for stage in TRAININGS[: TRAININGS.index(training)]:
        run_recipe(broken, tmp_path, only=stage)
    with tiny.interrupted(monkeypatch, optimizer, step=9):
        run_recipe(broken, tmp_path, only=training)
    set_seeds(99)  # what the random numbers were meanwhile must not matter
    run_recipe(broken, tmp_path, only=training)
    require_same(run, tmp_path, training)


@pytest.mark.parametrize("workers", [0, 2])
def test_each_epoch_has_each_photograph_of_all_shards_once(shards, workers):
    manifest = load_split(recipe(shards).data, "train")
    assert Counter(sample.name.partition("/")[0] for sample in manifest) == {
        f"train-{number}": size for number, size in enumerate(SIZES)
    }

    class Indices(SegDataset):
        def __getitems__(self, indices):
            super().__getitems__(indices)  # reads photographs and masks
            return [(torch.tensor(index),) for index in indices]

    dataset = Indices(manifest, lambda *inputs: inputs)
    loader = EpochLoader(dataset, 4, 0, workers)
    orders = []
    for epoch in range(2):
        batches = loader.epoch(epoch)
        orders.append(torch.cat([batch[0] for batch in batches]).tolist())
        assert sorted(orders[-1]) == list(range(COUNT))
    assert orders[0] != orders[1]
    sampler = EpochSampler(COUNT, 4, seed=0)
    sampler.set_epoch(1, 2)
    assert [index for batch in sampler for index in batch] == orders[1][8:]


def test_a_damaged_photograph_is_named_with_its_shard(shards, tmp_path):
    root = tmp_path / "shards"
    root.mkdir()
    content = (shards / "train-0.tar").read_bytes()
    start = content.index(b"\x89PNG")
    broken = content[: start + 40] + bytes(60) + content[start + 100 :]
    for name in ("train-0.tar", "val-0.tar"):
        (root / name).write_bytes(broken if name.startswith("train") else content)
    (root / "classes.txt").write_text((shards / "classes.txt").read_text())
    with pytest.raises(ValueError, match=r"train-0\.tar/\d+\.\S*png.*: cannot be read as an"):
        run_recipe(recipe(root), tmp_path / "run")


def test_a_shard_that_is_replaced_by_another_makes_trainings_run_again(shards, tmp_path, caplog):
    root, run = tmp_path / "shards", tmp_path / "run"
    root.mkdir()
    for file in shards.iterdir():
        (root / file.name).write_bytes(file.read_bytes())
    run_recipe(recipe(root), run, only="train_cam")
    before = (run / "train_cam" / "finished.json").stat().st_mtime_ns
    run_recipe(recipe(root), run, only="train_cam")
    assert (run / "train_cam" / "finished.json").stat().st_mtime_ns == before
    (root / "train-1.tar").write_bytes((root / "val-0.tar").read_bytes())
    run_recipe(recipe(root), run, only="train_cam")
    assert (run / "train_cam" / "finished.json").stat().st_mtime_ns != before
