"""``weaktr label`` and ``weaktr predict``: nothing of anybody else's is touched."""

from __future__ import annotations

import shutil
import subprocess
import sys
import uuid

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from tests.cli.photographs import COMMANDS, arguments, photo, with_labels
from tests.cli.results import tree
from tests.cli.test_train import said
from weaktr import cli, outputs
from weaktr.evaluation.notebook import Mask
from weaktr.labelling import store
from weaktr.seals import is_saved


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


def test_two_results_do_not_go_into_one_file(models, run, tmp_path):
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


def test_masks_do_not_go_into_other_results(run, tmp_path):
    assert run("label")[0] == 0
    for place in ("out/masks", "out/mine", "out/masks/deep"):
        code, text, _ = run("label", out=tmp_path / place)
        assert code == cli.WRONG_INPUT and "a folder of other results; choose another" in text


def test_a_mask_that_would_be_a_folder_is_told_before_anything_runs(models, tmp_path):
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
def test_an_export_does_not_replace_files_of_others(models, tmp_path, option):
    file = tmp_path / "model.bin"
    file.write_text("mine")
    code, text = said(cli.main, "export", models["label"], option, file)
    assert code == cli.WRONG_INPUT and "is there already" in text
    assert file.read_text() == "mine"
