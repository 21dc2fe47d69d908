"""Photographs, tars and data sets with odd names, in ``weaktr label`` by shards."""

from __future__ import annotations

import argparse
import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.models import small
from tests.shards import work
from tests.shards.work import (
    BESIDE,
    BY_SHARDS,
    edit,
    files_in,
    in_tar,
    label,
    masks_of,
    photograph,
    rows,
    said,
)
from weaktr import data
from weaktr.cli import WRONG_INPUT
from weaktr.cli.label import add_arguments
from weaktr.cli.sharded import is_sharded
from weaktr.data import VOC
from weaktr.data.masks import MaskFolder, read_changed_mask, write_mask
from weaktr.jobs.masked import masked_in
from weaktr.models import checkpoints

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
