"""Runs and folders of masks -> the report's values, and the file as it lies on the disk."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_train import said
from tests.stages import tiny
from weaktr import cli
from weaktr.api import train
from weaktr.data.masks import MaskFolder
from weaktr.report import gather
from weaktr.report.colours import colours
from weaktr.report.gather import report_of
from weaktr.report.page import as_json, page_of, write_report
from weaktr.seals import is_sealed
from weaktr.stages.pipeline import run_recipe


@pytest.fixture
def own(run, tmp_path):
    """A copy of the run that a test may change."""
    return Path(shutil.copytree(run, tmp_path / "own"))


def data_of(file):
    return json.loads(re.search(r'id="data">(.*?)</script>', file.read_text(), re.DOTALL)[1])


def test_values_of_a_run(run):
    values = report_of(run)
    assert [(one["maker"], one["masks"]) for one in values["sets"]] == [
        ("label", 8),
        ("predict", 8),
    ]
    assert values["labels"] == ["background", *tiny.NAMES]
    table = {row["what"]: row for row in values["scores"]}
    stored = json.loads((run / "evaluate/metrics.json").read_text())
    assert len(table) == len(stored)
    for row in stored:
        assert table[row["what"]]["miou"] == row["scores"]["miou"]
        if row["scores"].get("miou_interval"):
            assert table[row["what"]]["low"] == row["scores"]["miou_interval"]["low"]
    curves = {(one["title"], one["y"]): one for one in values["curves"]}
    loss = curves["Stage 1: classifier", "loss"]
    lines = (run / "train_cam/metrics.jsonl").read_text().splitlines()
    logged = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert [value for _, value in loss["points"]] == pytest.approx(logged, rel=1e-5)
    assert all(stage["seconds"] >= 0 and stage["finished_at"] for stage in values["stages"])
    assert "Falls" in loss["hint"] and not loss["is_minor"]
    assert curves["Stage 1: classifier", "learning rate"]["is_minor"]
    assert "torch" in values["facts"]["Machine"]
    assert values["changed"]["label.crf"] == "None" and "train_seg.loss" not in values["changed"]


def test_values_of_photographs(run):
    values = report_of(run)
    masks = MaskFolder(run / "predict")
    for photo in values["photographs"][8:]:
        labels = masks.read(photo["name"])
        assert {label: area for label, area, _ in photo["labels"]} == pytest.approx(
            {int(label): (labels == label).mean() for label in np.unique(labels)}, abs=1e-6
        )
        shown = {label for label, _, _ in photo["labels"]} - {0}
        assert set(photo["missing"]) == set(photo["given"]) - shown
        assert set(photo["extra"]) == shown - set(photo["given"])
        assert 0 <= photo["iou"] <= 100
        assert photo["doubt"] == ("full" if (labels == 0).mean() < 0.1 else None)
        assert photo["picture"].startswith("data:image/webp;base64,")
        assert photo["mask"].startswith("data:image/png;base64,")
        assert [label for label, _ in photo["cams"]] == photo["given"]
    assert sorted(photo["place"] for photo in values["photographs"]) == [*range(16)]
    for one in values["sets"]:
        full = [
            p for p in values["photographs"] if (p["maker"], p["doubt"]) == (one["maker"], "full")
        ]
        assert one["doubts"].get("full", 0) == len(full)
    places = [row["strips"] for one in values["sets"] for row in one["classes"]]
    assert all(
        0 <= place < 16 for strips in places for own in strips.values() for place in own
    ) and any(strips["worst"] for strips in places)


def test_a_run_that_has_only_begun(root, tmp_path):
    run_recipe(tiny.recipe(root), tmp_path, only="train_cam")
    values = report_of(tmp_path)
    assert values["sets"] == values["photographs"] == values["scores"] == []
    assert values["words"] == {"what": [], "good": [], "helps": []}
    assert [stage["is_finished"] for stage in values["stages"]] == [True, *[False] * 4]
    assert len(values["curves"]) > 1


def test_a_run_without_truth_and_stage_2(tmp_path):
    root = tiny.squares(tmp_path / "data", count=4)
    shutil.rmtree(root / "masks")
    recipe = tiny.recipe(root, stages=["train_cam", "label"])
    run_recipe(recipe, tmp_path / "run")
    values = report_of(tmp_path / "run")
    assert values["scores"] == [] and len(values["photographs"]) == 4
    assert all(photo["iou"] is None for photo in values["photographs"])
    assert values["sets"][0]["confidence"] == pytest.approx(
        np.mean([photo["confidence"] for photo in values["photographs"]]), abs=1e-4
    )


def test_masks_of_older_versions_and_edited_ones_have_areas_and_no_confidence(own):
    index = own / "label/index.jsonl"
    rows = [json.loads(line) for line in index.read_text().splitlines()]
    for row in rows:
        del row["areas"], row["confidence"]
    index.write_text("".join(json.dumps(row) + "\n" for row in rows))
    edited = np.zeros((32, 32), np.uint8)
    edited[:8] = 3
    Image.fromarray(edited).save(own / "label/masks/0.png")
    values = report_of(own)
    photos = {p["name"]: p for p in values["photographs"] if p["maker"] == "label"}
    assert photos["0"]["labels"] == [[3, 0.25, None], [0, 0.75, None]]
    assert photos["0"]["is_edited"] and not photos["1"]["is_edited"]
    assert values["sets"][0]["edited"] == 1 and values["sets"][0]["confidence"] is None
    assert all(photo["confidence"] is None for photo in photos.values())


@pytest.mark.parametrize("command", ["label", "predict"])
def test_the_folder_of_a_command(command, run, root, tmp_path):
    stage, out = {"label": "train_cam", "predict": "train_seg"}[command], tmp_path / "out"
    model, images = run / stage / "model.safetensors", root / "images"
    more = {"label": ("--set", "predict_above=0.0", "--set", "scales=[1.0]"),
            "predict": ("--set", "short_side=32", "--set", "window=32", "--set", "stride=32",
                        "--set", "ratios=[1.0]", "--set", "ensemble=plain")}  # fmt: skip
    assert said(cli.main, command, model, images, "--out", out, *more[command])[0] == 0
    assert said(cli.main, "report", out)[0] == 0
    values = data_of(out / "report.html")
    assert len(values["photographs"]) == 8 and values["recipe"] == ""
    assert values["facts"]["Models"]["from"] == str(model)
    assert "weaktr eval" in " ".join(values["words"]["good"])
    assert not any("train" in text for text in values["words"]["helps"])
    assert all(photo["given"] is None for photo in values["photographs"])
    assert said(cli.main, command, model, images, "--out", out, *more[command])[0] == 0


def test_marked_names_are_those_that_predict_takes(run, root, tmp_path):
    names = [photo["name"] for photo in report_of(run)["photographs"][:2]]
    (tmp_path / "marked.txt").write_text("\n".join(names))
    model, out = run / "train_seg/model.safetensors", tmp_path / "out"
    more = ("--names", tmp_path / "marked.txt", "--out", out)
    assert said(cli.main, "predict", model, root / "images", *more)[0] == 0
    assert MaskFolder(out).entries.keys() == {*names}


def test_the_words_of_a_run_have_its_numbers(run, root):
    words = report_of(run)["words"]
    assert words["what"][0].startswith("Pseudo labels are masks of the 8 photographs")
    assert "8 of the photographs were trained on" in words["what"][1]  # labels.csv is every split
    assert not any("no true masks" in text for text in words["good"])
    assert "8 photographs are few to learn from" in " ".join(words["helps"])


def test_photographs_that_are_gone_are_counted(root, tmp_path):
    """Two are no photographs any more; of one an older version did not note what it was."""
    copy = Path(shutil.copytree(root, tmp_path / "data"))
    run_recipe(tiny.recipe(copy, stages=["train_cam", "label"]), tmp_path / "run")
    masks = MaskFolder(tmp_path / "run/label")
    (third,) = (entry for name, entry in masks.entries.items() if name.endswith("3"))
    masks.record(replace(third, inputs=None))
    for name in ("3", "4"):
        (copy / f"images/{name}.png").write_bytes(b"no picture")
    values = report_of(tmp_path / "run")
    assert values["unread"] == 1 and len(values["photographs"]) == 6
    assert values["sets"][0]["masks"] == 7 and values["sets"][0]["unusable"] == 1


def test_more_photographs_than_a_page_holds(run, monkeypatch):
    monkeypatch.setattr(gather, "MOST_PHOTOGRAPHS", 6)
    values = report_of(run)
    assert len(values["photographs"]) == 6
    assert [one["masks"] for one in values["sets"]] == [8, 8]


# ---- the file -----------------------------------------------------------------------------------


def test_the_file_is_sealed_and_written_again(own):
    file = write_report(own)
    assert file == own / "report.html" and is_sealed(file)
    write_report(own)
    assert not list(own.glob("report.old-*"))
    text = file.read_text().replace("<h1", "<p>mine</p><h1")
    file.write_text(text)
    write_report(own)
    (kept,) = own.glob("report.old-*.html")
    assert kept.read_text() == text and is_sealed(file)


def test_files_of_others_stay(own, tmp_path):
    (own / "report.html").write_text("<p>mine</p>")
    with pytest.raises(ValueError, match="weaktr did not write it"):
        write_report(own)
    assert (own / "report.html").read_text() == "<p>mine</p>"
    other = tmp_path / "other.html"
    (tmp_path / "other_files").mkdir()
    (tmp_path / "other_files/mine.jpg").write_text("mine")
    with pytest.raises(ValueError, match=r"mine\.jpg"):
        write_report(own, other, full=True)
    assert not other.exists()
    other.symlink_to(own / "metrics.json")
    with pytest.raises(ValueError, match="weaktr did not write it"):
        write_report(own, other)


def test_larger_pictures_lie_beside_it(own):
    write_report(own, full=True)
    for photo in data_of(own / "report.html")["photographs"]:
        for suffix in (".jpg", ".png"):
            file = own / f"{photo['file']}{suffix}"
            assert is_sealed(file)
            with Image.open(file) as picture:
                assert picture.size == (32, 32)
    changed = own / "report_files/label/0.jpg"
    changed.write_bytes(b"mine")
    write_report(own, full=True)
    (kept,) = changed.parent.glob("0.old-*.jpg")
    assert kept.read_bytes() == b"mine" and is_sealed(changed)


@pytest.mark.parametrize("names", [("a.html", "b.html"), ("a.html", "a.htm")])
def test_pages_in_one_folder_have_pictures_of_their_own(own, tmp_path, names):
    first, second = (write_report(own, tmp_path / "pages" / name, full=True) for name in names)
    files = [{photo["file"] for photo in data_of(page)["photographs"]} for page in (first, second)]
    assert not files[0] & files[1]
    assert all((first.parent / f"{file}.jpg").is_file() for file in files[0] | files[1])


def test_a_folder_that_is_no_run(tmp_path):
    code, text = said(cli.main, "report", tmp_path)
    assert code == cli.WRONG_INPUT and "expected the folder of a run" in " ".join(text.split())


def test_masks_that_somebody_has_emptied_have_no_scores(own, root, caplog):
    for path in (own / "label" / "masks").iterdir():
        Image.fromarray(np.full((32, 32), 255, np.uint8)).save(path)
    run_recipe(tiny.recipe(root), own, only="evaluate")
    assert "not scored: expected a label at one known pixel at least" in caplog.text
    keys = [row["key"] for row in data_of(write_report(own))["scores"]]
    assert "cam_miou" in keys and "pseudo_label_miou" not in keys
    photographs = data_of(write_report(own))["photographs"]
    assert {photo["iou"] for photo in photographs if photo["maker"] == "label"} == {0.0}


def test_scores_of_older_versions_may_be_none(own):
    file = own / "evaluate" / "metrics.json"
    rows = json.loads(file.read_text())
    rows[0]["scores"]["precision"] = float("nan")
    file.write_text(json.dumps(rows))
    assert data_of(write_report(own))["scores"][0]["precision"] is None


def test_changed_scores_are_named(own):
    (own / "evaluate/metrics.json").write_text('[{"what": 3}]')
    with pytest.raises(ValueError, match=r"evaluate/metrics\.json"):
        report_of(own)


def test_a_run_writes_it_at_its_end(root, tmp_path, monkeypatch, caplog):
    recipe = tiny.recipe(root, stages=["train_cam"])
    assert not (train(recipe, tmp_path / "run", report=False) / "report.html").exists()
    assert is_sealed(train(recipe, tmp_path / "run") / "report.html")
    assert train(recipe, tmp_path / "run").folder.is_dir()  # its own file is not in the way

    def fail(*_, **__):
        raise RuntimeError("no room")

    monkeypatch.setattr("weaktr.report.page.report_of", fail)
    assert train(recipe, tmp_path / "run").folder.is_dir()
    assert "no report: no room" in caplog.text


# ---- names of others, and sizes -----------------------------------------------------------------


HOSTILE = [
    "</script><img src=x onerror=alert(1)>",
    "<!--",
    "&amp;",
    "日本 🐕",
    "a\u2028b",
    "{{data}}",
]


def test_names_stay_text():
    page = page_of({"name": HOSTILE[0], "names": HOSTILE, "bytes": "b\udcff"}).decode()
    assert page.count("<script") == 2 and "onerror=alert(1)>" not in page
    assert "&lt;/script&gt;" in page  # in the title
    assert json.loads(as_json(HOSTILE)) == HOSTILE
    assert as_json(HOSTILE).isascii() and not re.search("[<>&]", as_json(HOSTILE))


def test_the_policy_allows_nothing_from_elsewhere():
    page = page_of({"name": "a"}).decode()
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe" not in policy
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")


def test_2000_photographs_take_less_than_20_mb(tmp_path):
    """By the bytes of each, at the size of the pictures of so many; noise would take more."""
    from tests.report.many import many_photos

    side = next(side for most, side in gather.SIDES if most >= 2000)
    gather_side = ((10**6, side),)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gather, "SIDES", gather_side)
        photos, maps = many_photos(tmp_path, 40)
        pages = [page for _, page in gather._pages(photos, maps, colours(), None)]
    assert all(len(page["cams"]) == 3 for page in pages)
    assert len(as_json(pages)) / 40 * 2000 < 20e6
