"""Recipes whose amount of work follows the number of photographs."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import weaktr
from tests.stages import tiny
from tests.training.lines import read_metrics
from weaktr.data.masks import MaskFolder
from weaktr.outputs import finished_facts
from weaktr.recipes import load_recipe
from weaktr.stages.check_models import require_memory
from weaktr.stages.inputs import inputs_of
from weaktr.stages.pipeline import STAGES, check_recipe, run_recipe
from weaktr.stages.run import MODEL, Run
from weaktr.stages.train_seg import TRAIN_SEG
from weaktr.training.loop import TrainingLoop

AUTO = {"epochs": "auto", "batch_size": "auto"}
#: A backbone of four blocks, and photographs of 32 pixels at sizes that suit them.
TINY = [
    *(f"{model}.backbone_args={{embed_dim: 32, depth: 4, num_heads: 2}}"
      for model in ("cam_model", "seg_model")),
    "cam_model.weights=null", "seg_model.weights=null", "device=cpu",
    "cam_model.image_size=70", "seg_model.image_size=70", "cam_model.patches.short_side=70",
    "train_seg.crop=56", "train_seg.augment.short_side=70", "predict.short_side=70",
    "predict.window=70", "predict.stride=56",
]  # fmt: skip


def stamps(out, recipe):
    return {stage: (out / stage / "finished.json").stat().st_mtime_ns for stage in recipe.stages}


# ---------------------------------------------------------------- the numbers


@pytest.mark.parametrize(
    ("changes", "count", "amount"),
    [
        ({}, 5, (40, 2)),
        ({"label": {"unlabelled": "background"}}, 20, (35, 4)),
        ({"train_seg": AUTO | {"masks": "truth"}}, 19, (36, 4)),
        ({"train_seg": {"epochs": "auto", "batch_size": 3}}, 5, (40, 3)),
    ],
)
def test_photographs_that_stage_2_learns_from_count(tmp_path, changes, count, amount):
    """Twenty photographs, of which five show a class and 19 have a true mask."""
    root = tiny.squares(tmp_path / "data", count=20)
    lines = (root / "labels.csv").read_text().splitlines()
    lines[6:] = [f"{line.partition(',')[0]}," for line in lines[6:]]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    (root / "masks/3.png").unlink()
    recipe = tiny.recipe(root, **{"train_seg": AUTO, **changes})
    settings = Run(recipe, tmp_path / "run").train_seg
    assert (settings.epochs, settings.batch_size) == amount
    (part,) = [p for p in check_recipe(recipe, tmp_path / "run") if p.what == "train_seg"]
    batches = count // settings.batch_size
    assert part.found == f"{count} images, {settings.epochs} epochs, {batches} batches in each"
    assert not part.faults


def test_the_check_of_the_memory_sees_the_number(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "weaktr.stages.check.require_memory",
        lambda *arguments: seen.append(arguments[2].batch_size) or require_memory(*arguments),
    )
    root = tiny.squares(tmp_path / "data", count=16)
    check_recipe(tiny.recipe(root, train_seg=AUTO), tmp_path / "run")
    assert seen == [4, 4]  # stage 1's own, then 4 for 16 photographs


# ---------------------------------------------------------------- runs


def test_finished_until_there_are_other_photographs(tmp_path, caplog):
    root, out = tiny.squares(tmp_path / "data", count=5), tmp_path / "run"
    recipe = tiny.recipe(root, train_cam={"epochs": 1}, train_seg=AUTO)
    with caplog.at_level(logging.INFO, "weaktr"):
        run_recipe(recipe, out)
    told = "train_seg: 40 epochs, 2 crops in a batch, for 5 photographs (epochs: auto, batch_size"
    assert sum(told in line for line in caplog.messages) == 1
    assert [line["step"] for line in read_metrics(out / "train_seg/metrics.jsonl")][-1] == 80
    written = (out / "recipe.yaml").read_text()
    assert written.count('epochs: "auto"') == 1 and load_recipe(out / "recipe.yaml") == recipe
    before = stamps(out, recipe)
    run_recipe(recipe, out)
    assert stamps(out, recipe) == before
    first = finished_facts(out / "train_seg")["made_from"]
    tiny.squares(tmp_path / "more", count=17)
    for kind in ("images", "masks"):
        for file in (tmp_path / "more" / kind).iterdir():
            (root / kind / file.name).write_bytes(file.read_bytes())
    (root / "labels.csv").write_bytes((tmp_path / "more/labels.csv").read_bytes())
    for stage in ("train_cam", "label"):
        run_recipe(recipe, out, only=stage)
    more = Run(recipe, out)
    assert (more.train_seg.epochs, more.train_seg.batch_size) == (38, 4)
    assert inputs_of(TRAIN_SEG, more).made_from != first


def test_fingerprints_have_auto(tmp_path):
    root, out = tiny.squares(tmp_path / "data", count=5), tmp_path / "run"
    run_recipe(tiny.recipe(root, stages=["train_cam", "label"]), out)
    auto, number = (
        inputs_of(TRAIN_SEG, Run(tiny.recipe(root, train_seg=change), out))
        for change in (AUTO, {"epochs": 40, "batch_size": 2})
    )
    assert auto.facts["settings"]["train_seg"]["epochs"] == "auto"
    assert auto.made_from != number.made_from
    again = inputs_of(TRAIN_SEG, Run(tiny.recipe(root, train_seg=AUTO), out))
    assert again.made_from == auto.made_from


def test_a_stopped_training_goes_on_as_one_of_the_same_numbers(tmp_path, monkeypatch):
    root = tiny.squares(tmp_path / "data", count=5)
    amounts = {"number": {"epochs": 40, "batch_size": 2}, "auto": AUTO}
    models = {}
    for name, amount in amounts.items():
        recipe = tiny.recipe(
            root, seg_model={"weights": None}, train_seg=amount | {"masks": "truth"}
        )
        folder = tmp_path / name / "train_seg"
        folder.mkdir(parents=True)
        if name == "auto":
            saved = TrainingLoop.save

            def stops(self, saved=saved):
                saved(self)
                if self.epoch == 17:
                    raise KeyboardInterrupt

            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(TrainingLoop, "save", stops)
                TRAIN_SEG.work(Run(recipe, folder.parent), folder)
        TRAIN_SEG.work(Run(recipe, folder.parent), folder)
        models[name] = load_file(folder / MODEL), read_metrics(folder / "metrics.jsonl")
    (expected, lines), (found, found_lines) = models["number"], models["auto"]
    assert found_lines == lines and len(lines) == 80
    assert all(torch.equal(found[name], value) for name, value in expected.items())


# ---------------------------------------------------------------- own photographs


def test_both_recipes_have_the_same_settings():
    own, voc12s = load_recipe("own_dinov2_s"), load_recipe("voc12s_dinov2_s")
    assert replace(voc12s, name=own.name, data=replace(voc12s.data, root=own.data.root)) == own
    assert own.data.source == "folder" and own.data.score_split is None
    assert (own.train_seg.epochs, own.train_seg.batch_size) == ("auto", "auto")
    assert [stage.name for stage in STAGES] == list(own.stages)


@pytest.mark.parametrize(
    ("count", "kind", "steps"),
    [
        (3, "plain", 40),
        pytest.param(12, "plain", 240, marks=pytest.mark.rare),
        pytest.param(40, "plain", 250, marks=pytest.mark.rare),
        (5, "one class", 80),
        (6, "held out", 40 * 2),
    ],
)
def test_own_photographs(tmp_path, count, kind, steps):
    """Images and labels, no masks; only the backbone and sizes are others than in the recipe.

    Also with one class that every photograph shows, and with two photographs held out that have
    true masks.
    """
    root = tiny.squares(tmp_path / "photos", count=count)
    lines = (root / "labels.csv").read_text().splitlines()
    if kind == "one class":
        lines[1:] = [f"{line.partition(',')[0]},thing" for line in lines[1:]]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    if kind == "held out":
        (root / "labels.csv").unlink()
        (root / "train.csv").write_text("\n".join(lines[:-2]) + "\n")
        (root / "val.csv").write_text("\n".join([lines[0], *lines[-2:]]) + "\n")
    else:
        (root / "classes.txt").unlink()
        shutil.rmtree(root / "masks")
    settings = [f"data.root={root}", *TINY]
    run = weaktr.train("own_dinov2_s", tmp_path / "run", settings)
    entries = read_metrics(run / "train_seg/metrics.jsonl")
    assert [entry["step"] for entry in entries] == list(range(1, steps + 1))
    names = {"held out": [str(count - 2), str(count - 1)]}.get(kind, map(str, range(count)))
    masks = MaskFolder(run / "predict")
    assert {*masks.entries} == {*names}
    assert all(Image.open(masks.path(name)).size == (32, 32) for name in masks.entries)
    assert len(MaskFolder(run / "label").entries) == (4 if kind == "held out" else count)
    scores = json.loads((run / "metrics.json").read_text())
    named = {name for name in scores if name.endswith("_miou")}
    expected = {"pseudo_label_miou", "pseudo_label_before_crf_miou", "val_miou",
                "val_before_crf_miou"}  # fmt: skip
    assert named == (expected if kind == "held out" else set())


def test_a_folder_with_train_csv_alone_says_what_to_do(tmp_path):
    root = tiny.squares(tmp_path / "photos", count=3)
    (root / "labels.csv").rename(root / "train.csv")
    recipe = load_recipe("own_dinov2_s", [f"data.root={root}", *TINY])
    faults = [fault for part in check_recipe(recipe, tmp_path / "run") for fault in part.faults]
    assert len(faults) == 1 and "split 'train' is there" in faults[0]
    recipe = replace(recipe, data=replace(recipe.data, val_split="train"))
    assert not [f for part in check_recipe(recipe, tmp_path / "run") for f in part.faults]
