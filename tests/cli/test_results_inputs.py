"""``weaktr label`` and ``weaktr predict``: masks belong to exactly their inputs."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from tests.cli.photographs import COMMANDS, arguments, photo, with_labels
from tests.cli.results import replaced, stamps, tree
from tests.cli.test_train import said
from weaktr import cli
from weaktr.data.masks import MaskFolder
from weaktr.models import checkpoints


@pytest.mark.parametrize("command", COMMANDS)
def test_another_model_of_the_same_name_and_size_does_not_go_on(command, models, run, tmp_path):
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
def test_the_same_model_elsewhere_goes_on(command, models, run, tmp_path):
    before = stamps(run(command)[2])
    moved = tmp_path / "elsewhere" / "other.safetensors"
    moved.parent.mkdir()
    shutil.copy(models[command], moved)
    code, _, masks = run(command, own={command: moved})
    assert code == 0
    assert stamps(masks) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_masks_of_other_photographs_are_not_replaced(command, models, run, photos, tmp_path):
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


def test_masks_of_another_command_are_not_replaced(models, run, photos, tmp_path):
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
