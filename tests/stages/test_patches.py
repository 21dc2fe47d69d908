"""Stage 1 for few photographs, in whole runs: what it leaves, and how all the rest takes it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import weaktr
from tests.cli.test_train import said
from tests.data.proposals import proposal
from tests.stages import tiny
from weaktr import cli
from weaktr.config import CacheConfig, LabelConfig
from weaktr.data.masks import MaskFolder
from weaktr.data.stored_maps import read_soft_labels
from weaktr.labelling.store import soft_file
from weaktr.models import PatchModel, checkpoints
from weaktr.outputs import read_inputs
from weaktr.recipes import as_tree
from weaktr.stages import train_patches as stage
from weaktr.stages.pipeline import check_recipe, run_recipe
from weaktr.stages.run import MODEL, Run

PATCHES = {"short_side": 64, "layers": [0, 1]}
SMALL = ("train_cam", "label")


def recipe(root, stages=SMALL, patches=None, train=None, **changes):
    """The tiny recipe with stage 1 of patches."""
    cam_model = {"kind": "patches", "patches": PATCHES | (patches or {})}
    label = {"threshold": 0.5, "flip": False, **changes.pop("label", {})}
    return tiny.recipe(
        root, stages=list(stages), cam_model=cam_model, train_cam={"patches": train or {}},
        label=label, **changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", count=12)


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    """All stages; stage 2 starts from the backbone of stage 1 and learns from soft labels."""
    stages = ["train_cam", "label", "train_seg", "predict", "evaluate"]
    soft = {"soft": True, "soft_temperature": 1.0, "soft_stride": 4}
    tree = recipe(
        root, stages, label=soft, seg_model={"decoder": "linear"},
        train_seg={"labels": "soft", "loss": "soft_ce"},
    )  # fmt: skip
    run = Run(tree, tmp_path_factory.mktemp("run"))
    assert run_recipe(tree, run.folder) == 0
    return run


def stamps(run):
    stages = ("train_cam", "label")
    return [(run.of(name) / "finished.json").stat().st_mtime_ns for name in stages]


def files(folder):
    return {path.name: path.read_bytes() for path in sorted((folder / "masks").glob("*.png"))}


def faults(tree, folder):
    return [line for part in check_recipe(tree, folder) for line in part.faults]


def warnings(tree, folder):
    return [line for part in check_recipe(tree, folder) for line in part.warnings]


def test_a_run_leaves_what_it_should(run):
    model, info = checkpoints.load(run.of("train_cam") / MODEL)
    assert isinstance(model, PatchModel) and info["classes"]["names"] == list(tiny.NAMES)
    lines = (run.of("train_cam") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3, 4, 5, 6]
    masks = MaskFolder(run.of("label"), verify=True)
    assert len(masks.entries) == 12
    scores = json.loads((run.folder / "metrics.json").read_text())
    assert "cam_miou" in scores and "cam_coarse_miou" not in scores
    assert scores["pseudo_label_miou"] > 30  # 21: all is background
    for name in masks.entries:
        shares = read_soft_labels(soft_file(run.of("label"), name), 4, (32, 32)).shares
        assert np.abs(shares.sum(0).astype(int) - 255).max() <= 2


def test_stage_2_starts_from_its_backbone(run):
    """It was not changed by stage 1, and is what stage 2 has before its first step."""
    assert run.recipe.seg_model.weights == "stage1"
    first, _ = checkpoints.load(run.of("train_cam") / MODEL)
    second, _ = checkpoints.load(run.of("train_seg") / MODEL)
    own, theirs = first.vit.state_dict(), second.vit.state_dict()
    assert own.keys() == theirs.keys()
    assert all(torch.allclose(own[name], theirs[name], atol=0.2) for name in own)


def test_the_features_of_training_are_those_of_labelling(run, monkeypatch):
    """Labelling again computes none: each photograph went through the backbone once."""
    assert len(list((run.folder / "features").glob("*.npz"))) == 12
    source = stage.features_of_run(run.cam_model(), run)
    monkeypatch.setattr(source.encoder, "encode", None)
    assert len(list(source.of(run.train_images.samples))) == 12


def test_the_command_gives_the_masks_of_the_run(run, root, tmp_path):
    """Byte for byte, from its checkpoint with its settings."""
    settings = ["threshold=0.5", "scales=[1.0]", "flip=false", "crf=null"]
    arguments = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "out"
    code, text = said(
        cli.main, "label", run.of("train_cam") / MODEL, root / "images", "--labels",
        root / "labels.csv", "--out", out, "--device", "cpu", *arguments,
    )  # fmt: skip
    assert code == 0, text
    assert files(out) == files(run.of("label")) and len(files(out)) == 12


def test_images_that_nobody_labelled(run, root, tmp_path):
    for name in ("0.png", "5.png"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(root / "images" / name, tmp_path / "photos" / name)
    code, text = said(
        cli.main, "label", run.of("train_cam") / MODEL, tmp_path / "photos",
        "--out", tmp_path / "out", "--device", "cpu", "--set", "predict_above=0.0",
        "--set", "crf=null", "--emit", "mask,confidence,cam", "--set", "confidence=stability",
    )  # fmt: skip
    assert code == 0, text
    assert len(files(tmp_path / "out")) == 2
    assert len(list((tmp_path / "out" / "confidence").glob("*.png"))) == 2


def test_in_python(run, root):
    model = weaktr.load(run.of("train_cam") / MODEL, device="cpu")
    settings = LabelConfig(threshold=0.5, scales=(1.0,), flip=False, crf=None)
    rows = (root / "labels.csv").read_text().splitlines()[1:]
    expected = MaskFolder(run.of("label"))
    for name, label in (row.split(",") for row in rows):
        path = root / "images" / name
        np.testing.assert_array_equal(
            model.label(path, [label], settings), expected.read(path.stem)
        )
        cams = model.cams(path, [label, "red"] if label != "red" else [label], settings)
        assert cams.shape[1:] == (32, 32) and 0 <= cams.min() <= cams.max() <= 1
    with pytest.raises(ValueError, match="stage 1"):
        model.predict(root / "images" / "0.png")


def test_pictures(run):
    code, text = said(cli.main, "show", run.folder, "--count", "2")
    assert code == 0, text
    pictures = sorted((run.folder / "pictures").glob("*.png"))
    assert [path.stem for path in pictures] == ["train", "val"]
    colours = np.array(Image.open(pictures[0]).convert("RGB"))
    assert len(np.unique(colours.reshape(-1, 3), axis=0)) > 50  # of a CAM's heat, not masks alone


@pytest.mark.parametrize("option", ["--onnx", "--torch-export"])
def test_an_export_is_refused(run, tmp_path, option):
    code, text = said(cli.main, "export", run.of("train_cam") / MODEL, option, tmp_path / "model")
    assert code == cli.WRONG_INPUT and "cannot be exported" in " ".join(text.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("patches", "train"),
    [
        ({"least_share": 0.1}, {}),
        ({"saliency_weight": 0.5}, {}),
        ({}, {"rounds": 2}),
        ({}, {"folds": 1}),
        ({}, {"most_patches": 1000}),
    ],
)
def test_changed_settings_run_stage_1_again(run, root, tmp_path, patches, train):
    """Without computing features again; what is the same does not run."""
    folder = tmp_path / "run"
    shutil.copytree(run.folder, folder)
    again = Run(run.recipe, folder)
    before = stamps(again)
    same = recipe(root, label=as_label(run))
    assert run_recipe(same, folder) == 0
    assert stamps(again) == before
    features = set((folder / "features").iterdir())
    changed = recipe(root, patches=patches, train=train, label=as_label(run))
    assert run_recipe(changed, folder) == 0
    assert stamps(again)[0] != before[0]
    assert set((folder / "features").iterdir()) == features


def as_label(run):
    return {key: value for key, value in as_tree(run.recipe.label).items() if key != "val_masks"}


def test_older_runs_stay_finished(root, tmp_path):
    """Of the other kind nothing of the patches is in what the results are made from."""
    out = tmp_path / "run"
    tree = tiny.recipe(root, stages=["train_cam"], train_cam={"epochs": 0})
    assert run_recipe(tree, out) == 0
    made_from = json.dumps(read_inputs(out / "train_cam"))
    assert "patches" not in made_from and "kind" not in made_from


def test_a_run_that_was_stopped_goes_on(root, tmp_path, monkeypatch, run):
    tree = recipe(root)
    folder = tmp_path / "run"

    def stopped(model, patches, settings, told):
        told(1, {"changed": 1.0, "background": 0.5})
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stage, "fit_patches", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(tree, folder)
    assert not (folder / "train_cam" / MODEL).exists()
    assert run_recipe(tree, folder) == 0
    unbroken = run.of("train_cam")
    again, once = (load_file(place / MODEL) for place in (folder / "train_cam", unbroken))
    assert again.keys() == once.keys()
    assert all(torch.equal(again[name], once[name]) for name in once)
    metrics = (folder / "train_cam" / "metrics.jsonl").read_text()
    assert metrics == (unbroken / "metrics.jsonl").read_text()
    assert files(folder / "label") == files(run.of("label"))


def test_what_comes_after_cams_works_on_these(root, tmp_path):
    """A threshold that is chosen, propagation, proposals, a CRF from scores, soft labels."""
    square = np.zeros((32, 32), bool)
    square[4:20, 4:20] = True
    (tmp_path / "segments").mkdir()
    (tmp_path / "segments" / "0.json").write_text(json.dumps([proposal(square)]))
    refiners = [
        {"propagation": {"neighbours": 9}},
        {"proposals": {"file": str(tmp_path / "segments")}},
        {"crf": {"start": "scores", "gaussian": [3, 3], "iterations": 1}},
    ]
    label = {"threshold": "auto", "refiners": refiners, "soft": True, "crf": None}
    tree = recipe(root, label=label)
    assert run_recipe(tree, tmp_path / "run") == 0
    folder = tmp_path / "run" / "label"
    assert (folder / "threshold.json").is_file() and len(files(folder)) == 12
    assert len(list((folder / "soft").glob("*.npz"))) == 12


def test_a_photograph_that_cannot_be_read_is_left_out(tmp_path, caplog):
    """It is told before; where it breaks later, the others are learned from, with exit code 1."""
    root = tiny.squares(tmp_path / "data", count=6)
    tree = recipe(root, ["train_cam"])
    whole = (root / "images" / "3.png").read_bytes()
    (root / "images" / "3.png").write_bytes(whole[: len(whole) // 2])
    run = Run(tree, tmp_path / "run")
    left_out = stage.train_patches(run, tmp_path / "out")
    assert left_out == 1 and "3.png" in caplog.text and "no photograph" not in caplog.text
    assert (tmp_path / "out" / MODEL).is_file()
    (root / "images" / "1.png").write_bytes(b"")  # the only green one
    assert stage.train_patches(Run(tree, tmp_path / "blue"), tmp_path / "blue") == 2
    assert "no photograph that could be read shows green, so it will not be found" in caplog.text
    for number in (0, 2, 5):
        (root / "images" / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="at least 2 photographs to learn from, got 1"):
        stage.train_patches(Run(tree, tmp_path / "other"), tmp_path / "none")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"patches": {"layers": [-4, -2]}}, "cam_model.patches.layers: expected blocks -2..1"),
        ({"patches": {"layers": [1, -1]}}, "cam_model.patches.layers: expected blocks -2..1, each"),
        ({"patches": {"short_side": 7}}, "cam_model.patches.short_side: expected at least a patch"),
        ({"device": "cpu", "label": {"amp": "fp16"}}, "label.amp: expected auto, fast, none or "),
        ({"patches": {"short_side": 65536}, "train": {"most_patches": 10**9}},
         "train_cam.patches.most_patches: "),
    ],
)  # fmt: skip
def test_faults_are_told_before_anything_runs(root, tmp_path, changes, told):
    found = faults(recipe(root, **changes), tmp_path / "run")
    assert any(line.startswith(told) for line in found), found


def test_too_few_photographs_are_told(tmp_path):
    tree = recipe(tiny.squares(tmp_path / "data", count=1))
    (fault,) = faults(tree, tmp_path / "run")
    assert fault == "train_cam: expected at least 2 photographs to learn from, got 1"


def test_settings_without_effect_are_told(root, tmp_path):
    plain = recipe(root, ["train_cam"])
    values = as_tree(plain)
    (warning,) = warnings(plain, tmp_path / "run")
    assert "train_cam.epochs" in warning and "choose" not in warning  # those of the tiny recipe
    values["train_cam"] |= {
        "validate_every": 1, "choose": "fisher", "compile": True, "amp": "bf16",
        "batch_size": 1000,
    }  # fmt: skip
    values["label"] |= {"attention_type": "coarse"}
    tree = weaktr.recipes.make(type(plain), values)
    assert not faults(tree, tmp_path / "run")
    (warning,) = warnings(tree, tmp_path / "run")
    assert warning.startswith("without effect for cam_model.kind patches: ")
    for name in ("validate_every", "choose", "compile", "amp"):
        assert f"train_cam.{name}" in warning
    assert "label.attention_type" in warning and "patches." not in warning


def test_settings_of_patches_without_effect_are_told(root, tmp_path):
    tree = tiny.recipe(root, stages=["train_cam"], train_cam={"patches": {"folds": 3}})
    (warning,) = warnings(tree, tmp_path / "run")
    assert warning == "without effect for cam_model.kind class_tokens: train_cam.patches"
    assert not warnings(tiny.recipe(root, stages=["train_cam"]), tmp_path / "run")
    (warning,) = warnings(tiny.recipe(root, predict={"image_weight": 2.0}), tmp_path / "run")
    assert warning == "without effect for seg_model.image_head false: predict.image_weight"


def test_a_class_that_no_photograph_shows_is_told(tmp_path):
    root = tiny.squares(tmp_path / "data", count=4)
    rows = (root / "labels.csv").read_text().replace("blue", "red")
    (root / "labels.csv").write_text(rows)
    tree = recipe(root, ["train_cam"])
    assert any("no photograph shows" in line and "blue" in line
               for line in warnings(tree, tmp_path / "run"))  # fmt: skip
    assert run_recipe(tree, tmp_path / "run") == 0


def test_the_check_knows_the_model_of_an_earlier_run(run, root, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    label = recipe(root, label=as_label(run) | {"threshold": 0.6})
    assert not faults(label, tmp_path / "run")
    assert run_recipe(label, tmp_path / "run") == 0


def test_a_run_does_not_depend_on_the_cache(run, root, tmp_path):
    tree = replace(recipe(root), cache=CacheConfig(disk_gb=0.0, memory_mb=0))
    assert run_recipe(tree, tmp_path / "run") == 0
    assert not (tmp_path / "run" / "features").exists()
    assert files(tmp_path / "run" / "label") == files(run.of("label"))


def test_a_model_of_the_other_kind_is_told(run, root, tmp_path):
    shutil.copytree(run.folder, tmp_path / "run")
    tree = tiny.recipe(root, stages=["label"], label={"threshold": 0.5})
    stages = check_recipe(tree, tmp_path / "run")
    told = [line for part in stages for line in part.faults]
    assert any("expected a cam model, got 'patches'" in line for line in told), told


def test_photographs_of_many_sizes(tmp_path):
    root = tiny.squares(tmp_path / "data", count=6)
    for number, size in enumerate([(20, 90), (33, 31), (300, 20)]):
        path = root / "images" / f"{number}.png"
        Image.open(path).resize(size).save(path)
        mask = root / "masks" / f"{number}.png"
        Image.open(mask).resize(size, Image.Resampling.NEAREST).save(mask)
    tree = recipe(root, label={"max_side": 64})
    assert run_recipe(tree, tmp_path / "run") == 0
    masks = MaskFolder(tmp_path / "run" / "label", verify=True)
    assert masks.read("0").shape == (90, 20) and masks.read("2").shape == (20, 300)
