"""``weaktr label`` and ``weaktr predict`` on photographs as cameras and people leave them."""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

import weaktr
from tests.cli.test_train import said
from tests.models import small
from weaktr import cli
from weaktr.data import unlabelled
from weaktr.data.masks import MaskFolder
from weaktr.files import whole_file
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.predictions import Predictor
from weaktr.models import checkpoints
from weaktr.recipes import with_settings
from weaktr.refine.proposals import ProposalsRefiner
from weaktr.stages.masked import masked_in

#: Sizes (width, height) that nobody trains on.
STRANGE = [(1, 1), (3, 2000), (2000, 3), (4000, 16), (1, 100_000), (100_000, 1)]
NAMES = ["cat", "dog"]
VIT = {"image_size": 32, "patch_size": 16}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)  # whatever tests ran before
    segmenter = small.segmenter(
        "vit_tiny_patch16_224", 3, decoder="linear", **VIT,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    ).eval()  # fmt: skip
    known = {"classes": {"names": NAMES}}
    return {
        "label": checkpoints.save(small.tiny_cam_model(), folder / "cam.safetensors", **known),
        "predict": checkpoints.save(segmenter, folder / "seg.safetensors", **known),
    }


SETTINGS = {
    "label": ["scales=[1.0]", "flip=false"],
    "predict": [
        "short_side=32", "window=32", "stride=32", "ratios=[1.0]", "flip=false", "ensemble=plain",
    ],
}  # fmt: skip
COMMANDS = ["label", "predict"]
#: Settings for photographs without labels.csv.
CAT_ALONE = {"label": ["--set", "predict_above=0"], "predict": []}


def arguments(command, models, photos, out, *more):
    settings = [part for setting in SETTINGS[command] for part in ("--set", setting)]
    return [command, models[command], photos, "--out", out, *settings, *more]


def photo(path, width, height, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (min(height, 64), min(width, 64), 3))
    Image.fromarray(noise.astype(np.uint8)).resize((width, height)).save(path, compress_level=1)
    return path


def with_labels(photos, labels="cat"):
    rows = [["image", "labels"], *([path.name, labels] for path in sorted(photos.iterdir()))]
    with open(photos / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return photos


@pytest.mark.parametrize("command", COMMANDS)
def test_strange_sizes_neither_stop_nor_fail(command, models, tmp_path):
    photos = tmp_path / "photos"
    for number, size in enumerate([(40, 30), *STRANGE]):
        photo(photos / f"{number}.png", *size)
    out = tmp_path / "out"
    code, text = said(cli.main, *arguments(command, models, with_labels(photos), out))
    assert code == 0, text
    masks = MaskFolder(out, verify=True)
    for number, (width, height) in enumerate([(40, 30), *STRANGE]):
        entry = masks.entries[str(number)]
        assert entry.size == (height, width)
        assert masks.read(str(number)).shape == (height, width)
        longest = max(width, height)
        assert (entry.working_size is None) == (longest <= 1024)
        assert entry.working_size is None or max(entry.working_size) == 1024


@pytest.mark.parametrize("command", COMMANDS)
def test_a_large_photograph_is_worked_on_at_a_stated_size(command, models, tmp_path, caplog):
    photos = tmp_path / "photos"
    photo(photos / "large.jpg", 1500, 200)
    photo(photos / "small.jpg", 300, 200)
    out = tmp_path / "out"
    code, _ = said(cli.main, *arguments(command, models, with_labels(photos), out))
    assert code == 0
    assert "1 image is above max_side=1024: worked on at that size" in caplog.text
    lines = [json.loads(line) for line in (out / "index.jsonl").read_text().splitlines()]
    large, smaller = sorted(lines, key=lambda line: line["name"])
    assert large["size"] == [200, 1500] and large["working_size"] == [137, 1024]
    assert "working_size" not in smaller
    own = tmp_path / "own"
    more = ("--set", "max_side=null")
    assert said(cli.main, *arguments(command, models, photos, own, *more))[0] == 0
    assert MaskFolder(own).entries["large"].working_size is None
    with Image.open(own / "masks" / "small.png") as one, Image.open(out / "masks/small.png") as two:
        np.testing.assert_array_equal(np.asarray(one), np.asarray(two))


@pytest.mark.rare
def test_memory_of_a_large_photograph_is_bounded(models, tmp_path):
    """In one process after a small one: 24 megapixels are 69 MB as a whole."""
    folders = [tmp_path / name for name in ("small", "large_jpg", "large_png")]
    photo(folders[0] / "a.jpg", 1024, 768)
    photo(folders[1] / "a.jpg", 6000, 4000)
    photo(folders[2] / "a.png", 6000, 4000)
    calls = [
        [str(part) for part in arguments(command, models, photos, tmp_path / command / photos.name)]
        for photos in map(with_labels, folders)
        for command in COMMANDS
    ]
    code = (
        "import json, resource, sys; from weaktr import cli\n"
        "for call in json.loads(sys.argv[1]):\n"
        "    assert cli.main(call) == 0\n"
        "    print('peak', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("peak")]
    peaks = [float(line.split()[1]) for line in lines]
    whole = 6000 * 4000 * 3 / 2**20
    assert len(peaks) == 6
    assert peaks[5] - peaks[1] < 3.5 * whole  # the image, its masks; the allocator's gaps


@pytest.mark.parametrize("command", COMMANDS)
def test_what_cannot_be_labelled_is_named_and_tried_again(command, models, tmp_path, caplog):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photo(photos / "good.png", 40, 30)
    whole = photo(photos / "bad.png", 40, 30, seed=1).read_bytes()
    (photos / "bad.png").write_bytes(whole[:60])
    (photos / "empty.jpg").write_bytes(b"")
    call = arguments(command, models, with_labels(photos), out)
    assert said(cli.main, *call)[0] == cli.FAILED
    assert "left out: " in caplog.text and "bad.png" in caplog.text and "empty.jpg" in caplog.text
    assert set(MaskFolder(out).entries) == {"good"}
    (photos / "bad.png").write_bytes(whole)
    assert said(cli.main, *call)[0] == cli.FAILED
    assert set(MaskFolder(out).entries) == {"good", "bad"}


def test_a_folder_that_cannot_be_listed_is_left_out(models, tmp_path, monkeypatch, caplog):
    photos, out, scandir = tmp_path / "photos", tmp_path / "out", os.scandir
    photo(photos / "good.png", 40, 30)
    photo(photos / "good" / "a.png", 40, 30)

    def refuse(path="."):
        if Path(path) == photos / "good":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for command in COMMANDS:
        caplog.clear()
        call = arguments(command, models, photos, out / command, *CAT_ALONE[command])
        assert said(cli.main, *call)[0] == cli.FAILED
        assert f"left out: {photos}/good ({photos}): cannot be read: permission d" in caplog.text
        assert set(MaskFolder(out / command).entries) == {"good"}
    (photos / "labels.csv").write_text("image,labels\ngood.png,cat\n")
    for source in ("images", "folder"):
        code, text = said(cli.main, "data", "check", source, photos)
        assert code == cli.FAILED and "1 errors" in text


@pytest.mark.parametrize("crf", ["none", "voc_cam"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("command", COMMANDS)
def test_scores_that_are_no_numbers_give_no_mask(
    command, value, crf, models, tmp_path, monkeypatch, caplog
):
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("a", "b", "c"):
        photo(photos / f"{name}.png", 40, 30)
    cams, probabilities = CamsOfModel.cams, Predictor.probabilities

    def broken_cams(self, batch):
        found = cams(self, batch)
        for one, own in zip(batch, found, strict=True):
            if one.sample.name == "b":
                own.maps[0, 3, 4] = value
        return found

    def broken_probabilities(self, batch):
        found = probabilities(self, batch)
        for one, own in zip(batch, found, strict=True):
            if one.sample.name == "b":
                own[1, 3, 4] = value
        return found

    call = arguments(command, models, with_labels(photos), out, "--set", f"crf={crf}")
    with monkeypatch.context() as patched:
        patched.setattr(CamsOfModel, "cams", broken_cams)
        patched.setattr(Predictor, "probabilities", broken_probabilities)
        assert said(cli.main, *call)[0] == cli.FAILED
    (line,) = [line for line in caplog.text.splitlines() if "left out: " in line]
    assert "b.png" in line and ("NaN" in line or "infin" in line)
    assert set(MaskFolder(out).entries) == {"a", "c"}
    assert said(cli.main, *call)[0] == 0
    assert set(MaskFolder(out).entries) == {"a", "b", "c"}


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_no_photograph_leaves_the_others_alone(command, models, tmp_path, caplog):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photo(photos / "good.png", 40, 30)
    photo(photos / "folder.jpg" / "inside.png", 40, 30)
    os.mkfifo(photos / "pipe.png")
    (photos / "gone.jpg").symlink_to("nowhere.jpg")
    (photos / "itself.jpg").symlink_to("itself.jpg")
    call = arguments(command, models, photos, out, *CAT_ALONE[command])
    assert said(cli.main, *call)[0] == cli.FAILED
    left_out = [line for line in caplog.text.splitlines() if "left out: " in line]
    assert len(left_out) == 2 and "gone.jpg" in left_out[0] and "itself.jpg" in left_out[1]
    assert set(MaskFolder(out).entries) == {"good", "folder.jpg/inside"}


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError, KeyError, struct.error])
def test_decoders_may_fail_in_any_way(error, models, tmp_path, monkeypatch, caplog):
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("a", "b"):
        photo(photos / f"{name}.png", 40, 30)
    whole = PngImageFile.load

    def load(image):
        if str(getattr(image, "filename", "")).endswith("b.png"):
            raise error("of a kind of its own")
        return whole(image)

    monkeypatch.setattr(PngImageFile, "load", load)
    call = arguments("predict", models, photos, out)
    assert said(cli.main, *call)[0] == cli.FAILED
    assert "b.png" in caplog.text and "cannot be read as an image" in caplog.text
    assert set(MaskFolder(out).entries) == {"a"}


def test_an_eps_is_no_photograph(models, tmp_path):
    """Pillow would start Ghostscript for it."""
    photos = tmp_path / "photos"
    photo(photos / "a.png", 40, 30)
    Image.new("RGB", (20, 20)).save(photos / "b.jpg", format="EPS")
    call = arguments("predict", models, photos, tmp_path / "out")
    assert said(cli.main, *call)[0] == cli.FAILED
    assert set(MaskFolder(tmp_path / "out").entries) == {"a"}


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes on Linux alone")
def test_names_of_any_kind(models, tmp_path):
    names = ["a\u2028b", "a\x85b", "a b", "a\nb", "ä🐕", "100%s", "b\udcff"]
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in names:
        photo(photos / f"{name}.png", 40, 30)
    call = arguments("predict", models, photos, out)
    for _ in range(2):
        assert said(cli.main, *call)[0] == 0
        assert set(MaskFolder(out, verify=True).entries) == set(names)
    assert (out / "index.jsonl").read_bytes().count(b"\n") == len(names)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_trace_that_cannot_be_written_is_said_at_once(command, models, tmp_path):
    photos, out = tmp_path / "photos", tmp_path / "out"
    photo(photos / "a.png", 40, 30)
    places = {photos: cli.WRONG_INPUT, photos / "a.png" / "trace.json": cli.WRONG_INPUT}
    for place, expected in places.items():
        call = arguments(command, models, with_labels(photos), out, "--profile", place)
        code, text = said(cli.main, *call)
        assert code == expected and "photos" in text
        assert not (out / "masks").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_masks_are_turned_with_their_photographs(command, models, tmp_path, caplog):
    photos = tmp_path / "photos"
    photo(photos / "plain.jpg", 60, 40)
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(photo(photos / "turned.jpg", 60, 40)) as image:
        image.save(photos / "turned.jpg", exif=turned)
    call = arguments(command, models, with_labels(photos), tmp_path / "stored")
    assert said(cli.main, *call)[0] == 0
    assert "1 image is turned by viewers (EXIF), masks are not" in caplog.text
    stored = MaskFolder(tmp_path / "stored")
    assert stored.entries["turned"].size == (40, 60)
    assert stored.entries["turned"].exif == "ignored" and stored.entries["plain"].exif is None
    call = arguments(command, models, photos, tmp_path / "upright", "--exif", "apply")
    assert said(cli.main, *call)[0] == 0
    assert "1 image was turned as EXIF says" in caplog.text
    upright = MaskFolder(tmp_path / "upright")
    assert upright.entries["turned"].size == upright.read("turned").shape == (60, 40)
    np.testing.assert_array_equal(upright.read("plain"), stored.read("plain"))
    mixed = arguments(command, models, photos, tmp_path / "stored", "--exif", "apply")
    assert said(cli.main, *mixed)[0] == cli.WRONG_INPUT


@pytest.mark.parametrize("shards", [(), ("--shard-size", "9")], ids=["plain", "shards"])
@pytest.mark.parametrize("command", COMMANDS)
def test_photographs_of_a_manifest_are_turned_too(command, shards, models, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(photo(tmp_path / "photos/a.jpg", 60, 40)) as image:
        image.save(tmp_path / "photos/a.jpg", exif=turned)
    for exif in ("ignore", "apply"):
        unlabelled(tmp_path / "photos", exif=exif).save(tmp_path / f"{exif}.json")
    for said_of_them, option, size in (
        ("ignore", (), (40, 60)),
        ("ignore", ("--exif", "apply"), (60, 40)),
        ("apply", (), (60, 40)),
        ("apply", ("--exif", "ignore"), None),
    ):
        out = tmp_path / "-".join((said_of_them, *option))
        images, more = tmp_path / f"{said_of_them}.json", (*CAT_ALONE[command], *shards, *option)
        code, text = said(cli.main, *arguments(command, models, images, out, *more))
        if size is None:
            assert code == cli.WRONG_INPUT and not out.exists()
            assert "--exif ignore: " in text and "says exif: apply of 1 photograph" in text
            continue
        assert code == 0, text
        if not shards:
            (masked,) = masked_in(out)  # as reports and exports read it
            assert masked.masks.entries["a"].size == size
            assert [sample.exif for sample in masked.samples] == [
                "apply" if size == (60, 40) else "ignore"
            ]
        with Image.open(out / "masks/a.png") as mask:
            assert mask.size == size[::-1]


@pytest.mark.parametrize("way", ["plain", "shards", "python", "Model"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_manifest_comes_before_what_a_checkpoint_carries(command, way, models, tmp_path, caplog):
    """Only who asks for it has its photographs turned; those of a folder are as the run did."""
    caplog.set_level("INFO", "weaktr")
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(photo(tmp_path / "photos/a.jpg", 60, 40)) as image:
        image.save(tmp_path / "photos/a.jpg", exif=turned)
    unlabelled(tmp_path / "photos").save(tmp_path / "photos.json")
    model, _ = checkpoints.load(models[command])
    known = {"classes": {"names": NAMES}, "masks": {command: {}, "exif": "apply"}}
    own = {command: checkpoints.save(model, tmp_path / "carries", **known)}
    for images, asked, size in (
        ("photos.json", None, (40, 60)),
        ("photos.json", "apply", (60, 40)),
        ("photos", None, (60, 40)),
        ("photos", "ignore", (40, 60)),
    ):
        out = tmp_path / f"{images}-{asked}"
        caplog.clear()
        if way in ("plain", "shards"):
            more = (*CAT_ALONE[command], *(("--exif", asked) if asked else ()))
            more += ("--shard-size", "9") if way == "shards" else ()
            code, text = said(cli.main, *arguments(command, own, tmp_path / images, out, *more))
            assert code == 0, text
        else:
            given = own[command] if way == "python" else weaktr.load(own[command])
            settings = (*SETTINGS[command], *CAT_ALONE[command][1:])
            if way == "Model":
                settings = with_settings(given.settings, settings)
            options = {"settings": settings, "exif": asked, "device": "cpu"}
            getattr(weaktr, command)(given, tmp_path / images, out, **options)
        with Image.open(out / "masks/a.png") as mask:
            assert mask.size == size[::-1]
        assert ("exif=apply" in caplog.text) == (size == (60, 40))
        settings = json.loads((out / "inputs.json").read_text())["settings"]
        assert settings.get("exif") == (
            None if asked == "ignore" else "apply"
        )  # as ever: they stay


@pytest.mark.parametrize("command", ["label", pytest.param("predict", marks=pytest.mark.rare)])
def test_an_interruption_ends_soon_and_is_gone_on_with(command, models, tmp_path):
    photos = tmp_path / "photos"
    for number in range(90):
        photo(photos / f"{number:03}.png", 200 + number % 7, 150, seed=number)
    call = [str(part) for part in arguments(command, models, with_labels(photos), tmp_path / "out")]
    command_line = [sys.executable, "-m", "weaktr.cli", *call]
    process = subprocess.Popen(command_line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    index = tmp_path / "out" / "index.jsonl"
    deadline = time.monotonic() + 60
    while not (index.is_file() and index.read_text().count("\n") > 4):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    output, _ = process.communicate(timeout=30)
    assert time.monotonic() - asked < 4  # two seconds, and the interpreter's own end
    assert process.returncode == cli.INTERRUPTED, output
    assert b"Traceback" not in output
    kept = MaskFolder(tmp_path / "out", verify=True)
    assert 4 < len(kept) < 90
    times = {name: kept.path(name).stat().st_mtime_ns for name in kept.entries}
    assert said(cli.main, *call)[0] == 0
    masks = MaskFolder(tmp_path / "out", verify=True)
    assert len(masks) == 90
    assert all(masks.path(name).stat().st_mtime_ns == then for name, then in times.items())
    assert list(masks.entries) == sorted(masks.entries)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_one_line(command, models, tmp_path, monkeypatch):
    photos, out = tmp_path / "photos", tmp_path / "out"
    for number in range(3):
        photo(photos / f"{number}.png", 300, 200, seed=number)

    def write(path, content, *, durable=True):
        with whole_file(path, durable=durable) as temporary:
            temporary.write_bytes(content[:10])
            if path.stem == "1":
                raise OSError(errno.ENOSPC, "No space left on device")
            temporary.write_bytes(content)

    call = arguments(command, models, with_labels(photos), out)
    with monkeypatch.context() as patched:
        patched.setattr("weaktr.data.masks.write_bytes", write)
        code, text = said(cli.main, *call)
    assert code == cli.FAILED
    assert "1: writing failed: [Errno 28] No space left on device" in " ".join(text.split())
    assert set(MaskFolder(out, verify=True).entries) == {"0"}
    assert not list(out.rglob("*.part"))
    assert said(cli.main, *call)[0] == 0
    assert len(MaskFolder(out, verify=True)) == 3


def test_masks_do_not_depend_on_queues_or_threads(models, tmp_path, monkeypatch):
    from weaktr.inference import pipeline

    photos = tmp_path / "photos"
    for number in range(9):
        photo(photos / f"{number}.png", 60 + 9 * number, 50, seed=number)
    with_labels(photos, "cat;dog")
    contents = []
    for number, (readers, writers) in enumerate([(1, 1), (4, 3)]):
        limits = pipeline.Limits(readers, writers, 1 + 10**6 * number)
        for module in ("weaktr.stages.masks", "weaktr.evaluation.models"):
            monkeypatch.setattr(f"{module}.limits_for", lambda *_, own=limits: own)
        out = tmp_path / f"out{number}"
        call = arguments("label", models, photos, out, "--emit", "confidence,cam")
        assert said(cli.main, *call)[0] == 0
        files = [path for path in out.rglob("*") if path.is_file() and path.name[0] != "."]
        files.remove(out / "inputs.json")
        contents.append({path.relative_to(out): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 9 * 4 + 3


def test_confidence_and_cams_are_written_where_asked(models, tmp_path):
    photos = tmp_path / "photos"
    photo(photos / "a.png", 80, 60)
    photo(photos / "b.png", 2000, 100)
    out = tmp_path / "out"
    call = arguments("label", models, with_labels(photos, "dog"), out, "--emit", "confidence, cam")
    assert said(cli.main, *call)[0] == 0
    with Image.open(out / "confidence" / "b.png") as picture:
        assert picture.mode == "L" and picture.size == (2000, 100)
        assert np.asarray(picture).max() <= 255 and np.asarray(picture).min() >= 127
    with np.load(out / "cams" / "b.npz") as stored:
        assert stored["cams"].shape == (1, 51, 1024)
        assert stored["classes"].tolist() == [1]
    again = arguments("label", models, photos, out, "--emit", "masks")
    assert said(cli.main, *again)[0] == cli.WRONG_INPUT
    truth = tmp_path / "truth"
    truth.mkdir()
    for name, size in (("a", (80, 60)), ("b", (2000, 100))):
        Image.fromarray(np.full(size[::-1], 2, np.uint8)).save(truth / f"{name}.png")
    assert (
        said(
            cli.main, "eval", out / "cams", truth, "--num-labels", 3, "--out", tmp_path / "scores"
        )[0]
        == 0
    )
    stored = tmp_path / "stored"
    assert said(
        cli.main, "label", out / "cams", photos, "--out", stored, "--set", "threshold=0.43"
    )[0] == 0  # fmt: skip
    ours, theirs = MaskFolder(out), MaskFolder(stored)
    for name in ("a", "b"):
        np.testing.assert_array_equal(ours.read(name), theirs.read(name))
        assert ours.entries[name].working_size == theirs.entries[name].working_size


def test_classes_are_predicted_where_nobody_gave_any(models, tmp_path, caplog, monkeypatch):
    photos = tmp_path / "photos"
    for number in range(4):
        photo(photos / f"{number}.png", 60, 50, seed=number)
    out = tmp_path / "out"
    more = ("--set", "predict_above=0.0", "--emit", "cam")
    assert said(cli.main, *arguments("label", models, photos, out, *more))[0] == 0
    assert "the model predicts what each image shows" in caplog.text
    masks = MaskFolder(out)
    for entry in masks.entries.values():
        assert set(entry.predicted) == {1, 2}
        assert all(0 < share < 1 for share in entry.predicted.values())
    none = tmp_path / "none"
    more = ("--set", "predict_above=1.0")
    assert said(cli.main, *arguments("label", models, photos, none, *more))[0] == 0
    assert len(MaskFolder(none)) == 0
    assert "4 photographs show no class and get no mask" in caplog.text
    lines = (none / "index.jsonl").read_text()
    photograph = hashlib.sha256((photos / "0.png").read_bytes()).hexdigest()
    assert json.loads(lines.splitlines()[0]) == {
        "name": "0", "size": [50, 60], "labels": [], "predicted": {}, "inputs": [photograph],
    }  # fmt: skip
    with monkeypatch.context() as patched:  # the next start knows it
        patched.setattr(CamsOfModel, "cams", None)
        caplog.clear()
        again = arguments("label", models, photos, none, *more, "--emit", "confidence")
        assert said(cli.main, *again)[0] == 0
    assert "4 photographs show no class and get no mask" in caplog.text
    assert (none / "index.jsonl").read_text() == lines
    kept = tmp_path / "kept"
    call = arguments("label", models, photos, kept, *more, "--set", "unlabelled=background")
    assert said(cli.main, *call)[0] == 0
    assert all(entry.labels == (0,) for entry in MaskFolder(kept).entries.values())


def test_labels_of_another_name_are_not_passed_over(models, tmp_path):
    photos = tmp_path / "photos"
    photo(photos / "a.png", 60, 50)
    with_labels(photos).joinpath("labels.csv").rename(photos / "lables.csv")
    code, text = said(cli.main, *arguments("label", models, photos, tmp_path / "out"))
    assert code == cli.WRONG_INPUT
    assert "found lables.csv: give it by --labels" in " ".join(text.split())
    (photos / "lables.csv").rename(photos / "train.csv")
    assert said(cli.main, *arguments("label", models, photos, tmp_path / "out"))[0] == 0
    assert MaskFolder(tmp_path / "out").entries["a"].predicted is None


def test_given_labels_are_not_predicted(models, tmp_path):
    """With labels, the probabilities of the model have no say."""
    photos = tmp_path / "photos"
    photo(photos / "a.png", 60, 50)
    out = tmp_path / "out"
    call = arguments("label", models, with_labels(photos, "dog"), out, "--set", "predict_above=0")
    assert said(cli.main, *call)[0] == 0
    entry = MaskFolder(out).entries["a"]
    assert entry.predicted is None and set(entry.labels) <= {0, 2}


def test_a_stage_2_model_labels_among_the_given_classes(models, tmp_path):
    photos = tmp_path / "photos"
    for number in range(4):
        photo(photos / f"{number}.png", 60, 50, seed=number)
    free, bound = tmp_path / "free", tmp_path / "bound"
    changes = [part for setting in SETTINGS["predict"] for part in ("--set", setting)]
    changes += ["--set", "crf=none"]
    call = ["label", models["predict"], photos, "--out"]
    assert said(cli.main, *call, free, *changes)[0] == 0
    with_labels(photos, "dog")
    assert said(cli.main, *call, bound, *changes)[0] == 0
    possible = {label for e in MaskFolder(free).entries.values() for label in e.labels}
    assert possible == {0, 1, 2} or 1 in possible
    for name, entry in MaskFolder(bound).entries.items():
        assert set(entry.labels) <= {0, 2}
        one, two = MaskFolder(free).read(name), MaskFolder(bound).read(name)
        np.testing.assert_array_equal(one[one != 1], two[one != 1])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_trace_is_written_where_asked(command, models, tmp_path):
    photos = tmp_path / "photos"
    for number in range(3):
        photo(photos / f"{number}.png", 60, 50, seed=number)
    trace = tmp_path / "trace.json"
    call = arguments(command, models, with_labels(photos), tmp_path / "out", "--profile", trace)
    assert said(cli.main, *call)[0] == 0
    events = json.loads(trace.read_text())["traceEvents"]
    assert {e["cat"] for e in events if e["ph"] == "X"} >= {"readers", "model", "writers"}


def test_the_root_of_a_data_set(tmp_path, models):
    """Of a data set its photographs alone get masks: no true masks, no results of weaktr."""
    root = tmp_path / "data"
    for name in ("a", "shop/b"):
        photo(root / "images" / f"{name}.jpg", 40, 30)
        (root / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ones((30, 40), np.uint8)).save(root / "masks" / f"{name}.png")
    for out in ("first", "second"):  # the first one's masks are no photographs of the second
        code, text = said(cli.main, *arguments("predict", models, root, root / out))
        assert code == 0, text
        assert set(MaskFolder(root / out).entries) == {"a", "shop/b"}
    (root / "labels.csv").write_text("image,labels\na.jpg,cat\nshop/b.jpg,dog\n")
    code, text = said(cli.main, *arguments("label", models, root, root / "labels"))
    assert code == 0, text
    assert set(MaskFolder(root / "labels").entries) == {"a", "shop/b"}
    assert "not in the list" not in text
    found = {file.relative_to(root).parts[0] for file in root.rglob("*") if file.is_file()}
    assert found == {"images", "masks", "first", "second", "labels", "labels.csv"}


@pytest.mark.parametrize("out", ["data/images/out", "data/images", "data/masks", "data/masks/x"])
def test_no_results_among_its_photographs_and_masks(tmp_path, models, out):
    photo(tmp_path / "data" / "images" / "a.jpg", 40, 30)
    (tmp_path / "data" / "masks").mkdir()
    code, text = said(cli.main, *arguments("predict", models, tmp_path / "data", tmp_path / out))
    assert code == cli.WRONG_INPUT
    assert "lies in the folder of the photographs" in text


def test_masks_beside_photographs_without_a_folder_of_their_own(tmp_path, models):
    photo(tmp_path / "flat" / "a.jpg", 40, 30)
    photo(tmp_path / "flat" / "masks" / "carnival.jpg", 40, 30)  # a photograph of a class
    Image.fromarray(np.ones((30, 40), np.uint8)).save(tmp_path / "flat" / "masks" / "a.png")
    code, text = said(cli.main, *arguments("predict", models, tmp_path / "flat", tmp_path / "out"))
    assert code == 0, text
    assert set(MaskFolder(tmp_path / "out").entries) == {"a", "masks/carnival"}


def test_the_root_of_voc(tmp_path, models):
    photo(tmp_path / "VOC2012" / "JPEGImages" / "2007_000032.jpg", 40, 30)
    photo(tmp_path / "VOC2012" / "SegmentationClass" / "2007_000032.png", 40, 30)
    (tmp_path / "VOC2012" / "ImageSets").mkdir()
    call = arguments("predict", models, tmp_path / "VOC2012", tmp_path / "out")
    assert said(cli.main, *call)[0] == 0
    assert set(MaskFolder(tmp_path / "out").entries) == {"2007_000032"}


@pytest.mark.parametrize("command", COMMANDS)
def test_the_index_holds_the_confidence_of_each_label(command, models, tmp_path):
    """That of the map that is written where it is asked for."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photo(photos / "a.png", 80, 60)
    extra = {"label": ("--emit", "confidence"), "predict": ("--dump-scores",)}[command]
    no_crf = ("--set", "crf=null")
    call = arguments(command, models, with_labels(photos, "dog"), out, *extra, *no_crf)
    assert said(cli.main, *call)[0] == 0
    (entry,) = MaskFolder(out, verify=True).entries.values()
    labels = MaskFolder(out).read("a")
    if command == "label":
        with Image.open(out / "confidence/a.png") as picture:
            score_of = dict.fromkeys(range(3), np.asarray(picture) / 255)
    else:
        with np.load(out / "scores/a.npz") as stored:
            scores = stored["prob"].astype(np.float32)
            score_of = dict(zip(stored["keys"].tolist(), scores, strict=True))
    assert entry.confidence.keys() == entry.areas.keys() == {*entry.labels}
    for label in entry.labels:
        own = labels == label
        assert entry.areas[label] == pytest.approx(own.mean(), abs=1e-6)
        assert entry.confidence[label] == pytest.approx(score_of[label][own].mean(), abs=3e-3)


@pytest.mark.parametrize("shards", [(), ("--shard-size", "1")], ids=["plain", "shards"])
@pytest.mark.parametrize("command", COMMANDS)
def test_proposals_of_one_photograph_are_not_those_of_its_namesake(
    command, shards, models, tmp_path, monkeypatch
):
    """Which of two photographs an entry without folders means, nobody knows."""
    names = ["shop1/a", "shop2/a", "shop2/b"]
    for name in names:
        photo(tmp_path / f"photos/{name}.png", 40, 30)
    rows = "".join(f"{name}.png,cat\n" for name in names)
    (tmp_path / "photos/labels.csv").write_text(f"image,labels\n{rows}")
    snapped = []
    monkeypatch.setattr(
        ProposalsRefiner, "_snapped", lambda self, maps, _: (
            snapped.append(maps.name) if self.proposals.of(maps.name) else None, maps
        )[1],
    )  # fmt: skip
    for file_name, expected in (("a.png", []), ("b.png", ["shop2/b"])):
        entry = {"segmentation": {"size": [30, 40], "counts": [1200]}, "file_name": file_name}
        (tmp_path / "all.json").write_text(json.dumps([entry]))
        refiners = f"refiners=[{{proposals: {{file: {tmp_path / 'all.json'}}}}}]"
        out, snapped[:] = tmp_path / file_name, []
        given = arguments(command, models, tmp_path / "photos", out, "--set", refiners, *shards)
        assert said(cli.main, *given)[0] == 0
        assert snapped == expected
