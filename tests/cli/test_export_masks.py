"""``weaktr export-masks``: what it writes, keeps, refuses and leaves out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.exchange.folders import photograph
from weaktr.cli import FAILED, WRONG_INPUT, main
from weaktr.cli.export_masks import NAMES
from weaktr.data.masks import MaskFolder
from weaktr.exchange import FORMATS
from weaktr.outputs import begin


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    """What ``weaktr label`` leaves of three photographs, one of which shows nothing."""
    return labelled(tmp_path)


def labelled(folder: Path, exif: str = "ignore", orientation: int = 1) -> Path:
    out, photographs = folder / "labels", folder / "photographs"
    out.mkdir(parents=True)
    about = {"command": "label", "photographs": str(photographs), "classes": ["cat", "dog"]}
    begin(out, "x", about=about | {"exif": exif})
    masks = MaskFolder(out)
    for name in ("a", "b/a"):
        photograph(photographs / f"{name}.png", (6, 8), orientation=orientation)
        size = (8, 6) if exif == "apply" and orientation == 6 else (6, 8)
        mask = np.zeros(size, np.uint8)
        mask[2:4, 1:5] = 2
        entry = masks.write(name, mask, given=(1,))
        masks.record(entry)
    return out


def export(labels: Path, *options: str, to: str = "coco", out: str = "out") -> int:
    return main(
        ["export-masks", str(labels), "--to", to, "--out", str(labels.parent / out), *options]
    )


def visible(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


WHOLE = {"annotations.json", "images/a.png", "images/b/a.png", "inputs.json", "finished.json"}


def test_it_writes_masks_and_photographs(labels):
    assert export(labels) == 0
    out = labels.parent / "out"
    assert visible(out) == WHOLE
    content = json.loads((out / "annotations.json").read_text())
    assert [(one["file_name"], one["labels"]) for one in content["images"]] == [
        ("a.png", ["dog"]), ("b/a.png", ["dog"]),
    ]  # fmt: skip
    assert [(one["category_id"], one["area"]) for one in content["annotations"]] == [(2, 8), (2, 8)]


def test_started_again_it_has_the_masks_as_they_are_now(labels):
    assert export(labels) == 0
    masks = MaskFolder(labels)
    mask = masks.read("a")
    mask[0, 0] = 1
    masks.add("a", mask)
    assert export(labels) == 0
    out = labels.parent / "out"
    assert visible(out) == WHOLE
    assert len(json.loads((out / "annotations.json").read_text())["annotations"]) == 3
    assert {path.name for path in labels.parent.iterdir()} == {"labels", "photographs", "out"}
    assert not [path for path in out.iterdir() if path.suffix in (".part", ".removed")]


@pytest.mark.parametrize("what", ["changed", "put there", "removed"])
def test_a_result_that_somebody_changed_is_kept(labels, what):
    assert export(labels) == 0
    out = labels.parent / "out"
    if what == "changed":
        (out / "annotations.json").write_text("mine")
    elif what == "put there":
        (out / "images/notes.txt").write_text("mine")
    else:
        (out / "images/a.png").unlink()
    assert export(labels) == 0
    assert visible(out) == WHOLE
    (kept,) = labels.parent.glob("out.old-*")
    assert ("mine" in [p.read_text() for p in kept.rglob("*.[jt]*")]) == (what != "removed")


def test_a_kill_between_old_and_new_loses_nothing(labels):
    assert export(labels) == 0
    out = labels.parent / "out"
    (out / "finished.json").unlink()
    (out / ".0123456789abcdef0123456789abcdef.part").mkdir()
    assert export(labels) == 0
    assert visible(out) == WHOLE
    (kept,) = labels.parent.glob("out.old-*")
    assert (kept / "annotations.json").is_file()
    assert not list(out.glob(".*.part"))


def test_what_is_refused(labels, capsys):
    other = labels.parent / "theirs"
    other.mkdir()
    (other / "x.txt").write_text("mine")
    assert export(labels, out="theirs") == WRONG_INPUT
    assert (other / "x.txt").read_text() == "mine" and len(list(other.iterdir())) == 1
    assert export(labels, out="photographs/out") == WRONG_INPUT
    assert export(labels, out="labels/out") == WRONG_INPUT
    assert export(labels, "--least-area", "1") == WRONG_INPUT
    assert export(labels, "--coco-segmentation", "polygons", to="cvat") == WRONG_INPUT
    assert export(labels, "--least-area", "0.1", to="fiftyone") == WRONG_INPUT
    assert export(labels, "--masks", "predict") == WRONG_INPUT
    assert not (labels.parent / "out").exists()
    assert export(labels) == 0
    assert export(labels, to="cvat") == WRONG_INPUT  # a result of another format
    assert visible(labels.parent / "out") == WHOLE


def test_what_cannot_be_read_is_named_and_left_out(labels, caplog):
    (labels.parent / "photographs/a.png").write_bytes(b"no image")
    assert export(labels) == FAILED
    assert "a.png" in caplog.text and "left out" in caplog.text
    assert visible(labels.parent / "out") == WHOLE - {"images/a.png"}


def test_where_nothing_can_be_read_nothing_is_written(labels):
    for name in ("a", "b/a"):
        (labels.parent / f"photographs/{name}.png").write_bytes(b"no image")
    assert export(labels) == WRONG_INPUT
    assert not (labels.parent / "out").exists()


def test_a_mask_that_became_unusable_is_named(labels, caplog):
    Image.fromarray(np.zeros((3, 3), np.uint8)).save(labels / "masks/a.png")
    assert export(labels) == FAILED
    assert "masks/a.png" in caplog.text
    assert visible(labels.parent / "out") == WHOLE - {"images/a.png"}


def test_links_lead_to_the_photographs(labels):
    assert export(labels, "--images", "link") == 0
    link = labels.parent / "out/images/b/a.png"
    assert link.is_symlink() and link.resolve() == labels.parent / "photographs/b/a.png"
    assert export(labels, "--images", "link") == 0
    assert not list(labels.parent.glob("out.old-*"))
    assert export(labels, "--images", "none", out="bare") == 0
    assert visible(labels.parent / "bare") == {"annotations.json", "inputs.json", "finished.json"}


@pytest.mark.parametrize("exif", ["ignore", "apply"])
@pytest.mark.parametrize("images", ["copy", "link"])
def test_a_photograph_that_viewers_turn_fits_its_mask(tmp_path, exif, images):
    labels = labelled(tmp_path, exif, orientation=6)
    stored = np.array(Image.open(tmp_path / "photographs/a.png"))
    assert export(labels, "--images", images) == 0
    with Image.open(tmp_path / "out/images/a.png") as copy:
        assert copy.getexif().get(0x0112, 1) == 1
        expected = np.rot90(stored, -1) if exif == "apply" else stored
        np.testing.assert_array_equal(np.array(copy), expected)
    (image, _) = json.loads((tmp_path / "out/annotations.json").read_text())["images"]
    assert (image["height"], image["width"]) == expected.shape[:2]


def test_no_masks(tmp_path):
    assert main(["export-masks", str(tmp_path), "--to", "coco", "--out", "out"]) == WRONG_INPUT


def test_names_that_xml_cannot_hold(labels, caplog):
    photograph(labels.parent / "photographs/a\x01.png", (6, 8))
    masks = MaskFolder(labels)
    masks.add("a\x01", np.ones((6, 8), np.uint8))
    assert export(labels, to="cvat") == FAILED
    assert "XML cannot hold its name" in caplog.text


def test_every_format_may_be_chosen():
    assert tuple(FORMATS) == NAMES
