"""Checkpoints carry how masks are made with them: commands and Python give the run's own masks."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

import weaktr
from tests.cli.test_train import said
from tests.stages import tiny
from weaktr import cli
from weaktr.config import LabelConfig, PredictConfig
from weaktr.data import unlabelled
from weaktr.data.masks import MaskFolder
from weaktr.models import CamModel, checkpoints
from weaktr.recipes import with_settings
from weaktr.stages.carried import save_model
from weaktr.stages.pipeline import run_recipe
from weaktr.stages.run import Run

#: Settings that give other masks than the published ones.
OWN = {
    "label": {"threshold": 0.2, "crf": "voc_seg", "scales": [0.5, 1.5], "flip": False},
    "predict": {"crf": "voc_cam", "ratios": [0.5, 1.0], "flip": False, "stride": 8},
}
MODEL = {"label": "train_cam/model.safetensors", "predict": "train_seg/model.safetensors"}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Photographs, RUN of them with settings of its own, and AUTO whose threshold is chosen."""
    root = tmp_path_factory.mktemp("carried")
    photos = tiny.squares(root / "photos", 12)
    run_recipe(tiny.recipe(photos, **OWN), root / "run")
    shutil.copytree(root / "run", root / "auto")
    automatic = {"label": OWN["label"] | {"threshold": "auto"}, "predict": OWN["predict"]}
    run_recipe(tiny.recipe(photos, **automatic), root / "auto")
    return root


@pytest.fixture
def made(caplog):
    """A function: the masks of a command on all photographs, and what it said."""

    def run(root, command, model, out, *arguments, code=0):
        model = model if model.suffix else model / MODEL[command]
        photos = root / "photos" if command == "label" else root / "photos" / "images"
        caplog.clear()
        ended, text = said(cli.main, command, model, photos, "--out", out, *arguments)
        assert ended == code, text
        return MaskFolder(out), " ".join(text.split()) + caplog.text

    return run


def assert_same(masks, others):
    assert masks.entries.keys() == others.entries.keys() != set()
    for name, entry in masks.entries.items():
        assert entry.sha256 == others.entries[name].sha256, name


def differ(masks, others):
    return any(e.sha256 != others.entries[n].sha256 for n, e in masks.entries.items())


@pytest.mark.parametrize("command", ["label", "predict"])
@pytest.mark.parametrize("name", ["run", "auto"])
def test_masks_of_a_run_again_bit_by_bit(root, tmp_path, command, name, made):
    masks, text = made(root, command, root / name, tmp_path / "out")
    assert_same(MaskFolder(root / name / command), masks)
    assert f"settings of {root / name / command}" in text


@pytest.mark.parametrize("command", ["label", "predict"])
def test_a_copied_checkpoint_carries_them(root, tmp_path, command, made):
    copied = shutil.copy(root / "run" / MODEL[command], tmp_path / "mine.safetensors")
    masks, text = made(root, command, tmp_path / "mine.safetensors", tmp_path / "out")
    assert_same(MaskFolder(root / "run" / command), masks)
    assert "settings carried by the checkpoint" in text
    assert copied == tmp_path / "mine.safetensors"


@pytest.mark.parametrize(
    ("command", "setting"), [("label", "threshold=0.7"), ("predict", "stride=32")]
)
def test_set_changes_one_and_leaves_the_others(root, tmp_path, command, setting, made):
    key, _, value = setting.partition("=")
    _, text = made(root, command, root / "run", tmp_path / "out", "--set", setting)
    assert f"changed by --set {setting}" in text
    noted = json.loads((tmp_path / "out" / "inputs.json").read_text())["settings"]
    assert noted[key] == json.loads(value)
    expected = OWN[command] | {key: json.loads(value)}
    assert {name: noted[name] for name in expected} == expected


def test_a_stage_that_ran_again_counts_not_what_the_training_stored(root, tmp_path, made):
    """As after ``weaktr-train RECIPE --from label --set label.threshold=0.6``."""
    shutil.copytree(root / "run", tmp_path / "run")
    changed = {"label": OWN["label"] | {"threshold": 0.6}, "predict": OWN["predict"]}
    run_recipe(tiny.recipe(root / "photos", **changed), tmp_path / "run", only="label")
    masks, _ = made(root, "label", tmp_path / "run", tmp_path / "out")
    assert_same(MaskFolder(tmp_path / "run" / "label"), masks)
    assert differ(MaskFolder(root / "run" / "label"), masks)


def test_another_model_in_the_place_of_the_runs_own(root, tmp_path, made):
    """Its masks are not of that model, so that settings are those that the model carries."""
    shutil.copytree(root / "run", tmp_path / "run")
    model = tmp_path / "run" / MODEL["label"]
    own, description = checkpoints.load(model)
    own.head.weight.data += 0.1
    stored = description["masks"]
    stored["label"]["threshold"] = 0.61
    checkpoints.save(own, model, classes=list(tiny.NAMES), masks=stored)
    _, text = made(root, "label", tmp_path / "run", tmp_path / "out")
    assert "settings carried by the checkpoint" in text
    assert "threshold=0.61" in text


#: Settings that are not the published ones, nor a run's own.
OTHERS = {
    "label": (LabelConfig(), ["threshold=0.99"]),
    "predict": (PredictConfig(), ["short_side=64", "ratios=[1.0]"]),
}


@pytest.mark.parametrize("command", ["label", "predict"])
def test_python_takes_them_too(root, command):
    model = weaktr.load(root / "run" / MODEL[command])
    masks = MaskFolder(root / "run" / command)
    for name in list(masks.entries)[:3]:
        file = root / "photos" / "images" / f"{name}.png"
        shown = [tiny.NAMES[index] for index in masks.entries[name].given or ()]
        mask = model.label(file, shown) if command == "label" else model.predict(file)
        np.testing.assert_array_equal(mask, masks.read(name))
        kind, changes = OTHERS[command]
        others = with_settings(kind, ["crf=none", *changes])
        plain = (
            model.label(file, shown, others) if command == "label" else model.predict(file, others)
        )
        assert plain.shape == mask.shape


def test_a_checkpoint_without_settings_takes_the_published_ones(root, tmp_path, made):
    model, description = checkpoints.load(root / "run" / MODEL["label"])
    names = description["classes"]["names"]
    bare = checkpoints.save(model, tmp_path / "bare", classes=names)
    _, text = made(root, "label", bare, tmp_path / "out")
    assert "as published (the checkpoint carries none)" in text
    noted = json.loads((tmp_path / "out" / "inputs.json").read_text())["settings"]
    assert noted["threshold"] == LabelConfig().threshold


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ([], "expected settings of label"),
        ({"label": {}}, "expected settings of label"),
        ({"label": {"threshold": 7}, "exif": "ignore"}, "threshold: expected"),
        ({"label": {"colour": 7}, "exif": "ignore"}, "unknown key 'colour'"),
        ({"label": {}, "exif": "turn"}, "expected settings of label"),
        ({"label": {"threshold": "search_on_masks"}, "exif": "ignore"}, "--set threshold=0.4"),
        (
            {"label": {"refiners": [{"proposals": {"file": "/etc"}}]}, "exif": "ignore"},
            "--set refiners=[crf]",
        ),
    ],
)
def test_settings_that_cannot_be_used(root, tmp_path, masks, expected, made):
    model, _ = checkpoints.load(root / "run" / MODEL["label"])
    file = checkpoints.save(model, tmp_path / "model", classes=list(tiny.NAMES), masks=masks)
    _, text = made(root, "label", file, tmp_path / "out", code=cli.WRONG_INPUT)
    assert expected in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("way", ["--set", "search"])
def test_what_a_run_alone_can_do_may_be_replaced(root, tmp_path, way, made):
    model, _ = checkpoints.load(root / "run" / MODEL["label"])
    stored = {"threshold": "search_on_masks", "val_masks": 3}
    masks = {"label": stored, "exif": "ignore"}
    file = checkpoints.save(model, tmp_path / "model", classes=list(tiny.NAMES), masks=masks)
    threshold = "0.3" if way == "--set" else "auto"
    chosen = ["--set", f"threshold={threshold}", "--set", "val_masks=null"]
    made(root, "label", file, tmp_path / "out", *chosen)


def test_photographs_that_exif_turns(tmp_path, made):
    """Commands read them as the run did."""
    photos = tiny.squares(tmp_path / "photos", 8)
    for file in sorted((photos / "images").glob("*.png")):
        picture = Image.open(file).resize((48, 32))
        turn = Image.Exif()
        turn[0x0112] = 6
        picture.save(file, exif=turn)
    shutil.rmtree(photos / "masks")
    recipe = tiny.recipe(photos, data={"options": {"exif": "apply"}}, **OWN)
    run_recipe(recipe, tmp_path / "run")
    for command in ("label", "predict"):
        masks, _ = made(tmp_path, command, tmp_path / "run", tmp_path / command)
        assert_same(MaskFolder(tmp_path / "run" / command), masks)
        assert next(iter(masks.entries.values())).size == (48, 32)
    as_stored, _ = made(
        tmp_path, "predict", tmp_path / "run", tmp_path / "stored", "--exif", "ignore"
    )
    assert next(iter(as_stored.entries.values())).size == (32, 48)
    mask = weaktr.load(tmp_path / "run" / MODEL["predict"]).predict(photos / "images" / "0.png")
    assert mask.shape == (48, 32)


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_a_manifest_says_how_photographs_are_read(tmp_path, exif):
    """And not the options of a folder."""
    photos = tiny.squares(tmp_path / "photos", 2)
    unlabelled(photos / "images", tiny.NAMES, exif=exif).save(photos / "train.json")
    options = {"source": "manifest", "options": {"exif": "apply"}}
    run = Run(tiny.recipe(photos, data=options), tmp_path / "run")
    save_model(CamModel(run.recipe.cam_model, 3), run, tmp_path)
    assert checkpoints.describe(tmp_path / "model.safetensors")["masks"]["exif"] == exif


def test_cams_in_files_take_those_of_the_command_that_wrote_them(root, tmp_path, made, caplog):
    masks, _ = made(root, "label", root / "run", tmp_path / "first", "--emit", "cam")
    cams = tmp_path / "first" / "cams"
    ended, _ = said(cli.main, "label", cams, root / "photos", "--out", tmp_path / "again")
    assert ended == 0
    assert f"settings of {tmp_path / 'first'}" in caplog.text
    assert_same(masks, MaskFolder(tmp_path / "again"))


def test_soft_labels_stay_with_the_run(tmp_path, made):
    photos = tiny.squares(tmp_path / "photos", 8)
    recipe = tiny.recipe(photos, label={"soft": True, "threshold": 0.2})
    run_recipe(recipe, tmp_path / "run", only=None)
    assert (tmp_path / "run" / "label" / "soft").is_dir()
    made(tmp_path, "label", tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out" / "soft").exists()


@pytest.mark.parametrize("folder", ["label", "label/masks", "predict"])
def test_scores_take_the_classes_of_the_run(root, tmp_path, folder, caplog):
    truth = root / "photos" / "masks"
    out = tmp_path / "scores"
    ended, text = said(cli.main, "eval", root / "run" / folder, truth, "--out", out)
    assert ended == 0, text
    assert f"classes of {root / 'run' / folder}: red, green, blue" in caplog.text
    assert "green" in text


def test_scores_take_the_classes_of_the_command(root, tmp_path, made):
    made(root, "predict", root / "run", tmp_path / "out")
    call = ("eval", tmp_path / "out", root / "photos" / "masks", "--out", tmp_path / "scores")
    ended, text = said(cli.main, *call)
    assert ended == 0, text
    assert "green" in text


def test_a_checkpoint_of_the_other_stage_names_that_of_its_run(root, tmp_path, made, caplog):
    cam, seg = (root / "run" / MODEL[command] for command in ("label", "predict"))
    _, text = made(root, "predict", cam, tmp_path / "out", code=cli.WRONG_INPUT)
    assert f"expected a stage-2 checkpoint, got stage 1; that of its run is {seg}" in text
    _, text = made(root, "label", seg, tmp_path / "out", "--emit", "cam", code=cli.WRONG_INPUT)
    assert f"CAMs are of stage 1; that of its run is {cam}" in text
    _, text = made(root, "label", seg, tmp_path / "out")
    assert f"masks are predictions; CAMs are of stage 1; that of its run is {cam}" in text
    file = root / "photos" / "images" / "0.png"
    with pytest.raises(ValueError, match=f"use label; that of its run is {seg}"):
        weaktr.load(cam).predict(file)
    with pytest.raises(ValueError, match=f"use predict; that of its run is {cam}"):
        weaktr.load(seg).label(file, ["red"])
    call = ("export", cam, "--onnx", tmp_path / "x.onnx", "--ensemble", "published")
    ended, text = said(cli.main, *call)
    assert ended == cli.WRONG_INPUT and f"for CAMs; that of its run is {seg}" in text
    alone = shutil.copy(cam, tmp_path / "model.safetensors")
    _, text = made(root, "predict", alone, tmp_path / "alone", code=cli.WRONG_INPUT)
    assert "got stage 1" in text and "of its run" not in text


def test_another_checkpoint_in_the_same_folder_is_said_first(root, tmp_path, made):
    made(root, "label", root / "run", tmp_path / "out")
    model = root / "auto" / MODEL["predict"]
    _, text = made(root, "label", model, tmp_path / "out", code=cli.WRONG_INPUT)
    first = f"holds results of another checkpoint ({root / 'run' / MODEL['label']} there, {model}"
    assert first in text
    assert text.count(" there, ") == 4  # the checkpoint, and three settings
    assert "; choose another --out" in text
