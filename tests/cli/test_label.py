"""``weaktr label`` on CAMs that are there already, as a user calls it."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.cli.test_train import said
from tests.models.small import tiny_cam_model
from tests.stored import arrays
from weaktr import cli
from weaktr.data.masks import MaskFolder, write_mask
from weaktr.data.stored_maps import npz_of_cams, read_cams, read_soft_labels
from weaktr.files import write_bytes
from weaktr.models import checkpoints
from weaktr.ops.dense_crf.presets import PRESETS

C = arrays("C_labels_miou")
SAMPLES = range(6)


def write_image(path, size, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def write_npy(root, name, keys, cams):
    """CAMs as the published code writes them, and an image of their size."""
    (root / "cams").mkdir(exist_ok=True, parents=True)
    cam_dict = dict(zip(map(int, keys), cams, strict=True))
    np.save(root / "cams" / f"{name}.npy", cam_dict, allow_pickle=True)
    return write_image(root / "images" / f"{name}.png", cams.shape[1:])


@pytest.fixture
def root(tmp_path):
    for index in SAMPLES:
        write_npy(tmp_path, index, C[f"voc.{index}.keys"], C[f"voc.{index}.cam"])
    return tmp_path


def labelled(root, *arguments, cams="cams", out="out", code=0):
    """The masks that ``weaktr label`` leaves."""
    ended, text = said(
        cli.main, "label", root / cams, root / "images", "--out", root / out, *arguments
    )
    assert ended == code, text
    return MaskFolder(root / out, verify=True)


def refused(root, *arguments, cams="cams"):
    code, text = said(
        cli.main, "label", root / cams, root / "images", "--out", root / "refused", *arguments
    )
    assert code == cli.WRONG_INPUT
    assert "Traceback" not in text
    assert not (root / "refused").exists()
    return " ".join(text.split())


def chosen(*settings):
    return [part for setting in settings for part in ("--set", setting)]


@pytest.mark.parametrize("threshold", [0.3, 0.42, 0.43, 0.45, 0.6])
@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_published_labels(tmp_path, dataset, threshold):
    for index in SAMPLES:
        write_npy(tmp_path, index, C[f"{dataset}.{index}.keys"], C[f"{dataset}.{index}.cam"])
    masks = labelled(tmp_path, *chosen("crf=none", f"threshold={threshold}"))
    for index in SAMPLES:
        expected = C[f"{dataset}.{index}.label_t{threshold}"]
        np.testing.assert_array_equal(masks.read(str(index)), expected)


def test_published_ties(tmp_path):
    """One unit in the last place above the threshold is a tie, and the background wins it."""
    write_npy(tmp_path, "tie", [0], C["tie.cam"])
    masks = labelled(tmp_path, *chosen("crf=none", "threshold=0.43"))
    np.testing.assert_array_equal(masks.read("tie"), C["tie.label"])
    assert (C["tie.label"] != C["tie.raw_argmax"]).any()


def test_the_crf_runs_on_them(tmp_path):
    keys, cams = C["voc.0.keys"], C["voc.0.cam"]
    image = write_npy(tmp_path, "a", keys, cams)
    masks = labelled(tmp_path, *chosen("threshold=0.43", "crf=voc_cam"))
    before = MaskFolder(tmp_path / "out" / "before_refinement").read("a")
    np.testing.assert_array_equal(before, C["voc.0.label_t0.43"])
    values = np.array([0, *(keys + 1)], np.uint8)
    compact = np.searchsorted(values, before).astype(np.uint8)
    refined = PRESETS["voc_cam"].refine_labels(image, compact, len(values), gt_prob=0.7)
    np.testing.assert_array_equal(masks.read("a"), values[refined])


def test_dumped_cams_give_the_same(root):
    for index in SAMPLES:
        classes = C[f"voc.{index}.keys"].tolist()
        write_bytes(root / "dumped" / f"{index}.npz", npz_of_cams(C[f"voc.{index}.cam"], classes))
    theirs = labelled(root, *chosen("crf=none"))
    ours = labelled(root, *chosen("crf=none"), cams="dumped", out="ours")
    masks = [{name: e.sha256 for name, e in one.entries.items()} for one in (ours, theirs)]
    assert masks[0] == masks[1]


def test_goes_on_and_keeps_what_was_made_otherwise_apart(root):
    masks = labelled(root, *chosen("crf=none"))
    kept = masks.path("0").stat().st_mtime_ns
    (root / "out" / "masks" / "1.png").unlink()
    again = labelled(root, *chosen("crf=none"))
    assert again.path("0").stat().st_mtime_ns == kept
    assert len(again) == len(SAMPLES)
    code, text = said(cli.main, "label", root / "cams", root / "images", "--out", root / "out")
    assert code == cli.WRONG_INPUT
    assert "choose another --out" in text


def test_soft_labels_of_cams_that_are_there(root):
    labelled(root, *chosen("crf=none", "soft=true", "soft_stride=16"))
    for index in SAMPLES:
        cams, keys = C[f"voc.{index}.cam"], C[f"voc.{index}.keys"]
        size = cams.shape[1:]
        soft = read_soft_labels(root / "out" / "soft" / f"{index}.npz", 21, size)
        assert soft.labels == (0, *(keys + 1).tolist())
        assert soft.shares.shape == (len(keys) + 1, -(-size[0] // 16), -(-size[1] // 16))


def test_images_without_cams(root, caplog):
    write_image(root / "images" / "none.png", (5, 6))
    masks = labelled(root, *chosen("crf=none"))
    assert "none" not in masks
    hint = "--set unlabelled=background (with another --out) gives one"
    assert f"1 photograph shows no class and gets no mask (none); {hint}" in caplog.text
    masks = labelled(root, *chosen("crf=none", "unlabelled=background"), out="all")
    assert masks.entries["none"].labels == (0,)
    assert masks.entries["none"].size == (5, 6)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"nothing", "expected CAMs"),
        ({0: np.zeros((3, 3), np.float32)}, "CAMs and image differ in size"),
        ({254: None}, "classes 0 to 253"),
        ({0: float("nan")}, "NaN"),
        ({0: 7.5}, "values from 7.5 to 7.5"),
    ],
)
def test_bad_cams_are_left_out_and_named(root, content, told, caplog):
    path = root / "cams" / "0.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        size = C["voc.0.cam"].shape[1:]
        ((key, value),) = content.items()
        cam = value if isinstance(value, np.ndarray) else np.full(size, value or 0, np.float32)
        np.save(path, {key: cam}, allow_pickle=True)
    masks = labelled(root, *chosen("crf=none"), code=cli.FAILED)
    assert set(masks.entries) == {str(index) for index in SAMPLES} - {"0"}
    (line,) = [record.message for record in caplog.records if "0.npy" in record.message]
    assert line.startswith("left out: ")
    assert told in line


def test_mistakes_are_told(root):
    write_image(root / "elsewhere" / "z.png", (4, 4))
    (root / "empty").mkdir()
    text = refused(root, *chosen("scales=[1.0]", "flip=false"), "--dump-cams")
    assert "scales, flip, --emit cam: of no effect on CAMs that are there" in text
    assert "expected threshold, crf, gt_prob, unlabelled" in text
    assert "--labels: of no effect" in refused(root, "--labels", root / "labels.csv")
    told = refused(root, cams="empty")
    assert "no NPZ or NPY in" in told and "a model is given by its file, as RUN" in told
    code, text = said(cli.main, "label", root / "cams", root / "elsewhere", "--out", root / "o")
    assert code == cli.WRONG_INPUT
    assert "none of its 6 CAMs has the name of an image" in " ".join(text.split())


def test_cams_in_files_have_no_features_for_propagation(root):
    text = refused(root, *chosen("refiners=[propagation,crf]"))
    assert "refiners: expected CAMs with patch features for propagation" in text


def test_the_caption_of_eval_does_not_guess(root):
    """How the CAMs were made is not known, so no table may say it."""
    labelled(root, *chosen("crf=none"))
    noted = json.loads((root / "out" / "inputs.json").read_text())["settings"]
    assert noted.keys() == {"threshold", "crf", "gt_prob", "unlabelled"}


def test_a_teacher(root):
    """Its regions where they agree; a changed mask of it makes that photograph's again."""
    settings, teacher = chosen("crf=none", "threshold=0.3"), root / "teacher"
    plain = labelled(root, *settings)
    ours = {name: plain.read(name) for name in plain.entries}
    for name, mask in ours.items():
        write_mask(teacher / f"{name}.png", mask)
    theirs = ours["1"].copy()
    theirs[:3] = int(max(ours["1"].max(), 1))
    write_mask(teacher / "1.png", theirs)
    (teacher / "2.png").unlink()
    taught = ("--teacher", teacher, *settings)
    masks = labelled(root, *taught, out="taught")
    for name, mask in ours.items():
        np.testing.assert_array_equal(masks.read(name), theirs if name == "1" else mask)
    agreement = masks.entries["1"].agreement
    assert agreement is not None and agreement[int(theirs[0, 0])] == 1
    assert masks.entries["2"].agreement is None
    times = {name: masks.path(name).stat().st_mtime_ns for name in ours}
    write_mask(teacher / "1.png", ours["1"])
    again = labelled(root, *taught, out="taught")
    np.testing.assert_array_equal(again.read("1"), ours["1"])
    made = {n for n in ours if again.path(n).stat().st_mtime_ns != times[n]}
    assert made == {"1"}
    assert "is not one" in refused(root, "--teacher", root / "nowhere")


@pytest.fixture
def turned(tmp_path):
    """Photographs of which EXIF turns one round, and CAMs of them; what writes these again."""
    upside_down = Image.Exif()
    upside_down[0x0112] = 3
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for name, exif in {"a": upside_down, "b": None}.items():
        pixels = rng.integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"images/{name}.png", exif=exif)
    torch.manual_seed(0)
    model = checkpoints.save(
        tiny_cam_model(), tmp_path / "model", classes={"names": ["cat", "dog"]}
    )

    def made(source, out, *more, code=0):
        ended, text = said(
            cli.main, "label", source or model, tmp_path / "images", "--out", tmp_path / out,
            *chosen("crf=none"), *more,
        )  # fmt: skip
        assert ended == code, text
        return {name: entry.sha256 for name, entry in MaskFolder(tmp_path / out).entries.items()}

    def of_model(out, exif, *more):
        options = chosen("predict_above=0", "scales=[1.0]", "flip=false")
        return made(None, out, "--emit", "cam", "--exif", exif, *options, *more)

    return made, of_model


def without_origin(folder):
    """CAMs as older versions wrote them."""
    for file in folder.glob("*.npz"):
        cams, classes = read_cams(file)
        write_bytes(file, npz_of_cams(cams, classes))


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_copied_cams_say_how_photographs_were_read(tmp_path, turned, exif):
    made, of_model = turned
    expected = of_model("first", exif)
    shutil.copytree(tmp_path / "first/cams", tmp_path / "mine")
    assert made(tmp_path / "mine", "again") == expected
    other = {"apply": "ignore", "ignore": "apply"}[exif]
    assert made(tmp_path / "mine", "other", "--exif", other, code=1).keys() == {"b"}


@pytest.mark.parametrize("is_older", [False, True], ids=["", "older"])
@pytest.mark.parametrize("shards", [(), ("--shard-size", "9")], ids=["plain", "shards"])
def test_cams_of_a_photograph_that_was_replaced_are_left_out(
    tmp_path, turned, is_older, shards, caplog
):
    made, of_model = turned
    expected = of_model("first", "apply", *shards)
    if is_older:
        without_origin(tmp_path / "first/cams")
    assert made(tmp_path / "first/cams", "again") == expected
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "images/b.png")
    assert made(tmp_path / "first/cams", "third", code=1).keys() == {"a"}
    assert "CAMs of another photograph than" in caplog.text
    assert made(tmp_path / "first/cams", "stored", "--exif", "ignore", code=1) == {}
    assert "CAMs of the photograph turned as EXIF says; expected --exif apply" in caplog.text


def test_cams_of_which_nothing_is_known_are_taken(tmp_path, turned):
    made, of_model = turned
    expected = of_model("first", "ignore")
    shutil.copytree(tmp_path / "first/cams", tmp_path / "mine")
    without_origin(tmp_path / "mine")
    assert made(tmp_path / "mine", "again") == expected
