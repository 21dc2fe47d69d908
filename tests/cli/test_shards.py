"""``weaktr label`` and ``weaktr predict`` by shards, as a user calls them."""

from __future__ import annotations

import argparse
import builtins
import gzip
import hashlib
import io
import json
import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.models import small
from tests.shards import work
from tests.shards.work import (
    BESIDE,
    files_in,
    in_tar,
    label,
    masks_of,
    photograph,
    rows,
    said,
    write_labels,
)
from weaktr import data
from weaktr.cli import FAILED, WRONG_INPUT
from weaktr.cli.label import add_arguments
from weaktr.cli.sharded import is_sharded
from weaktr.data import VOC
from weaktr.data.io import read_stored_labels
from weaktr.data.masks import MaskFolder, read_changed_mask, write_mask
from weaktr.evaluation.notebook import Mask
from weaktr.models import checkpoints
from weaktr.shards.inputs import TarShards
from weaktr.shards.output import ShardWriter
from weaktr.shards.records import read_results
from weaktr.shards.verify import verify
from weaktr.stages import sharded
from weaktr.stages.masked import masked_in

COUNT = 12
BY_SHARDS = ("--shard-size", "5", *BESIDE)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A model, photographs, tars of the same, and what a run without shards makes of them."""
    home = tmp_path_factory.mktemp("prepared")
    work.model(home / "cam.safetensors")
    work.photographs(home / "photos", COUNT)
    work.tars(home / "tars", 3, 4)
    assert label(home, *BESIDE, out="plain") == 0
    return home


@pytest.fixture
def home(prepared, tmp_path):
    """A copy."""
    shutil.copytree(prepared, tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def computed(monkeypatch):
    """The names of the photographs that the model saw, in order."""
    return work.noted_names(monkeypatch)


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", *(n for n in os.environ if n.startswith("SLURM_"))):
        monkeypatch.delenv(name, raising=False)


def statuses(out):
    return {name: row.status for name, row in rows(out).items()}


def edit(mask):
    """Change a mask by hand, as a picture editor does; returns the new content."""
    labels = np.array(Image.open(mask))
    labels[:5] = 2
    Image.fromarray(labels).save(mask)
    later(mask)
    return mask.read_bytes()


def later(path):
    """Let a file be newer than all that was written up to now, whatever the clock's steps are."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**7))


# ---- what comes out -----------------------------------------------------------------------------


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


# ---- started again ------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["png", "tar"])
def test_a_start_over_whole_shards_opens_no_mask(home, form, computed, monkeypatch):
    label(home, *BY_SHARDS, "--output", form)
    before = files_in(home / "out")
    computed.clear()
    opened = []
    for owner, name in ((io, "open"), (builtins, "open"), (os, "open")):
        real = getattr(owner, name)

        def noting(path, *arguments, _real=real, **options):
            opened.append(os.fspath(path) if isinstance(path, str | os.PathLike) else "")
            return _real(path, *arguments, **options)

        monkeypatch.setattr(owner, name, noting)
    assert label(home, *BY_SHARDS, "--output", form) == 0
    monkeypatch.undo()
    assert computed == []
    places = [f"{home}/out/masks", f"{home}/out/confidence", f"{home}/photos/0"]
    assert [path for path in opened if path.startswith(tuple(places))] == []
    of_index = [path for path in opened if path.startswith(f"{home}/out/index/")]
    assert len(of_index) <= 3 * 8
    assert files_in(home / "out") == before


@pytest.mark.parametrize("form", ["png", "tar"])
def test_photographs_with_new_times_are_not_computed_again(home, form, computed):
    label(home, *BY_SHARDS, "--output", form)
    before = files_in(home / "out")
    computed.clear()
    for path in (home / "photos").iterdir():
        later(path)
    assert label(home, *BY_SHARDS, "--output", form) == 0
    assert computed == []
    assert files_in(home / "out") == before


def test_the_masks_of_a_tar_that_was_taken_away_stay_and_are_told(home, caplog):
    label(home, images="tars")
    before = files_in(home / "out")
    (home / "tars" / "001.tar").unlink()
    assert label(home, images="tars") == 0
    assert "1 tar of masks there is of images that are not among those given" in caplog.text
    assert files_in(home / "out")["masks/001.tar"] == before["masks/001.tar"]


def test_a_tar_with_a_new_time_is_not_computed_again(home, computed):
    label(home, images="tars")
    before = files_in(home / "out")
    computed.clear()
    later(home / "tars" / "001.tar")
    assert label(home, images="tars") == 0
    assert computed == []
    assert files_in(home / "out") == before


@pytest.mark.parametrize("form", ["png", "tar"])
def test_what_changed_is_made_again_and_nothing_else(home, form, computed, caplog):
    options = (*BY_SHARDS, "--output", form)
    label(home, *options)
    computed.clear()
    photos = home / "photos"
    (photos / "03.png").write_bytes(photograph(77))
    (photos / "07.png").unlink()
    (photos / "99.png").write_bytes(photograph(99))
    labels = {path.name: work.CLASSES[int(path.stem) % 2] for path in photos.glob("*.png")}
    write_labels(photos, labels | {"04.png": "dog"})
    assert label(home, *options) == 0
    assert sorted(computed) == ["03", "04", "99"]
    assert label(home, *BESIDE, out="fresh") == 0
    ours, fresh = masks_of(home / "out"), masks_of(home / "fresh")
    told = "1 mask there is of images that are not among those given now; they stay"
    assert caplog.text.count(told) == (form == "png")
    if form == "png":
        assert ours.pop("07.png") == masks_of(home / "plain")["07.png"]  # nothing is deleted
    assert ours == fresh
    assert "07" not in rows(home / "out")


def test_tars_of_which_one_changed(home, computed):
    label(home, images="tars")
    computed.clear()
    files = in_tar(home / "tars" / "001.tar")
    work.write_tar(home / "tars" / "001.tar", files | {"05.png": photograph(55), "06.cls": b"dog"})
    assert label(home, images="tars") == 0
    assert sorted(computed) == ["05", "06"]


def test_a_mask_that_is_missing_is_made_again(home, computed):
    label(home, *BY_SHARDS)
    before = files_in(home / "out")
    computed.clear()
    (home / "out" / "masks" / "05.png").unlink()
    (home / "out" / "confidence" / "06.png").unlink()
    assert label(home, *BY_SHARDS) == 0
    assert sorted(computed) == ["05", "06"]
    assert files_in(home / "out") == before


@pytest.mark.parametrize("options", [BESIDE, BY_SHARDS], ids=["plain", "shards"])
def test_a_mask_that_was_cut_off_is_made_again(home, options):
    """It is none that somebody has changed."""
    label(home, *options)
    before = files_in(home / "out")
    for file in (home / "out/masks/05.png", home / "out/confidence/06.png"):
        file.write_bytes(file.read_bytes()[:-60])
    assert label(home, *options) == 0
    assert files_in(home / "out") == before


@pytest.mark.parametrize("name", ["masks/00001.tar", "index/00001.parquet", "index/00001.json"])
def test_a_file_of_a_shard_that_is_damaged_is_made_again(home, name, computed):
    options = (*BY_SHARDS, "--output", "tar")
    label(home, *options)
    before, content = files_in(home / "out"), (home / "out" / name).read_bytes()
    own = sorted(row.name for row in rows(home / "out").values() if row.shard == "00001")
    computed.clear()
    (home / "out" / name).write_bytes(content[: len(content) // 2])
    assert label(home, *options) == 0
    assert set(computed) <= set(own)
    after = files_in(home / "out")
    if name.startswith("masks"):
        (kept,) = after.keys() - before.keys()
        assert after.pop(kept) == content[: len(content) // 2]
        assert kept.startswith("masks/00001.old-")
    assert after == before


def test_other_settings_or_weights_are_refused(home):
    label(home, *BY_SHARDS)
    before = files_in(home / "out")
    assert label(home, *BY_SHARDS, "--set", "threshold=0.3") == WRONG_INPUT
    assert label(home, "--shard-size", "5") == WRONG_INPUT  # without confidence
    assert label(home, *BY_SHARDS, "--output", "tar") == WRONG_INPUT
    assert label(home, *BESIDE, images="tars") == WRONG_INPUT
    work.model(home / "cam.safetensors", seed=1)
    code, text = said(
        "label", home / "cam.safetensors", home / "photos", "--out", home / "out", *BY_SHARDS,
        *(part for setting in work.SETTINGS for part in ("--set", setting)),
    )  # fmt: skip
    assert code == WRONG_INPUT
    assert "another checkpoint" in text and "choose another --out" in text
    assert files_in(home / "out") == before


@pytest.mark.parametrize("images", ["photos", "tars", "tars/*.tar"])
def test_masks_of_other_photographs_are_not_replaced(home, images, computed):
    options = () if "tars" in images else BY_SHARDS
    label(home, *options, images=images)
    shutil.copytree(home / images.removesuffix("/*.tar"), home / "copy")
    before, masks = files_in(home / "out"), masks_of(home / "out")
    work.photographs(home / "second" / "photos", 3)
    (home / "second" / "photos" / "00.png").write_bytes(photograph(99))
    work.write_tar(home / "second" / "tars" / "000.tar", {"x.png": photograph(9), "x.cls": b"cat"})
    assert label(home, *options, images=f"second/{images}") == WRONG_INPUT
    assert files_in(home / "out") == before
    computed.clear()
    assert label(home, *options, images="copy") == 0
    assert masks_of(home / "out") == masks and computed == []


def test_runs_with_and_without_shards_do_not_mix(home):
    before = files_in(home / "plain")
    assert label(home, *BY_SHARDS, out="plain") == WRONG_INPUT
    assert files_in(home / "plain") == before
    label(home, *BY_SHARDS)
    before = files_in(home / "out")
    assert label(home, *BESIDE) == WRONG_INPUT
    assert files_in(home / "out") == before


def test_the_number_of_shards_stays_as_at_the_first_start(home, computed):
    label(home, *BY_SHARDS)
    before = files_in(home / "out")
    computed.clear()
    assert label(home, "--shard-size", "2", *BESIDE) == 0
    assert label(home, "--shard", "0/1", *BESIDE) == 0
    assert computed == []
    assert files_in(home / "out") == before


# ---- what belongs to the user -------------------------------------------------------------------


def test_a_start_over_whole_shards_opens_no_table(home, monkeypatch):
    options = ("--shard-size", "5")
    assert label(home, *options) == 0

    def opened(*_):
        raise OSError("opened")

    monkeypatch.setattr("weaktr.stages.shard.read_table", opened)
    computed = work.noted_names(monkeypatch)
    assert label(home, *options) == 0
    assert computed == []


def test_a_mask_that_was_edited_stays(home, computed, caplog):
    label(home, *BY_SHARDS)
    computed.clear()
    mask = home / "out" / "masks" / "03.png"
    edited = edit(mask)
    assert label(home, *BY_SHARDS) == 0
    assert mask.read_bytes() == edited and computed == []
    row = rows(home / "out")["03"]
    assert (row.status, row.confidence) == ("edited", None)
    assert row.mask_digest == hashlib.sha256(edited).hexdigest()
    assert 2 in row.labels
    before = files_in(home / "out")
    assert label(home, *BY_SHARDS) == 0
    assert files_in(home / "out") == before
    (home / "out" / "confidence" / "03.png").unlink()  # which an edited mask does not need
    caplog.clear()
    assert label(home, *BY_SHARDS) == 0
    assert "3 shards are whole, 0 to do" in caplog.text
    mask.unlink()  # so that it is made again
    assert label(home, *BY_SHARDS) == 0
    assert computed == ["03"]
    assert masks_of(home / "out") == masks_of(home / "plain")


def test_a_mask_that_was_edited_needs_nothing_beside_it(home, computed):
    label(home, *BY_SHARDS)
    computed.clear()
    edit(home / "out" / "masks" / "03.png")
    (home / "out" / "confidence" / "03.png").unlink()
    (home / "photos" / "08.png").write_bytes(photograph(88))
    assert label(home, *BY_SHARDS) == 0 and computed == ["08"]
    assert statuses(home / "out")["03"] == "edited"


def test_a_file_that_is_gone_is_not_taken_for_the_work_of_another_process(home, monkeypatch):
    """Though there is a record of the shard, of the start before."""
    label(home, *BY_SHARDS)
    (home / "out" / "confidence" / "03.png").unlink()
    real = ShardWriter.finish

    def finish(writer, *arguments, **facts):
        (home / "out" / "masks" / "03.png").unlink(missing_ok=True)
        return real(writer, *arguments, **facts)

    monkeypatch.setattr(ShardWriter, "finish", finish)
    assert label(home, *BY_SHARDS) == WRONG_INPUT  # it is named
    monkeypatch.undo()
    assert label(home, *BY_SHARDS) == 0
    assert masks_of(home / "out") == masks_of(home / "plain")


@pytest.mark.parametrize("way", ["saved", "copied"])
def test_a_mask_of_weaktrs_that_somebody_has_put_there_stays(home, way, computed):
    """It was written by weaktr, but not for this place."""
    label(home, *BY_SHARDS)
    computed.clear()
    mask = home / "out" / "masks" / "03.png"
    if way == "saved":
        Mask(np.full_like(read_stored_labels(mask), 2)).save(mask)
    else:
        shutil.copyfile(home / "plain" / "masks" / "06.png", mask)
    later(mask)
    own = mask.read_bytes()
    for _ in range(2):
        assert label(home, *BY_SHARDS) == 0
        assert mask.read_bytes() == own and statuses(home / "out")["03"] == "edited"
    (home / "photos" / "08.png").write_bytes(photograph(88))
    assert label(home, *BY_SHARDS) == 0
    assert mask.read_bytes() == own and computed == ["08"]


def test_a_mask_saved_for_a_photograph_without_labels_stays(home):
    words = {f"{i:02d}.png": work.CLASSES[i % 2] for i in range(COUNT)}
    write_labels(home / "photos", words | {"03.png": ""})
    label(home, *BY_SHARDS)
    mask = home / "out" / "masks" / "03.png"
    Mask(np.full_like(read_stored_labels(home / "plain" / "masks" / "03.png"), 2)).save(mask)
    own = mask.read_bytes()
    write_labels(home / "photos", words)
    assert label(home, *BY_SHARDS) == FAILED
    assert mask.read_bytes() == own
    assert "no command of weaktr's wrote it" in rows(home / "out")["03"].error


def test_a_mask_made_again_just_before_a_kill_is_not_taken_for_an_edited_one(
    home, computed, monkeypatch
):
    real = ShardWriter.add

    def stopping(writer, row, files):
        if row.name == "03":
            raise OSError("stopped")
        real(writer, row, files)

    label(home, *BY_SHARDS)
    (home / "photos" / "03.png").write_bytes(photograph(77))
    with monkeypatch.context() as patch:
        patch.setattr(ShardWriter, "add", stopping)
        assert label(home, *BY_SHARDS) == FAILED
    computed.clear()
    assert label(home, *BY_SHARDS) == 0 and computed == ["03"]
    assert label(home, *BESIDE, out="fresh") == 0
    assert masks_of(home / "out") == masks_of(home / "fresh")


@pytest.mark.parametrize("change", ["photograph", "labels"])
def test_an_edited_mask_of_a_photograph_that_changed_is_reported(home, change):
    label(home, *BY_SHARDS)
    mask = home / "out" / "masks" / "03.png"
    edited = edit(mask)
    if change == "photograph":
        (home / "photos" / "03.png").write_bytes(photograph(77))
    else:
        words = {f"{i:02d}.png": work.CLASSES[i % 2] for i in range(COUNT)}
        write_labels(home / "photos", words | {"03.png": "cat"})
    for _ in range(2):
        assert label(home, *BY_SHARDS) == FAILED
        assert mask.read_bytes() == edited
        row = rows(home / "out")["03"]
        assert row.status == "failed"
        assert "changed by hand, and its photograph or its labels since" in row.error


def test_an_edit_that_is_no_mask_is_reported_until_it_is_mended(home, caplog):
    label(home, *BY_SHARDS)
    mask = home / "out" / "masks" / "03.png"
    good = mask.read_bytes()
    Image.fromarray(np.full((3, 3), 2, np.uint8)).save(mask)
    later(mask)
    wrong = mask.read_bytes()
    for _ in range(2):
        assert label(home, *BY_SHARDS) == FAILED
        assert mask.read_bytes() == wrong
        row = rows(home / "out")["03"]
        assert row.status == "failed"
        assert "changed by hand, cannot be used" in row.error
    assert "not among those given" not in caplog.text
    (problem,) = verify(home / "out")
    assert problem.level == "warning" and "changed by hand, cannot be used" in problem.message
    mask.write_bytes(good)
    edited = edit(mask)
    assert label(home, *BY_SHARDS, "--retry-failed") == 0
    assert statuses(home / "out")["03"] == "edited"
    assert mask.read_bytes() == edited


@pytest.mark.parametrize("place", ["b.JPG", "images/b.png"])
def test_photographs_beside_tars_are_not_passed_over(home, place, caplog):
    write_labels(home / "tars", {"b.png": "cat"})
    (home / "tars" / place).parent.mkdir(exist_ok=True)
    (home / "tars" / place).write_bytes(photograph(1))
    code, text = said("label", home / "cam.safetensors", home / "tars", "--out", home / "out")
    assert code == WRONG_INPUT
    assert f"expected tars or photographs, got both (000.tar, 001.tar, 002.tar; {place})" in text
    assert not (home / "out").exists()
    assert label(home, images="tars/*.tar") == 0
    (home / "tars" / "day").mkdir()
    (home / "tars" / place).rename(home / "tars" / "day" / "deep.png")
    assert label(home, images="tars") == 0
    assert "without a mask, beside the tars: 1 photograph (day/deep.png)" in caplog.text


@pytest.mark.parametrize("kind", ["masks", "confidence"])
def test_a_file_of_others_is_never_written_over(home, kind):
    shutil.copytree(home / "photos", home / "few")
    (home / "few" / "03.png").unlink()
    write_labels(
        home / "few", {f"{i:02d}.png": work.CLASSES[i % 2] for i in range(COUNT) if i != 3}
    )
    label(home, *BY_SHARDS, images="few")
    place = home / "out" / kind / "03.png"
    place.write_bytes(b"mine")
    for _ in range(2):
        assert label(home, *BY_SHARDS) == FAILED
        assert place.read_bytes() == b"mine"
        row = rows(home / "out")["03"]
        assert row.status == "failed"
        assert str(place) in row.error and "move it away" in row.error
    assert kind == "masks" or not (home / "out" / "masks" / "03.png").exists()
    place.unlink()
    assert label(home, *BY_SHARDS, "--retry-failed") == 0
    for one in ("masks", "confidence"):
        assert masks_of(home / "out", one) == masks_of(home / "plain", one)


def test_a_tar_that_was_changed_is_kept_aside(home, caplog):
    label(home, images="tars")
    before = files_in(home / "out")
    archive = home / "out" / "masks" / "001.tar"
    files = in_tar(archive) | {"mine.txt": bytes(20_000)}
    mine = work.write_tar(archive, files).read_bytes()
    assert label(home, images="tars") == 0
    (kept,) = (home / "out" / "masks").glob("001.old-*.tar")
    assert kept.read_bytes() == mine
    assert kept.name in caplog.text
    kept.unlink()
    assert files_in(home / "out") == before


def test_a_folder_of_others_is_refused(home):
    (home / "out").mkdir()
    (home / "out" / "notes.txt").write_text("mine")
    assert label(home, *BY_SHARDS) == WRONG_INPUT
    assert [path.name for path in (home / "out").iterdir()] == ["notes.txt"]
    assert label(home, *BY_SHARDS, out="out/notes.txt") == WRONG_INPUT


@pytest.mark.parametrize("images", ["photos", "tars"])
def test_results_among_the_photographs_are_refused(home, images):
    assert (
        label(home, *BESIDE, "--output", "tar", images=images, out=f"{images}/out") == WRONG_INPUT
    )
    assert not (home / images / "out").exists()


# ---- bad photographs ----------------------------------------------------------------------------


@pytest.fixture
def bad(home):
    """A cut photograph, a text and an empty file, and what they are to be."""
    files = {"01.png": photograph(1)[:900], "04.png": b"no photograph", "08.png": b""}
    good = {name: (home / "photos" / name).read_bytes() for name in files}
    for name, content in files.items():
        (home / "photos" / name).write_bytes(content)
    return good


@pytest.mark.parametrize("form", ["png", "tar"])
def test_bad_photographs_are_rows(home, bad, form, computed):
    options = (*BY_SHARDS, "--output", form)
    assert label(home, *options) == FAILED
    failed = [row for row in rows(home / "out").values() if row.status == "failed"]
    assert sorted(row.name for row in failed) == ["01", "04", "08"]
    assert all(row.error and row.mask_digest is None for row in failed)
    assert len(masks_of(home / "out")) == COUNT - 3
    before = files_in(home / "out")
    computed.clear()
    assert label(home, *options) == FAILED  # still, and without a look at any
    assert computed == []
    assert files_in(home / "out") == before
    for name, content in bad.items():
        (home / "photos" / name).write_bytes(content)
    assert label(home, *options, "--retry-failed") == 0
    assert sorted(computed) == ["01", "04", "08"]
    assert masks_of(home / "out") == masks_of(home / "plain")


def test_what_was_mended_needs_no_option(home, bad):
    assert label(home, *BY_SHARDS) == FAILED
    for name, content in bad.items():
        (home / "photos" / name).write_bytes(content)
    assert label(home, *BY_SHARDS) == 0
    assert masks_of(home / "out") == masks_of(home / "plain")


@pytest.mark.parametrize(
    ("most", "code"), [("3", FAILED), ("2", WRONG_INPUT), ("0", WRONG_INPUT), ("100%", FAILED),
                       ("1%", WRONG_INPUT), ("x", WRONG_INPUT), ("-1", WRONG_INPUT)],
)  # fmt: skip
def test_max_bad(home, bad, most, code):
    assert label(home, *BY_SHARDS, f"--max-bad={most}") == code


def test_max_bad_keeps_what_was_made(home, bad, computed):
    assert label(home, *BY_SHARDS, "--max-bad", "2") == WRONG_INPUT
    made = masks_of(home / "out")
    first = set(computed)
    computed.clear()
    assert label(home, *BY_SHARDS, "--max-bad", "3") == FAILED
    assert not {name.removesuffix(".png") for name in made} & set(computed)
    assert first | set(computed) == {f"{i:02d}" for i in range(COUNT)} - {"01", "04", "08"}


def test_max_bad_counts_files_of_tars_without_photograph(home):
    files = in_tar(home / "tars" / "001.tar")
    work.write_tar(home / "tars" / "001.tar", files | {"x.cls": b"cat", "y.cls": b"cat"})
    assert label(home, "--max-bad", "1", images="tars") == WRONG_INPUT
    assert label(home, "--max-bad", "2", images="tars") == FAILED


def test_max_bad_counts_masks_of_others(home):
    label(home, *BY_SHARDS)
    for name in ("03", "05"):
        mask = home / "out" / "masks" / f"{name}.png"
        mask.write_bytes(b"mine")
        later(mask)
    assert label(home, *BY_SHARDS, "--max-bad", "1") == WRONG_INPUT
    assert label(home, *BY_SHARDS, "--max-bad", "2") == FAILED


def test_a_photograph_that_may_not_be_read_is_tried_at_each_start(home, computed):
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (home / "photos" / "03.png").chmod(0)
    assert label(home, *BY_SHARDS) == FAILED
    (home / "photos" / "03.png").chmod(0o644)
    computed.clear()
    assert label(home, *BY_SHARDS) == 0
    assert computed == ["03"]


# ---- bad tars -----------------------------------------------------------------------------------


def test_a_tar_that_is_cut_off_is_left_out_by_name(home, caplog, computed):
    archive = home / "tars" / "001.tar"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    assert label(home, images="tars") == FAILED
    assert "shard 001 is left out" in caplog.text
    assert len(masks_of(home / "out")) == 8
    archive.write_bytes(content)
    computed.clear()
    assert label(home, images="tars") == 0
    assert sorted(computed) == ["04", "05", "06", "07"]


def test_the_first_tar_decides_nothing_where_it_is_damaged(home):
    """Or all others would be taken as photographs without labels."""
    archive = home / "tars" / "000.tar"
    content = archive.read_bytes()
    archive.write_bytes(content[: len(content) // 2])
    assert label(home, images="tars") == FAILED
    assert {row.given for row in rows(home / "out").values()} == {(0,), (1,)}
    archive.write_bytes(content)
    assert label(home, images="tars") == 0
    assert masks_of(home / "out") == masks_of(home / "plain")


def test_keys_that_stand_twice_and_photographs_without_labels(home):
    files = in_tar(home / "tars" / "001.tar")
    del files["06.cls"]
    work.write_tar(home / "tars" / "001.tar", files | {"04.jpg": photograph(4, "JPEG")})
    assert label(home, images="tars") == FAILED
    failed = {name: row.error for name, row in rows(home / "out").items() if row.status == "failed"}
    assert failed.keys() == {"04", "06"}
    assert "has no labels" in failed["06"]


def test_tars_with_compression_are_refused(home):
    archive = home / "tars" / "001.tar"
    packed = gzip.compress(archive.read_bytes())
    (home / "packed").mkdir()
    for name in ("a.tar", "b.tar.gz"):
        (home / "packed" / name).write_bytes(packed)
    for images in ("packed", "packed/b.tar.gz"):
        assert label(home, "--output", "tar", images=images) == WRONG_INPUT
        assert not (home / "out").exists()
    archive.write_bytes(packed)
    assert label(home, images="tars") == FAILED
    assert len(masks_of(home / "out")) == 8


def test_mistakes_in_options_are_told_before_anything_is_written(home):
    def refused(*arguments, images="photos"):
        code, text = said(
            "label", home / "cam.safetensors", home / images, "--out", home / "o", *arguments
        )
        assert code == WRONG_INPUT, text
        assert "Traceback" not in text
        assert not (home / "o").exists()
        return text

    assert "--shard: expected I/N" in refused("--shard", "4")
    assert "expected a number from 0 to 3" in refused("--shard", "4/4")
    assert "--shard-size: expected at least 1" in refused("--shard-size", "0")
    assert "--shard-size: of no effect" in refused("--shard-size", "3", images="tars")
    assert "--profile" in refused("--shard-size", "3", "--profile", home / "trace.json")
    assert "--emit" in refused("--shard-size", "3", "--emit", "confidense")
    assert "--labels" in refused("--shard-size", "3", "--labels", "none")
    assert "--labels" in refused("--shard-size", "3", "--labels", "inside")
    assert "nowhere" in refused("--shard-size", "3", "--labels", home / "nowhere.csv")
    assert "nowhere" in refused("--labels", home / "nowhere.csv", images="tars")
    (home / "empty").mkdir()
    assert "empty" in refused("--shard-size", "3", images="empty")
    assert "none" in refused(images="empty/*.tar")
    (home / "cams").mkdir()
    code, text = said("label", home / "cams", home / "photos", "--shard-size", "3")
    assert code == WRONG_INPUT, text


# ---- odd names ----------------------------------------------------------------------------------

NAMES = [
    "a b.png", "a.b.png", "nested/deeper/x.png", "nested/y.png", "ä.png", "'$(x)`.png",
    "n" * 230 + ".png", os.fsdecode(b"caf\xe9.png"), "-x.png", "%41.png",
]  # fmt: skip


@pytest.mark.parametrize("form", ["png", "tar"])
def test_odd_names(home, form, computed, caplog):
    odd = home / "odd"
    for number, name in enumerate(NAMES):
        (odd / name).parent.mkdir(parents=True, exist_ok=True)
        (odd / name).write_bytes(photograph(number))
    beside = (*BESIDE, "--set", "unlabelled=background")
    assert label(home, *beside, images="odd", out="one") == 0
    options = ("--shard-size", "3", *beside, "--output", form)
    assert label(home, *options, images="odd") == 0
    computed.clear()
    before = files_in(home / "out")
    assert rows(home / "out").keys() == {name.removesuffix(".png") for name in NAMES}
    assert sorted(row.image for row in rows(home / "out").values()) == sorted(NAMES)
    assert masks_of(home / "out").keys() == {
        name if form == "tar" else os.path.basename(name) for name in NAMES
    }
    expected = masks_of(home / "one")
    assert {os.path.basename(n): c for n, c in masks_of(home / "out").items()} == expected
    assert label(home, *options, images="odd") == 0
    assert computed == []
    assert files_in(home / "out") == before
    assert "not among those given" not in caplog.text


def test_shards_whose_whole_names_are_odd_are_whole(home, caplog):
    (home / "odd").mkdir()
    (home / "odd" / os.fsdecode(b"caf\xe9.png")).write_bytes(photograph(0))
    label(home, "--shard-size", "3", images="odd")
    caplog.clear()
    assert label(home, "--shard-size", "3", images="odd") == 0
    assert "1 shard is whole, 0 to do" in caplog.text


def test_tars_with_odd_names(home):
    odd = home / "tars" / os.fsdecode(b"caf\xe9 1.tar")
    (home / "tars" / "000.tar").rename(odd)
    (home / "tars" / "below").mkdir()
    (home / "tars" / "001.tar").rename(home / "tars" / "below" / "a.b.tar")
    for _ in range(2):
        assert label(home, *BESIDE, images="tars") == 0
    assert masks_of(home / "out") == masks_of(home / "plain")


def test_a_shard_in_a_folder_that_is_called_like_a_shard(home):
    """``a.tar`` and ``a/b.tar``: the end of one does not remove what is begun of the other."""
    (home / "tars" / "a").mkdir()
    (home / "tars" / "000.tar").rename(home / "tars" / "a.tar")
    (home / "tars" / "001.tar").rename(home / "tars" / "a" / "b.tar")
    begun = home / "out" / "unfinished" / "a" / "b" / "begun.jsonl"
    assert label(home, "--shard", "0/3", images="tars") == 0
    begun.parent.mkdir(parents=True)
    begun.write_bytes(b"begun")
    for rank in range(3):
        assert label(home, "--shard", f"{rank}/3", images="tars") == 0
        is_own = json.loads((home / "out" / "inputs.json").read_text())["layout"]["shards"]
        if is_own[rank] == "a":
            assert begun.is_file()
    assert not (home / "out" / "unfinished").exists()
    assert masks_of(home / "out") == masks_of(home / "plain")


def test_tars_in_the_folder_of_a_data_set_are_none_of_its_photographs(home):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = ["model.safetensors", str(home / "tars")]
    assert is_sharded(parser.parse_args(given))
    assert not is_sharded(parser.parse_args([*given, "--dataset", "voc12"]))


def test_loose_masks_of_such_shards_are_refused(home):
    """A key ``b/x`` of ``a.tar`` would be called as the key ``x`` of ``a/b.tar``."""
    (home / "tars" / "a").mkdir()
    (home / "tars" / "000.tar").rename(home / "tars" / "a.tar")
    (home / "tars" / "001.tar").rename(home / "tars" / "a" / "b.tar")
    assert label(home, "--output", "png", images="tars") == WRONG_INPUT
    assert not (home / "out").exists()


def test_labels_beside_tars_and_in_a_file_of_all(home, computed):
    for archive in (home / "tars").glob("*.tar"):
        files = in_tar(archive)
        work.write_tar(archive, {n: c for n, c in files.items() if n.endswith(".png")})
        rows_of_it = [f"{n},{work.CLASSES[int(n[:2]) % 2]}" for n in files if n.endswith(".png")]
        archive.with_suffix(".csv").write_text("\n".join(["image,labels", *rows_of_it]) + "\n")
    assert label(home, images="tars") == 0
    assert masks_of(home / "out") == masks_of(home / "plain")
    computed.clear()
    table = home / "tars" / "001.csv"
    table.write_text(table.read_text().replace("05.png,dog", "05.png,cat"))
    assert label(home, images="tars") == 0
    assert computed == ["05"]
    shutil.copy(home / "photos" / "labels.csv", home / "all.csv")
    assert label(home, "--labels", home / "all.csv", images="tars", out="by_file") == 0
    assert masks_of(home / "by_file") == masks_of(home / "plain")


def test_rows_of_photographs_that_no_tar_holds_are_told(home, caplog):
    shutil.copy(home / "photos" / "labels.csv", home / "all.csv")
    own = ("--labels", home / "all.csv", "--output", "png")
    assert label(home, *own, images="tars") == 0
    assert "--labels:" not in caplog.text
    with open(home / "all.csv", "a") as file:
        file.write("98.png,cat\nmissing/99,dog\n")
    assert label(home, *own, images="tars") == 0
    told = "--labels: 2 rows are of photographs that none of these tars holds (98.png, missing/99)"
    assert told in caplog.text


def test_a_link_to_other_photographs_is_refused(home):
    (home / "now").symlink_to("photos")
    options = ("--shard-size", "5")
    assert label(home, *options, images="now") == 0
    shutil.copytree(home / "photos", home / "later")
    for file in (home / "later").rglob("*.png"):
        file.write_bytes(file.read_bytes() + b"other")
    (home / "now").unlink()
    (home / "now").symlink_to("later")
    assert label(home, *options, images="now") == WRONG_INPUT


def test_masks_of_no_labels_are_predicted(home):
    assert label(home, "--labels", "none", images="tars") == 0
    assert {row.given for row in rows(home / "out").values()} == {None}
    (home / "photos" / "labels.csv").unlink()
    assert label(home, out="one") == 0
    assert masks_of(home / "out") == masks_of(home / "one")


def test_read_changed_mask_is_what_an_editor_writes(home):
    """Of the helper `edit`: another file than weaktr's, which can be used."""
    mask = home / "plain" / "masks" / "03.png"
    size = np.array(Image.open(mask)).shape
    edit(mask)
    assert read_changed_mask(mask, size, 3).shape == size


# ---- photographs of manifests and data sets -----------------------------------------------------


@pytest.mark.parametrize("options", [(), ("--shard-size", "5")])
def test_a_manifest_gives_the_masks_of_its_folder_whatever_the_order_of_its_classes(home, options):
    manifest = data.folder(home / "photos", classes=["dog", "cat"])
    manifest.save(home / "all.json")
    assert label(home, *options, *BESIDE, images="all.json") == 0
    assert masks_of(home / "out") == masks_of(home / "plain")


@pytest.mark.parametrize("options", [(), ("--shard-size", "5")])
def test_a_data_set_is_labelled_by_its_own_lists(home, options):
    names = ["2007_000001", "2007_000002"]
    root = home / "data/VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "Annotations", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    work.write_tar(home / "data" / "VOCtrainval.tar", {"a.jpg": b""})
    write_mask(root / "SegmentationClass" / f"{names[0]}.png", np.zeros((40, 50), np.uint8))
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names) + "\n")
    for index, name in enumerate((*names, "2007_000003")):
        (root / "JPEGImages" / f"{name}.jpg").write_bytes(photograph(index, "JPEG"))
        shown = f"<object><name>{'cat' if index else 'dog'}</name></object>"
        (root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{shown}</annotation>")
    code, told = said("label", home / "cam.safetensors", root, "--dataset", "voc12", "--out", "out")
    assert code == WRONG_INPUT and "expected classes of" in told  # of its two classes
    named = {"names": list(VOC.names)}
    checkpoints.save(small.tiny_cam_model(20), home / "cam.safetensors", classes=named)
    assert label(home, *options, "--dataset", "voc12", images="data") == 0
    assert set(masks_of(home / "out")) == {f"{name}.png" for name in names}
    given = {entry.name: entry.given for entry in MaskFolder(home / "out").entries.values()}
    assert given == {names[0]: (VOC.names.index("dog"),), names[1]: (VOC.names.index("cat"),)}
    (masked,) = masked_in(home / "out")  # as reports and exports read it
    images = {sample.name: sample.image for sample in masked.samples}
    assert images == {name: root / "JPEGImages" / f"{name}.jpg" for name in names}


def test_a_link_in_the_results_is_refused(home):
    assert label(home, *BY_SHARDS) == 0
    (home / "elsewhere").mkdir()
    shutil.rmtree(home / "out" / "masks")
    (home / "out" / "masks").symlink_to(home / "elsewhere")
    assert label(home, *BY_SHARDS) == WRONG_INPUT
    assert not list((home / "elsewhere").iterdir())


@pytest.mark.parametrize("form", ["png", "tar"])
def test_what_was_made_is_verified(home, form, bad):
    (home / "photos" / os.fsdecode(b"caf\xe9 1.png")).write_bytes(photograph(3))
    (home / "photos" / "labels.csv").unlink()
    assert label(home, *BY_SHARDS, "--output", form) == FAILED
    assert list(verify(home / "out")) == []
    if form == "png":
        edit(home / "out" / "masks" / "03.png")
        assert label(home, *BY_SHARDS) == FAILED
        assert list(verify(home / "out")) == []
        assert statuses(home / "out")["03"] == "edited"
