"""Files between the stages: whole or not there."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from PIL import Image

from weaktr import artifacts
from weaktr.artifacts import MaskFolder, MetricsLog
from weaktr.data.classes import palette

MASK = np.array([[0, 1, 20], [255, 5, 0]], np.uint8)


def test_masks_are_palette_pngs_in_voc_colours(tmp_path):
    path = tmp_path / "deep" / "mask.png"
    artifacts.write_mask(path, MASK)
    np.testing.assert_array_equal(artifacts.read_mask_file(path), MASK)
    with Image.open(path) as picture:
        assert picture.mode == "P"
        colours = np.asarray(picture.convert("RGB"))
    np.testing.assert_array_equal(colours, palette()[MASK])


@pytest.mark.parametrize("wrong", [MASK.astype(np.int64), MASK[None], MASK / 255])
def test_only_labels_are_written(tmp_path, wrong):
    with pytest.raises(ValueError, match=r"labels: expected uint8 \[H, W\], got"):
        artifacts.write_mask(tmp_path / "mask.png", wrong)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "facts.json"
    artifacts.write_json(path, {"old": 1})

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        artifacts.write_json(path, {"new": 2})
    assert artifacts.read_json(path) == {"old": 1}


def test_colour_pictures_are_no_masks(tmp_path):
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "colour.png")
    with pytest.raises(ValueError, match=r"colour\.png: expected an 8-bit palette mask"):
        artifacts.read_mask_file(tmp_path / "colour.png")


def test_mask_folder_survives_a_half_written_line(tmp_path):
    masks = MaskFolder(tmp_path)
    masks.add("a/b", MASK)
    masks.add("c", MASK)
    content = masks.index.read_bytes()
    masks.index.write_bytes(content[:-9])
    again = MaskFolder(tmp_path)
    assert list(again.entries) == ["a/b"]
    again.add("c", MASK)
    assert masks.index.read_bytes() == content
    assert again.entries["c"].size == (2, 3)
    assert again.entries["c"].labels == (0, 1, 5, 20, 255)


def test_mask_folder_drops_what_its_digest_denies(tmp_path):
    masks = MaskFolder(tmp_path)
    masks.add("a", MASK)
    masks.add("b", MASK)
    masks.path("a").write_bytes(b"")
    masks.path("b").unlink()
    assert len(MaskFolder(tmp_path)) == 2
    assert len(MaskFolder(tmp_path, verify=True)) == 0
    with pytest.raises(ValueError, match="no mask of 'x'"):
        masks.read("x")


def test_mask_folder_fingerprint_follows_the_masks(tmp_path):
    one, two = MaskFolder(tmp_path / "1"), MaskFolder(tmp_path / "2")
    one.add("a", MASK)
    one.add("b", MASK)
    two.add("b", MASK)
    two.add("a", MASK)
    assert one.fingerprint() == two.fingerprint()
    two.add("a", MASK.T.copy())
    assert one.fingerprint() != two.fingerprint()


def test_state_restores_all_random_numbers(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()

    np.random.randn()  # leaves a cached normal number behind
    artifacts.save_state(tmp_path / "state.pt", {"random": artifacts.random_state(), "step": 3})
    first = draw()
    state = artifacts.load_state(tmp_path / "state.pt")
    artifacts.restore_random_state(state["random"])
    assert draw() == first
    assert state["step"] == 3
    assert artifacts.load_state(tmp_path / "none.pt") is None


def test_metrics_are_cut_back_to_a_position(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write([{"step": 1}, {"step": 2}])
    position = log.position()
    log.write([{"step": 3}])
    log.close()
    again = MetricsLog(tmp_path / "metrics.jsonl")
    again.cut(position)
    again.write([{"step": 4}])
    again.close()
    assert [row["step"] for row in artifacts.read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 4]


def test_fingerprints_ignore_key_order_and_nothing_else():
    assert artifacts.fingerprint({"a": 1, "b": [2]}) == artifacts.fingerprint({"b": [2], "a": 1})
    assert artifacts.fingerprint({"a": 1}) != artifacts.fingerprint({"a": 1.5})
    assert artifacts.fingerprint("a", "b") != artifacts.fingerprint("ab")


def test_a_stage_begun_from_other_inputs_starts_empty(tmp_path):
    folder = tmp_path / "label"
    artifacts.begin(folder, "one")
    (folder / "half").write_text("done")
    artifacts.begin(folder, "one")
    assert (folder / "half").exists()
    artifacts.mark_finished(folder, "one")
    assert artifacts.is_finished(folder, "one")
    assert not artifacts.is_finished(folder, "two")
    artifacts.begin(folder, "two")
    assert not (folder / "half").exists()
    assert not artifacts.is_finished(folder, "one")


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: expected JSON"):
        artifacts.read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"y\.json: no such file"):
        artifacts.read_json(tmp_path / "y.json")
    artifacts.write_json(tmp_path / "x.json", [1])
    assert json.loads((tmp_path / "x.json").read_text()) == [1]
