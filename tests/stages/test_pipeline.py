"""All stages in order: what runs, what is skipped, what is left when a run is killed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.exc import TorchDynamoException

from tests.stages import tiny
from tests.training.lines import read_metrics
from weaktr.cli.show import _folders
from weaktr.config import Recipe
from weaktr.data import Classes
from weaktr.data.datasets import CamDataset
from weaktr.data.masks import MaskFolder
from weaktr.evaluation.conditions import held_out
from weaktr.models import CamModel, checkpoints
from weaktr.outputs import begin
from weaktr.stages import pipeline, train_cam
from weaktr.stages.evaluate import (
    TABLE,
    evaluate,
    require_same_classes,
    require_same_images,
    score_folder,
)
from weaktr.stages.pipeline import inputs_of, run_recipe
from weaktr.stages.run import MODEL, Run, load_split
from weaktr.training.state import save_state


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares")


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A finished run with CRFs."""
    run = tmp_path_factory.mktemp("run")
    crf = {"crf": {"gaussian": [3, 3], "bilateral": [30, 5, 3], "iterations": 2}}
    recipe = tiny.recipe(root, label=crf, predict=crf | {"ensemble": "published"})
    run_recipe(recipe, run)
    return recipe, run


def stamps(run: Path) -> dict[str, int]:
    return {stage: (run / stage / "finished.json").stat().st_mtime_ns for stage in Recipe.stages}


def test_a_run_leaves_what_it_should(finished):
    _, run = finished
    assert len(MaskFolder(run / "label", verify=True)) == 24
    assert len(MaskFolder(run / "label" / "before_refinement", verify=True)) == 24
    assert len(MaskFolder(run / "predict", verify=True)) == 24
    assert not list(run.rglob("*.part"))
    assert not list(run.rglob("state.pt"))
    metrics = json.loads((run / "metrics.json").read_text())
    keys = [key for key in metrics if key.endswith("miou")]
    assert keys == [
        "cam_coarse_miou", "cam_miou", "pseudo_label_before_crf_miou", "pseudo_label_miou",
        "not_held_out_before_crf_miou", "not_held_out_miou",
    ]  # fmt: skip
    assert metrics["conditions"]["not_held_out_miou"].startswith(
        "stage-2 predictions, 24 of 24 images trained on; folder val, 24 images"
    )
    assert (run / "evaluate" / "not_held_out_classes.png").is_file()
    assert all(0 <= metrics[key] <= 100 for key in keys)
    for key in keys:
        for word in ("folder", "images", "scales", "flip", "CRF", "ensemble"):
            assert word in metrics["conditions"][key]


def test_scores_of_images_that_were_trained_on_are_no_validation_scores(tmp_path, caplog):
    root = tiny.squares(tmp_path / "squares", count=4)
    rows = (root / "labels.csv").read_text().splitlines(keepends=True)
    (root / "train.csv").write_text("".join(rows[:3]))
    for first, called in ((3, "val"), (2, "not_held_out"), (1, "not_held_out")):
        (root / "val.csv").write_text("".join([rows[0], *rows[first:]]))
        train, val = (load_split(tiny.recipe(root).data, name) for name in ("train", "val"))
        key, what = held_out(train, val)
        assert key == called
        shared = 3 - first
        assert what.endswith(f", {shared} of {len(val)} images trained on") == bool(shared)
    assert len(caplog.messages) == 2
    assert "so these scores are called not_held_out, not val" in caplog.messages[0]


def test_splits_that_mean_other_classes_or_images_are_not_scored(tmp_path):
    train = load_split(tiny.recipe(tiny.squares(tmp_path / "a", count=2)).data, "train")
    score = load_split(tiny.recipe(tiny.squares(tmp_path / "b", count=2)).data, "train")
    require_same_classes(train, score)
    require_same_images(train, train)
    with pytest.raises(ValueError, match=r"one image for the name '0', got .*b/images/0\.png"):
        require_same_images(train, score)
    turned = replace(score, classes=Classes(tuple(reversed(score.classes.names))))
    with pytest.raises(ValueError, match="expected the classes of folder train"):
        require_same_classes(train, turned)


def test_masks_with_other_values_are_not_scored(tmp_path):
    truth = load_split(tiny.recipe(tiny.squares(tmp_path / "squares", count=2)).data, "train")
    masks = MaskFolder(tmp_path / "masks")
    for sample, value in zip(truth, (0, 77), strict=True):
        masks.add(sample.name, np.full((32, 32), value, np.uint8))
    with pytest.raises(ValueError, match=r"1\.png .*outside the classes: .* got 77"):
        score_folder(masks, truth)


@pytest.fixture
def unknown(tmp_path):
    """A recipe whose true masks of train hold only 255; that of val is a mask."""
    data = tiny.squares(tmp_path / "squares", count=5)
    rows = (data / "labels.csv").read_text().splitlines(keepends=True)
    (data / "train.csv").write_text("".join(rows[:5]))
    (data / "val.csv").write_text("".join([rows[0], rows[5]]))
    for index in range(4):
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(data / f"masks/{index}.png")
    return tiny.recipe(data, train_cam={"epochs": 1, "validate_every": 1})


NOTHING = (
    "not scored: expected at least one pixel with a known true label, got none in the true masks "
    "of 4 images (255 is not counted)"
)


def test_a_split_without_a_known_pixel_is_named_and_the_others_scored(unknown, tmp_path, caplog):
    run = Run(unknown, tmp_path / "run")
    model = CamModel(unknown.cam_model, 3)
    checkpoints.save(model, run.of("train_cam") / MODEL, classes={"names": tiny.NAMES})
    for index in range(5):
        folder = MaskFolder(run.of("label" if index < 4 else "predict"))
        folder.add(str(index), np.zeros((32, 32), np.uint8))
    assert evaluate(run, tmp_path / "out") == 0
    for what in ("CAMs", run.of("label")):
        assert f"{what} against folder train: {NOTHING}" in caplog.text
    numbers = json.loads((tmp_path / "out" / TABLE).read_text())
    assert [key for key in numbers if key.endswith("miou")] == ["val_miou"]


def test_a_split_without_a_known_pixel_does_not_end_a_training(unknown, tmp_path, caplog):
    run_recipe(replace(unknown, stages=("train_cam",)), tmp_path / "run")
    assert f"CAMs against folder train: {NOTHING}" in caplog.text


def test_losses_are_logged_for_every_step(finished):
    _, run = finished
    rows = read_metrics(run / "train_cam" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 13))
    for row in rows:
        assert row["loss"] == pytest.approx(row["class"] + row["coarse"] + row["fine"], rel=1e-5)
    assert rows[0]["lr"] == rows[-1]["lr"] == 1e-6  # the published schedule is one epoch late
    assert len(read_metrics(run / "train_seg" / "metrics.jsonl")) == 12


def test_pictures_keep_splits_apart(finished):
    """Samples of two splits may share names; their masks must not be mixed up."""
    recipe, run = finished
    assert list(_folders(Run(recipe, run), "train", 4)) == [
        "pseudo label before CRF",
        "pseudo label",
    ]
    assert list(_folders(Run(recipe, run), "val", 4)) == ["prediction"]


def test_finished_stages_are_not_run_again(finished):
    recipe, run = finished
    before = stamps(run)
    run_recipe(recipe, run)
    assert stamps(run) == before


def test_changed_inputs_run_a_stage_and_those_after_it_again(root, tmp_path):
    run_recipe(tiny.recipe(root), tmp_path)
    before = stamps(tmp_path)
    run_recipe(tiny.recipe(root, label={"threshold": 0.6}), tmp_path)
    after = stamps(tmp_path)
    assert [stage for stage in Recipe.stages if after[stage] == before[stage]] == ["train_cam"]
    run_recipe(tiny.recipe(root, label={"threshold": 0.6}), tmp_path, only="evaluate", force=True)
    forced = stamps(tmp_path)
    assert [stage for stage in Recipe.stages if forced[stage] != after[stage]] == ["evaluate"]


def test_settings_that_change_no_result_run_nothing_again(finished):
    recipe, run = finished
    other = replace(recipe, num_workers=3, checkpoint_seconds=1.0, log_steps=7)
    for stage in pipeline.STAGES:
        assert inputs_of(stage, Run(recipe, run)) == inputs_of(stage, Run(other, run))


def test_recipes_name_the_stages_in_their_order():
    assert tuple(stage.name for stage in pipeline.STAGES) == Recipe.stages


def test_a_stage_without_its_inputs_says_so(root, tmp_path):
    with pytest.raises(ValueError, match="train_cam is not finished"):
        run_recipe(tiny.recipe(root), tmp_path, only="label")
    with pytest.raises(ValueError, match="--from: expected one of train_cam, label"):
        run_recipe(tiny.recipe(root), tmp_path, start="labels")


def test_training_never_opens_a_mask(tmp_path):
    """Masks that are no pictures at all: every stage but evaluate passes."""
    root = tiny.squares(tmp_path / "squares", count=8)
    for mask in (root / "masks").iterdir():
        mask.write_bytes(b"no picture")
    run = tmp_path / "run"
    for stage in Recipe.stages[:-1]:
        run_recipe(tiny.recipe(root), run, only=stage)
    with pytest.raises(ValueError, match="cannot be read as an image"):
        run_recipe(tiny.recipe(root), run, only="evaluate")


def test_upper_bound_trains_on_true_masks(root, tmp_path):
    settings = {"masks": "truth", "epochs": 12, "optimizer": "adamw", "lr": 3e-3, "encoder_lr": 1.0}
    recipe = tiny.recipe(root, train_seg=settings)
    run_recipe(recipe, tmp_path)
    details = json.loads((tmp_path / "evaluate" / "metrics.json").read_text())
    assert all(row["supervision"] == "true masks" for row in details)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["not_held_out_miou"] > metrics["pseudo_label_miou"]


def test_true_masks_need_no_pseudo_labels(root, tmp_path):
    truth = {"train_seg": {"masks": "truth", "epochs": 1}, "seg_model": {"weights": None}}
    recipe = tiny.recipe(root, **truth)
    learnt = replace(recipe, stages=("train_seg", "predict", "evaluate"))
    run_recipe(learnt, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert [key for key in metrics if key.endswith("miou")] == ["not_held_out_miou"]
    pseudo = replace(learnt, train_seg=replace(learnt.train_seg, masks="pseudo"))
    with pytest.raises(ValueError, match="label is not finished, which train_seg needs; add it"):
        run_recipe(pseudo, tmp_path / "pseudo")


def test_moving_average_accumulation_and_watching(root, tmp_path):
    extra = {"ema_decay": 0.5, "accumulate": 2, "clip_grad": 1.0, "validate_every": 1}
    recipe = tiny.recipe(root, train_cam=extra, train_seg=extra)
    run_recipe(recipe, tmp_path)
    rows = read_metrics(tmp_path / "train_cam" / "metrics.jsonl")
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 7))
    assert len([row for row in rows if "cam_miou" in row]) == 2
    rows = read_metrics(tmp_path / "train_seg" / "metrics.jsonl")
    assert len([row for row in rows if "watched_not_held_out_miou" in row]) == 2


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_not_finite_is_told_with_its_images(root, tmp_path, monkeypatch, accumulate):
    """The third batch of the second epoch has one."""
    recipe = tiny.recipe(root, train_cam={"accumulate": accumulate}, log_steps=3)
    batches, names = [], []
    losses = train_cam.cam_losses
    read = CamDataset.__getitem__

    def of_batch(output, targets, batch):
        batches.append(len(targets))
        scale = float("nan") if len(batches) == 9 else 1.0
        return {name: scale * loss for name, loss in losses(output, targets, batch).items()}

    def item(dataset, index):
        names.append(dataset.samples[index].name)
        return read(dataset, index)

    monkeypatch.setattr(train_cam, "cam_losses", of_batch)
    monkeypatch.setattr(CamDataset, "__getitem__", item)
    monkeypatch.setattr("weaktr.stages.plan.forecast", lambda *_: {})  # which reads an image
    with pytest.raises(ValueError, match="loss not finite at epoch 2, step") as error:
        run_recipe(recipe, tmp_path, only="train_cam")
    images = ", ".join(names[8 * 4 : 9 * 4])
    assert f"in the batch of {images}. Try a lower train_cam.lr" in str(error.value)


def test_a_compiler_that_fails_is_told(monkeypatch, tmp_path):
    from weaktr.training.compiling import compiled

    def fails(*_, **__):
        raise TorchDynamoException("main.so: file too short\nmore")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    with pytest.raises(ValueError, match=r"compile: torch.compile fails \(main.so: file too short"):
        compiled(lambda: None, enabled=True)()


def test_a_batch_larger_than_the_data_is_told(root, tmp_path):
    with pytest.raises(ValueError, match="batch_size: 64 is more than the 24 samples"):
        run_recipe(tiny.recipe(root, train_cam={"batch_size": 64}), tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_change_no_result(root, tmp_path, workers, finished):
    _, run = finished
    run_recipe(replace(tiny.recipe(root), num_workers=workers), tmp_path, only="train_cam")
    file = Path("train_cam") / "metrics.jsonl"
    assert (tmp_path / file).read_bytes() == (run / file).read_bytes()


# ---------------------------------------------------------------- killed runs


def test_a_changed_recipe_does_not_resume_an_old_state(root, tmp_path):
    recipe = tiny.recipe(root)
    folder = tmp_path / "train_cam"
    begin(folder, "other inputs")
    save_state(folder / "state.pt", {"position": "of another run"})
    run_recipe(recipe, tmp_path, only="train_cam")
    assert len(read_metrics(folder / "metrics.jsonl")) == 12


def test_labelling_goes_on_after_a_kill(root, tmp_path):
    recipe = tiny.recipe(root)
    run_recipe(recipe, tmp_path, only="train_cam")
    run_recipe(recipe, tmp_path, only="label")
    whole = MaskFolder(tmp_path / "label").entries
    index = tmp_path / "label" / "index.jsonl"
    index.write_bytes(index.read_bytes()[:1000])  # cut in the middle of a line
    (tmp_path / "label" / "finished.json").unlink()
    left = len(MaskFolder(tmp_path / "label"))
    assert 0 < left < 24
    run_recipe(recipe, tmp_path, only="label")
    masks = MaskFolder(tmp_path / "label", verify=True)
    assert masks.entries == whole
    assert len(index.read_text().splitlines()) == 24


def test_corrupt_image_while_training_is_named(tmp_path):
    root = tiny.squares(tmp_path / "squares", count=8)
    (root / "images" / "3.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"3\.png.*labels\.csv:5"):
        run_recipe(tiny.recipe(root), tmp_path / "run", only="train_cam")


def test_images_of_many_sizes(tmp_path):
    root = tiny.squares(tmp_path / "squares", count=8)
    for index, (width, height) in enumerate([(40, 30), (30, 40), (33, 65), (64, 64)]):
        for folder in ("images", "masks"):
            path = root / folder / f"{index}.png"
            with Image.open(path) as image:
                image.resize((width, height), Image.Resampling.NEAREST).save(path)
    run_recipe(tiny.recipe(root), tmp_path / "run")
    assert MaskFolder(tmp_path / "run" / "predict").read("2").shape == (65, 33)
    assert np.isin(MaskFolder(tmp_path / "run" / "label").read("1"), range(4)).all()


def test_bfloat16(root, tmp_path):
    half = {"amp": "bf16"}
    longer = {**half, "epochs": 4}
    run_recipe(
        tiny.recipe(root, train_cam=half, label=half, train_seg=longer, predict=half), tmp_path
    )
    rows = read_metrics(tmp_path / "train_seg" / "metrics.jsonl")
    assert rows[-1]["loss"] < rows[0]["loss"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_all_stages_on_a_gpu_in_float16(root, tmp_path):
    half = {"amp": "fp16"}
    recipe = tiny.recipe(root, train_cam=half, label=half, train_seg=half, predict=half)
    run_recipe(replace(recipe, device="cuda"), tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["not_held_out_miou"] > 0
