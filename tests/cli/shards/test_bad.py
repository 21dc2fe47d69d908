"""Photographs and tars that cannot be read, in ``weaktr label`` by shards."""

from __future__ import annotations

import gzip
import os

import pytest

from tests.shards import work
from tests.shards.work import (
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
)
from weaktr.cli import FAILED, WRONG_INPUT
from weaktr.shards.verify import verify


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
