"""``weaktr label`` by shards, started again: what is whole stays, what changed is made again."""

from __future__ import annotations

import builtins
import io
import os
import shutil

import pytest

from tests.shards import work
from tests.shards.work import (
    BESIDE,
    BY_SHARDS,
    files_in,
    in_tar,
    label,
    later,
    masks_of,
    photograph,
    rows,
    said,
    write_labels,
)
from weaktr.cli import WRONG_INPUT


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
