"""What ``weaktr label`` and ``weaktr predict`` write beside masks, and whose labels count."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from tests.cli.photographs import (
    COMMANDS,
    SETTINGS,
    arguments,
    photo,
    with_labels,
)
from tests.cli.test_train import said
from weaktr import cli
from weaktr.data.masks import MaskFolder
from weaktr.inference.cams import CamsOfModel
from weaktr.refine.proposals import ProposalsRefiner


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
