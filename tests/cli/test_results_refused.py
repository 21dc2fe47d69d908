"""Errors of the system and wrong settings: one line, and nothing is left or replaced."""

from __future__ import annotations

import builtins
import io
import shutil

import pytest
from PIL import Image

from tests.cli.photographs import COMMANDS
from tests.cli.test_train import said
from weaktr import cli
from weaktr.models import checkpoints
from weaktr.stages import check_models


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


def test_windows_that_do_not_fit_the_memory_are_refused(models, photos, tmp_path, monkeypatch):
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
