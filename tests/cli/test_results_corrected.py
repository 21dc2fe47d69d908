"""``weaktr label`` and ``weaktr predict``: masks that somebody has corrected stay."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.cli.photographs import COMMANDS, photo
from tests.cli.results import replaced
from weaktr import cli
from weaktr.contents import Contents
from weaktr.data.io import read_stored_labels
from weaktr.data.masks import MaskFolder, png_bytes
from weaktr.seals import is_sealed


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mask_corrected_by_hand_stays(command, run, photos, caplog):
    masks = run(command)[2]
    mine = np.full((40, 50), 2, np.uint8)
    Image.fromarray(mine).save(masks.path("b"))
    for _ in range(2):
        code, _, masks = run(command)
        assert code == 0
        np.testing.assert_array_equal(read_stored_labels(masks.path("b")), mine)
        assert "1 masks were changed by hand (b): they stay as they are" in caplog.text
        caplog.clear()
    replaced(photos / "b.png", seed=99)
    assert run(command)[0] == cli.FAILED
    assert "its mask was changed by hand, and its photograph or its labels since" in caplog.text
    np.testing.assert_array_equal(read_stored_labels(masks.path("b")), mine)


@pytest.mark.parametrize("way", ["emit", "before", "chunks", "copied", "extra gone"])
def test_a_corrected_mask_stays_whatever_else_is_to_be_made(run, tmp_path, way):
    masks = run("label", "--emit", "cam")[2]
    path, mine = masks.path("b"), np.full((40, 50), 2, np.uint8)
    if way == "copied":
        other = run("label", "--set", "threshold=0.9", out=tmp_path / "other")[2]
        assert other.path("b").read_bytes() != path.read_bytes()
        shutil.copy(other.path("b"), path)
        mine = read_stored_labels(path)
    else:
        picture = Image.fromarray(mine)
        if way == "chunks":  # of a program that keeps what a PNG says of its origin
            path.write_bytes(png_bytes(picture))
        else:
            picture.save(path)
    if way == "before":
        shutil.rmtree(tmp_path / "out" / "before_refinement")
    if way == "extra gone":
        (tmp_path / "out" / "cams" / "b.npz").unlink()
    more = ("--emit", "cam,confidence") if way == "emit" else ("--emit", "cam")
    assert run("label", *more)[0] == 0
    np.testing.assert_array_equal(read_stored_labels(path), mine)


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_a_corrected_mask_that_is_none_any_more_is_named(run, mode, caplog):
    path = run("label")[2].path("b")
    pixels = np.full((40, 50), 300, np.uint16)
    Image.fromarray(pixels if mode == "I;16" else np.zeros((40, 50, 3), np.uint8)).save(path)
    content = path.read_bytes()
    assert run("label")[0] == cli.FAILED
    assert "its mask cannot be used: " in caplog.text
    assert path.read_bytes() == content


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("pixels", "told"),
    [
        (np.zeros((41, 50)), "expected 50x40 (width x height), got 50x41"),
        (np.full((40, 50), 3), "expected 0..2 or 255, got 3"),
    ],
)
def test_a_corrected_mask_of_another_size_or_class_is_named(run, command, pixels, told, caplog):
    path = run(command)[2].path("b")
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    content = path.read_bytes()
    assert run(command)[0] == cli.FAILED
    assert f"its mask cannot be used: {path}: " in caplog.text and told in caplog.text
    assert path.read_bytes() == content


@pytest.mark.parametrize("form", ["JPEG2000", "TGA", "PPM", "ICO", "text"])
def test_a_corrected_mask_in_another_form_stays(run, form, caplog):
    path = run("label")[2].path("b")
    if form == "text":
        path.write_text("to be done")
    else:
        Image.fromarray(np.full((40, 50), 2, np.uint8)).save(path, format=form)
    content = path.read_bytes()
    assert run("label")[0] == cli.FAILED
    assert "its mask cannot be used: " in caplog.text and str(path) in caplog.text
    assert path.read_bytes() == content


def test_a_mask_that_cannot_be_read_stays(run, monkeypatch, caplog):
    path = run("label")[2].path("b")
    Image.fromarray(np.full((40, 50), 2, np.uint8)).save(path)
    content, digest = path.read_bytes(), Contents.digest

    def refused(self, file):
        if file == path:
            raise PermissionError(13, "Permission denied", str(path))
        return digest(self, file)

    with monkeypatch.context() as patch:
        patch.setattr(Contents, "digest", refused)
        assert run("label")[0] == cli.FAILED
        assert f"its mask cannot be used: [Errno 13] Permission denied: '{path}'" in caplog.text
    assert path.read_bytes() == content and run("label")[0] == 0


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("corrected", [False, True])
def test_a_photograph_that_cannot_be_read_now_keeps_its_mask(
    command, corrected, run, photos, caplog
):
    path = run(command)[2].path("b")
    if corrected:
        Image.fromarray(np.full((40, 50), 2, np.uint8)).save(path)
    content, photograph = path.read_bytes(), (photos / "b.png").read_bytes()
    (photos / "b.png").unlink()
    (photos / "b.png").symlink_to("nowhere")
    assert run(command)[0] == cli.FAILED
    told = (
        "cannot be read now; its mask, which was changed by hand, stays" if corrected else "b.png"
    )
    assert told in caplog.text and "delete the mask" not in caplog.text
    assert path.read_bytes() == content
    (photos / "b.png").unlink()
    (photos / "b.png").write_bytes(photograph)
    assert run(command)[0] == 0 and path.read_bytes() == content


def test_a_corrected_mask_before_refinement_of_one_that_is_gone(run, tmp_path, caplog):
    before = tmp_path / "out" / "before_refinement" / "masks" / "b.png"
    path = run("label")[2].path("b")
    Image.fromarray(np.full((40, 50), 2, np.uint8)).save(before)
    path.unlink()
    content = before.read_bytes()
    assert run("label")[0] == cli.FAILED
    assert "its mask before refinement was changed by hand, and the refined one" in caplog.text
    assert before.read_bytes() == content and not path.exists()
    shutil.move(before, path)
    code, text, _ = run("label")
    assert code == 0, text
    assert path.read_bytes() == content


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_of_an_earlier_photograph_stays_beside_the_mask(command, run, photos, tmp_path):
    option, extra = {
        "label": (("--emit", "cam"), "cams"), "predict": (("--dump-scores",), "scores")
    }[command]  # fmt: skip
    run(command, *option)
    file = tmp_path / "out" / extra / "b.npz"
    before = file.read_bytes()
    replaced(photos / "b.png", seed=99)
    run(command)
    assert not file.exists()
    assert run(command, *option)[0] == 0
    assert file.read_bytes() != before


def test_a_corrected_mask_stays_where_its_labels_are_taken_away(run, photos, caplog):
    masks = run("label")[2]
    mine = np.full((40, 50), 2, np.uint8)
    Image.fromarray(mine).save(masks.path("b"))
    file = photos / "labels.csv"
    file.write_text(file.read_text().replace("b.png,cat", "b.png,"))
    for _ in range(2):
        assert run("label")[0] == cli.FAILED
        assert "its mask was changed by hand, and its photograph or its labels" in caplog.text
        np.testing.assert_array_equal(read_stored_labels(masks.path("b")), mine)


def test_a_damaged_index_is_named_with_its_line(run, tmp_path):
    run("predict")
    index = tmp_path / "out" / "index.jsonl"
    lines = index.read_text().splitlines(keepends=True)
    for damage in ("{nonsense\n", "[]\n", lines[1].replace("masks/b", "../b"), "[" * 99999 + "\n"):
        index.write_text(lines[0] + damage + lines[2])
        code, text, _ = run("predict")
        assert code == cli.WRONG_INPUT, text
        assert "index.jsonl:2" in text and "Traceback" not in text


def test_reading_an_index_changes_nothing(run, tmp_path):
    run("predict")
    index = tmp_path / "out" / "index.jsonl"
    half = index.read_bytes() + b'{"name": "d"'
    index.write_bytes(half)
    assert len(MaskFolder(tmp_path / "out", verify=True)) == 3
    assert index.read_bytes() == half


def test_photographs_that_no_line_lists_are_told(run, photos, caplog):
    photo(photos / "d.png", 50, 40)
    code, _, masks = run("label")
    assert code == 0 and sorted(masks.entries) == ["a", "b", "c"]
    assert (
        f"1 photograph in {photos} is not in labels.csv, so without a mask (d.png)" in caplog.text
    )


def test_photographs_outside_of_images_are_told(run, photos, caplog):
    (photos / "images").mkdir()
    for file in photos.glob("*.png"):
        file.rename(photos / "images" / file.name)
    photo(photos / "d.png", 50, 40)
    code, _, masks = run("label")
    assert code == 0 and sorted(masks.entries) == ["a", "b", "c"]
    told = "1 photograph outside of images/ (d.png) is in no line of labels.csv, so without a mask"
    assert f"{photos}: {told}" in caplog.text


def test_masks_without_a_seal_that_the_index_lists_are_weaktrs(run, photos, tmp_path):
    """As an older version wrote them."""
    masks = run("label")[2]
    for folder in (masks.folder, masks.folder / "before_refinement"):
        lines = [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]
        for line in lines:
            path = folder / line["file"]
            with Image.open(path) as picture:
                picture.load()
            picture.info.clear()
            picture.save(path)
            assert not is_sealed(path)
            line["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:60])
    for _ in range(2):
        assert run("label")[0] == cli.FAILED
    assert not masks.path("b").exists()
    (photos / "b.png").write_bytes(whole)
    assert run("label")[0] == 0


def test_a_changed_contact_sheet_is_kept(run, tmp_path, caplog):
    assert run("predict")[0] == 0
    sheet = tmp_path / "out" / "contact_sheet.png"
    sheet.write_bytes(sheet.read_bytes() + b"mine")
    assert run("predict")[0] == 0
    (kept,) = sheet.parent.glob("contact_sheet.old-*.png")
    assert kept.read_bytes().endswith(b"mine") and "it is kept as" in caplog.text


@pytest.mark.parametrize("file", ["cams/b.npz", "confidence/b.png"])
def test_a_changed_file_beside_the_masks_is_not_replaced(file, run, photos, tmp_path, caplog):
    more = ("--emit", "cam,confidence")
    assert run("label", *more)[0] == 0
    path = tmp_path / "out" / file
    path.write_bytes(b"mine")
    replaced(photos / "b.png", seed=99)
    for _ in range(2):
        code, text, _ = run("label", *more)
        assert code in (cli.FAILED, cli.WRONG_INPUT)
        assert str(path) in text + caplog.text and path.read_bytes() == b"mine"
    path.unlink()
    assert run("label", *more)[0] == 0 and is_sealed(path)


def test_corrected_masks_without_further_files_are_named(run, caplog):
    path = run("label")[2].path("b")
    Image.fromarray(np.full((40, 50), 2, np.uint8)).save(path)
    assert run("label", "--emit", "confidence")[0] == 0
    assert "1 images whose masks were changed by hand (b) have no confidence" in caplog.text


def test_a_mask_before_refinement_that_cannot_be_used_is_named(run, tmp_path, caplog):
    assert run("label")[0] == 0
    path = tmp_path / "out" / "before_refinement" / "masks" / "b.png"
    Image.fromarray(np.zeros((40, 50, 3), np.uint8)).save(path)
    assert run("label")[0] == cli.FAILED
    assert f"its mask cannot be used: {path}" in caplog.text


def test_a_damaged_mask_that_is_whole_at_its_ends_stays(run, caplog):
    """It may be a corrected one, by an editor that kept the seal."""
    path = run("label")[2].path("b")
    content = bytearray(path.read_bytes())
    content[-30] ^= 255
    path.write_bytes(content)
    assert run("label")[0] == cli.FAILED and path.read_bytes() == content
    path.write_bytes(content[:-20])
    assert run("label")[0] == 0 and is_sealed(path)
