"""Refiners in a run: what they need is there, and their files count as inputs."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import numpy as np
import pytest

from tests.cli.test_train import said
from tests.data.proposals import proposal
from tests.models import small
from tests.stages import tiny
from weaktr import cli
from weaktr.config import LabelConfig
from weaktr.data import unlabelled
from weaktr.data.masks import MaskFolder
from weaktr.inference.cams import CamsOfModel
from weaktr.models import CamModel, checkpoints
from weaktr.stages.label import label
from weaktr.stages.pipeline import check_recipe, inputs_of, run_recipe
from weaktr.stages.predict import PREDICT
from weaktr.stages.run import Run

SQUARE = np.zeros((32, 32), bool)
SQUARE[4:20, 4:20] = True


def write_proposals(folder, name, *masks):
    """They are settled: their content is not looked at again until they change."""
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps([proposal(mask) for mask in masks]))


def stamps(folder):
    masks = MaskFolder(folder)
    return {name: masks.path(name).stat().st_mtime_ns for name in masks.entries}


def test_a_run_with_all_refiners(tmp_path):
    """Masks are made again where their proposals have changed, and only there."""
    root, folder = tiny.squares(tmp_path / "data", count=6), tmp_path / "proposals"
    for index in range(5):
        write_proposals(folder, index, SQUARE)
    refiners = [{"propagation": {"neighbours": 9}}, {"proposals": {"file": str(folder)}}]
    crf = {"crf": {"start": "scores", "gaussian": [3, 3], "iterations": 1}}
    recipe = tiny.recipe(
        root,
        stages=["train_cam", "label"],
        train_cam={"epochs": 1, "batch_size": 3, "warmup_epochs": 0},
        label={"refiners": [*refiners, crf], "threshold": 0.5},
    )
    out = tmp_path / "run"
    assert run_recipe(recipe, out) == 0
    before = stamps(out / "label")
    assert len(before) == 6
    run_recipe(recipe, out)
    assert stamps(out / "label") == before
    write_proposals(folder, 2, ~SQUARE)
    write_proposals(folder, 5, SQUARE)  # which had none
    run_recipe(recipe, out)
    after = stamps(out / "label")
    assert {name for name in before if after[name] != before[name]} == {"2", "5"}


def test_proposals_of_another_size_leave_out_their_image_alone(tmp_path, caplog):
    root, folder = tiny.squares(tmp_path / "data", count=4), tmp_path / "proposals"
    write_proposals(folder, 0, SQUARE)
    write_proposals(folder, 1, SQUARE[:30])
    write_proposals(folder, 2, SQUARE)
    settings = LabelConfig(
        predict_above=0.0, refiners=({"proposals": {"file": str(folder)}},), scales=(1.0,)
    )
    source = CamsOfModel(small.tiny_cam_model(), settings, settings.predict_above)
    samples = unlabelled(root / "images").samples
    report = label(source, samples, tmp_path / "out", settings)
    assert stamps(tmp_path / "out").keys() == {"0", "2", "3"}
    (problem,) = report.left_out
    assert problem.file == str(folder / "1.json") and problem.where == "entry 0"
    assert "expected run lengths of size [32, 32] (height, width), got [30, 32]" in problem.message
    assert "1 images have no proposals (3): their labels stay" in caplog.text


def test_one_file_of_proposals_counts_for_the_images_in_it(tmp_path):
    root, file = tiny.squares(tmp_path / "data", count=2), tmp_path / "all.json"
    recipe = tiny.recipe(root, predict={"refiners": [{"proposals": {"file": str(file)}}]})

    stage = replace(PREDICT, after=())  # what is before it does not matter here

    def images(recipe=recipe):
        return inputs_of(stage, Run(recipe, tmp_path / "run")).images

    plain = images(tiny.recipe(root))
    file.write_text(json.dumps([proposal(SQUARE, image_id="other")]))
    assert images() == plain  # none of these images is in it
    file.write_text(json.dumps([proposal(SQUARE, image_id="1")]))
    first = images()
    assert first != plain
    file.write_text(json.dumps([proposal(~SQUARE, image_id="1")]))
    assert images() != first
    os.utime(file, ns=(1, 1))
    second = images()
    file.rename(tmp_path / "moved.json")
    moved = {"refiners": [{"proposals": {"file": str(tmp_path / "moved.json")}}]}
    assert images(tiny.recipe(root, predict=moved)) == second


@pytest.mark.parametrize("stage", ["label", "predict"])
def test_proposals_that_are_missing_or_damaged_are_told_before_anything_runs(tmp_path, stage):
    root, file = tiny.squares(tmp_path / "data", count=4), tmp_path / "all.json"
    for content, told in (
        (None, "all.json: expected a JSON file of proposals, or a folder of them; there is none"),
        ('[{"image_id": 1}]', "all.json (entry 0): expected an object with a segmentation"),
    ):
        if content is not None:
            file.write_text(content)
        recipe = tiny.recipe(root, **{stage: {"refiners": [{"proposals": {"file": str(file)}}]}})
        parts = check_recipe(recipe, tmp_path / "run")
        (fault,) = [fault for part in parts for fault in part.faults if "all.json" in fault]
        assert told in fault


def test_results_do_not_lie_among_proposals(tmp_path):
    """Where their files would be taken for proposals of images."""
    root, folder = tiny.squares(tmp_path / "data", count=2), tmp_path / "proposals"
    write_proposals(folder, 0, SQUARE)
    recipe = tiny.recipe(root, label={"refiners": [{"proposals": {"file": str(folder)}}]})
    (fault,) = [
        fault
        for part in check_recipe(recipe, folder / "run")
        for fault in part.faults
        if "lies in the folder" in fault
    ]
    assert fault.startswith(f"--out {folder / 'run'}: lies in the folder of")
    settings = f"refiners=[{{proposals: {{file: {folder}}}}}]"
    checkpoints.save(
        CamModel(recipe.cam_model, 3), tmp_path / "model", classes={"names": tiny.NAMES}
    )
    arguments = [tmp_path / "model.safetensors", root / "images", "--set", settings]
    code, text = said(cli.main, "label", *arguments, "--out", folder / "out")
    assert code == cli.WRONG_INPUT and "lies in the folder of" in text
    code, text = said(
        cli.main, "label", *arguments, "--set", "predict_above=0", "--out", tmp_path / "out"
    )
    assert code == 0, text
    assert stamps(tmp_path / "out").keys() == {"0", "1"}
