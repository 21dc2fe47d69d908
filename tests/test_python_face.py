"""``import weaktr``: README's lines run, and give what the commands write."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import weaktr
from tests.stages import tiny
from weaktr import cli
from weaktr.config import LabelConfig, PredictConfig
from weaktr.data.masks import MaskFolder
from weaktr.data.stored_maps import read_cams
from weaktr.models import CamModel, Segmenter
from weaktr.recipes import dump_recipe, load_recipe, with_settings

README = Path(__file__).parents[1] / "README.md"
#: Photographs of different shapes, and what they show.
PHOTOS = {
    "wide": ((40, 56), ("red", "blue")),
    "odd": ((47, 33), ("green",)),
    "large": ((64, 72), ("blue", "red", "green")),
    "none": ((32, 32), ()),
}
LABEL = ("unlabelled=background",)
PREDICT = ("short_side=32", "window=32", "stride=16", "ratios=[1.0,1.5]")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    lines = ["image,labels"]
    for index, (name, (size, labels)) in enumerate(PHOTOS.items()):
        pixels = np.random.default_rng(index).integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{name}.png")
        lines.append(f"{name}.png,{';'.join(labels)}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def readme(photos, tmp_path_factory):
    """What the names of README's lines stand for after they ran, on files of ours."""
    root = tmp_path_factory.mktemp("readme")
    recipe = tiny.recipe(tiny.squares(root / "squares", count=8))
    (root / "tiny.yaml").write_text(dump_recipe(recipe))
    section = README.read_text().split("## In Python")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for theirs, ours in {
        "my_recipe.yaml": root / "tiny.yaml",
        "runs/mine": root / "run",
        "photos/images/shop/0001.jpg": photos / "wide.png",
        '["apple", "banana"]': '["blue", "red"]',
    }.items():
        assert theirs in code
        code = code.replace(theirs, str(ours))
    image = np.random.default_rng(0).integers(0, 256, (24, 30, 3), np.uint8)
    names = {"image": image, "unary": np.ones((4, 24, 30), np.float32)}
    exec(code, names)
    return names


@pytest.fixture(scope="module")
def cam_model(readme):
    return weaktr.load(readme["run"] / "train_cam" / "model.safetensors", device="cpu")


@pytest.fixture(scope="module")
def segmenter(readme):
    return weaktr.load(readme["run"] / "train_seg" / "model.safetensors", device="cpu")


def written(command, readme, photos, out, *options, settings=()):
    """The folder that ``weaktr COMMAND`` leaves."""
    model = readme["run"] / {"label": "train_cam", "predict": "train_seg"}[command]
    changes = [part for setting in settings for part in ("--set", setting)]
    arguments = [command, model / "model.safetensors", photos, "--out", out, *options, *changes]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return MaskFolder(out, verify=True)


def pixels(photos, name):
    with Image.open(photos / f"{name}.png") as image:
        return np.array(image)


def test_readme(readme):
    assert load_recipe(readme["run"] / "recipe.yaml").label.threshold == 0.4
    assert (readme["run"] / "metrics.json").is_file()
    assert readme["model"].classes == tiny.NAMES
    assert readme["cams"].shape == (2, *PHOTOS["wide"][0])
    assert readme["cams"].dtype == np.float32
    assert (readme["mask"].shape, readme["mask"].dtype) == ((24, 30), np.uint8)
    assert readme["marginals"].shape == (4, 24, 30)
    assert readme["refined"].shape == (24, 30)


def test_models_hold_their_modules(cam_model, segmenter):
    assert isinstance(cam_model, weaktr.Model)
    assert isinstance(cam_model.module, CamModel) and not cam_model.module.training
    assert isinstance(segmenter.module, Segmenter) and not segmenter.module.training
    assert cam_model.classes == segmenter.classes == tiny.NAMES


@pytest.mark.parametrize(
    "changes",
    [
        (),
        ("crf=none", "scales=[1.0,0.8]", "flip=false", "threshold=0.2"),
        ("refiners=[propagation,crf]",),
    ],
)
def test_label_is_the_command(readme, photos, cam_model, tmp_path, changes):
    changes = (*LABEL, *changes)
    masks = written("label", readme, photos, tmp_path, settings=changes)
    settings = with_settings(cam_model.settings, changes)
    for name, (_, labels) in PHOTOS.items():
        expected = masks.read(name)
        given = cam_model.label(photos / f"{name}.png", labels, settings)
        np.testing.assert_array_equal(given, expected)
        indices = [tiny.NAMES.index(label) for label in labels]
        np.testing.assert_array_equal(
            cam_model.label(pixels(photos, name), np.array(indices, int), settings), expected
        )
    assert len(np.unique(masks.read("large"))) > 1


def test_label_has_the_defaults_of_the_command(readme, photos, cam_model, tmp_path):
    masks = written("label", readme, photos, tmp_path)
    labels = PHOTOS["large"][1]
    given = cam_model.label(str(photos / "large.png"), labels)
    np.testing.assert_array_equal(given, masks.read("large"))


def test_cams_come_in_the_order_of_the_labels(readme, photos, cam_model, tmp_path):
    written("label", readme, photos, tmp_path, "--dump-cams", settings=["batch_size=1"])
    for name in ("wide", "odd", "large"):
        cams, classes = read_cams(tmp_path / "cams" / f"{name}.npz")
        names = [tiny.NAMES[index] for index in classes]
        given = cam_model.cams(photos / f"{name}.png", names[::-1])
        np.testing.assert_array_equal(given, cams[::-1])
    assert cam_model.cams(photos / "odd.png", []).shape == (0, 47, 33)
    twice = cam_model.cams(photos / "odd.png", ["green", 0, "green"])
    np.testing.assert_array_equal(twice[0], twice[2])
    assert (twice[0] != twice[1]).any()


@pytest.mark.parametrize("crf", ["voc_seg", "none"])
def test_predict_is_the_command(readme, photos, segmenter, tmp_path, crf):
    changes = (*PREDICT, f"crf={crf}")
    masks = written("predict", readme, photos, tmp_path, settings=changes)
    settings = with_settings(segmenter.settings, changes)
    for name in PHOTOS:
        expected = masks.read(name)
        for image in (photos / f"{name}.png", pixels(photos, name)):
            np.testing.assert_array_equal(segmenter.predict(image, settings), expected)


def test_views_of_arrays(photos, segmenter):
    settings = PredictConfig(short_side=32, window=32, stride=16, ratios=(1.0,))
    turned = pixels(photos, "wide")[:, ::-1, ::-1]
    np.testing.assert_array_equal(
        segmenter.predict(turned, settings), segmenter.predict(turned.copy(), settings)
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["grean"], r"labels: unknown class 'grean'; did you mean 'green'\?"),
        (["xyz"], r"did you mean '(red|green|blue)'\? Known here: red, green, blue"),
        ([3], r"labels: expected names or indices 0\.\.2, got 3"),
        ([-1], r"0\.\.2, got -1"),
        ([1.0], r"0\.\.2, got 1\.0"),
        ([True], r"0\.\.2, got True"),
        ("green", r"labels: expected a list of class names or indices, got 'green'"),
    ],
)
def test_labels_that_do_not_fit(photos, cam_model, labels, message):
    for method in (cam_model.label, cam_model.cams):
        with pytest.raises(ValueError, match=message):
            method(photos / "odd.png", labels)


def test_names_where_the_checkpoint_has_none(photos, cam_model):
    nameless = weaktr.Model(cam_model.module, settings=cam_model.settings)
    assert nameless.classes is None
    np.testing.assert_array_equal(
        nameless.label(photos / "odd.png", [1]), cam_model.label(photos / "odd.png", ["green"])
    )
    message = r"labels: expected indices \(the checkpoint has no names\) 0\.\.2, got 'green'"
    with pytest.raises(ValueError, match=message):
        nameless.label(photos / "odd.png", ["green"])


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 5, 3), np.float32), r"expected uint8 .*, got float32 \(4, 5, 3\)"),
        (np.zeros((4, 5), np.uint8), r"got uint8 \(4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), r"got uint8 \(3, 4, 5\)"),
        (np.zeros((0, 5, 3), np.uint8), r"got uint8 \(0, 5, 3\)"),
        ([[1, 2, 3]], r"expected uint8 \[H, W, 3\] RGB or a path, got list"),
        ("nowhere.jpg", r"nowhere\.jpg"),
        (README, r"README\.md"),
    ],
)
def test_images_that_are_none(cam_model, segmenter, image, message):
    with pytest.raises(ValueError, match=message):
        cam_model.label(image, ["red"])
    with pytest.raises(ValueError, match=message):
        segmenter.predict(image)


@pytest.mark.parametrize("settings", [{"threshold": 0.3}, "threshold=0.3", 0.3])
def test_settings_that_are_none(photos, cam_model, segmenter, settings):
    odd = photos / "odd.png"
    for method in (cam_model.label, cam_model.cams):
        with pytest.raises(ValueError, match="settings: expected a LabelConfig or None, got "):
            method(odd, ["green"], settings)
    with pytest.raises(ValueError, match="settings: expected a PredictConfig or None, got "):
        segmenter.predict(odd, settings)
    with pytest.raises(ValueError, match="settings: expected a PredictConfig or None, got "):
        segmenter.predict(odd, LabelConfig())


def test_models_of_the_other_stage(photos, cam_model, segmenter):
    with pytest.raises(ValueError, match=r"predict: a model of stage 1 .*; use label"):
        cam_model.predict(photos / "odd.png")
    with pytest.raises(ValueError, match="labels: a model of stage 2 takes none; use predict"):
        segmenter.label(photos / "odd.png", ["red"])


def test_checkpoints_and_devices_that_are_none(readme, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        weaktr.load(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="device: 'nonsense'"):
        weaktr.load(readme["run"] / "train_cam" / "model.safetensors", device="nonsense")


def test_train_takes_a_recipe_and_changes(tmp_path, monkeypatch):
    recipe = tiny.recipe(tiny.squares(tmp_path / "squares", count=4), stages=["train_cam"])
    monkeypatch.chdir(tmp_path)
    run = weaktr.train(recipe, settings=["train_cam.epochs=1"])
    assert Path(run) == run.folder == Path("runs/tiny")
    assert load_recipe(run / "recipe.yaml").train_cam.epochs == 1
    with pytest.raises(ValueError, match=r"did you mean 'train_cam\.epochs'"):
        weaktr.train(recipe, settings=["train_cam.epoch=1"])
    with pytest.raises(ValueError, match="recipe: expected a YAML file or one of"):
        weaktr.train("nothing")
    with pytest.raises(ValueError, match="recipe: expected a name, a path or a Recipe, got 5"):
        weaktr.train(5)
    with pytest.raises(ValueError, match="settings: expected a list such as "):
        weaktr.train(recipe, settings="train_cam.epochs=1")
    with pytest.raises(ValueError, match="several faults"):
        weaktr.train(recipe, settings=["train_cam.batch_size=64", "device=nowhere"])


def test_import_is_light():
    code = (
        "import sys, weaktr; assert set(weaktr.__all__) <= set(dir(weaktr)); "
        "print(*({'torch', 'triton', 'numpy'} & set(sys.modules)), weaktr.__version__)"
    )
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == [weaktr.__version__]


def test_names_that_are_not_there():
    with pytest.raises(AttributeError, match="module 'weaktr' has no attribute 'lode'"):
        weaktr.lode  # noqa: B018
    with pytest.raises(ImportError):
        from weaktr import lode  # noqa: F401
