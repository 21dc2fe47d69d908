"""``weaktr label`` and ``weaktr predict`` by shards: what comes out."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.shards import work
from tests.shards.work import (
    BESIDE,
    BY_SHARDS,
    COUNT,
    files_in,
    label,
    masks_of,
    rows,
    said,
    statuses,
    write_labels,
)
from weaktr import data
from weaktr.cli import WRONG_INPUT
from weaktr.data.masks import MaskFolder, write_mask
from weaktr.jobs import shards as sharded
from weaktr.shards.inputs import TarShards
from weaktr.shards.records import read_results


def test_a_threshold_that_is_chosen_is_chosen_once_for_all_processes(home, monkeypatch):
    auto = ("--set", "threshold=auto")
    assert label(home, *auto, out="alone") == 0
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert label(home, "--shard-size", "5", *auto) == 0
        chosen = (home / "out" / "threshold.json").read_bytes()
    choice = json.loads(chosen)
    first = [row for row in rows(home / "out").values() if row.shard == "00000"]
    assert set(choice["images"]) == {row.name for row in first if row.status == "labelled"}
    assert {row.threshold for row in rows(home / "out").values()} == {choice["threshold"]}
    monkeypatch.delenv("RANK")
    assert label(home, "--shard-size", "12", *auto, out="one") == 0  # of all photographs
    choices = [json.loads((home / out / "threshold.json").read_bytes()) for out in ("one", "alone")]
    assert choices[0]["threshold"] == choices[1]["threshold"]
    assert masks_of(home / "one") == masks_of(home / "alone")


@pytest.mark.parametrize("images", ["photos", "tars"])
@pytest.mark.parametrize("form", ["png", "tar"])
def test_the_files_are_those_of_a_run_without_shards(home, images, form):
    options = ("--shard-size", "5") if images == "photos" else ()
    assert label(home, *options, *BESIDE, "--output", form, images=images) == 0
    for kind in ("masks", "confidence"):
        assert masks_of(home / "out", kind) == masks_of(home / "plain", kind)
    places = {path.suffix for path in (home / "out" / "masks").rglob("*") if path.is_file()}
    assert places == {f".{form}"}


def test_rows_say_what_the_index_of_a_folder_says(home):
    label(home, *BY_SHARDS, "--output", "tar")
    plain = MaskFolder(home / "plain")
    for name, row in rows(home / "out").items():
        entry = plain.entries[name]
        assert row.status == "labelled"
        assert row.image == f"{name}.png"
        assert row.inputs == entry.inputs and row.digest == entry.inputs[0]
        assert (row.mask_digest, row.labels, row.areas) == (
            entry.sha256, entry.labels, entry.areas,
        )  # fmt: skip
        assert (row.given, row.confidence, (row.height, row.width)) == (
            entry.given, entry.confidence, entry.size,
        )  # fmt: skip


def test_a_folder_of_masks_by_shards_is_read_as_one_without(home):
    label(home, *BY_SHARDS)
    ours, plain = MaskFolder(home / "out", verify=True), MaskFolder(home / "plain", verify=True)
    digests = [{n: e.sha256 for n, e in masks.entries.items()} for masks in (ours, plain)]
    assert digests[0] == digests[1]


def test_soft_labels_and_refinement(home):
    options = ("--set", "soft=true", "--set", "soft_stride=8", "--set", "crf=voc_cam")
    assert label(home, *options, out="one") == 0
    assert label(home, *options, "--shard-size", "5", "--output", "tar") == 0
    for kind in ("masks", "soft"):
        assert masks_of(home / "out", kind) == masks_of(home / "one", kind)


@pytest.fixture
def teacher(home):
    """Masks of another tool, for all photographs but 07."""
    for index in range(COUNT):
        if index != 7:
            write_mask(home / "teacher" / f"{index:02d}.png", of_teacher(index, 0))
    return home / "teacher"


def of_teacher(index, label):
    return np.full((40 + index % 3, 50), label, np.uint8)


@pytest.mark.parametrize("images", ["photos", "tars"])
@pytest.mark.parametrize("is_older", [False, True])
def test_a_changed_teacher_makes_its_masks_again(home, teacher, images, is_older, computed, caplog):
    options = ("--teacher", teacher, *(("--shard-size", "5") if images == "photos" else ()))
    assert label(home, *options, images=images) == 0
    assert "1 images have no teacher (07): their labels stay" in caplog.text
    assert "teacher: " in caplog.text
    for record in (home / "out" / "index").glob("*.json") if is_older else ():
        content = json.loads(record.read_text())
        assert content.pop("read_beside")  # which an older version did not note
        record.write_text(json.dumps(content))
    computed.clear()
    caplog.clear()
    assert label(home, *options, images=images) == 0
    assert computed == [] and "3 shards are whole, 0 to do" in caplog.text
    time.sleep(0.02)  # of clocks with large steps
    write_mask(teacher / "05.png", of_teacher(5, 2))
    write_mask(teacher / "07.png", of_teacher(7, 2))
    assert label(home, *options, images=images) == 0
    assert sorted(computed) == ["05", "07"]
    assert label(home, "--teacher", teacher, out="fresh") == 0
    assert masks_of(home / "out") == masks_of(home / "fresh")


def test_no_threshold_is_chosen_of_tars_that_cannot_be_read_now(home, monkeypatch):
    def read(*_):
        raise OSError("000.tar: is away")

    auto = ("--set", "threshold=auto", "--labels", "inside")
    with monkeypatch.context() as patch:
        patch.setattr(TarShards, "read", read)
        assert label(home, *auto, images="tars") == WRONG_INPUT
    assert label(home, *auto, images="tars") == 0
    choice = json.loads((home / "out" / "threshold.json").read_bytes())
    assert {row.threshold for row in rows(home / "out").values()} == {choice["threshold"]}


def test_a_threshold_that_was_removed_is_chosen_again_and_all_masks_made(home, monkeypatch):
    auto = ("--shard-size", "5", "--set", "threshold=auto")
    choose = sharded.choose_by_features
    assert label(home, *auto) == 0
    (home / "out" / "threshold.json").unlink()
    monkeypatch.setattr(
        sharded, "choose_by_features", lambda *given: replace(choose(*given), threshold=0.95)
    )
    assert label(home, *auto) == 0
    assert {row.threshold for row in rows(home / "out").values()} == {0.95}
    assert label(home, "--set", "threshold=0.95", out="fresh") == 0
    assert masks_of(home / "out") == masks_of(home / "fresh")


def test_photographs_that_viewers_turn_are_told(home, caplog):
    turned = Image.Exif()
    turned[0x0112] = 6
    with Image.open(home / "photos" / "03.png") as image:
        image.save(home / "photos" / "03.png", exif=turned)
    for _ in range(2):  # also where nothing is made
        caplog.clear()
        assert label(home, "--shard-size", "5") == 0
        assert "1 image is turned by viewers (EXIF), masks are not" in caplog.text
    assert label(home, "--shard-size", "5", "--exif", "apply", out="upright") == 0
    assert "1 image was turned as EXIF says" in caplog.text


@pytest.mark.parametrize("images", ["photos", "tars"])
def test_predictions_are_those_of_a_run_without_shards(home, images):
    work.segmenter(home / "seg.safetensors")
    settings = [part for setting in work.QUICK for part in ("--set", setting)]
    predict = ("predict", home / "seg.safetensors")
    scores = ("--dump-scores", *settings)
    assert said(*predict, home / "photos", "--out", home / "one", *scores)[0] == 0
    options = ("--shard-size", "5") if images == "photos" else ()
    out = home / "out"
    assert said(*predict, home / images, "--out", out, *options, *scores)[0] == 0
    for kind in ("masks", "scores"):
        assert masks_of(out, kind) == masks_of(home / "one", kind)


def test_labels_do_not_matter_to_predictions(home, caplog):
    work.segmenter(home / "seg.safetensors")
    settings = [part for setting in work.QUICK for part in ("--set", setting)]
    predict = ("predict", home / "seg.safetensors", home / "all.json", *settings)
    for classes in (["cat", "dog"], ["dog", "cat"]):
        data.folder(home / "photos", classes=classes).save(home / "all.json")
        assert said(*predict, "--out", home / "out", "--shard-size", "5")[0] == 0
        assert {row.given for row in rows(home / "out").values()} == {None}
    assert "3 shards are whole, 0 to do" in caplog.text


def test_predictions_of_chosen_names(home):
    work.segmenter(home / "seg.safetensors")
    settings = [part for setting in work.QUICK for part in ("--set", setting)]
    (home / "names.txt").write_text("03\n05\n11\n")
    predict = ("predict", home / "seg.safetensors", home / "photos", *settings)
    names = ("--names", home / "names.txt")
    assert said(*predict, *names, "--out", home / "out", "--shard-size", "2")[0] == 0
    assert masks_of(home / "out").keys() == {"03.png", "05.png", "11.png"}
    assert statuses(home / "out").keys() == {"03", "05", "11"}


def test_a_segmenter_labels_shards(home):
    work.segmenter(home / "cam.safetensors")
    shutil.rmtree(home / "plain")
    settings = [part for setting in work.QUICK for part in ("--set", setting)]
    command = ("label", home / "cam.safetensors", home / "photos", *settings, "--out")
    assert said(*command, home / "one")[0] == 0
    assert said(*command, home / "out", "--shard-size", "5")[0] == 0
    assert masks_of(home / "out") == masks_of(home / "one")


@pytest.mark.parametrize("images", ["photos", "tars"])
@pytest.mark.parametrize("form", ["png", "tar"])
@pytest.mark.parametrize("count", [2, 4])
def test_any_number_of_processes_makes_the_same_files(home, images, form, count, monkeypatch):
    options = (*BY_SHARDS, "--output", form) if images == "photos" else (*BESIDE, "--output", form)
    assert label(home, *options, images=images, out="one") == 0
    monkeypatch.setenv("WORLD_SIZE", str(count))
    for rank in reversed(range(count)):  # one has no shard if there are 4
        monkeypatch.setenv("RANK", str(rank))
        assert label(home, *options, images=images) == 0
    assert files_in(home / "out") == files_in(home / "one")


def test_slurm_arrays_that_do_not_begin_with_0(home, monkeypatch):
    for name, value in {"COUNT": "3", "MIN": "1", "MAX": "9", "STEP": "4"}.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", value)
    for number in (9, 1, 5):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(number))
        assert label(home, *BY_SHARDS) == 0
    assert masks_of(home / "out") == masks_of(home / "plain")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "13")
    code, text = said("label", home / "cam.safetensors", home / "photos", "--out", home / "o")
    assert code == WRONG_INPUT
    assert "expected a number from 0 to 2 of 3 processes" in text
    assert not (home / "o").exists()


def test_a_shard_with_no_photograph(home):
    """Names are dealt by chance: of many shards some are empty."""
    assert label(home, "--shard-size", "1", *BESIDE, "--output", "tar") == 0
    assert masks_of(home / "out") == masks_of(home / "plain")
    numbers = [len(table) for table in read_results(home / "out").tables()]
    assert len(numbers) == COUNT and 0 in numbers


def test_photographs_that_show_nothing_get_no_mask(home):
    write_labels(home / "photos", {f"{i:02d}.png": "cat" if i else "" for i in range(COUNT)})
    assert label(home, *BY_SHARDS) == 0
    assert statuses(home / "out")["00"] == "no class"
    assert masks_of(home / "out").keys() == {f"{i:02d}.png" for i in range(1, COUNT)}
