"""The recipes of the published rows: what they are made of, and that they run.

The ten run through ``weaktr-train RECIPE --data-root D`` with their real models at full depth, on
two photographs that are shortened, and with random weights in the files, names and shapes that the
backbones were released in. Shortened are epochs, batch, training crop of stage 2 and the scales of
the prediction.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F

from tests import photographs
from tests.models.small import with_weights
from tests.pretrained_files import KEYS, RELEASES, write_release
from weaktr.cli import train_main
from weaktr.config import BackboneConfig, Recipe
from weaktr.models import CamModel, Segmenter, checkpoints
from weaktr.models.pretrained import load_backbone, read_state
from weaktr.recipes import RECIPES, load_recipe, recipe_names, with_settings

CAM = {data: f"{data}_cam_deit_s" for data in ("voc12", "coco14")}
#: The recipes of both stages -> the file that stage 2 starts from.
BOTH = {f"{data}_{release}": release for data in CAM for release in RELEASES}
#: Those that run whole in every run of the tests: every backbone. The others run reduced; `make
#: test-all` runs all of them whole.
WHOLE = [f"voc12_{release}" for release in RELEASES]
#: What the score of stage 2 is called: VOC's two pictures are trained on, COCO's val has copies.
PREDICTED = {"voc12": "not_held_out_miou", "coco14": "val_miou"}
TEN = [*CAM.values(), *BOTH]
BEYOND = ["voc12_both_dinov2_s", "voc12_both_eva02_s", "voc12_both_dinov3_s"]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
NORMALIZATION = {
    "deit_s": IMAGENET,
    "dinov2_s": IMAGENET,
    "vit_s": ((0.5,) * 3, (0.5,) * 3),
    "eva02_s": CLIP,
}
#: Two steps in each stage, one on either picture.
TWO_STEPS = [
    "num_workers=0", "device=cpu", "log_steps=1",
    "train_cam.epochs=1", "train_cam.batch_size=1", "evaluate.cam_images=0",
    "train_seg.epochs=1", "train_seg.batch_size=1", "train_seg.crop=112",
    "train_seg.augment.short_side=112", "train_seg.clip_patch=28",
    "predict.short_side=112", "predict.window=112", "predict.stride=112", "predict.ratios=[1.0]",
]  # fmt: skip
SMALL = ["cam_model.backbone_args={depth: 2}", "seg_model.backbone_args={depth: 2}",
         "cam_model.image_size=112", "seg_model.image_size=96", "train_seg.crop=64",
         "label.scales=[1.0]", "model.weights=null", "cam_model.weights=null"]  # fmt: skip


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("releases")
    return {release: write_release(release, folder) for release in RELEASES}


def train(name: str, root: Path, run: Path, *settings: str, only: str | None = None) -> None:
    """``weaktr-train NAME --data-root ROOT``, shortened."""
    changes = [part for setting in (*TWO_STEPS, *settings) for part in ("--set", setting)]
    stage = [] if only is None else ["--only", only]
    assert train_main([name, "--data-root", str(root), "--out", str(run), *changes, *stage]) == 0


def losses(run: Path, stage: str) -> list[float]:
    lines = (run / stage / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


# ---------------------------------------------------------------- what they are made of


def test_all_are_there():
    assert {*TEN, *BEYOND} <= set(recipe_names())
    described = (RECIPES / "README.md").read_text()
    assert [name for name in recipe_names() if f"`{name}`" not in described] == []


@pytest.mark.parametrize("name", TEN)
def test_every_number_cites_its_source(name):
    text = (RECIPES / f"{name}.yaml").read_text()
    numbers = re.compile(r"^\s*\w+: *\[?\d")
    bare = [line for line in text.splitlines() if numbers.match(line) and "#" not in line]
    assert not bare
    assert "Published: " in text and "3457ad3" in text


@pytest.mark.parametrize("name", TEN)
def test_stage_1_is_the_published_deit(name):
    data = name.split("_", maxsplit=1)[0]
    recipe, cam = load_recipe(name), load_recipe(CAM[data])
    for part in ("data", "cam_model", "train_cam", "label", "evaluate", "seed"):
        assert getattr(recipe, part) == getattr(cam, part)
    assert recipe.cam_model.backbone == "deit_small_patch16_224.fb_in1k"
    assert recipe.stages == (Recipe.stages if name in BOTH else ("train_cam", "label", "evaluate"))


def test_what_differs_between_the_data_sets():
    voc, coco = load_recipe("voc12_eva02_s"), load_recipe("coco14_eva02_s")
    assert (voc.train_cam.lr, coco.train_cam.lr) == pytest.approx((7.5e-5, 2.5e-5))
    assert (voc.label.scales, coco.label.scales) == ((1.0, 1.2), (1.0, 0.8, 1.2))
    assert (voc.label.threshold, coco.label.threshold) == (0.43, 0.42)
    assert (voc.label.crf, coco.label.crf) == ("voc_cam", "coco_cam")
    assert (voc.predict.crf, coco.predict.crf) == ("voc_seg", "coco_seg")
    assert voc.seg_model == coco.seg_model and voc.train_seg == coco.train_seg


def test_a_base_is_overlaid_group_by_group(tmp_path):
    (tmp_path / "one.yaml").write_text(
        "name: first\nlabel: {threshold: 0.1, crf: {gaussian: [3, 3]}}\n"
        "train_cam: {augment: {flip: 0.0}}\n"
    )
    (tmp_path / "two.yaml").write_text("label: {gt_prob: 0.9}\nseed: 7\n")
    (tmp_path / "mine.yaml").write_text(
        "base: [one, two]\nlabel: {crf: {bilateral: [8, 8, 3]}}\n"
        "train_cam: {augment: {erasing: 0}}\n"
    )
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert (recipe.name, recipe.seed, recipe.label.threshold, recipe.label.gt_prob) == (
        "mine", 7, 0.1, 0.9,
    )  # fmt: skip
    assert recipe.label.crf == {"bilateral": [8, 8, 3]}
    assert (recipe.train_cam.augment.flip, recipe.train_cam.augment.erasing) == (0.0, 0)


@pytest.mark.parametrize(
    ("base", "source", "options"),
    [
        ("demo", "folder", ({}, {})),
        ("demo", "scenes", ({"count": 3000, "size": 64, "seed": 0}, {"count": 300})),
        ("coco128_dinov2_s", "folder", ({}, {})),
        ("coco128_dinov2_s", "coco14", ({"ids": 80}, {})),
        ("voc12_deit_s", "folder", ({}, {})),
        ("[voc12_deit_s, demo]", "voc12", ({}, {})),
    ],
)
def test_options_of_the_base_go_with_its_source(tmp_path, base, source, options):
    (tmp_path / "mine.yaml").write_text(f"base: {base}\ndata: {{source: {source}, root: mine}}\n")
    data = load_recipe(tmp_path / "mine.yaml").data
    assert (data.source, data.root, (data.options, data.val_options)) == (source, "mine", options)


def test_options_stay_where_the_source_is_only_left_out(tmp_path):
    (tmp_path / "one.yaml").write_text("data: {options: {cls_labels: x.npy}}\n")  # of voc12
    (tmp_path / "two.yaml").write_text("base: one\ndata: {source: voc12, val_split: test}\n")
    assert load_recipe(tmp_path / "two.yaml").data.options == {"cls_labels": "x.npy"}
    (tmp_path / "three.yaml").write_text("base: demo\ndata: {options: {count: 5}}\n")
    assert load_recipe(tmp_path / "three.yaml").data.options == {"count": 5}
    (tmp_path / "four.yaml").write_text(
        "base: demo\ndata: {source: folder, options: {exif: apply}}\n"
    )
    data = load_recipe(tmp_path / "four.yaml").data
    assert (data.options, data.val_options) == ({"exif": "apply"}, {})


def test_a_recipe_may_have_the_name_of_its_base(tmp_path):
    (tmp_path / "demo.yaml").write_text("base: demo\nseed: 7\n")
    (tmp_path / "mine.yaml").write_text("base: demo\n")
    for name in ("demo", "mine"):  # beside mine is a demo of one's own
        recipe = load_recipe(tmp_path / f"{name}.yaml")
        assert recipe == replace(load_recipe("demo"), seed=7, name=name)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("base: mine\n", "itself based on mine"),
        ("base: [demo, nowhere]\n", "expected a YAML file or one of"),
        ("base: other\n", r"other\.yaml: unknown key 'sede' - did you mean 'seed'"),
    ],
)
def test_a_wrong_base_is_named(tmp_path, text, complaint):
    (tmp_path / "mine.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("sede: 3\n")
    with pytest.raises(ValueError, match=complaint):
        load_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("name", "cam", "seg"),
    [
        ("voc12_cam_deit_s", "FILE", "FILE"),
        ("voc12_deit_s", "FILE", "FILE"),
        ("coco14_eva02_s", "timm", "FILE"),
        ("voc12_both_eva02_s", "FILE", "FILE"),
    ],
)
def test_model_weights_are_for_the_backbone_of_the_recipe(name, cam, seg):
    recipe = load_recipe(name, ["model.weights=FILE"])
    assert (recipe.cam_model.weights, recipe.seg_model.weights) == (cam, seg)


@pytest.mark.parametrize(
    ("settings", "cam", "seg"),
    [
        (["seg_model.backbone=deit_base_patch16_224"], "timm", "x"),
        (["cam_model.weights=y"], "y", "x"),
        (["seg_model.weights=null"], "x", None),
        (["stages=[train_cam, label]", "cam_model.backbone=deit_base_patch16_224"], "x", "timm"),
    ],
)
def test_model_weights_may_stand_anywhere_among_settings(settings, cam, seg):
    short = ["model.weights=x"]
    for own in (settings + short, short + settings):
        for recipe in (load_recipe("voc12_deit_s", own), with_settings(Recipe(), own)):
            assert (recipe.cam_model.weights, recipe.seg_model.weights) == (cam, seg)


def test_weights_that_cannot_be_downloaded(monkeypatch):
    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("An error happened while trying to locate the file on the Hub")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(ValueError, match=r"deit_x could not be downloaded.*model\.weights=FILE"):
        load_backbone(torch.nn.Module(), BackboneConfig("deit_x"))


# ---------------------------------------------------------------- pretrained weights


@pytest.mark.parametrize("release", RELEASES)
def test_released_weights_fit_as_published(release, releases):
    """Patch 14 -> 16 bicubic; positions bilinear, but bicubic from npz files; CLIP's mean, ..."""
    recipe = load_recipe(f"voc12_{release}", [f"model.weights={releases[release]}"])
    model = with_weights(Segmenter(recipe.seg_model, 21))
    assert model.normalization == NORMALIZATION[release]
    given, ours = read_state(releases[release]), model.vit.state_dict()
    block = "blocks.11.mlp.w12.weight" if release == "eva02_s" else "blocks.11.mlp.fc1.weight"
    torch.testing.assert_close(ours["blocks.11.mlp.fc1.weight"], given[block])
    resized = partial(F.interpolate, align_corners=False)
    kernel = resized(given["patch_embed.proj.weight"], size=(16, 16), mode="bicubic")
    torch.testing.assert_close(ours["patch_embed.proj.weight"], kernel)
    grid = given["pos_embed"][:, 1:].transpose(1, 2)
    side = round(grid.shape[-1] ** 0.5)
    mode = "bicubic" if release == "vit_s" else "bilinear"
    positions = resized(grid.unflatten(2, (side, side)), size=(30, 30), mode=mode)
    torch.testing.assert_close(ours["pos_embed"][0, 1:], positions.flatten(2)[0].T)


def test_timms_own_resize_can_be_chosen(releases):
    settings = [f"model.weights={releases['deit_s']}"]
    published = with_weights(Segmenter(load_recipe("voc12_deit_s", settings).seg_model, 21)).vit
    chosen = load_recipe(
        "voc12_deit_s", [*settings, "seg_model.resize=timm", "seg_model.position=timm"]
    )
    timms = with_weights(Segmenter(chosen.seg_model, 21)).vit
    assert not torch.allclose(timms.pos_embed, published.pos_embed)
    donor = timm.create_model("deit_small_patch16_224", img_size=480, num_classes=0)
    state = timm.models.vision_transformer.checkpoint_filter_fn(
        read_state(releases["deit_s"]), donor
    )
    torch.testing.assert_close(timms.pos_embed.data, state["pos_embed"])


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ("stage1.deit_small_WeakTr_voc20", "voc12_deit_s"),
        ("stage2.dinov2_small_patch16_224.voc21.crop480", "voc12_dinov2_s"),
    ],
)
def test_a_published_checkpoint_gives_its_backbone(keys, name, tmp_path):
    state = {k: torch.randn(shape) for k, (shape, _) in KEYS[keys].items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    recipe = load_recipe(name, [f"model.weights={tmp_path / 'checkpoint.pth'}"])
    prefix = "encoder." if keys.startswith("stage2") else ""
    weight = "blocks.11.attn.qkv.weight"
    models = [with_weights(Segmenter(recipe.seg_model, 21))]
    if recipe.cam_model.weights != "timm":
        models.append(with_weights(CamModel(recipe.cam_model, 20)))
        torch.testing.assert_close(models[1].vit.cls_token.data, state["cls_token"])
    for model in models:
        torch.testing.assert_close(model.vit.state_dict()[weight], state[prefix + weight])


# ---------------------------------------------------------------- that they run


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """--data-root of two photographs in either layout."""
    pictures = photographs.photographs()
    voc, coco = (tmp_path_factory.mktemp(name) for name in ("voc12", "coco14"))
    return {
        "voc12": photographs.write_voc12(voc, pictures),
        "coco14": photographs.write_coco14(coco, pictures),
    }


@pytest.fixture(scope="module")
def cam_run(roots, releases, tmp_path_factory) -> Callable[[str], Path]:
    """The finished run of the CAM recipe of a data set."""

    @cache
    def run_of(data: str) -> Path:
        run = tmp_path_factory.mktemp("runs") / CAM[data]
        train(CAM[data], roots[data], run, f"model.weights={releases['deit_s']}")
        return run

    return run_of


@pytest.mark.parametrize("data", ["voc12", pytest.param("coco14", marks=pytest.mark.rare)])
def test_cam_recipes_on_photographs(data, cam_run):
    run = cam_run(data)
    run_losses = losses(run, "train_cam")
    assert len(run_losses) == 2 and all(0 < loss < 5 for loss in run_losses)
    model, info = checkpoints.load(run / "train_cam/model.safetensors")
    assert model.num_classes == {"voc12": 20, "coco14": 90}[data]
    assert info["config"]["position"] == "published_cam" and len(model.vit.blocks) == 12
    assert len(list((run / "label/masks").rglob("*.png"))) == 2
    scores = json.loads((run / "metrics.json").read_text())
    assert 0 <= scores["pseudo_label_miou"] <= 100 and "val_miou" not in scores
    assert not (run / "predict").exists()


@pytest.mark.parametrize(
    "name", [x if x in WHOLE else pytest.param(x, marks=pytest.mark.rare) for x in BOTH]
)
def test_both_stages_on_photographs(name, roots, cam_run, releases, tmp_path):
    """Stage 2; stage 1 is the CAM recipe's, taken over as it is."""
    data, release = name.split("_", maxsplit=1)[0], BOTH[name]
    shutil.copytree(cam_run(data), tmp_path / name)
    before = (tmp_path / name / "train_cam/finished.json").stat().st_mtime_ns
    weights = (f"cam_model.weights={releases['deit_s']}", f"model.weights={releases[release]}")
    only = None if name == "voc12_deit_s" else "train_seg"  # what follows is the same for all
    train(name, roots[data], tmp_path / name, *weights, only=only)
    assert (tmp_path / name / "train_cam/finished.json").stat().st_mtime_ns == before
    run_losses = losses(tmp_path / name, "train_seg")
    assert len(run_losses) == 2 and all(0 < loss < 10 for loss in run_losses)
    model, info = checkpoints.load(tmp_path / name / "train_seg/model.safetensors")
    assert model.num_labels == {"voc12": 21, "coco14": 91}[data]
    assert (info["config"]["patch_size"], len(model.vit.blocks)) == (16, 12)
    mean, std = (tuple(info["normalization"][part]) for part in ("mean", "std"))
    assert (mean, std) == NORMALIZATION[release]
    if only is None:
        scores = json.loads((tmp_path / name / "metrics.json").read_text())
        assert 0 <= scores[PREDICTED[data]] <= 100
        assert "ensemble published" in scores["conditions"][PREDICTED[data]]


@pytest.mark.parametrize("name", [*(x for x in BOTH if x not in WHOLE), *BEYOND])
def test_reduced_on_generated_images(name, tmp_path):
    """Backbones of two blocks with random weights, all stages; needs no photographs."""
    data = name.split("_", maxsplit=1)[0]
    write = {"voc12": photographs.write_voc12, "coco14": photographs.write_coco14}[data]
    root = write(tmp_path / "data", photographs.generated())
    train(name, root, tmp_path / "run", *SMALL)
    assert len(losses(tmp_path / "run", "train_cam")) == 2
    assert len(losses(tmp_path / "run", "train_seg")) == 2
    assert 0 <= json.loads((tmp_path / "run/metrics.json").read_text())[PREDICTED[data]] <= 100
