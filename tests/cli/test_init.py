"""``weaktr init``: what it understands, writes and leaves alone; a training starts from it."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.test_train import said
from tests.data.trees import coco_json, write_csv, write_image
from tests.stages import tiny
from weaktr import cli
from weaktr.data import load_manifest
from weaktr.recipes import load_recipe
from weaktr.seals import BLANK, is_sealed, sealed
from weaktr.stages.init import labels_since
from weaktr.stages.pipeline import check_recipe
from weaktr.stages.run import Run, load_split

CLASSES = ("cat", "dog", "bird")
#: For recipes whose backbone is DINOv2-S: one that needs no weights.
SMALL = [
    f"{model}.{key}={json.dumps(tiny.MODEL[key])}"
    for model in ("cam_model", "seg_model")
    for key in tiny.MODEL
] + ["seg_model.layers=[-1]", "cam_model.patches.layers=[-1]", "device=cpu"]  # fmt: skip


def photographs(root: Path, count: int = 30, suffix: str = ".png") -> dict[str, str]:
    """Photographs in ``images/a b`` and their labels, every tenth without; a cell of each."""
    labels = {}
    for k in range(count):
        name = f"a b/é{k}{suffix}"
        write_image(root / "images" / name, seed=k)
        labels[name] = "" if k % 10 == 9 else ";".join({CLASSES[k % 3], CLASSES[k % 2]})
    return labels


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Photographs and ``labels.csv``."""
    root = tmp_path / "my photos"
    write_csv(root / "labels.csv", [("image", "labels"), *photographs(root).items()])
    return root


@pytest.fixture(autouse=True)
def forecasts(monkeypatch) -> list[Run]:
    """Of what a forecast was asked for: the real one needs seconds of DINOv2-S."""
    asked: list[Run] = []

    def forecast(run: Run, stages: object) -> dict[str, float]:
        asked.append(run)
        return {"train_cam": 20.0, "train_seg": 200.0}

    monkeypatch.setattr("weaktr.stages.forecast.forecast", forecast)
    return asked


def contents(root: Path) -> dict[str, bytes]:
    """What lies below a folder."""
    files = (file for file in sorted(root.rglob("*")) if file.is_file())
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files}


def initialised(root: Path, *arguments: object) -> str:
    code, text = said(cli.main, "init", root, *arguments)
    assert code == 0, text
    return " ".join(text.split())


def manifests(root: Path, recipe: str = "recipe.yaml"):
    data = load_recipe(root / recipe).data
    return load_split(data, data.train_split), load_split(data, data.val_split)


def test_a_first_start(root, caplog, forecasts):
    before = contents(root)
    text = initialised(root)
    after = contents(root)
    new = {".weaktr-init.json", "recipe.yaml", "train.csv", "val.csv"}
    assert after.keys() - before.keys() == new
    assert all(after[name] == content for name, content in before.items())
    train, val = manifests(root)
    assert len(train) + len(val) == 30 and 3 <= len(val) <= 9
    assert {s.name for s in train} & {s.name for s in val} == set()
    assert train.classes == val.classes and train.classes.names == ("bird", "cat", "dog")
    with open(root / "labels.csv", encoding="utf-8", newline="") as file:
        told = {
            line["image"]: set(filter(None, line["labels"].split(";")))
            for line in csv.DictReader(file)
        }
    for sample in (*train, *val):
        names = {train.classes.names[index] for index in sample.labels}
        assert names == told[f"{sample.name}.png"]
    assert "30 below" in text and f"{len(val)}, trained on {len(train)}" in text
    told = "about 4 min on this machine, measured just now: train_cam 20 s, train_seg 3 min"
    assert told in caplog.messages
    assert [(run.folder, len(run.train)) for run in forecasts] == [
        (Path("runs/my_photos"), len(train))
    ]
    assert f"next: weaktr-train '{root}/recipe.yaml'" in caplog.messages


def test_the_recipe_is_one_to_train_with(root, tmp_path):
    initialised(root)
    recipe = load_recipe(root / "recipe.yaml", SMALL)
    own = load_recipe("own_dinov2_s", SMALL)
    for part in ("cam_model", "label", "seg_model", "train_seg", "predict", "stages"):
        assert getattr(recipe, part) == getattr(own, part)
    assert (recipe.name, recipe.data.root) == ("my_photos", str(root.resolve()))
    lines = (root / "recipe.yaml").read_text().splitlines()
    assert all("#" in line for line in lines if ": " in line and "- " not in line)
    parts = check_recipe(recipe, tmp_path / "run")
    assert len(parts) > 5 and [fault for part in parts for fault in part.faults] == []


def test_started_again_it_replaces_what_it_wrote(root):
    initialised(root)
    before = contents(root)
    initialised(root)
    assert contents(root) == before
    write_image(root / "images/new.png", seed=99)
    with open(root / "labels.csv", "a", encoding="utf-8") as file:
        file.write("new.png,owl\n")
    initialised(root)
    train, _ = manifests(root)
    assert "new" in {sample.name for sample in train}
    assert train.classes.names[-1] == "owl"


def test_a_recipe_that_somebody_changed_stays(root):
    initialised(root)
    file = root / "recipe.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 7"))
    before = contents(root)
    code, text = said(cli.main, "init", root)
    assert (code, contents(root)) == (cli.WRONG_INPUT, before)
    assert "choose another name" in " ".join(text.split())
    initialised(root, "--out", root / "other.yaml")
    assert load_recipe(file).seed == 7
    assert is_sealed(root / "other.yaml")


def test_labels_that_somebody_corrected_count(root):
    initialised(root)
    changed = root / "train.csv"
    text = changed.read_text("utf-8").replace("dog", "puppy")
    changed.write_text(text, "utf-8")
    said_now = initialised(root)
    assert changed.read_text("utf-8") == text
    assert "puppy" in manifests(root)[0].classes.names
    assert "train.csv counts before labels.csv" in said_now.replace(str(root) + "/", "")


def label_files(root: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in root.glob("*.csv")}


def correct(file: Path) -> None:
    """Change the labels of its first photograph."""
    heading, first, *others = file.read_text("utf-8").splitlines(keepends=True)
    file.write_text(heading + first.partition(",")[0] + ",puppy\n" + "".join(others), "utf-8")


@pytest.mark.parametrize("labels_stay", [True, False])
@pytest.mark.parametrize("corrected", ["train.csv", "val.csv"])
def test_beside_a_split_that_somebody_corrected_the_other_stays(root, corrected, labels_stay):
    initialised(root)
    sides = [{sample.name for sample in split} for split in manifests(root)]
    correct(root / corrected)
    if not labels_stay:
        (root / "labels.csv").unlink()
    before = label_files(root)
    for _ in range(2):
        text = initialised(root)
        assert label_files(root) == before
        assert [{sample.name for sample in split} for split in manifests(root)] == sides
        assert "puppy" in manifests(root)[0].classes.names and "have no labels" not in text


def test_a_train_csv_with_all_labels_replaces_both(root):
    initialised(root)
    os.replace(root / "labels.csv", root / "train.csv")
    initialised(root)
    assert label_files(root).keys() == {"train.csv", "train_part.csv", "val_part.csv"}
    assert sum(map(len, manifests(root))) == 30


def test_where_the_labels_are_gone_those_of_the_splits_are_not_replaced(root):
    for k in range(2):
        write_image(root / f"images/folder {k}/x.png", seed=60 + k)
    initialised(root)
    (root / "labels.csv").unlink()
    before = contents(root)
    code, text = said(cli.main, "init", root)
    assert (code, contents(root)) == (cli.WRONG_INPUT, before)
    told = " ".join(text.split())
    assert "labels.csv, of which train.csv and val.csv were made, is not there any more" in told
    initialised(root, "--labels", root / "train.csv")
    initialised(root)
    assert label_files(root).items() <= before.items()
    assert sum(map(len, manifests(root))) == 30


def test_a_file_of_an_earlier_start_goes_only_where_its_labels_stay(root):
    initialised(root)
    text = (root / "labels.csv").read_text("utf-8")
    (root / "labels.csv").write_text(text.rpartition("a b")[0], "utf-8")
    before = contents(root)
    code, told = said(cli.main, "init", root, "--hold-out", 0)
    assert (code, contents(root)) == (cli.WRONG_INPUT, before)
    assert "of a b/é29.png; move it away, or delete it" in " ".join(told.split())
    (root / "labels.csv").write_text(text, "utf-8")
    initialised(root, "--hold-out", 0)
    assert label_files(root).keys() == {"labels.csv"}


def test_rows_of_photographs_that_are_not_there_give_others_no_labels(root):
    with open(root / "labels.csv", "a", encoding="utf-8") as file:
        file.write("gone/é0.png,owl\ngone/é1.png,owl\nold/new.png,cat\nolder/new.png,dog\n")
    write_image(root / "images/new.png", seed=99)
    text = initialised(root)
    assert "owl" not in manifests(root)[0].classes.names
    assert sum(map(len, manifests(root))) == 30
    assert "2 listed images are not below" in text
    assert "left out: new.png (old/new.png, older/new.png)" in text


def test_own_splits_of_which_one_has_another_path_of_a_photograph(root):
    labels = (root / "labels.csv").read_text("utf-8").splitlines()
    (root / "labels.csv").unlink()
    (root / "train.csv").write_text("\n".join(labels[:21]), "utf-8")
    (root / "val.csv").write_text("\n".join([*labels[:1], "x/é0.png,owl", *labels[21:]]), "utf-8")
    initialised(root)
    train, val = manifests(root)
    assert (len(train), len(val)) == (20, 10) and "owl" not in train.classes.names


def test_own_splits_are_used_as_they_are(root):
    split_rows(root, slice(19), slice(19, 30))
    before = contents(root)
    initialised(root)
    after = contents(root)
    assert after.keys() - before.keys() == {"recipe.yaml"}
    train, val = manifests(root)
    assert (len(train), len(val)) == (19, 11)
    code, text = said(cli.main, "init", root, "--hold-out", 0.1)
    assert code == cli.WRONG_INPUT and "has a val.csv" in text


def split_rows(root: Path, train: slice, val: slice) -> None:
    """Part ``labels.csv`` into a train.csv and a val.csv of the user's."""
    with open(root / "labels.csv", encoding="utf-8", newline="") as file:
        heading, *rows = csv.reader(file)
    (root / "labels.csv").unlink()
    write_csv(root / "train.csv", [heading, *rows[train]])
    write_csv(root / "val.csv", [heading, *rows[val]])


def test_photographs_of_both_own_splits_are_held_out(root):
    split_rows(root, slice(25), slice(22, 30))
    before = contents(root)
    text = initialised(root)
    assert "8, trained on 22" in text and "also in split" not in text
    assert "look at: 3 photographs are in train.csv and in your val split (a b/é22.png" in text
    assert contents(root).items() >= before.items()
    train, val = manifests(root)
    assert (train.split, val.split) == ("train_part", "val_part")
    assert (len(train), len(val)) == (22, 8)
    assert {sample.image for sample in train}.isdisjoint(sample.image for sample in val)


def test_a_new_train_csv_beside_the_held_out_photographs_of_the_last_time(root):
    """One photograph is gone, so that the val.csv of the last time has more than the new labels."""
    initialised(root)
    held = {sample.image for sample in manifests(root)[1]}
    with open(root / "labels.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    gone = min(held)
    gone.unlink()
    write_csv(root / "train.csv", [row for row in rows if not str(gone).endswith(row[0])])
    assert f"{len(held) - 1} photographs are in train.csv and in your val split" in initialised(
        root
    )
    train, val = manifests(root)
    assert {sample.image for sample in val} == held - {gone} and len(train) == 30 - len(held)


def test_own_splits_that_leave_nothing_to_train_on(root):
    split_rows(root, slice(30), slice(30))
    code, text = said(cli.main, "init", root)
    assert code == cli.WRONG_INPUT
    assert "all of its 30 are in val.csv or val.json beside it too" in " ".join(text.split())
    assert not (root / "recipe.yaml").exists()


def test_a_train_csv_of_the_users_stays(root):
    os.rename(root / "labels.csv", root / "train.csv")
    before = contents(root)
    initialised(root)
    after = contents(root)
    assert all(after[name] == content for name, content in before.items())
    data = load_recipe(root / "recipe.yaml").data
    assert (data.train_split, data.val_split) == ("train_part", "val_part")
    train, val = manifests(root)
    assert len(train) + len(val) == 30
    for split in (data.train_split, data.val_split):
        code, text = said(cli.main, "data", "check", "folder", root, "--split", split)
        assert code == 0, text
        assert "no line of" not in text
    (root / "val_part.csv").write_text("mine")
    code, text = said(cli.main, "init", root)
    assert code == cli.WRONG_INPUT and "move these away" in " ".join(text.split())
    assert (root / "val_part.csv").read_text() == "mine"


def test_a_train_csv_of_another_form_stays(root):
    text = (root / "labels.csv").read_text("utf-8").replace("image,labels", "file,tags")
    (root / "labels.csv").unlink()
    (root / "train.csv").write_text(text, "utf-8")
    initialised(root)
    assert (root / "train.csv").read_text("utf-8") == text
    assert sum(map(len, manifests(root))) == 30


def test_without_hold_out_no_label_files_are_written(root):
    before = contents(root)
    initialised(root, "--hold-out", 0)
    assert contents(root).keys() - before.keys() == {"recipe.yaml", ".weaktr-init.json"}
    train, val = manifests(root)
    assert train == val and len(train) == 30


def test_options_that_are_left_out_are_those_of_the_last_time(root, tmp_path, caplog, forecasts):
    weights = tmp_path / "dino v2.safetensors"
    weights.touch()
    (root / "labels.csv").rename(tmp_path / "tags.csv")
    given = ("--labels", tmp_path / "tags.csv", "--hold-out", 0.1, "--exif", "apply")
    initialised(root, *given, "--weights", weights)
    first = contents(root)
    initialised(root)
    assert contents(root) == first
    told = [line for line in caplog.messages if line.startswith("as the last time: ")]
    assert f"--hold-out 0.1 --weights '{weights}' --exif apply" in told[0]
    assert f"--labels {tmp_path}/tags.csv" in told[0]
    initialised(root, "--weights", "timm")
    initialised(root)
    recipe = load_recipe(root / "recipe.yaml")
    assert recipe.cam_model.weights == "timm" and recipe.data.options["exif"] == "apply"


@pytest.mark.parametrize("gone", ["labels", "classes", "weights"])
def test_a_file_of_the_last_time_that_is_gone_is_not_passed_over(root, tmp_path, gone):
    files = {name: tmp_path / name for name in ("labels.csv", "classes.txt", "w.pth")}
    (root / "labels.csv").rename(files["labels.csv"])
    files["classes.txt"].write_text("dog\ncat\nbird\n")
    files["w.pth"].touch()
    options = dict(zip(("labels", "classes", "weights"), files.values(), strict=True))
    initialised(root, *(part for name in options for part in (f"--{name}", options[name])))
    if gone == "labels":  # those of the splits that somebody corrected do not take their place
        with open(root / "train.csv", "a", encoding="utf-8") as file:
            file.write("\n")
    moved = options[gone].rename(tmp_path / f"moved{options[gone].suffix}")
    before = contents(root)
    code, text = said(cli.main, "init", root)
    told = f"--{gone}: '{options[gone]}', given the last time, is not there any more; put it back"
    assert code == cli.WRONG_INPUT and told in " ".join(text.split())
    assert contents(root) == before
    initialised(root, f"--{gone}", moved)
    recipe = load_recipe(root / "recipe.yaml")
    assert manifests(root)[0].classes.names == ("dog", "cat", "bird")
    assert recipe.cam_model.weights == str(moved if gone == "weights" else options["weights"])
    if gone == "weights":
        moved.unlink()
        initialised(root, "--weights", "timm")
        assert load_recipe(root / "recipe.yaml").seg_model.weights == "timm"


@pytest.fixture
def trained(root, tmp_path, monkeypatch) -> list[str]:
    """The command of a training of these photographs that has ended; in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    initialised(root)
    command = [str(root / "recipe.yaml"), "--no-report", "--set", "stages=[train_cam, label]"]
    for setting in SMALL:
        command += ["--set", setting]
    assert cli.train_main(command) == 0
    return command


def test_labels_that_were_corrected_after_init_are_told(root, trained, caplog):
    model = "runs/my_photos/train_cam/model.safetensors"
    assert cli.train_main(trained) == 0
    assert cli.main(["label", model, str(root), "--out", "labels"]) == 0
    assert not [line for line in caplog.messages if "is not what" in line]
    text = (root / "labels.csv").read_text("utf-8")
    (root / "labels.csv").write_text(text.replace("cat", "dog", 1), "utf-8")
    expected = (
        f"{root / 'labels.csv'} is not what train.csv and val.csv were made of: to take it as it "
        f"is now, start weaktr init '{root}' again"
    )
    for command in (
        lambda: cli.train_main(trained),
        lambda: cli.train_main([*trained, "--force"]),
        lambda: cli.main(["label", model, str(root), "--out", "labels"]),
    ):
        caplog.clear()
        assert command() == 0
        assert sum(expected in line for line in caplog.messages) == 1
    initialised(root)
    caplog.clear()
    assert cli.train_main(trained) == 0
    assert not [line for line in caplog.messages if "is not what" in line]
    with open(root / "train.csv", "a", encoding="utf-8") as file:  # now these files are the user's
        file.write("\n")
    assert cli.train_main(trained) == 0
    assert not [line for line in caplog.messages if "is not what" in line]


def test_labels_that_cannot_be_read_after_init_are_told(root):
    initialised(root)
    assert labels_since(root) is None
    (root / "labels.csv").write_text("image,labels\nnowhere.jpg\n", "utf-8")
    told = labels_since(root)
    start = f"{root}: labels may have changed since train.csv and val.csv were made of labels.csv: "
    assert told.startswith(start) and "\n" not in told
    assert "labels.csv" in told.removeprefix(start)
    (root / "labels.csv").unlink()
    assert labels_since(root) is None


def test_a_recipe_of_the_users_stays_and_says_how_to_go_on(root):
    initialised(root)
    with open(root / "recipe.yaml", "a", encoding="utf-8") as file:
        file.write("# mine\n")
    code, text = said(cli.main, "init", root)
    assert code == cli.WRONG_INPUT
    assert "--out FILE writes another recipe, and the label files anew" in " ".join(text.split())


def test_where_the_machine_cannot_be_measured_it_is_said(root, monkeypatch, caplog):
    monkeypatch.setattr("weaktr.stages.forecast.forecast", lambda run, stages: {})
    initialised(root)
    assert (
        "it could not be measured; the training says it after its first batches" in caplog.messages
    )


def test_a_file_is_no_folder_of_photographs(root):
    code, text = said(cli.main, "init", root / "labels.csv")
    assert code == cli.WRONG_INPUT and "PHOTOS: expected a folder" in text and "a file" in text


@pytest.mark.parametrize("heading", ["image;labels", "Datei;tags", "image,labels"])
def test_labels_that_commas_part(tmp_path, heading):
    labels, between = photographs(tmp_path), heading[-7 if "labels" in heading else -5]
    quote = '"' if between == "," else ""
    lines = [f"{n}{between}{quote}{cell.replace(';', ', ')}{quote}" for n, cell in labels.items()]
    heading = heading.replace("Datei", "filename")
    (tmp_path / "labels.csv").write_text("\n".join([heading, *lines]), "utf-8")
    text = initialised(tmp_path)
    several = sum(";" in cell for cell in labels.values())
    assert f"labels are parted at commas, {several} cells have several, such as" in text
    train, val = manifests(tmp_path)
    assert train.classes.names == ("bird", "cat", "dog")
    for sample in (*train, *val):
        names = {train.classes.names[index] for index in sample.labels}
        assert names == set(filter(None, labels[f"{sample.name}.png"].split(";")))


def test_every_pair_of_like_names_is_told(root):
    with open(root / "labels.csv", "a", encoding="utf-8") as file:
        for name in ("giraffe", "girafe", "Cat", "elephant", "elephants"):
            write_image(root / f"images/{name}.png", seed=sum(map(ord, name)))
            file.write(f"{name}.png,{name}\n")
    text = initialised(root)
    for pair in ("'Cat' and 'cat'", "'girafe' and 'giraffe'", "'elephant' and 'elephants'"):
        assert f"two classes that may be meant as one: {pair}" in text


def test_photographs_in_folders_that_are_classes(tmp_path):
    for k in range(6):
        write_image(tmp_path / f"cat/{k}.jpg", seed=k)
        write_image(tmp_path / f"dog/{k}.JPG", seed=10 + k)
        write_image(tmp_path / f"background/{k}.webp", seed=20 + k)
    initialised(tmp_path)
    initialised(tmp_path)
    train, val = manifests(tmp_path)
    assert train.classes.names == ("cat", "dog") and len(train) + len(val) == 18
    for sample in (*train, *val):
        kind = sample.name.split("/")[0]
        assert sample.labels == {"cat": (0,), "dog": (1,), "background": ()}[kind]


def test_other_pixel_values_of_classes_are_told(root):
    """A new class before others, a ``classes.txt`` that is gone; a class at the end moves none."""
    told = "another pixel value in masks than the last time"
    assert told not in initialised(root)
    rows = [*photographs(root).items()]
    write_csv(root / "labels.csv", [("image", "labels"), *rows[1:], (rows[0][0], "zebra")])
    assert told not in initialised(root)
    write_csv(root / "labels.csv", [("image", "labels"), *rows[1:], (rows[0][0], "ant")])
    assert f"3 classes have {told} (bird 1 -> 2, cat 2 -> 3, dog 3 -> 4)" in initialised(root)
    assert told not in initialised(root)
    write_csv(root / "classes.txt", [["bird"], ["cat"], ["dog"], ["ant"]])
    assert "(bird 2 -> 1, cat 3 -> 2, dog 4 -> 3, ant 1 -> 4)" in initialised(root)
    (root / "classes.txt").unlink()
    assert f"4 classes have {told}" in initialised(root)
    recipe = root / "recipe.yaml"
    recipe.write_bytes(sealed(b"# %s\nbase: gone\n" % BLANK.encode()))
    assert told not in initialised(root)  # what cannot be read is replaced


def test_results_and_masks_are_no_photographs(tmp_path):
    for k in range(4):
        write_image(tmp_path / f"{('cat', 'dog')[k % 2]}/{k}.png", seed=k)
        write_image(tmp_path / f"masks/{k}.png", seed=k)
        write_image(tmp_path / f"runs/mine/label/masks/{k}.png", seed=k)
    (tmp_path / "runs/mine/.weaktr-lock").touch()
    text = initialised(tmp_path)
    assert "4 below" in text
    assert manifests(tmp_path)[0].classes.names == ("cat", "dog")


def test_a_val_csv_of_another_form_keeps_its_side(root):
    os.rename(root / "labels.csv", root / "train.csv")
    write_image(root / "images/held.png", seed=55)
    (root / "val.csv").write_text("file;tag\nheld.png;cat\n")
    before = contents(root)
    initialised(root)
    assert contents(root).items() >= before.items()
    train, val = manifests(root)
    assert (len(train), [sample.name for sample in val], val.split) == (30, ["held"], "val_part")


def test_coco_of_photographs_beside_it(tmp_path):
    for k, name in enumerate(("009", "025", "030")):
        write_image(tmp_path / f"images/COCO_train2014_000000000{name}.jpg", seed=k)
    coco_json(tmp_path / "annotations/instances.json")
    text = initialised(tmp_path)
    train, val = manifests(tmp_path)
    assert train.classes.names == ("person", "bottle", "toothbrush")
    assert len(train) + len(val) == 3
    assert "1 class is in no photograph and left out: stop sign" in text
    assert "3 photographs are very few" in text


def test_doubts(root):
    (root / "images/a b/é0.png").write_bytes((root / "images/a b/é1.png").read_bytes())
    write_image(root / "images/unlisted.png", seed=77)
    (root / "images/b.heic").write_bytes(b"x")
    write_image(root / "images/a b/é2.webp")
    with open(root / "labels.csv", "a", encoding="utf-8") as file:
        file.write("gone.png,cat\na b/é3.png,Cat\n")
    write_csv(root / "classes.txt", [["cat"], ["dog"], ["bird"], ["Cat"]])
    text = initialised(root)
    for doubt in (
        "1 listed image is not below",
        "1 photograph has no labels and is not used: unlisted.png",
        "1 photograph is of other formats: convert b.heic",
        "differs from a b/é2.png in the suffix alone",
        "1 class has fewer than 5 photographs (Cat (1)): expect poor masks of them",
        "a b/é0.png, a b/é1.png are the same photograph",
        "two classes that may be meant as one: 'cat' and 'Cat'",
    ):
        assert doubt in text


def test_a_label_that_says_that_there_is_none(root):
    with open(root / "labels.csv", "a", encoding="utf-8") as file:
        file.writelines(f"{name},none\n" for name in ("x.png", "y.png"))
    for number, name in enumerate(("x.png", "y.png")):
        write_image(root / "images" / name, seed=80 + number)
    told = "a class called 'none': label 0 is the background already, and is in no list of classes"
    assert told in initialised(root, "--hold-out", 0)


def test_photographs_that_exif_turns(tmp_path):
    labels = photographs(tmp_path, 10, ".jpg")
    write_csv(tmp_path / "labels.csv", [("image", "labels"), *labels.items()])
    turned = Image.Exif()
    turned[0x0112] = 6
    file = tmp_path / "images" / min(labels)
    Image.open(file).save(file, exif=turned)
    initialised(tmp_path)
    assert load_recipe(tmp_path / "recipe.yaml").data.options["exif"] == "apply"
    assert "EXIF turns 1 photograph;" in (tmp_path / "recipe.yaml").read_text()
    initialised(tmp_path, "--exif", "ignore")
    assert load_recipe(tmp_path / "recipe.yaml").data.options["exif"] == "ignore"


NAMES = ["=HYPERLINK(1)", "yes", "a: b # c", "[x]", "\u202eevil", "😀", 'quo"te', "-1", "1e5"]


@pytest.mark.parametrize("more", [[], ["semi;colon", "pipe|"]])
def test_names_of_classes_and_photographs_are_text(tmp_path, more):
    names = [*NAMES, *more]
    labels = {}
    for k, name in enumerate(names * 3):
        path = f"{'=@+-'[k % 4]}cmd,{k} 'x'.png" if k < 8 else f" {k}.png"
        write_image(tmp_path / path, seed=k)
        labels[path] = [name]
    (tmp_path / "export.json").write_text(json.dumps(labels))
    initialised(tmp_path)
    train, val = manifests(tmp_path)
    assert set(train.classes.names) == set(names)
    for sample in (*train, *val):
        (index,) = sample.labels
        assert labels[sample.image.relative_to(tmp_path).as_posix()] == [train.classes.names[index]]
    if not more:
        text = (tmp_path / "train.csv").read_text("utf-8")
        cells = [cell for line in csv.reader(text.splitlines()) for cell in line]
        assert len(cells) > 20 and not any(cell.startswith(tuple("=+-@")) for cell in cells)


def test_line_ends_in_names_of_photographs(tmp_path):
    labels = {}
    for k in range(12):
        labels[f"a{k}{('', chr(13), chr(10), chr(13) + chr(10))[k % 4]}b.png"] = ["cat"]
    for k, path in enumerate(labels):
        write_image(tmp_path / path, seed=k)
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    initialised(tmp_path)
    names = {sample.image.name for split in manifests(tmp_path) for sample in split}
    assert names == labels.keys()


def test_254_classes_and_no_more(tmp_path):
    rows = [(f"{k % 20}.png", f"class {k}") for k in range(254)]
    for k in range(20):
        write_image(tmp_path / f"{k}.png", seed=k)
    write_csv(tmp_path / "tags.csv", [("file", "label"), *rows])
    text = initialised(tmp_path)
    assert "and 154 more" in text
    assert len(manifests(tmp_path)[0].classes) == 254
    write_csv(tmp_path / "tags.csv", [("file", "label"), *rows, ("0.png", "one more")])
    code, text = said(cli.main, "init", tmp_path)
    assert code == cli.WRONG_INPUT and "at most 254 classes" in text


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--hold-out", 0.9], "--hold-out: expected a share"),
        (["--labels", "none.csv"], "file is missing"),
        (["--labels", "notes.txt"], "--labels: expected .csv"),
        (["--weights", "none.pth"], "--weights: expected a file"),
        (["--classes", "classes"], "are missing; add them"),
    ],
)
def test_mistakes(root, arguments, complaint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("classes").write_text("cat\n")
    before = contents(root)
    code, text = said(cli.main, "init", root, *arguments)
    assert code == cli.WRONG_INPUT and complaint in " ".join(text.split())
    assert contents(root) == before


def test_no_photographs_and_labels_of_others(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    code, text = said(cli.main, "init", tmp_path)
    assert code == cli.WRONG_INPUT and "found none, but" in " ".join(text.split())
    write_image(tmp_path / "a.png")
    write_csv(tmp_path / "labels.csv", [("image", "labels"), ("../../etc/passwd", "cat")])
    code, text = said(cli.main, "init", tmp_path)
    assert code == cli.WRONG_INPUT and "none of its 1 images is below" in " ".join(text.split())


def test_a_damaged_photograph_is_told_in_the_end(root, caplog):
    (root / "images/a b/é5.png").write_bytes(b"no image")
    code, text = said(cli.main, "init", root)
    text = " ".join(text.split())
    assert code == cli.FAILED
    assert "cannot be read as an image" in text
    assert caplog.messages[-1].startswith("correct the errors, then start this again")


def test_nothing_is_written_through_a_link(root, tmp_path):
    (tmp_path / "elsewhere").write_text("mine")
    (root / "recipe.yaml").symlink_to(tmp_path / "elsewhere")
    code, _ = said(cli.main, "init", root)
    assert code == cli.WRONG_INPUT
    assert (tmp_path / "elsewhere").read_text() == "mine" and not (root / "train.csv").exists()


def test_a_record_of_strangers_names_no_other_files(root):
    initialised(root)
    from weaktr.files import write_json
    from weaktr.stages.init import RECORD, _digest, own_files

    digest = _digest((root / "labels.csv").read_bytes())
    write_json(root / RECORD, {"files": {"labels.csv": [digest], "../x": [digest]}}, seal=True)
    assert own_files(root) == set()


def test_a_try_leaves_the_folder_alone(root, tmp_path, monkeypatch, caplog):
    before, started = contents(root), []
    monkeypatch.setattr(
        "weaktr.stages.pipeline.run_recipe", lambda recipe, out: started.append((recipe, out)) or 0
    )
    monkeypatch.setattr("weaktr.cli.show.show_run", lambda run, count: ([out / "x.png"], 0))
    out = tmp_path / "try"
    initialised(root, "--try", "--out-run", out)
    assert contents(root) == before
    ((recipe, folder),) = started
    assert folder == out / "run" and recipe.train_seg.epochs == 10
    train = load_split(recipe.data, recipe.data.train_split)
    val = load_split(recipe.data, recipe.data.val_split)
    assert len(train) + len(val) == 30 and len(val)
    assert train.samples[0].image.is_relative_to(root)
    assert "a short training on 30 photographs of 3 classes" in caplog.messages[-2]
    assert caplog.messages[-1] == f"next: weaktr init '{root}'"
    code, text = said(cli.main, "init", root, "--try", "--out-run", root / "images/x")
    assert code == cli.WRONG_INPUT and contents(root) == before
    assert "--out-run " in text and "lies in the folder of the photographs" in " ".join(
        text.split()
    )


def test_the_source_folder_reads_the_splits_alone(root):
    initialised(root)
    assert len(load_manifest("folder", root, "val")) == len(manifests(root)[1])
