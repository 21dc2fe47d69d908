"""``weaktr predict`` as a user calls it, on the stored image, checkpoint and outputs."""

from __future__ import annotations

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from tests.cli.test_train import said
from tests.parity.recipe import GOLDEN, recipe_weight
from tests.stored import FACTS, arrays
from tests.tolerances import CRF_LABEL_AGREEMENT, assert_golden
from weaktr import cli
from weaktr.data.classes import palette
from weaktr.data.io import read_stored_labels
from weaktr.data.masks import MaskFolder, write_mask
from weaktr.evaluation.voc_server import write_voc_archive
from weaktr.models import checkpoints
from weaktr.models.released.state_dicts import segmenter_from_published

E = arrays("E_inference")
CRF = load_file(GOLDEN / "E_crf.safetensors")
SIZES = ("--set", "short_side=52", "--set", "window=48", "--set", "stride=32")
QUICK = (*SIZES, "--set", "ratios=[1.0]", "--set", "flip=false", "--set", "crf=none")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    shapes = FACTS["E_inference"]["state_dict"].items()
    model = segmenter_from_published(
        {key: recipe_weight(key, shape, 201) for key, shape in shapes},
        encoder_heads=6, decoder_heads=2, decoder="mask_transformer", patch_size=16, image_size=48,
    )  # fmt: skip
    names = [f"class {index}" for index in range(model.num_labels - 1)]
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    return checkpoints.save(model, path, classes={"names": names, "ids": []})


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.fromarray(E["image"]).save(folder / "2008_000001.png")
    Image.fromarray(E["image"][:70, 8:]).save(folder / "2008_000002.png")
    return folder


def predicted(checkpoint, photos, *arguments):
    """The folder that ``weaktr predict`` wrote."""
    out = photos.parent / "out"
    code, text = said(cli.main, "predict", checkpoint, photos, "--out", out, *arguments)
    assert code == 0, text
    return out


def first_only(photos):
    (photos.parent / "list.txt").write_text("2008_000001\n")
    return "--names", photos.parent / "list.txt"


@pytest.mark.parametrize(("preset", "stored"), [("voc_seg", "voc12"), ("coco_seg", "coco")])
@pytest.mark.parametrize("window_batch", [1, 5, 64])
def test_published_ensemble_and_crf(checkpoint, photos, preset, stored, window_batch):
    out = predicted(
        checkpoint, photos, *SIZES, *first_only(photos), "--ensemble", "published",
        "--set", f"crf={preset}", "--set", f"window_batch={window_batch}", "--dump-scores",
    )  # fmt: skip
    with np.load(out / "scores" / "2008_000001.npz") as scores:
        np.testing.assert_array_equal(scores["keys"], E["process_batch.keys"])
        assert_golden(torch.from_numpy(scores["prob"]), torch.from_numpy(CRF["prob"]))
    before = MaskFolder(out / "before_refinement", verify=True).read("2008_000001")
    np.testing.assert_array_equal(before, E["process_batch.pred"])
    mask = MaskFolder(out, verify=True).read("2008_000001")
    assert (mask == CRF[f"{stored}.label"]).mean() >= CRF_LABEL_AGREEMENT


@pytest.mark.parametrize(
    ("changes", "stored", "step"),
    [
        ((), "prob.multi_scale", 1),
        (("--set", "ratios=[1.0]", "--set", "flip=false"), "prob.single_scale", 2),
    ],
)
def test_published_probabilities(checkpoint, photos, changes, stored, step):
    out = predicted(
        checkpoint, photos, *SIZES, *first_only(photos), *changes, "--ensemble", "plain",
        "--set", "crf=none", "--dump-scores",
    )  # fmt: skip
    with np.load(out / "scores" / "2008_000001.npz") as scores:
        keys, prob = scores["keys"], scores["prob"][:, ::step, ::step]
    assert_golden(torch.from_numpy(prob), torch.from_numpy(E[stored][keys]))
    assert not (out / "before_refinement" / "masks").exists()


def test_predict_then_eval(checkpoint, photos):
    """Conditions travel from one command to the other."""
    out = predicted(checkpoint, photos, *SIZES, *first_only(photos))
    truth = photos.parent / "truth"
    write_mask(truth / "2008_000001.png", E["process_batch.pred"].astype(np.uint8))
    code, text = said(cli.main, "eval", out, truth, "--num-labels", 6, "--split", "val",
                      "--out", photos.parent / "scores")  # fmt: skip
    assert code == 0, text
    rows = json.loads((photos.parent / "scores" / "metrics.json").read_text())["rows"]
    assert [row["scores"]["miou"] == 100.0 for row in rows] == [True, False]
    assert rows[1]["conditions"] == {
        "split": "val", "images": 1, "scales": "0.5, 0.75, 1, 1.25, 1.5, 1.75", "flip": "yes",
        "crf": "voc_seg", "ensemble": "published",
    }  # fmt: skip


@pytest.mark.parametrize("comp", ["comp5", "comp6"])
@pytest.mark.parametrize("name", ["results.tgz", "results.tar.gz", "results.tar"])
def test_archive_for_the_voc_server(checkpoint, photos, comp, name, caplog):
    archive = photos.parent / name
    out = predicted(checkpoint, photos, *QUICK, "--archive", archive, "--comp", comp)
    folder = f"results/VOC2012/Segmentation/{comp}_test_cls"
    with tarfile.open(archive) as content:
        assert content.getnames() == [f"{folder}/2008_00000{i}.png" for i in (1, 2)]
        content.extraction_filter = getattr(tarfile, "data_filter", None)  # since Python 3.11.4
        content.extractall(photos.parent / "there")
    for image in ("2008_000001", "2008_000002"):
        unpacked = photos.parent / "there" / folder / f"{image}.png"
        with Image.open(unpacked) as picture, Image.open(photos / f"{image}.png") as photo:
            assert picture.mode == "P"
            assert picture.size == photo.size
            colours = np.array(picture.getpalette()).reshape(-1, 3)
            np.testing.assert_array_equal(colours, palette()[: len(colours)])
        np.testing.assert_array_equal(read_stored_labels(unpacked), MaskFolder(out).read(image))
    assert not list(photos.parent.rglob("*.part"))
    first = archive.read_bytes()
    predicted(checkpoint, photos, *QUICK, "--archive", archive, "--comp", comp)
    assert archive.read_bytes() == first
    assert "for VOC's 20 classes; here they are class 0, class 1" in caplog.text


def test_archives_that_the_server_would_refuse(tmp_path):
    masks = MaskFolder(tmp_path / "masks")
    masks.add("good", np.full((3, 4), 20, np.uint8))
    masks.add("unsure", np.full((3, 4), 255, np.uint8))
    masks.add("folder/name", np.zeros((3, 4), np.uint8))
    file = tmp_path / "results.tgz"
    for name, told in (
        ("nobody", "'nobody' has none"),
        ("unsure", r"expected labels 0\.\.20, got \[255\]"),
        ("folder/name", "without folders"),
    ):
        with pytest.raises(ValueError, match=told):
            write_voc_archive(file, masks.folder, ["good", name])
    with pytest.raises(ValueError, match="competition: expected one of"):
        write_voc_archive(file, masks.folder, ["good"], "comp7")
    assert not file.exists()


def test_archives_hold_masks_as_they_are_now(tmp_path):
    masks, file = MaskFolder(tmp_path / "masks"), tmp_path / "results.tar"
    masks.add("a", np.full((3, 4), 20, np.uint8))
    for pixels, told in (
        (np.full((3, 4), 255, np.uint8), r"expected labels 0\.\.20, got \[255\]"),
        (np.full((3, 4), 21, np.uint8), r"a\.png: mask values outside the classes"),
        (np.full((3, 5), 1, np.uint8), r"a\.png: mask and image differ in size"),
    ):
        Image.fromarray(pixels).save(masks.path("a"))
        with pytest.raises(ValueError, match=told):
            write_voc_archive(file, masks.folder, ["a"])
    Image.fromarray(np.full((3, 4), 5, np.uint8)).save(masks.path("a"))  # grey
    write_voc_archive(file, masks.folder, ["a"])
    with tarfile.open(file) as content:
        (member,) = content.getmembers()
        with Image.open(content.extractfile(member)) as stored:
            assert (stored.mode, np.array(stored).tolist()) == ("P", [[5] * 4] * 3)


def test_wrong_archive_names_are_told_before_the_work(checkpoint, photos):
    out = photos.parent / "out"
    code, text = said(cli.main, "predict", checkpoint, photos, "--out", out, "--archive", "a.zip")
    assert code == cli.WRONG_INPUT
    assert "ends in .tar, .tar.gz, .tgz, got 'a.zip'" in text
    assert not out.exists()


def test_names_without_image(checkpoint, photos):
    names = photos.parent / "list.txt"
    names.write_text("2008_000001\n2008_000009\n")
    code, text = said(cli.main, "predict", checkpoint, photos, "--names", names)
    assert code == cli.WRONG_INPUT
    assert "1 of 2 have no image: 2008_000009" in text


def test_unreadable_images_are_left_out_and_fail_the_command(checkpoint, photos):
    (photos / "broken.jpg").write_bytes(b"not a picture")
    out = photos.parent / "out"
    code, _ = said(cli.main, "predict", checkpoint, photos, "--out", out, *QUICK)
    assert code == cli.FAILED
    assert sorted(MaskFolder(out, verify=True).entries) == ["2008_000001", "2008_000002"]


def test_an_interrupted_run_goes_on(checkpoint, photos):
    out = predicted(checkpoint, photos, *QUICK)
    lost = MaskFolder(out).path("2008_000002")
    kept = MaskFolder(out).path("2008_000001").stat().st_mtime_ns
    whole = lost.read_bytes()
    lost.write_bytes(whole[:20])
    predicted(checkpoint, photos, *QUICK)
    assert lost.read_bytes() == whole
    assert MaskFolder(out).path("2008_000001").stat().st_mtime_ns == kept
    predicted(checkpoint, photos, *QUICK, "--dump-scores")
    assert (out / "scores" / "2008_000001.npz").is_file()
