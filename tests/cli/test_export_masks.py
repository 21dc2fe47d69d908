"""``weaktr export-masks``: what it writes, keeps, refuses and leaves out."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.exchange.folders import photograph
from tests.shards import work
from tests.stages import tiny
from weaktr.cli import FAILED, WRONG_INPUT, main
from weaktr.cli.export_masks import NAMES, way_out
from weaktr.data.masks import MaskFolder
from weaktr.exchange import FORMATS, place
from weaktr.outputs import begin
from weaktr.stages.pipeline import run_recipe


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


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("position", range(1, 7))
def test_a_kill_while_files_change_places_leaves_nothing_beside(
    labels, position, first, monkeypatch
):
    """At the start after it, what is there counts as weaktr's own, old and new files alike."""
    out = labels.parent / "out"
    if not first:
        assert export(labels) == 0
        masks = MaskFolder(labels)
        mask = masks.read("a")
        mask[0, 0] = 1
        masks.add("a", mask)
    calls: list[object] = []

    def until_killed(function):
        def run(*arguments, **facts):
            calls.append(function)
            if len(calls) == position:
                raise KeyboardInterrupt
            return function(*arguments, **facts)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", until_killed(Path.rename))
        for name in ("mark_finished", "remove"):
            patch.setattr(f"weaktr.exchange.place.{name}", until_killed(getattr(place, name)))
        export(labels)
    assert len(calls) >= min(position, 3)
    assert export(labels) == 0
    assert visible(out) == WHOLE
    annotations = json.loads((out / "annotations.json").read_text())["annotations"]
    assert len(annotations) == (2 if first else 3)
    assert not list(labels.parent.glob("out.old-*"))
    left = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert left <= {".weaktr-lock", ".contents.json"}


@pytest.mark.parametrize("to", sorted({*NAMES} - {"hf"}))
def test_a_mask_with_a_label_that_is_no_class_is_left_out(labels, to, caplog):
    Image.fromarray(np.full((6, 8), 7, np.uint8)).save(labels / "masks/a.png")
    assert export(labels, to=to) == FAILED
    assert "a.png: mask values outside the classes: expected 0..2 or 255, got 7" in caplog.text
    assert "1 photograph with its mask" in caplog.text


def test_ignored_pixels_are_no_class_where_names_are_not_known(labels):
    """As in folders that were labelled from CAMs in files."""
    inputs = json.loads((labels / "inputs.json").read_text())
    inputs["about"]["classes"] = None
    (labels / "inputs.json").write_text(json.dumps(inputs))
    masks = MaskFolder(labels)
    mask = masks.read("a")
    mask[0] = 255
    Image.fromarray(mask).save(masks.path("a"))
    assert export(labels) == 0
    content = json.loads((labels.parent / "out/annotations.json").read_text())
    assert [one["name"] for one in content["categories"]] == ["class 0", "class 1"]


def test_photographs_and_masks_that_are_gone_are_named(labels, caplog):
    (labels.parent / "photographs/a.png").unlink()
    assert export(labels) == FAILED
    assert "left out: a: its photograph is no longer in" in caplog.text
    (labels / "masks/b/a.png").unlink()
    assert export(labels) == WRONG_INPUT
    caplog.clear()
    photograph(labels.parent / "photographs/a.png", (6, 8))
    assert export(labels) == 0
    assert "1 mask is no longer there, so left out: b/a" in caplog.text


@pytest.mark.parametrize("form", ["folder", "shards"])
def test_photographs_that_are_listed_below_images_and_above_it(tmp_path, form):
    """Their names are those that the list gives them."""
    work.model(tmp_path / "cam.safetensors")
    files = {"images/a.png": "cat", "b.png": "dog", "x.png": "cat"}
    for number, name in enumerate(("images/a.png", "images/b.png", "x.png")):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(work.photograph(number))
    work.write_labels(tmp_path / "photos", files)
    assert work.label(tmp_path, *(("--shard-size", "2") if form == "shards" else ())) == 0
    assert export(tmp_path / "out", out="coco") == 0
    exported = {
        path.relative_to(tmp_path / "coco/images").as_posix(): path.read_bytes()
        for path in (tmp_path / "coco/images").rglob("*.png")
    }
    assert exported == {name: work.photograph(n) for n, name in enumerate(files)}


def test_photographs_in_tars_whose_masks_are_loose(tmp_path):
    work.model(tmp_path / "cam.safetensors")
    work.tars(tmp_path / "tars", 2, 2)
    assert work.label(tmp_path, "--output", "png", images="tars") == 0
    assert export(tmp_path / "out", out="coco") == 0
    names = {"000/00": 0, "000/01": 1, "001/02": 2, "001/03": 3}
    for name, number in names.items():
        copy = tmp_path / "coco/images" / f"{name}.png"
        assert copy.read_bytes() == work.photograph(number)
    assert work.label(tmp_path, images="tars", out="packed") == 0
    assert export(tmp_path / "packed", out="coco2") == WRONG_INPUT
    damaged = tmp_path / "tars/001.tar"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    assert export(tmp_path / "out", out="coco") == FAILED
    left = {path.name for path in (tmp_path / "coco/images").rglob("*.png")}
    assert left == {"00.png", "01.png"}


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


def remade(labels: Path, name: str, picture: Path) -> None:
    """Have a mask note the photograph that it was made of."""
    masks = MaskFolder(labels)
    digest = hashlib.sha256(picture.read_bytes()).hexdigest()
    masks.record(replace(masks.entries[name], inputs=(digest,)))


@pytest.mark.parametrize("command", ["export-masks", "report"])
def test_a_mask_of_another_photograph_is_named_and_left_out(labels, caplog, command):
    """The photograph has been replaced since; masks without a note of it count."""
    for name in ("a", "b/a"):
        remade(labels, name, labels.parent / f"photographs/{name}.png")
    assert export(labels, out="before") == 0
    photograph(labels.parent / "photographs/a.png", (6, 8), orientation=3)
    told = f"{labels.parent / 'photographs/a.png'}: has changed since its mask was made; start wea"
    if command == "report":
        assert main(["report", str(labels)]) == 0
        assert told in caplog.text
        return
    assert export(labels) == FAILED
    assert told in caplog.text
    assert visible(labels.parent / "out") == WHOLE - {"images/a.png"}


def test_of_two_photographs_of_a_name_the_one_that_has_the_mask(labels):
    """``images/a.png`` is a in a list of labels, though ``a.png`` is beside it."""
    photographs = labels.parent / "photographs"
    (photographs / "images").mkdir()
    for grey, path in enumerate(("images/a.png", "a.png", "images/c.png", "c.png")):
        Image.new("RGB", (8, 6), (grey, grey, grey)).save(photographs / path)
    masks = MaskFolder(labels)
    masks.record(masks.write("c", np.zeros((6, 8), np.uint8), given=()))
    remade(labels, "a", photographs / "images/a.png")
    remade(labels, "c", photographs / "c.png")
    assert export(labels) == 0
    for name, path in {"a": "images/a.png", "c": "c.png"}.items():
        exported = labels.parent / f"out/images/{name}.png"
        assert exported.read_bytes() == (photographs / path).read_bytes()


def test_where_all_photographs_were_replaced_it_is_said(labels, capsys):
    for name in ("a", "b/a"):
        remade(labels, name, labels / "index.jsonl")
    assert export(labels) == WRONG_INPUT
    told = " ".join(capsys.readouterr().out.split())
    assert "found none that can be used: " in told
    assert "has changed since its mask was made" in told


def test_of_all_that_is_in_a_folder_a_name_is_its_own(labels):
    """Of an older version, which did not note the photographs."""
    photographs = labels.parent / "photographs"
    (photographs / "images").mkdir()
    Image.new("RGB", (8, 6), (9, 9, 9)).save(photographs / "images/a.png")
    masks = MaskFolder(labels)
    masks.record(masks.write("images/a", np.zeros((6, 8), np.uint8), given=()))
    assert export(labels) == 0
    for name in ("a", "images/a"):
        exported = labels.parent / f"out/images/{name}.png"
        assert exported.read_bytes() == (photographs / f"{name}.png").read_bytes()


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


@pytest.mark.parametrize("to", sorted({*NAMES} - {"hf"}))
@pytest.mark.parametrize("images", ["copy", "none"])
def test_it_says_how_to_open_it_where_the_photographs_are(labels, to, images, caplog):
    assert export(labels, "--images", images, to=to) == 0
    out = labels.parent / "out"
    (told,) = (line for line in caplog.messages if line.startswith("to open it: "))
    assert "{" not in told
    if to == "label-studio":
        root, storage = (out, f"{out}/images") if images == "copy" else ("/", "of the folder of")
        assert f"DOCUMENT_ROOT={root}; in its settings a source storage of the kind" in told
        assert f"Local files with the path {storage}" in told
        task = json.loads((out / "tasks.json").read_text())[0]
        file = Path(root) / task["data"]["image"].partition("?d=")[2]
        assert file.is_file() and (images == "none" or file.is_relative_to(storage))
    elif images == "none" and to != "labelme":  # whose own files are in that folder
        is_to_put = f"put your photographs, or links to them, into {out}/images" in told
        assert is_to_put == (to == "yolo-seg") == (f"{out}/images" in told)
        assert not list(out.glob("images/**/*.png"))


def test_every_format_may_be_chosen():
    assert tuple(FORMATS) == NAMES


# ---- of a run ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of ten photographs, of which three are held out."""
    root = tmp_path_factory.mktemp("run")
    photos = tiny.squares(root / "pho tos", 10)
    header, *rows = (photos / "labels.csv").read_text().splitlines()
    (photos / "labels.csv").unlink()
    (photos / "train.csv").write_text("\n".join([header, *rows[:7]]) + "\n")
    (photos / "val.csv").write_text("\n".join([header, *rows[7:]]) + "\n")
    run_recipe(tiny.recipe(photos), root / "run")
    masks = MaskFolder(root / "run" / "predict")
    red, blue = np.full((32, 32), 1, np.uint8), np.full((32, 32), 3, np.uint8)
    for name in ("7", "8", "9"):  # of one class that is not given
        is_red = rows[int(name)].endswith(",red")
        masks.record(masks.write(name, blue if is_red else red))
    return root / "run"


@pytest.fixture
def run_export(run, tmp_path, caplog):
    """A function: exports, and gives the folder and what was logged."""

    def export(folder, *options, to="coco", name="out"):
        caplog.clear()
        call = ["export-masks", str(folder), "--to", to, "--out", str(tmp_path / name), *options]
        assert main(call) == 0
        return tmp_path / name, caplog.text

    return export


def test_predictions_that_do_not_know_their_labels_are_said_with_the_way_out(
    run, run_export, tmp_path, monkeypatch, caplog
):
    _, text = run_export(run)
    assert "10 photographs with masks (7 pseudo labels, 3 predictions)" in text
    assert "3 photographs have predictions, which do not know the labels" in text
    assert "3 masks have other classes (such as 7: given " in text
    (told,) = [r.message for r in caplog.records if "that follow the labels" in r.message]
    monkeypatch.chdir(tmp_path)
    first, second, _ = told.split(": ", 1)[1].split("; ")
    for command in (first, second.removeprefix("then ")):
        program, *arguments = shlex.split(command)
        assert program == "weaktr"
        assert main(arguments) == 0
    content = json.loads((tmp_path / "out_labels/annotations.json").read_text())
    assert len(content["images"]) == 10
    labels = {image["id"]: image["labels"] for image in content["images"]}
    names = {one["id"]: one["name"] for one in content["categories"]}
    for one in content["annotations"]:
        assert names[one["category_id"]] in labels[one["image_id"]]


def test_nothing_is_said_of_pseudo_labels(run, run_export):
    _, text = run_export(run, "--masks", "label")
    assert "(7 pseudo labels)" in text and "do not know" not in text


def test_where_no_label_file_is_left_pseudo_labels_are_the_way_out(run):
    assert way_out(None, "coco", Path("x")) == "--masks label leaves predictions out"


@pytest.mark.parametrize("command", ["run", "label"])
def test_held_out_photographs_are_the_val_split_of_yolo(run, run_export, tmp_path, command):
    folder = run
    if command == "label":  # of a command, by the run of its model
        folder, model = tmp_path / "labels", run / "train_cam" / "model.safetensors"
        assert main(["label", str(model), str(run.parent / "pho tos"), "--out", str(folder)]) == 0
    out, _ = run_export(folder, to="yolo-seg")
    val = (out / "val.txt").read_text().split()
    assert val == [f"./images/{name}.png" for name in (7, 8, 9)]
    assert len((out / "train.txt").read_text().split()) == 7


def test_one_kind_of_masks_has_no_splits(run, run_export):
    out, _ = run_export(run, "--masks", "label", to="yolo-seg")
    assert not list(out.glob("*.txt"))


def test_a_run_that_has_gone_says_nothing_of_splits(run, run_export, tmp_path):
    moved = shutil.copytree(run, tmp_path / "moved")
    model, folder = moved / "train_cam" / "model.safetensors", tmp_path / "labels"
    assert main(["label", str(model), str(run.parent / "pho tos"), "--out", str(folder)]) == 0
    shutil.rmtree(moved)
    out, _ = run_export(folder, to="yolo-seg")
    assert not list(out.glob("*.txt"))


def test_many_tiny_parts_are_said(tmp_path, caplog):
    labels = labelled(tmp_path)
    masks = MaskFolder(labels)
    mask = np.zeros((100, 100), np.uint8)
    mask[::10, ::10] = 1
    mask[95:, 95:] = 2
    photograph(tmp_path / "photographs/a.png", mask.shape)
    masks.add("a", mask)
    assert export(labels) == 0
    assert "100 of 102 parts are smaller than 0.05 % of their photograph" in caplog.text
    assert "--least-area 0.0005 leaves them out" in caplog.text
    caplog.clear()
    assert export(labels, "--least-area", "0.0005", out="less") == 0
    assert "100 parts below --least-area are left out" in caplog.text
    assert "are smaller than" not in caplog.text


def test_few_tiny_parts_are_not_worth_a_word(labels, caplog):
    assert export(labels) == 0
    assert "are smaller than" not in caplog.text
    assert "2 photographs with masks (2 pseudo labels)" in caplog.text
