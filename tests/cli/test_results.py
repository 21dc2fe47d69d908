"""``weaktr label`` and ``weaktr predict``: masks belong to exactly their inputs, and nothing of
anybody else's is touched."""

from __future__ import annotations

import builtins
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import uuid

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

from tests.cli.test_photographs import (
    COMMANDS,
    arguments,
    models,  # noqa: F401 (a fixture)
    photo,
    with_labels,
)
from tests.cli.test_train import said
from weaktr import cli, outputs
from weaktr.contents import Contents
from weaktr.data.io import read_stored_labels
from weaktr.data.masks import MaskFolder, png_bytes
from weaktr.evaluation.notebook import Mask
from weaktr.models import checkpoints
from weaktr.seals import is_saved, is_sealed
from weaktr.stages import check_models, store


@pytest.fixture
def photos(tmp_path):
    for name in "abc":
        photo(tmp_path / "photos" / f"{name}.png", 50, 40, seed=ord(name))
    return with_labels(tmp_path / "photos")


@pytest.fixture
def run(models, photos, tmp_path):  # noqa: F811
    """Run a command on the photographs; gives exit code, text in one line, and the masks."""

    def call(command, *more, own=models, out=tmp_path / "out"):
        code, text = said(cli.main, *arguments(command, own, photos, out, *more))
        masks = MaskFolder(out, verify=True) if out.is_dir() and code != cli.WRONG_INPUT else None
        return code, " ".join(text.split()), masks

    return call


def stamps(masks):
    return {name: masks.path(name).stat().st_mtime_ns for name in masks.entries}


def replaced(path, seed):
    """Another photograph of the same size in pixels and bytes, with the same time."""
    before = path.stat()
    noise = np.random.default_rng(seed).integers(0, 255, (40, 50, 3), np.uint8)
    Image.fromarray(noise).save(path, compress_level=0)
    content = path.read_bytes()
    path.write_bytes(content + bytes(max(0, before.st_size - len(content))))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


# ---------------------------------------------------------------- results belong to their inputs


@pytest.mark.parametrize("command", COMMANDS)
def test_another_model_of_the_same_name_and_size_does_not_go_on(command, models, run, tmp_path):  # noqa: F811
    own = {command: tmp_path / "model.safetensors"}
    model, facts = checkpoints.load(models[command])
    checkpoints.save(model, own[command], classes=facts["classes"])
    size = own[command].stat().st_size
    assert run(command, own=own)[0] == 0
    with torch.no_grad():
        next(model.parameters()).add_(1)
    checkpoints.save(model, own[command], classes=facts["classes"])
    assert own[command].stat().st_size == size
    code, text, _ = run(command, own=own)
    assert code == cli.WRONG_INPUT
    assert f"another checkpoint ({own[command]} has changed since); choose another --out" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_the_same_model_elsewhere_goes_on(command, models, run, tmp_path):  # noqa: F811
    before = stamps(run(command)[2])
    moved = tmp_path / "elsewhere" / "other.safetensors"
    moved.parent.mkdir()
    shutil.copy(models[command], moved)
    code, _, masks = run(command, own={command: moved})
    assert code == 0
    assert stamps(masks) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_masks_of_other_photographs_are_not_replaced(command, models, run, photos, tmp_path):  # noqa: F811
    run(command)
    photo(tmp_path / "second" / "b.png", 50, 40, seed=7)
    before = tree(tmp_path / "out")
    call = arguments(command, models, with_labels(tmp_path / "second"), tmp_path / "out")
    code, text = said(cli.main, *call)
    assert code == cli.WRONG_INPUT
    told = f"out: holds masks of other photographs ({photos} there, {tmp_path / 'second'} now)"
    assert told in " ".join(text.split())
    assert tree(tmp_path / "out") == before
    photos.rename(tmp_path / "moved")
    assert said(cli.main, *call)[0] == 0  # of what is gone nothing is known


def test_masks_of_another_command_are_not_replaced(models, run, photos, tmp_path):  # noqa: F811
    call = arguments("predict", models, photos, tmp_path / "out")
    assert said(cli.main, "label", *call[1:])[0] == 0
    before = tree(tmp_path / "out")
    code, text, _ = run("predict")
    assert code == cli.WRONG_INPUT
    assert "holds masks of weaktr label, which weaktr predict would replace; choose" in text
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("command", COMMANDS)
def test_other_settings_are_named(command, run):
    run(command)
    code, text, _ = run(command, "--set", "max_side=333")
    assert code == cli.WRONG_INPUT
    assert "settings.max_side: 1024 there, 333 now" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_a_replaced_photograph_is_done_again_and_no_other(command, run, photos, caplog):
    old = run(command)[2]
    before, digests = stamps(old), old.entries["b"].inputs
    replaced(photos / "b.png", seed=99)
    code, _, masks = run(command)
    assert code == 0
    changed = [name for name, stamp in stamps(masks).items() if stamp != before[name]]
    assert changed == ["b"]
    assert masks.entries["b"].inputs != digests
    assert "1 images have changed, or their labels (b): their masks are made again" in caplog.text


def test_changed_labels_are_done_again(run, photos):
    before = stamps(run("label")[2])
    file = photos / "labels.csv"
    file.write_text(file.read_text().replace("b.png,cat", "b.png,dog"))
    masks = run("label")[2]
    assert [name for name, stamp in stamps(masks).items() if stamp != before[name]] == ["b"]
    assert set(masks.entries["b"].labels) <= {0, 2}


def test_a_mask_of_labels_that_were_taken_away_does_not_stay(run, photos):
    run("label")
    file = photos / "labels.csv"
    file.write_text(file.read_text().replace("b.png,cat", "b.png,"))
    code, _, masks = run("label")
    assert code == 0
    assert sorted(masks.entries) == ["a", "c"]
    assert not masks.path("b").exists()
    assert not MaskFolder(masks.folder / "before_refinement").path("b").exists()
    file.write_text(file.read_text().replace("b.png,", "b.png,cat"))
    assert sorted(run("label")[2].entries) == ["a", "b", "c"]


def test_stored_cams_that_were_made_again_are_done_again(run, photos, tmp_path):
    run("label", "--emit", "cam")
    cams, out = tmp_path / "out" / "cams", tmp_path / "of_cams"
    call = ["label", cams, photos, "--out", out, "--set", "crf=none"]
    assert said(cli.main, *call)[0] == 0
    before = stamps(MaskFolder(out))
    with np.load(cams / "c.npz") as stored:
        arrays = dict(stored)
    np.savez(cams / "c.npz", **arrays | {"cams": 1 - arrays["cams"]})
    assert said(cli.main, *call)[0] == 0
    after = stamps(MaskFolder(out))
    assert [name for name in after if after[name] != before[name]] == ["c"]


@pytest.mark.parametrize("command", COMMANDS)
def test_what_could_not_be_read_is_tried_again(command, run, photos):
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:60])
    code, _, masks = run(command)
    assert code == cli.FAILED and sorted(masks.entries) == ["a", "c"]
    (photos / "b.png").write_bytes(whole)
    code, _, masks = run(command)
    assert code == 0 and sorted(masks.entries) == ["a", "b", "c"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_photograph_that_changes_while_it_is_read_is_left_out(command, run, photos, monkeypatch):
    from weaktr.inference import cams, predictions

    for module in (cams, predictions):
        read = module.read_photograph

        def reading(sample, max_side, read=read):
            photograph = read(sample, max_side)
            if sample.name == "b":
                replaced(sample.image, seed=7)
            return photograph

        monkeypatch.setattr(module, "read_photograph", reading)
    code, _, masks = run(command)
    assert code == cli.FAILED and sorted(masks.entries) == ["a", "c"]
    monkeypatch.undo()
    assert run(command)[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mask_corrected_by_hand_stays(command, run, photos, caplog):
    masks = run(command)[2]
    mine = np.full((40, 50), 2, np.uint8)
    Image.fromarray(mine).save(masks.path("b"))
    for _ in range(2):
        code, _, masks = run(command)
        assert code == 0
        np.testing.assert_array_equal(read_stored_labels(masks.path("b")), mine)
        assert "1 masks were changed by hand (b): they stay as they are" in caplog.text
        caplog.clear()
    replaced(photos / "b.png", seed=99)
    assert run(command)[0] == cli.FAILED
    assert "its mask was changed by hand, and its photograph or its labels since" in caplog.text
    np.testing.assert_array_equal(read_stored_labels(masks.path("b")), mine)


@pytest.mark.parametrize("way", ["emit", "before", "chunks", "copied", "extra gone"])
def test_a_corrected_mask_stays_whatever_else_is_to_be_made(run, tmp_path, way):
    masks = run("label", "--emit", "cam")[2]
    path, mine = masks.path("b"), np.full((40, 50), 2, np.uint8)
    if way == "copied":
        other = run("label", "--set", "threshold=0.9", out=tmp_path / "other")[2]
        assert other.path("b").read_bytes() != path.read_bytes()
        shutil.copy(other.path("b"), path)
        mine = read_stored_labels(path)
    else:
        picture = Image.fromarray(mine)
        if way == "chunks":  # of a program that keeps what a PNG says of its origin
            path.write_bytes(png_bytes(picture))
        else:
            picture.save(path)
    if way == "before":
        shutil.rmtree(tmp_path / "out" / "before_refinement")
    if way == "extra gone":
        (tmp_path / "out" / "cams" / "b.npz").unlink()
    more = ("--emit", "cam,confidence") if way == "emit" else ("--emit", "cam")
    assert run("label", *more)[0] == 0
    np.testing.assert_array_equal(read_stored_labels(path), mine)


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_a_corrected_mask_that_is_none_any_more_is_named(run, mode, caplog):
    path = run("label")[2].path("b")
    pixels = np.full((40, 50), 300, np.uint16)
    Image.fromarray(pixels if mode == "I;16" else np.zeros((40, 50, 3), np.uint8)).save(path)
    content = path.read_bytes()
    assert run("label")[0] == cli.FAILED
    assert "its mask cannot be used: " in caplog.text
    assert path.read_bytes() == content


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.zeros((41, 50)), "expected 50x40 (width x height), got 50x41"),
        (np.full((40, 50), 3), "expected 0..2 or 255, got 3"),
    ],
)
def test_a_corrected_mask_of_another_size_or_class_is_named(run, command, pixels, told, caplog):
    path = run(command)[2].path("b")
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    content = path.read_bytes()
    assert run(command)[0] == cli.FAILED
    assert f"its mask cannot be used: {path}: " in caplog.text and told in caplog.text
    assert path.read_bytes() == content


@pytest.mark.parametrize("form", ["JPEG2000", "TGA", "PPM", "ICO", "text"])
def test_a_corrected_mask_in_another_form_stays(run, form, caplog):
    path = run("label")[2].path("b")
    if form == "text":
        path.write_text("to be done")
    else:
        Image.fromarray(np.full((40, 50), 2, np.uint8)).save(path, format=form)
    content = path.read_bytes()
    assert run("label")[0] == cli.FAILED
    assert "its mask cannot be used: " in caplog.text and str(path) in caplog.text
    assert path.read_bytes() == content


def test_a_mask_that_cannot_be_read_stays(run, monkeypatch, caplog):
    path = run("label")[2].path("b")
    Image.fromarray(np.full((40, 50), 2, np.uint8)).save(path)
    content, digest = path.read_bytes(), Contents.digest

    def refused(self, file):
        if file == path:
            raise PermissionError(13, "Permission denied", str(path))
        return digest(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(Contents, "digest", refused)
        assert run("label")[0] == cli.FAILED
        assert f"its mask cannot be used: [Errno 13] Permission denied: '{path}'" in caplog.text
    assert path.read_bytes() == content and run("label")[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("corrected", [False, True])
def test_a_photograph_that_cannot_be_read_now_keeps_its_mask(
    command, corrected, run, photos, caplog
):
    path = run(command)[2].path("b")
    if corrected:
        Image.fromarray(np.full((40, 50), 2, np.uint8)).save(path)
    content, photograph = path.read_bytes(), (photos / "b.png").read_bytes()
    (photos / "b.png").unlink()
    (photos / "b.png").symlink_to("nowhere")
    assert run(command)[0] == cli.FAILED
    told = (
        "cannot be read now; its mask, which was changed by hand, stays" if corrected else "b.png"
    )
    assert told in caplog.text and "delete the mask" not in caplog.text
    assert path.read_bytes() == content
    (photos / "b.png").unlink()
    (photos / "b.png").write_bytes(photograph)
    assert run(command)[0] == 0 and path.read_bytes() == content


def test_a_corrected_mask_before_refinement_of_one_that_is_gone(run, tmp_path, caplog):
    before = tmp_path / "out" / "before_refinement" / "masks" / "b.png"
    path = run("label")[2].path("b")
    Image.fromarray(np.full((40, 50), 2, np.uint8)).save(before)
    path.unlink()
    content = before.read_bytes()
    assert run("label")[0] == cli.FAILED
    assert "its mask before refinement was changed by hand, and the refined one" in caplog.text
    assert before.read_bytes() == content and not path.exists()
    shutil.move(before, path)
    code, text, _ = run("label")
    assert code == 0, text
    assert path.read_bytes() == content


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_an_earlier_photograph_stays_beside_the_mask(command, run, photos, tmp_path):
    option, extra = {
        "label": (("--emit", "cam"), "cams"), "predict": (("--dump-scores",), "scores")
    }[command]  # fmt: skip
    run(command, *option)
    file = tmp_path / "out" / extra / "b.npz"
    before = file.read_bytes()
    replaced(photos / "b.png", seed=99)
    run(command)
    assert not file.exists()
    assert run(command, *option)[0] == 0
    assert file.read_bytes() != before


def test_a_corrected_mask_stays_where_its_labels_are_taken_away(run, photos, caplog):
    masks = run("label")[2]
    mine = np.full((40, 50), 2, np.uint8)
    Image.fromarray(mine).save(masks.path("b"))
    file = photos / "labels.csv"
    file.write_text(file.read_text().replace("b.png,cat", "b.png,"))
    for _ in range(2):
        assert run("label")[0] == cli.FAILED
        assert "its mask was changed by hand, and its photograph or its labels" in caplog.text
        np.testing.assert_array_equal(read_stored_labels(masks.path("b")), mine)


def test_a_damaged_index_is_named_with_its_line(run, tmp_path):
    run("predict")
    index = tmp_path / "out" / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    for damage in ("{nonsense\n", "[]\n", lines[1].replace("masks/b", "../b"), "[" * 99999 + "\n"):
        index.write_text(lines[0] + damage + lines[2])
        code, text, _ = run("predict")
        assert code == cli.WRONG_INPUT, text
        assert "index.jsonl:2" in text and "Traceback" not in text


def test_reading_an_index_changes_nothing(run, tmp_path):
    run("predict")
    index = tmp_path / "out" / "index.jsonl"
    half = index.read_bytes() + b'{"name": "d"'
    index.write_bytes(half)
    assert len(MaskFolder(tmp_path / "out", verify=True)) == 3
    assert index.read_bytes() == half


def test_photographs_that_no_line_lists_are_told(run, photos, caplog):
    photo(photos / "d.png", 50, 40)
    code, _, masks = run("label")
    assert code == 0 and sorted(masks.entries) == ["a", "b", "c"]
    assert (
        f"1 photograph in {photos} is not in labels.csv, so without a mask (d.png)" in caplog.text
    )


def test_photographs_outside_of_images_are_told(run, photos, caplog):
    (photos / "images").mkdir()
    for file in photos.glob("*.png"):
        file.rename(photos / "images" / file.name)
    photo(photos / "d.png", 50, 40)
    code, _, masks = run("label")
    assert code == 0 and sorted(masks.entries) == ["a", "b", "c"]
    told = "1 photograph outside of images/ (d.png) is in no line of labels.csv, so without a mask"
    assert f"{photos}: {told}" in caplog.text


# ---------------------------------------------------------------- nothing of anybody's is touched


def tree(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["masks/b.png", "b.png", "notes.txt", "index.jsonl"])
def test_a_folder_with_files_of_others_is_refused(command, run, tmp_path, name):
    theirs = tmp_path / "out" / name
    theirs.parent.mkdir(parents=True, exist_ok=True)
    theirs.write_bytes(b"a week's work")
    before = tree(tmp_path / "out")
    code, text, _ = run(command)
    assert code == cli.WRONG_INPUT
    assert "expected an empty folder or one that weaktr made" in text
    assert tree(tmp_path / "out") == before


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["d.png", "deep/d.png", "b.png"])
def test_a_mask_of_others_among_ours_is_refused(command, run, tmp_path, photos, name):
    (photos / "b.png").rename(tmp_path / "b.png")
    with_labels(photos) if command == "label" else None
    run(command)
    (tmp_path / "b.png").rename(photos / "b.png")
    theirs = tmp_path / "out" / "masks" / name
    theirs.parent.mkdir(exist_ok=True)
    Image.fromarray(np.ones((40, 50), np.uint8)).save(theirs)
    before = tree(tmp_path / "out")
    code, text, _ = run(command)
    assert code == cli.WRONG_INPUT
    assert f"masks/{name}: is not in" in text and "no command of weaktr's wrote it" in text
    assert tree(tmp_path / "out") == before


def test_a_mask_saved_for_a_photograph_without_labels_stays(run, photos, tmp_path):
    (photos / "labels.csv").write_text("image,labels\na.png,cat\nc.png,cat\n")
    run("label")
    theirs = tmp_path / "out" / "masks" / "b.png"
    Mask(np.ones((40, 50), np.uint8)).save(theirs)
    before = theirs.read_bytes()
    with_labels(photos)
    code, text, _ = run("label")
    assert code == cli.WRONG_INPUT and f"{theirs}: is not in" in text
    assert theirs.read_bytes() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mask_saved_while_masks_are_made_stays(command, run, tmp_path, monkeypatch, caplog):
    theirs = tmp_path / "out" / "masks" / "b.png"
    real = store.read_with_inputs

    def reading(sample, *rest):
        if sample.name == "b":
            theirs.parent.mkdir(exist_ok=True)
            Mask(np.ones((40, 50), np.uint8)).save(theirs)
        return real(sample, *rest)

    monkeypatch.setattr(store, "read_with_inputs", reading)
    assert run(command)[0] == cli.FAILED
    assert f"{theirs}: no command of weaktr's wrote it: move it away" in caplog.text
    assert is_saved(theirs)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out", ["photos", "photos/out", "photos/deep/er", "link", "."])
def test_results_among_the_photographs_are_refused(command, run, photos, tmp_path, out):
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    before = tree(tmp_path)
    code, text, _ = run(command, out=tmp_path / out)
    assert code == cli.WRONG_INPUT
    assert "lies in the folder of the photographs" in text or "from which the results" in text
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["masks", "before_refinement", "index.jsonl", "masks/deep", "before_refinement/masks"]
)
def test_nothing_is_written_through_a_link(run, tmp_path, name):
    run("label")
    ours, theirs = tmp_path / "out" / name, tmp_path / "theirs"
    if ours.exists():
        ours.rename(theirs)
    else:
        theirs.mkdir()
    ours.symlink_to(theirs)
    before = tree(tmp_path)
    code, text, _ = run("label")
    assert code == cli.WRONG_INPUT
    assert "is a link" in text or "no command of weaktr's wrote it" in text
    assert tree(tmp_path) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_second_process_ends_with_one_line(command, run, tmp_path, monkeypatch):
    monkeypatch.setattr(outputs, "PATIENCE", 0.1)
    run(command)
    code = (
        "import sys, filelock\n"
        "with filelock.FileLock(sys.argv[1]): print('locked', flush=True); input()"
    )
    lock = tmp_path / "out" / outputs.LOCK
    holder = subprocess.Popen(
        [sys.executable, "-c", code, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"locked\n"
    code, text, _ = run(command)
    assert code == cli.WRONG_INPUT
    assert text.endswith("another process works in it; wait for it, or choose another --out")
    holder.kill()
    holder.wait()
    assert run(command)[0] == 0
    with FileLock(lock, timeout=0):
        pass


@pytest.mark.parametrize("command", COMMANDS)
def test_what_killed_processes_left_half_written_is_cleared(command, run, tmp_path):
    run(command)
    for place in ("", "masks", "masks/deep", "before_refinement/masks"):
        folder = tmp_path / "out" / place
        folder.mkdir(exist_ok=True)
        (folder / f".{uuid.uuid4().hex}.part").write_bytes(b"half")
    (tmp_path / "out" / ".mine.part").touch()
    assert run(command)[0] == 0
    assert [path.name for path in (tmp_path / "out").rglob("*.part")] == [".mine.part"]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("out", ["file", "file/deep"])
def test_a_file_in_place_of_the_folder_is_named(command, run, tmp_path, out):
    (tmp_path / "file").write_text("mine")
    code, text = run(command, out=tmp_path / out)[:2]
    assert code == cli.WRONG_INPUT
    assert "expected a folder" in text and "is a file" in text


def test_a_link_to_nothing_in_place_of_the_folder_is_named(run, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    code, text, _ = run("predict", out=tmp_path / "link")
    assert code == cli.WRONG_INPUT and "is a link to nothing" in text
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_trace_replaces_a_trace_and_nothing_else(command, run, tmp_path):
    file = tmp_path / "notes.json"
    file.write_text("weaktr label photos")
    code, text, _ = run(command, "--profile", file)
    assert code == cli.WRONG_INPUT
    assert "notes.json: is there already, and weaktr did not write it" in text
    assert file.read_text() == "weaktr label photos"
    for _ in range(2):
        assert run(command, "--profile", tmp_path / "trace.json")[0] == 0


@pytest.mark.parametrize("suffix", [".tgz", ".tar"])
def test_an_archive_replaces_an_archive_and_nothing_else(run, photos, tmp_path, suffix, caplog):
    file = tmp_path / f"archive{suffix}"
    file.write_text("mine")
    code, text, _ = run("predict", "--archive", file)
    assert code == cli.WRONG_INPUT and "is there already" in text
    assert file.read_text() == "mine"
    file.unlink()
    for _ in range(2):
        assert run("predict", "--archive", file)[0] == 0
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:60])
    assert run("predict", "--archive", tmp_path / f"other{suffix}")[0] == cli.FAILED
    assert "not written, it needs a mask of every image" in caplog.text


def test_two_results_do_not_go_into_one_file(models, run, tmp_path):  # noqa: F811
    code, text, _ = run("predict", "--profile", tmp_path / "x.tar", "--archive", tmp_path / "x.tar")
    assert code == cli.WRONG_INPUT and "expected two files" in text
    (tmp_path / "here").symlink_to(tmp_path)
    for other in (tmp_path / "x", tmp_path / "out" / ".." / "x", tmp_path / "here" / "x"):
        both = ("--onnx", tmp_path / "x", "--torch-export", other)
        code, text = said(cli.main, "export", models["label"], *both)
        assert code == cli.WRONG_INPUT and "expected two files" in text


@pytest.mark.parametrize(
    ("command", "option"),
    [("label", "--profile"), ("predict", "--profile"), ("predict", "--archive")],
)
@pytest.mark.parametrize("place", ["out/masks/a.tar", "out/index.jsonl.tar", "photos/x.tar"])
def test_a_result_does_not_go_among_masks_or_photographs(command, option, place, run, tmp_path):
    code, text, _ = run(command, option, tmp_path / place)
    assert code == cli.WRONG_INPUT and f"{option} {tmp_path / place}: expected a file out" in text
    assert not (tmp_path / place).exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--profile", "--archive"])
def test_a_result_does_not_go_into_a_folder_of_other_results(option, run, tmp_path):
    assert run("label")[0] == 0
    place = tmp_path / "out" / "masks" / "x.tar"
    code, text, _ = run("predict", option, place, out=tmp_path / "other")
    assert code == cli.WRONG_INPUT and "a folder of other results; choose another place" in text
    assert not place.exists()


def test_a_single_result_does_not_take_the_place_of_a_runs_own(photos, tmp_path):
    (tmp_path / "run" / "pictures").mkdir(parents=True)
    (tmp_path / "run" / outputs.LOCK).touch()
    for name in ("recipe.yaml", "metrics.json", "pictures/train.png"):
        code, text = said(
            cli.main, "data", "write", "folder", photos, "--out", tmp_path / "run" / name
        )
        assert code == cli.WRONG_INPUT and "a run keeps its own there" in text
    assert len([*(tmp_path / "run").rglob("*")]) == 2
    code, text = said(cli.main, "data", "write", "folder", photos, "--out", tmp_path / "run/m.json")
    assert code == 0


def test_scores_do_not_go_among_photographs(run, photos, tmp_path):
    masks = run("predict")[2].folder
    shutil.copytree(masks / "masks", tmp_path / "truth")
    call = ["eval", masks, tmp_path / "truth", "--num-labels", 3, "--out", photos]
    code, text = said(cli.main, *call)
    assert code == cli.WRONG_INPUT and "would be taken for a photograph" in " ".join(text.split())
    assert not (photos / "metrics.json").exists()


def test_masks_without_a_seal_that_the_index_lists_are_weaktrs(run, photos, tmp_path):
    """As an older version wrote them."""
    masks = run("label")[2]
    for folder in (masks.folder, masks.folder / "before_refinement"):
        lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
        for line in lines:
            path = folder / line["file"]
            with Image.open(path) as picture:
                picture.load()
            picture.info.clear()
            picture.save(path)
            assert not is_sealed(path)
            line["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:60])
    for _ in range(2):
        assert run("label")[0] == cli.FAILED
    assert not masks.path("b").exists()
    (photos / "b.png").write_bytes(whole)
    assert run("label")[0] == 0


def test_a_changed_contact_sheet_is_kept(run, tmp_path, caplog):
    assert run("predict")[0] == 0
    sheet = tmp_path / "out" / "contact_sheet.png"
    sheet.write_bytes(sheet.read_bytes() + b"mine")
    assert run("predict")[0] == 0
    (kept,) = sheet.parent.glob("contact_sheet.old-*.png")
    assert kept.read_bytes().endswith(b"mine") and "it is kept as" in caplog.text


@pytest.mark.parametrize("file", ["cams/b.npz", "confidence/b.png"])
def test_a_changed_file_beside_the_masks_is_not_replaced(file, run, photos, tmp_path, caplog):
    more = ("--emit", "cam,confidence")
    assert run("label", *more)[0] == 0
    path = tmp_path / "out" / file
    path.write_bytes(b"mine")
    replaced(photos / "b.png", seed=99)
    for _ in range(2):
        code, text, _ = run("label", *more)
        assert code in (cli.FAILED, cli.WRONG_INPUT)
        assert str(path) in text + caplog.text and path.read_bytes() == b"mine"
    path.unlink()
    assert run("label", *more)[0] == 0 and is_sealed(path)


def test_corrected_masks_without_further_files_are_named(run, caplog):
    path = run("label")[2].path("b")
    Image.fromarray(np.full((40, 50), 2, np.uint8)).save(path)
    assert run("label", "--emit", "confidence")[0] == 0
    assert "1 images whose masks were changed by hand (b) have no confidence" in caplog.text


def test_a_mask_before_refinement_that_cannot_be_used_is_named(run, tmp_path, caplog):
    assert run("label")[0] == 0
    path = tmp_path / "out" / "before_refinement" / "masks" / "b.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
    assert run("label")[0] == cli.FAILED
    assert f"its mask cannot be used: {path}" in caplog.text


def test_a_damaged_mask_that_is_whole_at_its_ends_stays(run, caplog):
    """It may be a corrected one, by an editor that kept the seal."""
    path = run("label")[2].path("b")
    content = bytearray(path.read_bytes())
    content[-30] ^= 255
    path.write_bytes(content)
    assert run("label")[0] == cli.FAILED and path.read_bytes() == content
    path.write_bytes(content[:-20])
    assert run("label")[0] == 0 and is_sealed(path)


def test_masks_do_not_go_into_other_results(run, tmp_path):
    assert run("label")[0] == 0
    for place in ("out/masks", "out/mine", "out/masks/deep"):
        code, text, _ = run("label", out=tmp_path / place)
        assert code == cli.WRONG_INPUT and "a folder of other results; choose another" in text


def test_a_mask_that_would_be_a_folder_is_told_before_anything_runs(models, tmp_path):  # noqa: F811
    photo(tmp_path / "in" / "a.jpg", 20, 20, seed=1)
    photo(tmp_path / "in" / "a.png" / "b.png", 20, 20, seed=2)
    code, text = said(cli.main, *arguments("predict", models, tmp_path / "in", tmp_path / "out"))
    assert code == cli.WRONG_INPUT
    assert "is in a folder called like the mask of 'a': rename one" in " ".join(text.split())
    (tmp_path / "in/labels.csv").write_text("image,labels\na.jpg,cat\na.png/b.png,cat\n")
    code, text = said(cli.main, *arguments("label", models, tmp_path / "in", tmp_path / "out"))
    assert code == cli.WRONG_INPUT
    assert "is in a folder called like the mask of 'a': rename one" in " ".join(text.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--onnx", "--torch-export"])
def test_an_export_does_not_replace_files_of_others(models, tmp_path, option):  # noqa: F811
    file = tmp_path / "model.bin"
    file.write_text("mine")
    code, text = said(cli.main, "export", models["label"], option, file)
    assert code == cli.WRONG_INPUT and "is there already" in text
    assert file.read_text() == "mine"


def test_every_error_of_the_system_is_one_line(run, photos, tmp_path, monkeypatch):
    for error, code in [
        (PermissionError(13, "Permission denied", "x"), cli.FAILED),
        (OSError(28, "No space left on device", "x"), cli.FAILED),
        (IsADirectoryError(21, "Is a directory", "x"), cli.WRONG_INPUT),
        (MemoryError(), cli.FAILED),
        (RecursionError("too deep"), cli.FAILED),
        (ValueError("a\x1b[31mb"), cli.WRONG_INPUT),
    ]:

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(checkpoints, "load", fail)
        result, text, _ = run("label")
        assert result == code
        assert text and "Traceback" not in text and "\x1b" not in text


def refuse_to_open(monkeypatch, *ends):
    """Let the system refuse files of these names, also to whom it refuses nothing."""
    before = builtins.open

    def refusing(file, *more, **options):
        if str(file).endswith(ends):
            raise PermissionError(13, "Permission denied", str(file))
        return before(file, *more, **options)

    monkeypatch.setattr(builtins, "open", refusing)
    monkeypatch.setattr(io, "open", refusing)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_checkpoint_that_may_not_be_read(command, run, monkeypatch):
    refuse_to_open(monkeypatch, ".safetensors")
    code, text, _ = run(command)
    assert code == cli.FAILED
    assert ".safetensors: cannot be read: permission denied" in text


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_cams_that_may_not_be_read(tmp_path, monkeypatch, suffix):
    for folder in ("cams", "truth"):
        (tmp_path / folder).mkdir()
    (tmp_path / f"cams/a{suffix}").write_bytes(b"")
    Image.new("P", (5, 4)).save(tmp_path / "truth/a.png")
    refuse_to_open(monkeypatch, suffix)
    code, text = said(
        cli.main, "eval", tmp_path / "cams", tmp_path / "truth", "--num-labels", 3,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == cli.FAILED and "cannot be read" in text and not (tmp_path / "out").exists()


def test_windows_that_do_not_fit_the_memory_are_refused(models, photos, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(check_models, "memory_of", lambda _: 2**34)
    for command in COMMANDS:
        large = ("--out", tmp_path / "out", "--set", "window=65536")
        code, text = said(cli.main, command, models["predict"], photos, *large)
        assert code == cli.WRONG_INPUT and not (tmp_path / "out").exists()
        assert "window: 65536 x 65536 pixels take at least 48 GiB, cpu has 16 GiB" in text


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("is_there", [True, False])
def test_a_start_with_a_wrong_setting_leaves_nothing(command, is_there, run, tmp_path):
    out = tmp_path / "deep" / "out"
    if is_there:
        out.mkdir(parents=True)
    for setting in ("crf=vox", "crf={bilateral: [0,0,0]}", "refiners=[{crf: {iterations: -1}}]"):
        assert run(command, "--set", setting, out=out)[0] == cli.WRONG_INPUT
        assert out.exists() == out.parent.exists() == is_there
        assert not is_there or not any(out.iterdir())
    assert run(command, out=out)[0] == 0


def test_scores_do_not_replace_files_of_others(run, photos, tmp_path):
    masks = run("predict")[2].folder
    truth = tmp_path / "truth"
    shutil.copytree(masks / "masks", truth)
    file = tmp_path / "scores" / "metrics.json"
    file.parent.mkdir()
    file.write_text('{"val_miou": 71.2}')
    call = ["eval", masks, truth, "--num-labels", 3, "--out", file.parent]
    code, text = said(cli.main, *call)
    assert code == cli.WRONG_INPUT and "weaktr did not write it" in text
    assert file.read_text() == '{"val_miou": 71.2}'
    file.unlink()
    for _ in range(2):
        assert said(cli.main, *call)[0] == 0
    for given, among in ((masks, "masks"), (masks, truth), (masks / "masks", ""), (truth, "deep")):
        out = given / among
        code, text = said(cli.main, "eval", given, *call[2:-1], out)
        assert code == cli.WRONG_INPUT and "expected a folder outside the masks" in text
    chart = file.parent / "classes.png"
    chart.write_bytes(chart.read_bytes() + b"mine")
    code, text = said(cli.main, *call)
    assert code == cli.WRONG_INPUT and "classes.png: is there already" in text


def test_a_changed_manifest_is_not_replaced(photos, tmp_path):
    file = tmp_path / "m.json"
    call = ["data", "write", "folder", photos, "--out", file]
    for _ in range(2):
        assert said(cli.main, *call)[0] == 0
    mine = file.read_text().replace('"cat"', '"lynx"')
    file.write_text(mine)
    code, text = said(cli.main, *call)
    assert code == cli.WRONG_INPUT and "or somebody has changed it" in text
    assert file.read_text() == mine
    for out in (photos / "train.json", tmp_path / "photos" / ".." / "photos" / "labels.json"):
        code, text = said(cli.main, *call[:-1], out)
        assert code == cli.WRONG_INPUT and "expected a file beside the data" in text
        assert not out.exists()
