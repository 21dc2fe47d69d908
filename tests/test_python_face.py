"""``import weaktr`` gives what the commands write; what it returns draws itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import weaktr
from tests.stages import tiny
from weaktr import cli
from weaktr.config import LabelConfig, PredictConfig
from weaktr.data.masks import MaskFolder, write_mask
from weaktr.data.stored_maps import read_cams
from weaktr.models import CamModel, Segmenter
from weaktr.recipes import load_recipe, with_settings

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
def run(tmp_path_factory):
    """The folder of a finished run."""
    root = tmp_path_factory.mktemp("run")
    recipe = tiny.recipe(tiny.squares(root / "squares", count=8))
    return weaktr.train(recipe, root / "run")


@pytest.fixture(scope="module")
def cam_model(run):
    return weaktr.load(run / "train_cam" / "model.safetensors", device="cpu")


@pytest.fixture(scope="module")
def segmenter(run):
    return weaktr.load(run / "train_seg" / "model.safetensors", device="cpu")


def written(command, run, photos, out, *options, settings=()):
    """The folder that ``weaktr COMMAND`` leaves."""
    model = run / {"label": "train_cam", "predict": "train_seg"}[command]
    changes = [part for setting in settings for part in ("--set", setting)]
    arguments = [command, model / "model.safetensors", photos, "--out", out, *options, *changes]
    assert cli.main([str(argument) for argument in arguments]) == 0
    return MaskFolder(out, verify=True)


def pixels(photos, name):
    with Image.open(photos / f"{name}.png") as image:
        return np.array(image)


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
def test_label_is_the_command(run, photos, cam_model, tmp_path, changes):
    changes = (*LABEL, *changes)
    masks = written("label", run, photos, tmp_path, settings=changes)
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


def test_files_are_read_as_the_commands_read_them(run, photos, cam_model, segmenter, tmp_path):
    """A JPEG above `max_side` is decoded smaller, and turned by its EXIF."""
    folder = tmp_path / "photos"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (420, 560, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).resize((1120, 840)).save(folder / "large.jpg", exif=exif)
    Image.fromarray(noise[:3]).save(folder / "long.png")
    (folder / "labels.csv").write_text("image,labels\nlarge.jpg,red;blue\nlong.png,green\n")
    options, side = ("--exif", "apply"), ("max_side=100",)
    labels = written("label", run, folder, tmp_path / "a", *options, settings=side)
    masks = written("predict", run, folder, tmp_path / "b", *options, settings=(*PREDICT, *side))
    cam_model, segmenter = (
        weaktr.Model(own.module, own.classes, settings=own.settings, exif="apply")
        for own in (cam_model, segmenter)
    )
    settings = with_settings(segmenter.settings, (*PREDICT, *side))
    for name, shown in {"large.jpg": ["red", "blue"], "long.png": ["green"]}.items():
        own = replace(cam_model.settings, max_side=100)
        mask = cam_model.label(folder / name, shown, own)
        np.testing.assert_array_equal(mask, labels.read(Path(name).stem))
        mask = segmenter.predict(folder / name, settings)
        np.testing.assert_array_equal(mask, masks.read(Path(name).stem))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("red", "green"), "classes: expected 3 names, those of the model, got 2"),
        ((*tiny.NAMES, "black"), "classes: expected 3 names, those of the model, got 4"),
        (("red", "green", "red"), "expected each class once"),
    ],
)
def test_names_that_are_not_those_of_the_classes(cam_model, segmenter, names, message):
    for model in (cam_model, segmenter):
        with pytest.raises(ValueError, match=message):
            weaktr.Model(model.module, names)


@pytest.mark.parametrize("command", ["label", "predict"])
def test_refiners_find_the_files_of_a_photograph_by_its_name(
    run, photos, cam_model, segmenter, tmp_path, command, caplog
):
    """Which the folder is that a name is relative to, a path alone does not say."""
    for name, rows in {"wide": slice(20), "image": slice(20, 40)}.items():
        teacher = np.zeros((40, 56), np.uint8)
        teacher[rows] = 1
        write_mask(tmp_path / f"teacher/{name}.png", teacher)
    own = f"{{teacher: {{folder: {tmp_path / 'teacher'}, least_agreement: 0}}}}"
    changes = [f"refiners=[{own}]", *({"label": LABEL, "predict": PREDICT}[command])]
    expected = written(command, run, photos, tmp_path / "out", settings=changes).read("wide")
    model = {"label": cam_model, "predict": segmenter}[command]
    shown = {"label": [["red", "blue"]], "predict": []}[command]
    settings, make = with_settings(model.settings, changes), getattr(model, command)
    for image in (photos / "wide.png", pixels(photos, "wide")):
        np.testing.assert_array_equal(make(image, *shown, settings, name="wide"), expected)
        with pytest.raises(ValueError, match=r"name: expected that of the photograph .*teacher; g"):
            make(image, *shown, settings)
    make(photos / "wide.png", *shown, settings, name="sub/wide")
    assert "sub/wide: not in" in caplog.text
    if command == "label":  # refiners change no CAMs
        cams = cam_model.cams(photos / "wide.png", *shown, settings)
        np.testing.assert_array_equal(cams, cam_model.cams(photos / "wide.png", *shown))


def test_label_has_the_defaults_of_the_command(run, photos, cam_model, tmp_path):
    masks = written("label", run, photos, tmp_path)
    labels = PHOTOS["large"][1]
    given = cam_model.label(str(photos / "large.png"), labels)
    np.testing.assert_array_equal(given, masks.read("large"))


def test_cams_come_in_the_order_of_the_labels(run, photos, cam_model, tmp_path):
    written("label", run, photos, tmp_path, "--dump-cams", settings=["batch_size=1"])
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
def test_predict_is_the_command(run, photos, segmenter, tmp_path, crf):
    changes = (*PREDICT, f"crf={crf}")
    masks = written("predict", run, photos, tmp_path, settings=changes)
    settings = with_settings(segmenter.settings, changes)
    for name in PHOTOS:
        expected = masks.read(name)
        for image in (photos / f"{name}.png", pixels(photos, name)):
            np.testing.assert_array_equal(segmenter.predict(image, settings), expected)


@contextmanager
def default_type(dtype):
    """A program that has set torch's default type."""
    torch.set_default_dtype(dtype)
    try:
        yield
        assert torch.get_default_dtype() == dtype  # as it was
    finally:
        torch.set_default_dtype(torch.float32)


SWITCHES = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "float64": lambda: default_type(torch.float64),
    "float16": lambda: default_type(torch.float16),
    "device": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_what_the_program_has_told_torch_changes_nothing(run, photos, switch):
    """Also for refiners that multiply matrices."""
    stage1, stage2 = (run / stage / "model.safetensors" for stage in ("train_cam", "train_seg"))
    crf = PredictConfig(short_side=32, window=32, stride=16, crf="voc_seg")
    propagation = LabelConfig(refiners=("propagation", "crf"))
    image = pixels(photos, "large")

    def results():
        cam_model, segmenter = (weaktr.load(file, device="cpu") for file in (stage1, stage2))
        return (
            cam_model.cams(image, ["red", "green"]),
            cam_model.label(image, ["red", "green"]),
            cam_model.label(image, ["red", "green"], propagation),
            segmenter.predict(image, crf),
        )

    expected = results()
    with SWITCHES[switch]():
        got = results()
    for own, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(own, other)


def test_threads_with_other_settings_do_not_meet(photos, cam_model, segmenter):
    image = pixels(photos, "large")
    scales = [LabelConfig(scales=(scale,)) for scale in (1.0, 2.0)]
    ratios = [PredictConfig(short_side=32, window=32, stride=16, ratios=(r,)) for r in (1.0, 2.0)]

    def results(index):
        own = cam_model.cams(image, ["red"], scales[index % 2])
        return own, segmenter.predict(image, ratios[index % 2])

    expected = [results(index) for index in (0, 1)]
    assert not np.array_equal(expected[0][0], expected[1][0])
    with ThreadPoolExecutor(4) as pool:
        for index, got in enumerate(pool.map(results, range(24))):
            for own, other in zip(got, expected[index % 2], strict=True):
                np.testing.assert_array_equal(own, other)


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


def test_checkpoints_and_devices_that_are_none(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing"):
        weaktr.load(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="device: 'nonsense'"):
        weaktr.load(run / "train_cam" / "model.safetensors", device="nonsense")


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


def same_files(one, other):
    """The masks of two folders, by name; they must be equal."""
    first, second = MaskFolder(one, verify=True), MaskFolder(other, verify=True)
    assert first.entries.keys() == second.entries.keys()
    for name in first.entries:
        np.testing.assert_array_equal(first.read(name), second.read(name))
    return set(first.entries)


def test_label_of_a_folder_is_the_command(run, photos, cam_model, tmp_path):
    written("label", run, photos, tmp_path / "command", settings=["crf=none"])
    masks = weaktr.label(cam_model, photos, tmp_path / "python", settings=["crf=none"])
    names = same_files(tmp_path / "command", tmp_path / "python")
    assert set(masks) == names == {"wide", "odd", "large"} and len(masks) == 3
    assert masks.report.masks == 3 and masks.report.unlabelled == ["none"]
    assert masks.contact_sheet == tmp_path / "python/contact_sheet.png"
    assert masks["large"].classes == tiny.NAMES
    np.testing.assert_array_equal(masks["large"].pixels(), pixels(photos, "large"))
    assert masks._repr_html_().count("data:image/jpeg") == 3
    with pytest.raises(KeyError):
        masks["none"]
    whole = with_settings(cam_model.settings, ["crf=none"])
    path = run / "train_cam/model.safetensors"
    again = weaktr.label(str(path), str(photos), str(tmp_path / "python"), settings=whole)
    assert set(again) == names  # the same settings, so it is the same folder
    with pytest.raises(ValueError, match="holds results of other inputs or settings"):
        weaktr.label(cam_model, photos, tmp_path / "python", settings=["threshold=0.1"])


def test_the_settings_of_a_model_count_for_folders(run, photos, tmp_path):
    for stage, settings in (("train_cam", LABEL), ("train_seg", PREDICT)):
        model = weaktr.load(run / stage / "model.safetensors", device="cpu")
        of_folder = weaktr.label if stage == "train_cam" else weaktr.predict
        model.settings = with_settings(model.settings, settings)
        got = of_folder(model, photos, tmp_path / f"{stage}-a")
        expected = of_folder(model.file, photos, tmp_path / f"{stage}-b", settings=settings)
        assert [*got] == [*expected]
        for name, mask in got.items():
            np.testing.assert_array_equal(mask, expected[name])
        of_folder(model, photos, tmp_path / f"{stage}-b")  # the same settings: nothing is refused


def test_predict_of_a_folder_is_the_command(run, photos, segmenter, tmp_path):
    written("predict", run, photos, tmp_path / "command")
    masks = weaktr.predict(segmenter, photos, tmp_path / "python")
    assert same_files(tmp_path / "command", tmp_path / "python") == set(PHOTOS) == set(masks)
    (tmp_path / "some.txt").write_text("odd\n")
    few = weaktr.predict(segmenter, photos, tmp_path / "few", names=tmp_path / "some.txt")
    assert list(few) == ["odd"]


def test_folders_take_other_labels_and_cams(run, photos, cam_model, tmp_path):
    (tmp_path / "own.csv").write_text("image,labels\nodd.png,red\n")
    options = {"labels": tmp_path / "own.csv", "emit": ["cam"], "settings": ["crf=none"]}
    masks = weaktr.label(cam_model, photos, tmp_path / "out", **options)
    assert list(masks) == ["odd"] and set(np.unique(masks["odd"])) <= {0, 1}
    again = weaktr.label(tmp_path / "out/cams", photos, tmp_path / "again")
    np.testing.assert_array_equal(again["odd"], masks["odd"])
    assert again.classes is None and set(again["odd"].labels()) <= {"background", "class 0"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"settings": "crf=none"}, "settings: expected a LabelConfig or a list such as"),
        ({"settings": PredictConfig()}, "settings: expected a LabelConfig or a list such as"),
        ({"settings": ["crfs=none"]}, "did you mean 'crf'"),
        ({"emit": ["mask", "scores"]}, "--emit: expected some of mask, confidence, cam; got 'sco"),
        ({"model": 5}, "model: expected a checkpoint's path or a Model, got 5"),
    ],
)
def test_folders_refuse_what_does_not_fit(photos, cam_model, tmp_path, options, message):
    options = {"model": cam_model, "photos": photos, "out": tmp_path / "out"} | options
    with pytest.raises(ValueError, match=message):
        weaktr.label(**options)
    assert not (tmp_path / "out").exists()


def test_a_model_of_no_file_labels_no_folder(photos, cam_model, segmenter, tmp_path):
    with pytest.raises(ValueError, match=r"model: expected one that weaktr\.load has read"):
        weaktr.label(weaktr.Model(cam_model.module), photos, tmp_path / "out")
    with pytest.raises(ValueError, match="expected a stage-2 checkpoint, got stage 1"):
        weaktr.predict(cam_model, photos, tmp_path / "out")


def test_masks_and_cams_draw_the_photograph(photos, cam_model):
    mask = cam_model.label(photos / "large.png", ["red", "blue"])
    assert mask.classes == tiny.NAMES and "data:image/jpeg" in mask._repr_html_()
    np.testing.assert_array_equal(mask.pixels(), pixels(photos, "large"))
    cams = cam_model.cams(pixels(photos, "large"), ["blue", 0])
    assert cams.classes == ("blue", "red") and cams._repr_html_().count("<figure") == 2


def test_a_run_is_a_path_and_draws_itself(run):
    assert Path(run) == run.folder and (run / "metrics.json").is_file()
    assert run.scores.keys() == json.loads((run / "metrics.json").read_text())["conditions"].keys()
    assert all(0 <= score <= 100 for score in run.scores.values())
    assert isinstance(run.cam_model("cpu").module, CamModel)
    assert isinstance(run.segmenter("cpu").module, Segmenter)
    assert len(run.masks("label")) == len(run.masks("predict")) == 8
    with pytest.raises(ValueError, match="stage: expected label or predict"):
        run.masks("train_cam")
    text = run._repr_html_()
    assert "8 pseudo labels" in text and "8 predictions" in text and "not_held_out_miou" in text
    assert text.count("data:image/jpeg") == 16


def test_a_run_whose_photographs_have_gone_shows_its_scores(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("features"))
    recipe = tmp_path / "run/recipe.yaml"
    root = load_recipe(recipe).data.root
    recipe.write_text(recipe.read_text().replace(root, str(tmp_path / "nowhere")))
    text = weaktr.api.TrainedRun(tmp_path / "run")._repr_html_()
    assert "<table>" in text and "data:image" not in text
    assert "no pictures: root: expected a folder, got " in text
