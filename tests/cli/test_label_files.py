"""``weaktr label`` takes all photographs whose labels are known, and says from which files."""

from __future__ import annotations

import json
import shutil

import pytest

import weaktr
from tests.cli.test_carried_settings import MODEL
from tests.cli.test_train import said
from tests.stages import tiny
from weaktr import cli
from weaktr.data.masks import MaskFolder
from weaktr.stages.pipeline import run_recipe

COUNT, HELD_OUT = 10, 3


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Photographs with train.csv and val.csv, and a run of them."""
    root = tmp_path_factory.mktemp("split")
    photos = tiny.squares(root / "photos", COUNT)
    rows = rows_of(photos)
    write(photos / "train.csv", rows[:-HELD_OUT])
    write(photos / "val.csv", rows[-HELD_OUT:])
    run_recipe(tiny.recipe(photos, data={"val_split": "val"}), root / "run")
    return root


@pytest.fixture
def photos(root, tmp_path):
    """A copy of the photographs without label files."""
    copy = shutil.copytree(root / "photos", tmp_path / "photos")
    for file in copy.glob("*.csv"):
        file.unlink()
    return copy


def rows_of(photos):
    return (photos / "labels.csv").read_text().splitlines()[1:]


def write(file, rows):
    if file.suffix == ".json":
        pairs = (row.split(",") for row in rows)
        file.write_text(json.dumps({image: [labels] for image, labels in pairs}))
    else:
        file.write_text("\n".join(["image,labels", *rows]) + "\n")


def label(root, photos, out, *arguments, command="label", code=0):
    """The names that get a mask, and all that was said."""
    model = root / "run" / MODEL[command]
    ended, text = said(cli.main, "label", model, photos, "--out", out, *arguments)
    assert ended == code, text
    return set(MaskFolder(out).entries), " ".join(text.split())


ALL = {str(index) for index in range(COUNT)}


@pytest.mark.parametrize("command", ["label", "predict"])
def test_of_all_splits_together(root, tmp_path, command, caplog):
    photos = root / "photos"
    names, _ = label(root, photos, tmp_path / "out", command=command)
    assert names == ALL
    told = f"labels: {photos}/train.csv (7 photographs) and {photos}/val.csv (3)"
    assert told in caplog.text


def test_the_runs_masks_stay_as_they_are(root, tmp_path):
    label(root, root / "photos", tmp_path / "out")
    masks, own = MaskFolder(tmp_path / "out"), MaskFolder(root / "run" / "label")
    assert len(own) == COUNT - HELD_OUT
    for name, entry in own.entries.items():
        assert masks.entries[name].sha256 == entry.sha256


def test_in_python(root, tmp_path):
    masks = weaktr.label(root / "run" / MODEL["label"], root / "photos", tmp_path / "out")
    assert set(masks) == ALL


def test_masks_of_one_file_alone_are_gone_on_with(root, tmp_path):
    out, photos = tmp_path / "out", root / "photos"
    names, _ = label(root, photos, out, "--labels", photos / "train.csv")
    assert len(names) == COUNT - HELD_OUT
    times = {name: MaskFolder(out).path(name).stat().st_mtime_ns for name in names}
    assert label(root, photos, out)[0] == ALL
    assert {name: MaskFolder(out).path(name).stat().st_mtime_ns for name in names} == times


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train.csv": 6, "val.csv": 3, "test.csv": 1}, 10),
        ({"train.json": 6, "val.csv": 3}, 9),
        ({"train.csv": 6}, 6),
        ({"labels.json": 6, "val.json": 2}, 8),
        ({"val.csv": 4}, 4),
        ({"train_part.csv": 6, "val_part.csv": 2}, 8),
    ],
)
def test_which_files_count(root, photos, tmp_path, files, expected, caplog):
    rows, first = rows_of(root / "photos"), 0
    for name, count in files.items():
        write(photos / name, rows[first : first + count])
        first += count
    names, _ = label(root, photos, tmp_path / "out")
    assert names == {row.split(".")[0] for row in rows[:expected]}
    for number, (name, count) in enumerate(files.items()):
        assert f"{photos / name} ({count}{'' if number else ' photographs'})" in caplog.text
    lacking = "" if expected == COUNT else f"{COUNT - expected} photograph"
    assert lacking in caplog.text
    assert ("so without a mask" in caplog.text) == (expected < COUNT)


def test_parts_of_a_file_count_in_its_place(root, photos, tmp_path, caplog):
    """A train.csv of the user's may have any form; the parts of it are weaktr's."""
    rows = rows_of(root / "photos")
    (photos / "train.csv").write_text("file|what\n")
    write(photos / "train_part.csv", rows[:8])
    write(photos / "val_part.csv", rows[8:])
    assert label(root, photos, tmp_path / "out")[0] == ALL
    assert "train_part.csv (8 photographs)" in caplog.text


def test_a_photograph_of_two_files(root, photos, tmp_path):
    rows = rows_of(root / "photos")
    write(photos / "train.csv", rows)
    write(photos / "val.csv", rows[-2:])
    assert label(root, photos, tmp_path / "out")[0] == ALL
    image, colour = rows[-1].split(",")
    other = next(name for name in tiny.NAMES if name != colour)
    write(photos / "val.csv", [f"images/{image},{other}"])
    names, text = label(root, photos, tmp_path / "other", code=cli.WRONG_INPUT)
    assert not names
    assert f"labels: {other} here, {colour} at {photos}/train.csv:11: correct one" in text
    assert f"{photos}/val.csv:2" in text


def test_photographs_that_differ_in_their_suffix_alone(root, photos, tmp_path):
    rows = rows_of(root / "photos")
    shutil.copy(photos / "images" / "0.png", photos / "images" / "0.jpg")
    write(photos / "train.csv", rows)
    write(photos / "val.csv", [rows[0].replace(".png", ".jpg")])
    _, text = label(root, photos, tmp_path / "out", code=cli.WRONG_INPUT)
    assert "differs in the suffix alone from 0.png" in text
