"""``weaktr label`` and ``weaktr predict`` on photographs as cameras and people leave them."""

from __future__ import annotations

import errno
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
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from tests.cli.photographs import (
    CAT_ALONE,
    COMMANDS,
    arguments,
    photo,
    with_labels,
)
from tests.cli.test_train import said
from weaktr import cli
from weaktr.data.masks import MaskFolder
from weaktr.files import whole_file
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.predictions import Predictor

#: Sizes (width, height) that nobody trains on.
STRANGE = [(1, 1), (3, 2000), (2000, 3), (4000, 16), (1, 100_000), (100_000, 1)]
#: Photographs that take some seconds.
MANY = 40


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


@pytest.mark.parametrize("command", ["label", pytest.param("predict", marks=pytest.mark.rare)])
def test_an_interruption_ends_soon_and_is_gone_on_with(command, models, tmp_path):
    photos = tmp_path / "photos"
    for number in range(MANY):
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
    output, _ = process.communicate(timeout=30)
    assert process.returncode == cli.INTERRUPTED, output
    assert b"Traceback" not in output
    kept = MaskFolder(tmp_path / "out", verify=True)
    assert 4 < len(kept) < MANY
    times = {name: kept.path(name).stat().st_mtime_ns for name in kept.entries}
    assert said(cli.main, *call)[0] == 0
    masks = MaskFolder(tmp_path / "out", verify=True)
    assert len(masks) == MANY
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
        for module in ("weaktr.labelling.masks", "weaktr.evaluation.models"):
            monkeypatch.setattr(f"{module}.limits_for", lambda *_, own=limits: own)
        out = tmp_path / f"out{number}"
        call = arguments("label", models, photos, out, "--emit", "confidence,cam")
        assert said(cli.main, *call)[0] == 0
        files = [path for path in out.rglob("*") if path.is_file() and path.name[0] != "."]
        files.remove(out / "inputs.json")
        contents.append({path.relative_to(out): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 9 * 4 + 3
