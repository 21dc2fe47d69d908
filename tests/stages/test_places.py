"""A run that is started again: what is made again, what stays; nothing of others is lost."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.stages import tiny
from weaktr import outputs
from weaktr.data import DataError, Problem
from weaktr.data.masks import MaskFolder
from weaktr.files import read_json, write_json
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.predictions import Predictor
from weaktr.outputs import finished_facts
from weaktr.shards.index import join
from weaktr.shards.records import read_results
from weaktr.stages import pipeline, places
from weaktr.stages.inputs import inputs_of
from weaktr.stages.pipeline import check_recipe, run_recipe
from weaktr.stages.run import Run

STAGES = ("train_cam", "label", "train_seg", "predict", "evaluate")


@pytest.fixture(autouse=True)
def messages(caplog):
    caplog.set_level(logging.INFO, "weaktr")
    return caplog


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A data set and a finished run."""
    home = tmp_path_factory.mktemp("home")
    root = tiny.squares(home / "squares", count=8)
    run_recipe(tiny.recipe(root), home / "run")
    return home


@pytest.fixture
def home(finished, tmp_path):
    """A copy of both, which a test may change."""
    shutil.copytree(finished, tmp_path / "home")
    return tmp_path / "home"


def recipe(home, **changes):
    return tiny.recipe(home / "squares", **changes)


def made_again(home, **changes):
    """The stages that a further start makes again."""
    files = {stage: home / "run" / stage / "finished.json" for stage in STAGES}
    before = {stage: file.stat().st_mtime_ns for stage, file in files.items()}
    run_recipe(recipe(home, **changes), home / "run")
    return [stage for stage, file in files.items() if file.stat().st_mtime_ns != before[stage]]


def test_a_run_and_its_data_may_be_moved(home):
    assert made_again(home) == []


@pytest.fixture
def other(home):
    """The folder of a recipe of other photographs."""
    root = tiny.squares(home / "other" / "squares", count=5)
    for path in (root / "images").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    return root


def test_results_of_other_photographs_are_not_replaced(home, other):
    before = sorted(path.name for path in (home / "run").rglob("*"))
    told = "holds results of other data, folder .*squares, that know no .*other/squares; move it"
    for _ in range(2):
        with pytest.raises(ValueError, match=told):
            run_recipe(tiny.recipe(other), home / "run")
    (fault,) = [f for part in check_recipe(tiny.recipe(other), home / "run") for f in part.faults]
    assert fault.endswith("move it away, or choose another --out")
    assert sorted(path.name for path in (home / "run").rglob("*")) == before
    assert made_again(home) == []


def test_data_elsewhere_that_have_grown_are_no_others(home, other):
    shutil.copy(home / "squares" / "images" / "0.png", other / "images" / "4.png")
    before = finished_facts(home / "run" / "train_cam")
    run_recipe(tiny.recipe(other), home / "run", only="train_cam")
    assert finished_facts(home / "run" / "train_cam") != before


def test_data_that_were_wrong_before_anything_was_finished_may_be_others(home, other):
    for file in (home / "run").glob("*/finished.json"):
        file.unlink()
    run_recipe(tiny.recipe(other), home / "run", only="train_cam")
    assert finished_facts(home / "run" / "train_cam") is not None


def test_a_replaced_photograph_of_the_same_size_and_time_is_noticed(home):
    path = home / "squares" / "images" / "3.png"
    before = path.stat()
    content = bytearray(path.read_bytes())
    pixels = np.asarray(Image.open(path)).copy()
    pixels[:] = 255 - pixels
    Image.fromarray(pixels).save(path)
    padded = path.read_bytes()
    path.write_bytes(padded + bytes(max(0, len(content) - len(padded))))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert made_again(home) == list(STAGES)


def test_changed_labels_are_noticed(home):
    file = home / "squares" / "labels.csv"
    lines = file.read_text().splitlines(keepends=True)
    name = lines[1].partition(",")[0]
    lines[1] = f"{name},red\n" if not lines[1].endswith("red\n") else f"{name},green\n"
    file.write_text("".join(lines))
    assert made_again(home)[:3] == ["train_cam", "label", "train_seg"]


def test_a_true_mask_that_is_corrected_is_scored_again_and_nothing_else(home):
    path = sorted((home / "squares" / "masks").iterdir())[0]
    labels = np.asarray(Image.open(path)).copy()
    labels[:4] = 255
    Image.fromarray(labels).save(path)
    assert made_again(home) == ["evaluate"]


def test_another_model_in_its_place_is_noticed(home):
    shutil.copy(home / "run/train_seg/model.safetensors", home / "keep")
    trained = home / "run" / "train_cam" / "model.safetensors"
    content = bytearray(trained.read_bytes())
    content[-5] ^= 1  # a bit of a weight
    trained.write_bytes(content)
    assert made_again(home)[:1] == ["label"]


def test_a_pseudo_label_that_is_corrected_by_hand_is_trained_on(home, messages):
    masks = MaskFolder(home / "run" / "label")
    mine = np.ones_like(masks.read("1"))
    Image.fromarray(mine).save(masks.path("1"))
    assert made_again(home)[:3] == ["label", "train_seg", "predict"]
    assert "1 masks were changed by hand (1)" in messages.text
    np.testing.assert_array_equal(np.asarray(Image.open(masks.path("1"))), mine)
    assert made_again(home) == []


def test_a_mask_that_is_gone_is_made_again_and_no_training_repeated(home):
    path = MaskFolder(home / "run" / "label").path("1")
    content = path.read_bytes()
    path.unlink()
    assert made_again(home) == ["label"]
    assert path.read_bytes() == content


# ---------------------------------------------------------------- earlier results stay until then


def test_earlier_results_stay_until_the_new_ones_are_whole(home, monkeypatch, messages):
    other = {"train_cam": {"lr": 2e-3}}
    run = home / "run"

    def visible():
        files = (path for path in run.rglob("*") if path.is_file() and path.name[0] != ".")
        return {path: path.read_bytes() for path in files}

    before = visible()
    work = []

    def interrupted(*arguments, real=pipeline.TRAIN_CAM.work):
        work.append(arguments)
        real(*arguments)
        raise KeyboardInterrupt

    broken = replace(pipeline.TRAIN_CAM, work=interrupted)
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "STAGES", (broken, *pipeline.STAGES[1:]))
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe(home, **other), run)
    assert "settings.train_cam.lr: 0.001 there, 0.002 now" in messages.text
    after = visible()
    new = {path.relative_to(run).parts[0] for path in after.keys() - before.keys()}
    assert len(new) == 1 and new.pop().startswith("train_cam.new-")
    assert {path: after[path] for path in before} == before
    assert made_again(home) == []  # the former settings find their results
    assert made_again(home, **other) == list(STAGES)
    assert sorted(p.name for p in run.iterdir() if p.is_dir()) == sorted(STAGES)


@pytest.mark.parametrize(
    ("stage", "amp"), [(pipeline.TRAIN_CAM, "fp16_on_cuda"), (pipeline.TRAIN_SEG, "none")]
)
def test_another_precision_trains_again_but_what_older_versions_trained_stays(home, stage, amp):
    """They had one name in fingerprints for the default and this precision."""
    default, other = (Run(recipe(home, **{stage.name: {"amp": a}}), home / "run")
                      for a in ("auto", amp))  # fmt: skip
    folder = default.of(stage.name)

    def begin_other():
        return places.begin(folder, inputs_of(stage, other))

    def are_finished():
        return [pipeline.is_finished(stage, run, inputs_of(stage, run)) for run in (default, other)]

    assert are_finished() == [True, False]
    former = inputs_of(stage, other).renamed
    begun = folder.with_name(f"{folder.name}.new-{former[:8]}")
    outputs.begin(begun, former)
    assert begin_other() == begun, "goes on where an older version stopped"
    facts = read_json(folder / outputs.FINISHED)
    write_json(folder / outputs.FINISHED, facts | {"made_from": former})
    assert are_finished() == [True, True]


@pytest.mark.parametrize("at", ["rename", "rmtree"])
def test_a_kill_while_results_change_places_loses_nothing(home, monkeypatch, at):
    other = {"label": {"threshold": 0.6}}
    run = home / "run"
    renames = []

    def killed(path, *arguments, real=places.Path.rename):
        renames.append(path.name)
        if at == "rename" and path.name.startswith("label.new-"):
            raise SystemExit
        return real(path, *arguments)

    def never(path):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(places.Path, "rename", killed)
        patch.setattr(outputs.shutil, "rmtree", never)
        with pytest.raises(SystemExit):
            run_recipe(recipe(home, **other), run)
    assert [name for name in renames if name.startswith("label")]
    run_recipe(recipe(home, **other), run)
    assert read_json(run / "label" / "inputs.json")["settings"]["label"]["threshold"] == 0.6
    assert not [path for path in run.iterdir() if path.name.endswith(".removed")]
    assert not list(run.glob("label.*"))


@pytest.mark.parametrize(
    "mine",
    [
        "masks/mine.png", "notes.txt", "masks/1.png", "deep/notes.txt", "masks/1.json", ".notes",
        "before_refinement/notes.txt", "tensorboard/notes.txt", "my_classes.png", "stats.json",
        "index.parquet",
    ],
)  # fmt: skip
def test_results_with_files_of_others_are_kept_beside_the_new_ones(home, mine, messages):
    file = home / "run" / "label" / mine
    file.parent.mkdir(exist_ok=True)
    Image.fromarray(np.ones((32, 32), np.uint8)).save(file, format="PNG")
    content = file.read_bytes()
    run_recipe(recipe(home, label={"threshold": 0.6}), home / "run", only="label")
    (kept,) = (home / "run").glob("label.old-*")
    assert (kept / mine).read_bytes() == content
    assert f"{mine} is not as weaktr wrote it" in messages.text
    assert not (home / "run" / "label" / mine).exists() or mine == "masks/1.png"


def test_the_index_of_masks_is_no_file_of_others(home):
    join(read_results(home / "run" / "label"))
    run_recipe(recipe(home, label={"threshold": 0.6}), home / "run", only="label")
    assert not list((home / "run").glob("label.old-*"))


def test_what_several_processes_left_is_no_file_of_others(home):
    """They were killed while they labelled; then other masks are wanted, by one process."""
    label = home / "run" / "label"
    (label / "finished.json").unlink()
    lines = (label / "index.jsonl").read_text().splitlines(keepends=True)
    (label / "index.jsonl").write_text("".join(lines[::2]))
    (label / "index.1.jsonl").write_text("".join(lines[1::2]))
    assert run_recipe(tiny.recipe(home / "squares", label={"threshold": 0.7}), home / "run") == 0
    assert not list((home / "run").glob("label.old-*"))
    assert len((label / "index.jsonl").read_text().splitlines()) == len(lines)
    assert not list((home / "run").rglob("index.1.jsonl"))


def test_a_model_that_was_changed_is_kept(home):
    trained = home / "run" / "train_cam" / "model.safetensors"
    content = trained.read_bytes()[:-1] + b"\1"
    trained.write_bytes(content)
    run_recipe(recipe(home), home / "run", only="train_cam", force=True)
    (kept,) = (home / "run").glob("train_cam.old-*")
    assert (kept / "model.safetensors").read_bytes() == content


def test_force_keeps_files_of_others_in_an_attempt(home, monkeypatch):
    other = recipe(home, label={"threshold": 0.6})

    def stop(run, place):
        (place / "mine.txt").write_text("mine")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "STAGES", (replace(pipeline.LABEL, work=stop),))
        with pytest.raises(KeyboardInterrupt):
            run_recipe(other, home / "run", only="label")
    run_recipe(other, home / "run", only="label", force=True)
    (mine,) = (home / "run").glob("label.old-*/mine.txt")
    assert mine.read_text() == "mine"


def test_force_begins_anew_and_keeps_what_was_there_until_then(home, monkeypatch):
    run = home / "run"
    before = (run / "label" / "finished.json").read_bytes()

    def stop(*_):
        assert (run / "label" / "finished.json").read_bytes() == before
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "STAGES", (replace(pipeline.LABEL, work=stop),))
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe(home), run, only="label", force=True)
    assert (run / "label" / "finished.json").read_bytes() == before


# ---------------------------------------------------------------- a folder that is not weaktr's


@pytest.mark.parametrize(
    "name", ["label/mine.png", "train_cam/notes", "recipe.yaml", "metrics.json", "pictures/a.png"]
)
def test_a_folder_with_files_of_others_where_results_go_is_refused(finished, tmp_path, name):
    mine = tmp_path / "run" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ValueError, match="is there already, and weaktr did not write it"):
        run_recipe(recipe(finished), tmp_path / "run")
    assert [path for path in (tmp_path / "run").rglob("*") if path.is_file()] == [mine]
    assert mine.read_text() == "mine"


def test_files_of_others_beside_the_results_do_not_matter(finished, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "log.txt").write_text("mine")
    run_recipe(recipe(finished), tmp_path / "run", only="train_cam")
    assert (tmp_path / "run" / "log.txt").read_text() == "mine"


def test_annotations_in_the_place_of_a_later_stage_are_left_alone(home):
    shutil.rmtree(home / "run" / "label")
    (home / "run" / "label").mkdir()
    (home / "run" / "label" / "mine.png").write_text("a week's work")
    with pytest.raises(ValueError, match=r"label: expected an empty folder or one that weaktr"):
        run_recipe(recipe(home), home / "run")
    assert (home / "run" / "label" / "mine.png").read_text() == "a week's work"


@pytest.mark.parametrize("name", ["label", "recipe.yaml", "label/masks", "label/index.jsonl"])
def test_nothing_of_a_run_is_written_through_a_link(home, tmp_path, name):
    path = home / "run" / name
    path.rename(tmp_path / "theirs")
    path.symlink_to(tmp_path / "theirs")
    MaskFolder(home / "run" / "label").path("1").unlink()
    with pytest.raises(ValueError, match="is a link"):
        run_recipe(recipe(home), home / "run")


def test_a_run_among_the_photographs_is_refused(finished):
    folder = finished / "squares" / "images" / "run"
    with pytest.raises(ValueError, match="lies in the folder of the photographs"):
        run_recipe(recipe(finished), folder)
    assert not folder.exists()


def test_a_second_process_on_a_run_is_refused(home, monkeypatch):
    monkeypatch.setattr(outputs, "PATIENCE", 0.05)
    run = Run(recipe(home), home / "run")
    with places.claimed_run(run), pytest.raises(ValueError, match="another process works in it"):
        run_recipe(recipe(home), home / "run")
    assert made_again(home) == []


def test_a_recipe_in_other_words_stays(home):
    file = home / "run" / "recipe.yaml"
    assert made_again(home) == []  # says where the data are now
    file.write_text("# mine\n" + file.read_text())
    assert made_again(home) == []
    assert file.read_text().startswith("# mine\n")


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.json"])
def test_a_changed_file_of_a_run_is_kept_under_another_name(home, name, messages):
    assert made_again(home) == []
    file = home / "run" / name
    mine = file.read_text().replace("{", '{"mine": 1,', 1) if name[0] == "m" else "name: mine\n"
    file.write_text(mine)
    assert made_again(home) == []
    (kept,) = file.parent.glob(f"{file.stem}.old-*{file.suffix}")
    assert kept.read_text() == mine != file.read_text()
    assert f"it is kept as {kept.name}" in messages.text
    assert made_again(home) == [] and len([*file.parent.glob(f"{file.stem}.*")]) == 2


def test_changed_scores_are_kept_when_they_are_made_again(home):
    file = home / "run" / "evaluate" / "metrics.json"
    file.write_text(file.read_text() + " ")
    changed = {"thresholds": [0.0, 0.4, 0.2]}
    run_recipe(recipe(home, evaluate=changed), home / "run", only="evaluate")
    (kept,) = (home / "run").glob("evaluate.old-*/metrics.json")
    assert kept.read_text().endswith(" ")


@pytest.mark.parametrize(
    "name",
    ["evaluate/pseudo_label_classes.png", "evaluate/table.json", "train_cam/model.json",
     "train_cam/metrics.jsonl"],
)  # fmt: skip
def test_a_changed_file_of_a_stage_is_kept_when_it_is_made_again(home, name):
    file = home / "run" / name
    file.write_bytes(file.read_bytes() + b" ")
    stage = name.partition("/")[0]
    run_recipe(recipe(home), home / "run", only=stage, force=True)
    (kept,) = (home / "run").glob(f"{stage}.old-*/{file.name}")
    assert kept.read_bytes().endswith(b" ")


def test_scores_stay_when_the_evaluation_is_removed(home):
    file = home / "run" / "metrics.json"
    before = file.read_bytes()
    shutil.rmtree(home / "run" / "evaluate")
    run_recipe(recipe(home), home / "run")
    assert file.read_bytes() == before and not list(file.parent.glob("metrics.old*"))


@pytest.mark.parametrize("name", ["recipe.yaml", "metrics.json"])
def test_a_folder_in_the_place_of_a_file_is_told_before_anything_runs(home, name):
    (home / "run" / name).unlink()
    (home / "run" / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name}: is a folder; move it away"):
        run_recipe(recipe(home, train_cam={"lr": 2e-3}), home / "run")


def test_a_file_in_the_place_of_the_run_is_told_by_the_check(finished, tmp_path):
    (tmp_path / "run").write_text("mine")
    for folder in (tmp_path / "run", tmp_path / "run" / "deep"):
        faults = [fault for part in check_recipe(recipe(finished), folder) for fault in part.faults]
        assert any("expected a folder, " in fault and "is a file" in fault for fault in faults)


@pytest.mark.parametrize("stage", ["label", "predict"])
def test_a_corrected_mask_that_cannot_be_used_is_named_until_it_can(home, stage, messages):
    """And what was made without it is made again with it."""
    path = next((home / "run" / stage / "masks").glob("*.png"))
    content = path.read_bytes()
    results = {s: read_json(home / "run" / s / "finished.json")["result"] for s in STAGES}
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(path)
    for _ in range(2):
        messages.clear()
        assert run_recipe(recipe(home), home / "run") > 0
        assert "its mask cannot be used: " in messages.text and str(path) in messages.text
    later = "train_seg" if stage == "label" else "evaluate"
    messages.clear()
    assert run_recipe(recipe(home), home / "run", only=later) > 0
    assert "cannot be used" in messages.text
    other = {s: read_json(home / "run" / s / "finished.json")["result"] for s in STAGES}
    assert other["evaluate"] != results["evaluate"]
    path.write_bytes(content)
    assert run_recipe(recipe(home), home / "run") == 0
    assert results == {s: read_json(home / "run" / s / "finished.json")["result"] for s in STAGES}


@pytest.mark.parametrize("kind", ["file", "folder", "results", "link"])
def test_what_is_only_called_like_an_attempt_stays(home, tmp_path, kind):
    """``label.new-12345678`` of somebody's own: a file, a folder, results of another command."""
    mine = home / "run" / "label.new-12345678"
    if kind == "file":
        mine.write_text("mine")
    elif kind == "link":
        mine.symlink_to(tmp_path)
    else:
        mine.mkdir()
        (mine / "notes.txt").write_text("mine")
        if kind == "results":
            outputs.begin(home / "run" / "x", "f" * 32)
            shutil.copy(home / "run" / "x" / "inputs.json", mine)
    run_recipe(recipe(home, label={"threshold": 0.6}), home / "run", only="label")
    assert mine.is_symlink() or (mine if mine.is_file() else mine / "notes.txt").read_text()


def test_a_model_put_where_none_was_finished_is_kept(home):
    folder = home / "run" / "train_seg"
    (folder / "finished.json").unlink()
    (folder / "model.safetensors").write_bytes(b"mine")
    run_recipe(recipe(home, train_seg={"lr": 0.02}), home / "run", only="train_seg")
    (kept,) = (home / "run").glob("train_seg.old-*/model.safetensors")
    assert kept.read_bytes() == b"mine"


def test_earlier_results_that_cannot_be_removed_are_named(home, monkeypatch, messages):
    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(outputs.shutil, "rmtree", refused)
        for threshold in (0.6, 0.7):
            other = recipe(home, label={"threshold": threshold})
            run_recipe(other, home / "run", only="label")
        assert "earlier results, not needed any more, stay: Permission denied" in messages.text
    run_recipe(other, home / "run", only="label")
    assert not list((home / "run").glob(".*.removed"))


def test_a_run_inside_other_results_is_refused(home):
    for place in ("label", "label/masks", "train_cam/deep"):
        with pytest.raises(ValueError, match="a folder of other results; choose another place"):
            run_recipe(recipe(home), home / "run" / place)


def test_a_lock_that_is_a_link_is_refused(home, tmp_path):
    lock = home / "run" / outputs.LOCK
    lock.unlink()
    lock.symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match=r"\.weaktr-lock: expected a file, got a link"):
        run_recipe(recipe(home), home / "run")
    assert not (tmp_path / "theirs").exists()


def test_scores_of_the_run_are_those_of_its_finished_evaluation(home, monkeypatch):
    table = home / "run" / "metrics.json"
    before = table.read_bytes()
    monkeypatch.setattr("weaktr.stages.evaluate.draw_classes", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        changed = {"thresholds": [0.0, 0.4, 0.2]}
        run_recipe(recipe(home, evaluate=changed), home / "run")
    monkeypatch.undo()
    assert table.read_bytes() == before
    table.unlink()
    assert made_again(home) == []
    assert table.read_bytes() == before


def test_a_model_that_is_gone_is_trained_again(home):
    (home / "run" / "train_seg" / "model.safetensors").unlink()
    assert made_again(home)[0] == "train_seg"


def test_the_recipe_is_that_of_the_results(home, monkeypatch):
    """A start that ended before its first stage has not changed what the results are."""
    before = (home / "run" / "recipe.yaml").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(places, "begin", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_recipe(recipe(home, label={"threshold": 0.6}), home / "run")
    assert (home / "run" / "recipe.yaml").read_bytes() == before


# ---------------------------------------------------------------- what could not be read


@pytest.mark.parametrize("stage", ["label", "predict"])
def test_a_read_error_that_passes_is_not_for_good(home, monkeypatch, messages, stage):
    source = {"label": CamsOfModel, "predict": Predictor}[stage]
    real = source.read

    def read(self, sample):
        if sample.name == "2":
            raise DataError(Problem(str(sample.image), sample.source, "Input/output error"))
        return real(self, sample)

    run = home / "run"
    with monkeypatch.context() as patch:
        patch.setattr(source, "read", read)
        assert run_recipe(recipe(home), run, only=stage, force=True) == 1
        assert "2" not in MaskFolder(run / stage)
        assert run_recipe(recipe(home), run, only=stage) == 1  # tried again
    assert run_recipe(recipe(home), run, only=stage) == 0
    assert len(MaskFolder(run / stage, verify=True)) == 8
    assert run_recipe(recipe(home), run) == 0
    assert json.loads((run / stage / "finished.json").read_text())["images"]
