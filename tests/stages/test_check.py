"""What can be known of a run is told before it, all at once, and only of what will run."""

from __future__ import annotations

import builtins
import json
import logging
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small
from tests.stages import tiny
from tests.training.lines import read_metrics
from weaktr import cli
from weaktr.cli.train import show_check
from weaktr.config import Recipe, TrainCamConfig
from weaktr.data import load_manifest
from weaktr.data.masks import MaskFolder
from weaktr.data.problems import LISTED
from weaktr.files import write_json
from weaktr.models import CamModel, Segmenter, checkpoints
from weaktr.outputs import begin, mark_finished
from weaktr.progress import console
from weaktr.recipes import dump_recipe, load_recipe, recipe_names
from weaktr.stages import check_models
from weaktr.stages.check import require_no_faults, without_effect_in
from weaktr.stages.evaluate import folder_rows, label_conditions
from weaktr.stages.pipeline import STAGES, check_recipe, inputs_of, run_recipe
from weaktr.stages.run import MODEL, Run
from weaktr.stages.train_seg import supervision


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", count=8)


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """What a finished run leaves, of models that learned nothing."""
    run = Run(tiny.recipe(root), tmp_path_factory.mktemp("run"))
    classes = {"names": tiny.NAMES, "ids": (1, 2, 3)}
    models = {
        "train_cam": CamModel(run.recipe.cam_model, 3),
        "train_seg": Segmenter(replace(run.recipe.seg_model, weights=None), 4),
    }
    for stage in STAGES:
        folder, inputs = run.of(stage.name), inputs_of(stage, run)
        begin(folder, inputs.made_from)
        if stage.name in models:
            checkpoints.save(models[stage.name], folder / MODEL, classes=classes)
        if stage.name == "label":
            for index in range(8):
                MaskFolder(folder).add(str(index), np.zeros((32, 32), np.uint8))
        if stage.name == "evaluate":
            write_json(folder / "metrics.json", [])
        result = stage.result(run, folder)
        mark_finished(folder, inputs.made_from, images=inputs.images, result=result)
    return run.folder


def faults(recipe: Recipe, run: Path, **options: Any) -> list[str]:
    return [line for part in check_recipe(recipe, run, **options) for line in part.faults]


def warnings(recipe: Recipe, run: Path, **options: Any) -> list[str]:
    return [line for part in check_recipe(recipe, run, **options) for line in part.warnings]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"train_cam": {"batch_size": 9}}, "train_cam.batch_size: 9 is more than the 8 samples"),
        ({"train_seg": {"batch_size": 9}}, "train_seg.batch_size: 9 is more than the 8 samples"),
        ({"train_cam": {"accumulate": 3}}, "train_cam.accumulate: expected at most the 2 batches"),
        ({"train_seg": {"accumulate": 3}}, "train_seg.accumulate: expected at most the 2 batches"),
        ({"train_cam": {"amp": "fp16"}}, "train_cam.amp: expected auto, fast, none or bf16 on"),
        ({"predict": {"amp": "fp16"}}, "predict.amp: expected auto, fast, none or bf16 on a CPU"),
        ({"device": "cuda:99"}, "device: 'cuda:99' cannot be used here"),
        ({"device": "meta"}, "device: 'meta' cannot be used here"),
        ({"device": "nonsense"}, "device: 'nonsense' cannot be used here"),
        ({"cam_model": {"attention": "xformers"}}, "cam_model.attention: "),
        ({"seg_model": {"attention": "xformers"}}, "seg_model.attention: "),
        ({"cam_model": {"backbone": "vit_tinny"}}, "cam_model.backbone: timm has no model"),
        ({"cam_model": {"backbone": "resnet18"}}, "cam_model.backbone: 'resnet18' is not a plain"),
        ({"cam_model": {"image_size": 36}}, "cam_model.image_size: expected a multiple of the patch"
         " size 8, such as 32 or 40, got 36"),
        ({"seg_model": {"image_size": [32, 5]}}, "seg_model.image_size: expected a multiple of the"
         " patch size 8, such as 8, got 5"),
        ({"cam_model": {"reduction": 100.0}}, "cam_model.reduction: expected at most 4 (depth"),
        ({"cam_model": {"backbone_args": {"num_heads": 3, "embed_dim": 32}}}, "cam_model."),
        ({"cam_model": {"backbone_args": {"nonsense": 1}}}, "cam_model.backbone_args: 'nonsense'"),
        ({"cam_model": {"backbone_args": {"norm_layer": "none"}}}, "' cannot be built with"),
        ({"cam_model": {"backbone_args": {"proj_drop_rate": 2}}}, "proj_drop_rate: expected"),
        ({"cam_model": {"backbone_args": {"in_chans": 1}}}, "cam_model.backbone_args: 'in_chans'"),
        ({"seg_model": {"decoder_heads": 3}}, "seg_model.decoder_heads: expected a divisor of the"
         " width 32, got 3"),
        ({"seg_model": {"decoder": "linear"}, "predict": {"ensemble": "published"}},
         "predict.ensemble: 'published' needs a mask transformer, got seg_model.decoder 'linear'"),
        ({"cam_model": {"weights": "nowhere.safetensors"}}, "cam_model.weights: no file nowhere"),
        ({"cam_model": {"weights": "stage1"}}, "cam_model.weights: no file stage1"),
        ({"seg_model": {"weights": "stage1", "backbone_args": tiny.VIT | {"depth": 3}}},
         "seg_model.weights: the backbone of stage1 does not fit the model; "),
        ({"seg_model": {"weights": "stage1", "backbone": "deit_tiny_patch16_224"}},
         "seg_model.weights: the backbone of stage1 takes images normalised by mean / std 0.5, "),
        ({"train_seg": {"crop": 7}}, "train_seg.crop: expected at least a patch, 8 pixels, got 7"),
        ({"train_seg": {"augment": {"short_side": 7}}}, "train_seg.augment.short_side: expected at "
         "least a patch, 8 pixels, got 7"),
        ({"predict": {"window": 7, "stride": 7}}, "predict.window: expected at least a patch, 8"),
        ({"predict": {"short_side": 7}}, "predict.short_side: expected at least a patch, 8 pixels"),
        ({"label": {"crf": "voc"}}, "label.crf: expected one of coco_cam"),
        ({"predict": {"crf": {"sigma": 1}}}, "predict.crf: unknown key 'sigma'"),
        ({"predict": {"crf": {"bilateral": [0, 5, 3]}}}, "predict.crf: bilateral: expected sxy"),
        ({"label": {"refiners": ["walk"]}}, "label.refiners: expected each to be one of crf"),
        ({"data": {"options": {"colour": 1}}}, "data: options of source 'folder': got"),
        ({"data": {"source": "folders"}}, "data.source: expected one of"),
        ({"data": {"root": "nowhere"}}, "data.root: expected a folder, got"),
        ({"data": {"val_options": {"classes": ["red", "blue", "green"]}}}, "folder val: expected "
         "the classes of the other split, red, green, blue; got red, blue, green"),
    ],
)  # fmt: skip
def test_a_fault_is_told_before_anything_runs(root, tmp_path, changes, fault):
    with pytest.raises(ValueError) as caught:
        run_recipe(tiny.recipe(root, **changes), tmp_path / "run")
    assert fault in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_all_faults_are_told_together(root, tmp_path, monkeypatch):
    monkeypatch.setenv("WEAKTR_ATTENTION", "nonsense")
    recipe = tiny.recipe(
        root,
        train_cam={"batch_size": 99},
        cam_model={"image_size": 33, "attention": "xformers"},
        seg_model={"weights": "nowhere.pth"},
        label={"crf": "voc"},
        predict={"crf": {"iterations": -1}},
    )
    told = "\n".join(faults(recipe, tmp_path))
    for word in (
        "batch_size: 99", "image_size", "xformers", "WEAKTR_ATTENTION", "nowhere.pth", "label.crf",
        "iterations",
    ):  # fmt: skip
        assert word in told
    with pytest.raises(ValueError, match=r"^several faults, found before anything ran:\n"):
        run_recipe(recipe, tmp_path)


def test_faults_of_files(tmp_path):
    root = tiny.squares(tmp_path / "squares", count=8)
    (root / "images" / "0.png").unlink()
    (root / "images" / "1.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((32, 32), np.uint16)).save(root / "images" / "2.png")
    Image.new("L", (32, 31)).save(root / "masks" / "3.png")
    Image.new("RGB", (32, 32)).save(root / "masks" / "4.png")
    (root / "masks" / "5.png").write_bytes(b"")
    recipe = tiny.recipe(root)
    told = faults(recipe, tmp_path / "run")
    for name, words in (("0", "file is missing"), ("1", "cannot be read"), ("2", "8 bits")):
        (line,) = {line for line in told if f"/images/{name}.png" in line}
        assert f"labels.csv:{int(name) + 2}" in line and words in line
    for name, words in (
        ("3", "expected 32x32 (width x height), got 32x31"),
        ("4", "expected a mask of one channel"),
        ("5", "cannot be read as an image"),
    ):
        (line,) = {line for line in told if f"masks/{name}.png" in line}
        assert f"labels.csv:{int(name) + 2}" in line and words in line


def test_files_that_may_not_be_read_are_no_wrong_input(tmp_path, monkeypatch):
    root, before = tiny.squares(tmp_path / "squares", count=8), builtins.open
    stage1 = checkpoints.save(CamModel(tiny.recipe(root).cam_model, 3), tmp_path / "weights")
    closed = (str(root / "images/1.png"), str(root / "masks/3.png"), str(stage1))

    def refusing(file, *more, **options):
        if str(file) in closed:
            raise PermissionError(13, "Permission denied", str(file))
        return before(file, *more, **options)

    monkeypatch.setattr(builtins, "open", refusing)
    recipe = tiny.recipe(root, cam_model={"weights": str(stage1)})
    parts = check_recipe(recipe, tmp_path / "run")
    for path in closed:
        told = [line for part in parts for line in part.faults if path in line]
        assert told and all(line.endswith("cannot be read: permission denied") for line in told)
    with pytest.raises(OSError, match="several faults"):
        require_no_faults(parts)
    with console.capture():
        assert show_check("tiny", parts, 0) == cli.FAILED
        parts[0].faults.append("something else")
        assert show_check("tiny", parts, 0) == cli.WRONG_INPUT


def test_photographs_that_are_left_out_by_name_stop_nothing(root, tmp_path, finished):
    """Prediction and labelling go on without them."""
    other = tiny.squares(tmp_path / "squares", count=4)
    (other / "images" / "1.png").write_bytes(b"no picture")
    recipe = tiny.recipe(other)
    for stage in ("label", "predict"):
        assert faults(recipe, finished, only=stage) == []
        assert any("1.png" in line for line in warnings(recipe, finished, only=stage))


def test_true_masks_are_looked_at_only_where_they_are_read(root, tmp_path):
    other = tiny.squares(tmp_path / "squares", count=8)
    for mask in (other / "masks").iterdir():
        mask.write_bytes(b"no picture")
    assert faults(tiny.recipe(other), tmp_path, only="train_cam") == []
    watched = tiny.recipe(other, train_cam={"validate_every": 1})
    assert len(faults(watched, tmp_path, only="train_cam")) == 8
    truth = tiny.recipe(other, train_seg={"masks": "truth"}, seg_model={"weights": None})
    assert sum("masks/" in line for line in faults(truth, tmp_path, only="train_seg")) == 8


def test_faults_of_a_kind_are_cut(tmp_path):
    root = tiny.squares(tmp_path / "squares", count=LISTED + 5)
    for image in (root / "images").iterdir():
        image.unlink()
    Image.new("L", (32, 31)).save(root / "masks" / "0.png")
    tiny.squares(tmp_path / "other", count=1)
    (tmp_path / "other" / "images" / "0.png").rename(root / "images" / "0.png")
    with pytest.raises(ValueError) as caught:
        run_recipe(tiny.recipe(root, stages=["train_cam", "label", "evaluate"]), tmp_path / "run")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + LISTED + 1 + 1 and lines[-2] == "... and 4 more"
    assert "masks/0.png" in lines[-1]  # a fault of another kind is not hidden by these


def test_labels_of_stage_1(root, tmp_path):
    manifest = load_manifest("folder", root, "train")
    samples = list(manifest.samples)
    samples[0] = replace(samples[0], labels=None)
    replace(manifest, samples=tuple(samples)).save(tmp_path / "train.json")
    manifest.save(tmp_path / "val.json")
    recipe = tiny.recipe(root, data={"source": "manifest", "root": str(tmp_path)})
    told = faults(recipe, tmp_path / "run", only="train_cam")
    assert "0.png" in told[0] and "has no image-level labels" in told[0]
    samples[1] = replace(samples[1], labels=(7,))
    replace(manifest, samples=tuple(samples)).save(tmp_path / "train.json")
    (told,) = faults(recipe, tmp_path / "run", only="train_cam")
    assert "('1'): labels: expected indices from 0 to 2, ascending, each once; got [7]" in told


def test_no_class_in_any_image_leaves_stage_2_nothing(tmp_path):
    root = tiny.squares(tmp_path / "squares", count=8)
    rows = (root / "labels.csv").read_text().splitlines()
    (root / "labels.csv").write_text("\n".join(row.split(",")[0] + "," for row in rows[1:]).join(
        ["image,labels\n", "\n"]))  # fmt: skip
    told = faults(tiny.recipe(root), tmp_path / "run")
    assert told == ["no image of split train has a class, and so no pseudo label"]
    kept = tiny.recipe(root, label={"unlabelled": "background"})
    assert faults(kept, tmp_path / "run") == []


def test_only_what_runs_is_looked_at(root, finished, tmp_path):
    """Finished stages, and those that were not chosen."""
    recipe = tiny.recipe(root)
    assert check_recipe(recipe, finished) == []
    wrong = tiny.recipe(root, predict={"crf": "voc"}, seg_model={"decoder_heads": 3})
    assert faults(wrong, finished, only="train_cam") == []
    assert faults(wrong, finished, only="label", force=True) == []
    assert len(faults(wrong, finished, only="train_seg")) == 1
    assert len(faults(wrong, finished, start="train_seg")) == 2
    told = faults(recipe, tmp_path, start="train_seg")
    assert "label is not finished, which train_seg needs; run without --from and --only" in told[0]
    short = tiny.recipe(root, stages=["label", "evaluate"])
    assert "train_cam is not finished, which label needs; add it to stages" in faults(
        short, tmp_path
    )[0]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"start": "train_seg"}, "--from: tiny has no train_seg; its stages are train_cam, label"),
        ({"only": "predict"}, "--only: tiny has no predict"),
        (
            {"start": "label", "only": "label"},
            "expected --from or --only, got both: label and label",
        ),
        ({"start": "labels"}, "--from: expected one of train_cam"),
    ],
)
def test_stages_that_cannot_be_chosen(root, tmp_path, options, fault):
    with pytest.raises(ValueError) as caught:
        run_recipe(tiny.recipe(root, stages=["train_cam", "label"]), tmp_path, **options)
    assert fault in str(caught.value)


def test_corrected_masks_that_cannot_be_used_are_left_out(root, finished, tmp_path, caplog):
    run = Run(tiny.recipe(root), shutil.copytree(finished, tmp_path / "run"))
    for index, shape, label in ((2, (16, 16), 1), (3, (32, 32), 4), (4, (32, 32), 3)):
        mask = Image.fromarray(np.full(shape, label, np.uint8))
        mask.save(run.of("label") / "masks" / f"{index}.png")
    words = "2 masks that were changed by hand cannot be used, so left out (2, 3): "
    for stage in ("label", "train_seg", "evaluate"):
        told = [line for line in warnings(run.recipe, run.folder, only=stage, force=True)]
        assert "expected 32x32 (width x height), got 16x16" in next(s for s in told if words in s)
    samples, left_out, _ = supervision(run)
    assert left_out == 2 and [sample.name for sample in samples] == list("014567")
    caplog.clear()
    conditions = label_conditions(run.recipe.label, "train")
    ((row,), left_out) = folder_rows(run, "label", "label", "labels", conditions, run.score)
    assert row.scores.images == 6 and words in caplog.text


def test_photographs_that_changed_since_their_labels_are_left_out(
    root, finished, tmp_path, caplog, monkeypatch
):
    run = Run(tiny.recipe(root), shutil.copytree(finished, tmp_path / "run"))
    monkeypatch.setattr("weaktr.stages.train_seg.is_of", lambda _, entry, __: entry.name != "5")
    samples, left_out, _ = supervision(run)
    assert left_out == 1 and [sample.name for sample in samples] == list("0123467")
    told = "1 photograph has changed since the pseudo labels were made, or their labels have (5)"
    assert told in caplog.text and "is not learnt" not in caplog.text
    monkeypatch.setattr(
        "weaktr.stages.train_seg.is_of", lambda _, entry, __: entry.name not in "16"
    )
    supervision(run)
    assert "no photograph with a pseudo label that can be used shows green" in caplog.text


def test_models_of_earlier_stages(root, finished, tmp_path):
    other = tiny.squares(tmp_path / "squares", count=4)
    (other / "classes.txt").write_text("red\ngreen\nviolet\n")
    (other / "labels.csv").write_text("image,labels\n0.png,red\n1.png,green\n2.png,violet\n")
    told = faults(tiny.recipe(other), finished, only="label")
    assert "expected the classes of the images, red, green, violet; got red, green" in told[0]
    linear = tiny.recipe(root, seg_model={"decoder": "linear"}, predict={"ensemble": "published"})
    assert faults(linear, finished, only="predict") == []  # the checkpoint's decoder counts
    (tmp_path / "run" / "train_seg").mkdir(parents=True)
    done = {"made_from": "x"}
    for name in ("inputs.json", "finished.json"):
        (tmp_path / "run" / "train_seg" / name).write_text(json.dumps(done))
    told = faults(tiny.recipe(root), tmp_path / "run", only="predict")
    assert told == [f"checkpoint: no file {tmp_path / 'run/train_seg/model.safetensors'}"]


def test_folders_of_others_are_in_the_way(root, tmp_path):
    (tmp_path / "predict").mkdir()
    (tmp_path / "predict" / "mine.txt").write_text("mine")
    (tmp_path / "label").write_text("mine")
    told = faults(tiny.recipe(root), tmp_path)
    assert [line.partition(": is there already")[0] for line in told] == [
        str(tmp_path / "label"), str(tmp_path / "predict")
    ]  # fmt: skip


def test_weights_are_fitted_by_their_headers(root, tmp_path, finished):
    stage1 = str(finished / "train_cam" / "model.safetensors")
    assert faults(tiny.recipe(root, seg_model={"weights": stage1}), tmp_path) == []
    plain = {"weights": stage1, "backbone_args": tiny.VIT | {"class_token": False}}
    assert faults(tiny.recipe(root, seg_model=plain), tmp_path) == []
    deeper = {"weights": stage1, "backbone_args": tiny.VIT | {"depth": 3}}
    (told,) = faults(tiny.recipe(root, seg_model=deeper), tmp_path)
    assert told.startswith(f"seg_model: backbone weights {stage1}: does not fit the model; ")
    broken = tmp_path / "broken.pth"
    torch.save({"model": {"cls_token": torch.zeros(1)}}, broken)
    broken.write_bytes(broken.read_bytes()[:-100])
    (told,) = faults(tiny.recipe(root, cam_model={"weights": str(broken)}), tmp_path)
    assert "broken.pth" in told


def test_models_that_do_not_fit_the_memory(root, tmp_path, monkeypatch):
    monkeypatch.setattr(check_models, "memory_of", lambda _: 50_000)
    told = faults(tiny.recipe(root), tmp_path)
    assert told[-2].startswith(
        "cam_model.backbone: vit_tiny_patch16_224 and what its training keeps take at least "
        "0.0005 GiB, cpu has 4.7e-05 GiB of memory; take a smaller model (backbone_args, "
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"train_seg": {"crop": 65536}}, "seg_model.backbone: vit_tiny_patch16_224 with 4 x 65536"),
        ({"cam_model": {"image_size": 65536}}, "cam_model.backbone: vit_tiny_patch16_224 and what"),
        ({"seg_model": {"image_size": 65536}}, "seg_model.backbone: vit_tiny_patch16_224 and what"),
        ({"predict": {"ratios": [1, 64], "short_side": 65536}},
         "predict.ratios: 4194304 x 4194304 pixels take at least 2e+05 GiB, cpu has 20 GiB of mem"),
        ({"predict": {"window": 65536}}, "predict.window: 65536 x 65536 pixels take at least"),
        ({"train_seg": {"augment": {"short_side": 65536, "ratio": [1, 100]}}},
         "train_seg.augment.ratio: 6553600 x 6553600 pixels take at least"),
    ],
)  # fmt: skip
def test_sizes_that_do_not_fit_the_memory(root, tmp_path, monkeypatch, changes, told):
    monkeypatch.setattr(check_models, "memory_of", lambda _: 20 * 2**30)
    (line,) = faults(tiny.recipe(root, **changes), tmp_path)
    assert line.startswith(told)


def test_a_frozen_backbone_keeps_one_block(monkeypatch):
    """Of twelve, which do not fit together."""
    monkeypatch.setattr(check_models, "memory_of", lambda _: 2**31)
    model = small.cam_model("vit_tiny_patch16_224", 3, image_size=2048)
    assert len(model.vit.blocks) == 12
    settings = TrainCamConfig(batch_size=16)
    plain = replace(settings, class_tokens="frozen", backbone_lr=0.0)
    check_models.require_memory(model, torch.device("cpu"), plain)
    for trained in ({"backbone_lr": 0.1}, {"class_tokens": "trained"}):
        with pytest.raises(ValueError, match="with 16 x 2048 x 2048 pixels"):
            check_models.require_memory(model, torch.device("cpu"), replace(plain, **trained))


@pytest.mark.parametrize("name", ["cam_model", "seg_model"])
@pytest.mark.parametrize("is_file", [True, False])
def test_large_images_take_no_memory_of_the_check(
    root, tmp_path, finished, monkeypatch, name, is_file
):
    monkeypatch.setattr(check_models, "memory_of", lambda _: 2**60)
    file = {"weights": str(finished / "train_cam" / "model.safetensors")} if is_file else {}
    assert faults(tiny.recipe(root, **{name: {"image_size": 65536} | file}), tmp_path) == []


def test_a_compiler_is_looked_for_where_a_training_needs_it(root, tmp_path, monkeypatch):
    recipe = tiny.recipe(root, train_cam={"compile": True}, train_seg={"compile": True})
    monkeypatch.setenv("CXX", "nowhere++ -O2")
    for line, stage in zip(faults(recipe, tmp_path), ("train_cam", "train_seg"), strict=True):
        assert line.startswith(f"{stage}.compile: expected a C++ compiler, which torch.compile ")
        assert "got no program 'nowhere++ -O2'; install it" in line
    assert faults(tiny.recipe(root), tmp_path) == []
    monkeypatch.setenv("CXX", f"{sys.executable} -O2")
    assert faults(recipe, tmp_path) == []


def test_weights_of_timms_hub(root, tmp_path, monkeypatch):
    """Asked for in seconds; not at all where something else is wrong already."""

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(check_models.huggingface_hub, "model_info", offline)
    monkeypatch.setattr(check_models.huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    timms = {"weights": "timm"}
    (told,) = faults(tiny.recipe(root, cam_model=timms, seg_model={"weights": None}), tmp_path)
    assert "vit_tiny_patch16_224" in told and "cannot be fetched (no network)" in told
    monkeypatch.setattr(check_models.timm.models, "get_pretrained_cfg", lambda _: None)
    told = faults(tiny.recipe(root, cam_model=timms, seg_model={"weights": None}), tmp_path)
    assert "cam_model.weights: timm has none of 'vit_tiny_patch16_224'; give a file" in told[0]


def test_what_only_deserves_a_warning(root, tmp_path, caplog):
    recipe = tiny.recipe(
        root, train_cam={"warmup_epochs": 2}, stages=["train_cam"],
        train_seg={"warmup_steps": 99, "augment": {"short_side": 8}},
    )  # fmt: skip
    (told,) = warnings(recipe, tmp_path)
    assert "warmup_epochs: 2.0 of 2 epochs: lr, 0.001, is never reached" in told
    both = warnings(replace(recipe, stages=Recipe.stages), tmp_path)
    assert any("warmup_steps: 99 of at most 4 steps" in line for line in both)
    assert any("the short side of images is at most 16" in line for line in both)
    with caplog.at_level(logging.WARNING, logger="weaktr"):
        run_recipe(replace(recipe, train_cam=replace(recipe.train_cam, epochs=1)), tmp_path)
    assert "warmup_epochs" in caplog.text


def test_a_rate_above_lr_does_not_stand_in_its_way(root, tmp_path):
    low = {"lr": 1e-7, "epochs": 3}
    recipe = tiny.recipe(root, train_cam=low | {"lag_one_epoch": False}, train_seg=low)
    told = warnings(recipe, tmp_path / "run")
    assert told == [
        "train_cam.warmup_lr: 1e-06 is above train_cam.lr, 1e-07, which is taken in its place",
        "train_cam.min_lr: 1e-05 is above train_cam.lr, 1e-07, which is taken in its place",
        "train_seg.min_lr: 1e-05 is above train_seg.lr, 1e-07, which is taken in its place",
    ]
    run_recipe(replace(recipe, stages=Recipe.stages[:3]), tmp_path / "run")
    for stage in ("train_cam", "train_seg"):
        rows = read_metrics(tmp_path / "run" / stage / "metrics.jsonl")
        assert [row["lr"] for row in rows] == pytest.approx([1e-7] * len(rows))


@pytest.mark.parametrize(
    "changes, reason, names",
    [
        (
            {"train_seg": {"loss": "soft_ce", "clip_start": 3.0, "clip_patch": 4}},
            "train_seg.loss soft_ce",
            "train_seg.clip_start, train_seg.clip_patch",
        ),
        (
            {"train_seg": {"optimizer": "adamw", "momentum": 0.1}},
            "train_seg.optimizer adamw",
            "train_seg.momentum",
        ),
        (
            {"seg_model": {"decoder": "linear", "decoder_layers": 5, "decoder_heads": 3,
                           "dropout": 0.5}},
            "seg_model.decoder linear",
            "seg_model.decoder_layers, seg_model.decoder_heads, seg_model.dropout",
        ),
        (
            {"label": {"soft_temperature": 0.01, "soft_stride": 2}},
            "label.soft false",
            "label.soft_temperature, label.soft_stride",
        ),
        ({"train_seg": {"loss_warmup": 0.9}}, "train_seg.loss clipped", "train_seg.loss_warmup"),
        (
            {"label": {"refiners": [], "crf": "coco_cam", "gt_prob": 0.2}},
            "label.refiners []",
            "label.crf, label.gt_prob",
        ),
        (
            {"label": {"refiners": [{"crf": "voc_cam"}], "crf": "coco_cam", "gt_prob": 0.2}},
            'label.refiners [{"crf": "voc_cam"}]',
            "label.crf",
        ),
        ({"label": {"gt_prob": 0.2}}, "label.crf null", "label.gt_prob"),
        (
            {"predict": {"refiners": [], "crf": "coco_seg"}},
            "predict.refiners []",
            "predict.crf",
        ),
        (
            {"train_seg": {"encoder_lr": 0, "layer_decay": 0.5}},
            "train_seg.encoder_lr 0",
            "train_seg.layer_decay",
        ),
        (
            {"train_cam": {"warmup_epochs": 0, "warmup_lr": 1e-5}},
            "train_cam.warmup_epochs 0",
            "train_cam.warmup_lr",
        ),
        (
            {"data": {"source": "manifest", "options": {"exif": "apply"}}},
            "data.source manifest",
            "data.options",
        ),
    ],
)  # fmt: skip
def test_settings_of_which_others_make_no_use_are_told(root, changes, reason, names):
    assert without_effect_in(tiny.recipe(root, **changes)) == [
        f"without effect for {reason}: {names}"
    ]


def test_settings_that_count_are_no_warning(root):
    for name in recipe_names():
        assert without_effect_in(load_recipe(name)) == []
    from_scores = {"refiners": [{"crf": {"start": "scores"}}], "crf": "coco_cam"}
    for changes in ({}, {"label": {"refiners": []}}, {"label": from_scores}):
        assert without_effect_in(tiny.recipe(root, **changes)) == []


def test_settings_without_effect_are_told_whichever_stage_runs(root, tmp_path):
    unused = {"train_seg": {"optimizer": "adamw", "momentum": 0.1, "masks": "truth"}}
    recipe = tiny.recipe(root, seg_model={"weights": None}, stages=["train_seg"], **unused)
    (told,) = warnings(recipe, tmp_path / "run")
    assert told == "without effect for train_seg.optimizer adamw: train_seg.momentum"


def test_epochs_that_never_come_are_told(root, tmp_path):
    rare = {"validate_every": 3}
    collision = {"loss": "collision", "loss_warmup": 1.0}
    recipe = tiny.recipe(root, train_cam=rare, train_seg=rare | collision)
    assert warnings(recipe, tmp_path / "run") == [
        "train_cam.validate_every: 3, but there are 2 epochs: nothing is measured",
        "train_seg.validate_every: 3, but there are 2 epochs: nothing is measured",
        "train_seg.loss_warmup: 1: the loss collision is never reached",
        "without effect for train_seg.loss collision: train_seg.clip_patch",
    ]


@pytest.mark.parametrize("every", [2, 3])
def test_an_epoch_that_never_comes_is_not_chosen(root, tmp_path, every):
    settings = {"choose": "fisher", "validate_every": every, "epochs": 2}
    parts = check_recipe(tiny.recipe(root, train_cam=settings), tmp_path / "run")
    told = "train_cam.validate_every: expected at most the 2 epochs, of which choose: fisher takes"
    assert [f.startswith(told) for part in parts for f in part.faults] == [True] * (every == 3)


def test_splits_without_true_masks_are_told_where_they_are_scored(root, tmp_path, caplog):
    data = tiny.squares(tmp_path / "data", count=8)
    for mask in (data / "masks").iterdir():
        mask.rename(mask.with_suffix(".jpg"))
    recipe = tiny.recipe(data)
    assert warnings(recipe, tmp_path / "run") == []  # nobody who has no masks misses them
    assert "8 files (8 .jpg) are not read: masks are PNGs" in caplog.text
    stages = [stage for stage in Recipe.stages if stage != "evaluate"]
    assert warnings(replace(recipe, stages=stages), tmp_path / "run") == []


def test_photographs_that_are_trained_on_and_held_out_are_told(tmp_path):
    """Such as where a folder has a labels.csv, which is all of split train, and a val.csv."""
    data = tiny.squares(tmp_path / "data", count=8)
    heading, *rows = (data / "labels.csv").read_text().splitlines()
    (data / "val.csv").write_text("\n".join([heading, *rows[5:]]))
    recipe = tiny.recipe(data)
    (told,) = warnings(recipe, tmp_path / "run")
    assert told.startswith("3 of 3 images are in split train too and are trained on (5, 6, 7)")
    assert warnings(replace(recipe, stages=["train_cam", "label"]), tmp_path / "run") == []
    (data / "labels.csv").write_text("\n".join([heading, *rows[:5]]))
    assert warnings(recipe, tmp_path / "run") == []


def test_the_command_checks_and_runs_nothing(root, tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(dump_recipe(tiny.recipe(root)))
    command = [str(file), "--out", str(tmp_path / "run"), "--check"]
    with console.capture() as capture:
        assert cli.train_main(command) == 0
    assert "fine  split val, to predict: 8 images, 3 classes\n" in capture.get()
    assert "tiny: no fault" in capture.get()
    with console.capture() as capture:
        assert cli.train_main([*command, "--set", "label.crf=voc"]) == cli.WRONG_INPUT
    assert "wrong label: " in capture.get() and "tiny: 1 fault, " in capture.get()
    assert not (tmp_path / "run").exists()
