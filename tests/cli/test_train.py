"""The commands: what they do, what their help says, how mistakes end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.stages import tiny
from weaktr import cli
from weaktr.cli import show
from weaktr.data.masks import MaskFolder
from weaktr.models import CamModel, Segmenter, checkpoints
from weaktr.progress import console
from weaktr.recipes import dump_recipe, load_recipe
from weaktr.stages.run import Run


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("data") / "squares", count=8)


@pytest.fixture(scope="module")
def recipe_file(root, tmp_path_factory):
    file = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    file.write_text(dump_recipe(tiny.recipe(root)))
    return file


@pytest.fixture(scope="module")
def run(recipe_file, tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    assert cli.train_main([str(recipe_file), "--out", str(run)]) == 0
    return run


def said(call, *arguments):
    """Exit code and everything printed."""
    with console.capture() as capture:
        code = call([str(argument) for argument in arguments])
    return code, capture.get()


@pytest.mark.parametrize(
    "command",
    [
        "init", "train", "label", "predict", "import", "export", "export-masks", "eval", "data",
        "env", "show", "report", "index",
    ],
)  # fmt: skip
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert len(text) > 100
    assert command == "env" or f"weaktr{'-' if command == 'train' else ' '}{command}" in text


def test_help_comes_without_torch():
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('weaktr.cli', run_name='__main__')\n"
        "except SystemExit as stop:\n    print(stop.code, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, "--help"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.startswith("usage: weaktr ")
    assert output.splitlines()[-1] == "0 False"


def test_train_runs_all_stages(run):
    metrics = json.loads((run / "metrics.json").read_text())
    assert {"cam_miou", "pseudo_label_miou", "not_held_out_miou"} <= metrics.keys()


def test_train_prints_the_whole_recipe(recipe_file, capsys):
    assert cli.train_main([str(recipe_file), "--print", "--set", "label.threshold=0.5"]) == 0
    assert "threshold: 0.5" in capsys.readouterr().out


def test_a_mistake_is_one_line_without_traceback(recipe_file, tmp_path):
    code, text = said(cli.train_main, recipe_file, "--set", "label.treshold=1", "--out", tmp_path)
    assert code == cli.WRONG_INPUT
    assert "did you mean 'label.threshold'" in text
    assert "Traceback" not in text


def test_debug_shows_the_traceback(recipe_file):
    with pytest.raises(ValueError, match="did you mean"):
        cli.train_main([str(recipe_file), "--set", "label.treshold=1", "--debug"])


def test_a_backend_that_cannot_run_is_told(run, root, tmp_path, monkeypatch):
    model = run / "train_cam" / "model.safetensors"
    monkeypatch.setenv("WEAKTR_BACKEND", "nonsense")
    code, text = said(cli.main, "label", model, root, "--out", tmp_path / "labels")
    assert code == cli.WRONG_INPUT
    assert "has no backend 'nonsense'" in text


def test_errors_of_our_own_keep_their_traceback(recipe_file, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("weaktr.stages.pipeline.run_recipe", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        cli.train_main([str(recipe_file), "--out", str(tmp_path)])


@pytest.mark.parametrize("before", ["", "Caught RuntimeError in process 0.\nTraceback ...\n"])
def test_too_little_memory_is_one_line(recipe_file, tmp_path, monkeypatch, before):
    def fail(*_, **__):
        with pytest.raises(RuntimeError) as caught:
            torch.empty(2**62, dtype=torch.uint8)
        raise RuntimeError(f"{before}{caught.value}")

    monkeypatch.setattr("weaktr.stages.pipeline.run_recipe", fail)
    code, text = said(cli.train_main, recipe_file, "--out", tmp_path)
    assert code == cli.FAILED
    assert "can't allocate memory: you tried to" in text and "Traceback" not in text


def test_tracebacks_keep_control_characters_from_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(cli, "main", lambda: cli.FAILED)
    with pytest.raises(SystemExit):
        cli.program()
    error = RuntimeError("a\x1b[31mb")
    sys.excepthook(RuntimeError, error, None)
    assert capsys.readouterr().err == "RuntimeError: a\\x1b[31mb\n"


def test_a_data_set_that_is_not_there_is_told(tmp_path):
    setting = f"data.root={tmp_path / 'none'}"
    code, text = said(cli.train_main, "voc12_deit_s", "--set", setting, "--out", tmp_path / "run")
    assert code == cli.WRONG_INPUT
    assert "none" in text


def test_show_leaves_out_masks_that_cannot_be_used(run, caplog):
    path = next((run / "predict" / "masks").glob("*.png"))
    content = path.read_bytes()
    for wrong in (np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 9, np.uint8)):
        Image.fromarray(wrong).save(path)
        caplog.clear()
        assert said(cli.main, "show", run, "--names", path.stem)[0] == cli.FAILED
        assert f"left out: {path}" in caplog.text
    path.write_bytes(content)


def test_show_leaves_out_photographs_that_cannot_be_read(run, caplog, monkeypatch):
    """And draws the others, some in a picture."""
    monkeypatch.setattr(show, "MOST_STRIPS", 1)
    samples = Run(load_recipe(run / "recipe.yaml"), run).val.samples
    first, content = samples[0], samples[0].image.read_bytes()
    first.image.write_bytes(content[:100])
    names = [sample.name for sample in samples[:3]]
    assert said(cli.main, "show", run, "--names", *names)[0] == cli.FAILED
    assert f"left out: {first.image}" in caplog.text
    first.image.write_bytes(content)
    pages = sorted(path.name for path in (run / "pictures").glob("val*.png"))
    assert pages[:2] == ["val.2.png", "val.png"]


def test_show_replaces_no_picture_of_others(run):
    assert said(cli.main, "show", run, "--count", 1)[0] == 0
    picture = run / "pictures" / "val.png"
    content = picture.read_bytes()
    picture.write_bytes(b"mine")
    code, text = said(cli.main, "show", run, "--count", 1)
    assert code == cli.WRONG_INPUT and "val.png: is there already" in text
    assert picture.read_bytes() == b"mine"
    picture.write_bytes(content)


def test_show_draws_images_from_all_of_a_split(run, monkeypatch):
    samples, drawn, strips = (
        Run(load_recipe(run / "recipe.yaml"), run).val.samples,
        [],
        show._strips,
    )
    monkeypatch.setattr(show, "_strips", lambda s, *r: drawn.append(s.image) or strips(s, *r))
    count = len(samples) // 2 + 1  # more than half, of which a step of one would draw the first
    assert said(cli.main, "show", run, "--count", count)[0] == 0
    assert samples[0].image in drawn and {s.image for s in samples[count:]} & {*drawn}


def test_show_draws_pictures(run):
    code, _ = said(cli.main, "show", run, "--count", 2)
    assert code == 0
    for split in ("train", "val"):
        with Image.open(run / "pictures" / f"{split}.png") as picture:
            assert picture.width > 600
    code, text = said(cli.main, "show", run, "--names", "nobody")
    assert code == cli.WRONG_INPUT
    assert "nobody" in text
    for count in (-1, 0, 10**9):
        code, text = said(cli.main, "show", run, "--count", count)
        assert code == cli.WRONG_INPUT
        assert f"--count: expected 1 to 1000 images, got {count}" in text


def test_label_own_images(run, root, tmp_path):
    model = run / "train_cam" / "model.safetensors"
    out = tmp_path / "labels"
    settings = ["--set", "crf=none", "--set", "scales=[1.0]"]
    assert said(cli.main, "label", model, root, "--out", out, *settings)[0] == 0
    assert len(MaskFolder(out, verify=True)) == 8
    code, text = said(cli.main, "label", model, root, "--out", out, "--set", "threshold=0.9")
    assert code == cli.WRONG_INPUT
    assert "choose another --out" in text


def test_predict_own_images(run, root, tmp_path):
    model = run / "train_seg" / "model.safetensors"
    settings = ["window=32", "short_side=32", "stride=32", "ratios=[1.0]", "crf=voc_seg"]
    changes = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "masks"
    assert said(cli.main, "predict", model, root / "images", "--out", out, *changes)[0] == 0
    assert len(MaskFolder(out, verify=True)) == 8


def test_a_stage_1_checkpoint_does_not_predict(run, root, tmp_path):
    one = run / "train_cam" / "model.safetensors"
    code, text = said(cli.main, "predict", one, root, "--out", tmp_path)
    assert code == cli.WRONG_INPUT
    assert "expected a stage-2 checkpoint, got stage 1" in text
    assert str(run / "train_seg" / "model.safetensors") in text


def test_eval_scores_folders(root, tmp_path):
    truth = root / "masks"
    code, text = said(cli.main, "eval", truth, truth, "--num-labels", 4, "--out", tmp_path / "out")
    assert code == 0
    assert "100.00" in text
    (row,) = json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]
    assert row["scores"]["miou"] == 100.0
    code, text = said(cli.main, "eval", tmp_path / "none", truth, "--num-labels", 4)
    assert code == cli.WRONG_INPUT
    assert "MASKS: expected a folder" in text and "nothing of that name" in text


def test_data_check_finds_faults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a table folds longer paths anywhere
    root = tiny.squares(Path("squares"), count=4)
    assert said(cli.main, "data", "check", "folder", root)[0] == 0
    (root / "images" / "2.png").write_bytes(b"no picture")
    code, text = said(cli.main, "data", "check", "folder", root)
    assert code == 1
    assert "2.png" in text


def test_data_stats_and_manifest(root, tmp_path):
    assert said(cli.main, "data", "stats", "folder", root)[0] == 0
    file = tmp_path / "train.json"
    assert said(cli.main, "data", "write", "folder", root, "--out", file)[0] == 0
    assert said(cli.main, "data", "check", "manifest", file)[0] == 0


def test_env_lists_every_op():
    code, text = said(cli.main, "env")
    assert code == 0
    for word in ("torch", torch.__version__.split("+")[0], "dense_crf", "head_stats", "GPU"):
        assert word in text
    line = next(line for line in text.splitlines() if "C++ code" in line)
    assert any(word in line for word in ("bfloat16", "not built"))


def test_checkpoints_name_their_classes(run):
    for stage, kind in (("train_cam", CamModel), ("train_seg", Segmenter)):
        model, info = checkpoints.load(run / stage / "model.safetensors")
        assert isinstance(model, kind)
        assert info["classes"]["names"] == list(tiny.NAMES)
