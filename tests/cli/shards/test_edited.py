"""``weaktr label`` by shards among the user's own masks, photographs and folders, which stay."""

from __future__ import annotations

import hashlib
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.shards import work
from tests.shards.work import (
    BESIDE,
    BY_SHARDS,
    COUNT,
    edit,
    files_in,
    in_tar,
    label,
    later,
    masks_of,
    photograph,
    rows,
    said,
    statuses,
    write_labels,
)
from weaktr.cli import FAILED, WRONG_INPUT
from weaktr.data.io import read_stored_labels
from weaktr.evaluation.notebook import Mask
from weaktr.shards.output import ShardWriter
from weaktr.shards.verify import verify


def test_a_start_over_whole_shards_opens_no_table(home, monkeypatch):
    options = ("--shard-size", "5")
    assert label(home, *options) == 0

    def opened(*_):
        raise OSError("opened")

    monkeypatch.setattr("weaktr.labelling.shard.read_table", opened)
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
