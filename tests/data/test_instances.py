"""COCO's instances JSON: each wrong entry is named and left out, the others are used."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.data.trees import COCO_LABELS, SIZE, coco_json, square, write_image
from weaktr.cli import main
from weaktr.data import DataError, Problem, coco14, render_masks
from weaktr.data.instances import read_instances
from weaktr.progress import console

NAMES = [f"{number:012d}" for number in COCO_LABELS]


def content(folder: Path) -> dict[str, Any]:
    path = coco_json(folder / "annotations/instances_train2017.json", prefix="")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def written(folder: Path, changed: dict[str, Any]) -> Path:
    return coco_json(folder / "annotations/instances_train2017.json", **changed)


def with_images(folder: Path) -> Path:
    for name in NAMES:
        write_image(folder / f"images/{name}.jpg")
    return folder


RUNS = {"size": list(SIZE), "counts": [0, SIZE[0] * SIZE[1]]}
#: What is changed in annotation 900 (of image 9), or added to it -> what is said.
WRONG_ANNOTATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "NaN": ({"segmentation": [[0, 0, 4, 0, math.nan, 4]]}, "polygons in or near"),
    "infinite": ({"segmentation": [[0, 0, 4, 0, math.inf, 4]]}, "polygons in or near"),
    "a point": ({"segmentation": [*square(0, 0, 9), [1, 1]]}, "at least three points"),
    "odd": ({"segmentation": [[0, 0, 4, 0, 4, 4, 0]]}, "at least three points"),
    "null": ({"segmentation": [[0, 0, 4, 0, None, 4]]}, "of numbers"),
    "unknown": ({"segmentation": {"png": "iVBOR"}}, "polygons or run lengths"),
    "text": ({"segmentation": ""}, "polygons or run lengths"),
    "counts": ({"segmentation": RUNS | {"counts": [-5]}}, "run lengths of 0 and more"),
    "compressed": ({"segmentation": RUNS | {"counts": "Q"}}, "cut off"),
    "size": ({"segmentation": RUNS | {"size": [1, 2]}}, "run lengths of size"),
    "crowd": ({"iscrowd": "no"}, "iscrowd to be 0 or 1, got 'no'"),
    "crowd null": ({"iscrowd": None}, "iscrowd to be 0 or 1"),
}


@pytest.mark.parametrize("case", WRONG_ANNOTATIONS)
def test_a_wrong_outline_leaves_out_one_image_by_name(tmp_path, case):
    change, message = WRONG_ANNOTATIONS[case]
    whole = content(tmp_path)
    whole["annotations"][0] |= change
    path = written(tmp_path, whole)
    problems: list[Problem] = []
    drawn = render_masks(path, tmp_path / "out", problems=problems)
    assert [file.stem for file in drawn] == NAMES[1:]
    assert [(p.file, p.where) for p in problems] == [(str(path), "annotation 900 of image 9")]
    assert message in problems[0].message
    with pytest.raises(DataError, match="annotation 900 of image 9"):
        render_masks(path, tmp_path / "again")
    assert len(list((tmp_path / "again").iterdir())) == 2  # the error came last
    found: list[Problem] = []
    manifest = coco14(with_images(tmp_path), problems=found)
    assert found == problems
    assert coco14(tmp_path) == manifest  # training needs the labels alone
    assert manifest.samples[0].labels == (0, 43)


WRONG_ENTRIES: dict[str, tuple[str, Any, str, str]] = {
    "no object": ("annotations", [], "annotations[3]", "expected an object, got []"),
    "image null": (
        "annotations",
        {"image_id": None},
        "annotations[3]",
        "image_id None is no image",
    ),
    "image list": ("annotations", {"image_id": [9]}, "annotations[3]", "image_id [9] is no image"),
    "image NaN": ("annotations", {"image_id": math.nan}, "annotations[3]", "image_id nan"),
    "class text": ("annotations", {"category_id": "1"}, "annotations[3]", "is no number"),
    "class list": ("annotations", {"category_id": [1]}, "annotations[3]", "is no number"),
    "class NaN": ("annotations", {"category_id": math.nan}, "annotations[3]", "is no number"),
    "class outside": ("annotations", {"category_id": -1}, "annotations[3]", "outside the class"),
    "no image": ("images", 7, "images[3]", "expected an object with id and file_name, got 7"),
    "id null": ("images", {"id": None}, "images[3]", "expected an object with id and file_name"),
    "id list": ("images", {"id": [1]}, "images[3]", "expected an object with id and file_name"),
    "id twice": ("images", {"id": 9}, "images[3]", "images[0]"),
    "name null": ("images", {"file_name": None}, "images[3]", "an object with id and file_name"),
    "name out": ("images", {"file_name": "../a.jpg"}, "images[3]", "leads out of the image folder"),
    "name empty": ("images", {"file_name": ""}, "images[3]", "leads out of the image folder"),
    "name long": (
        "images",
        {"file_name": "a" * 244 + ".jpg"},
        "images[3]",
        "at most 243 bytes",
    ),
    "name zero": ("images", {"file_name": "a\0.jpg"}, "images[3]", "without control characters"),
    "name of two lines": (
        "images",
        {"file_name": "a\nb.jpg"},
        "images[3]",
        "without control characters",
    ),
    "name half": (
        "images",
        {"file_name": "a\ud800.jpg"},
        "images[3]",
        "without control characters",
    ),
    "name twice": ("images", {"file_name": f"{NAMES[1]}.png"}, "images[3]", "images[1]"),
    "digits": ("images", {"file_name": "9" * 243 + ".jpg"}, "", ""),
}


@pytest.mark.parametrize("case", WRONG_ENTRIES)
def test_a_wrong_entry_is_named_and_left_out(tmp_path, case):
    kind, change, where, message = WRONG_ENTRIES[case]
    whole = content(tmp_path)
    good = {
        "annotations": {"id": 1, "image_id": 25, "category_id": 1, "segmentation": square(1, 1, 5)},
        "images": {"id": 77, "file_name": "77.jpg", "height": SIZE[0], "width": SIZE[1]},
    }[kind]
    whole[kind].append(good | change if isinstance(change, dict) else change)
    declared = read_instances(written(tmp_path, whole))
    assert [(p.where, message in p.message) for p in declared.problems] == (
        [(where, True)] if where else []
    )
    assert [image.file_name for image in declared.images][:3] == [f"{n}.jpg" for n in NAMES]
    assert declared.labels(25) == (89,)
    twice = {"id twice": {9}, "name twice": {25}}.get(case, set())  # whose objects are they?
    is_known = kind == "annotations" and "category_id" in (change or ())
    assert declared.incomplete == ({25} if is_known else twice)
    if is_known:  # a mask would lack the object
        assert [image.id for image in declared.images if declared.is_outlined(image)] == [9, 30]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": "1", "name": "person"}], "categories[0]): expected an object with id"),
        ([{"id": math.inf, "name": "person"}], "categories[0]): expected an object with id"),
        ([{"id": 1, "name": None}], "categories[0]): expected an object with id"),
        (
            [{"id": 1, "name": "\ud800"}],
            "categories[0]): expected a name without control characters",
        ),
        ([{"id": 1, "name": "a\nb"}], "categories[0]): expected a name without control characters"),
        ([5], "categories[0]): expected an object with id"),
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "categories[1]): id 1 stands twice"),
        ([{"id": 10**3000, "name": "a"}] * 2, "categories[1]): id a number of many digits stands"),
        (
            [{"id": 1, "name": "a"}, {"id": 2, "name": "a "}],
            "the ids 1, 2 are called 'a': call them",
        ),
        ([{"id": k, "name": str(k)} for k in range(300)], "at most 254 classes"),
        ({}, "got 'images': list, 'annotations': list, 'categories': dict"),
    ],
)
def test_categories_must_be_right(tmp_path, categories, message):
    path = written(tmp_path, {"categories": categories})
    with pytest.raises(DataError) as caught:
        read_instances(path, ids="json")
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_long_values_are_cut_in_messages(tmp_path):
    whole = content(tmp_path)
    good = whole["annotations"][0]
    long: list[Any] = [10**3000, -(10**3000), "x" * 3000]
    whole["annotations"] += [good | {"id": value, "image_id": value} for value in long]
    whole["annotations"] += [good | {"category_id": value} for value in long]
    whole["images"] += [{"id": 10**2999, "file_name": "../" + "x" * 3000}]
    declared = read_instances(written(tmp_path, whole))
    assert len(declared.problems) == 7
    assert all(len(problem.message) < 300 for problem in declared.problems)


@pytest.mark.parametrize("image_id", ["9", " 9", "009", "9.0", 9.5, "x", True, None, [9], "0"])
def test_an_image_that_an_annotation_may_mean_is_incomplete(tmp_path, image_id):
    """Its mask would lack the object."""
    whole = content(tmp_path)
    whole["annotations"].append(whole["annotations"][0] | {"image_id": image_id})
    declared = read_instances(written(tmp_path, whole))
    is_meant = image_id in ("9", " 9", "009", "9.0")
    assert declared.incomplete == ({9} if is_meant else set())
    (problem,) = declared.problems
    assert problem.message.startswith(f"image_id {image_id!r} is no image")
    assert (", 9 is one" in problem.message) == is_meant
    drawn = {image.id for image in declared.images if declared.is_outlined(image)}
    assert (9 in drawn) != is_meant


def test_annotations_of_an_image_that_is_left_out_are_no_further_faults(tmp_path):
    whole = content(tmp_path)
    whole["images"] += [{"id": 7, "file_name": "../a.jpg"}, {"id": 8}]
    whole["annotations"] += [whole["annotations"][0] | {"image_id": k} for k in (7, 7, 8, 6)]
    declared = read_instances(written(tmp_path, whole))
    assert [p.message.partition(":")[0] for p in declared.problems] == [
        "file_name leads out of the image folder",
        "expected an object with id and file_name, got {'id'",
        f"image_id 6 is no image (annotation {whole['annotations'][0]['id']} of image 6)",
    ]


@pytest.mark.parametrize(
    "size", [{"height": None}, {"height": 0}, {"width": 1e300}, {"height": 2**31, "width": 2**31}]
)
def test_absurd_sizes_are_named(tmp_path, size):
    whole = content(tmp_path)
    whole["images"][0] |= size
    problems: list[Problem] = []
    drawn = render_masks(written(tmp_path, whole), tmp_path / "out", problems=problems)
    assert [file.stem for file in drawn] == NAMES[1:]
    assert [p.where for p in problems] == ["images[0]"]
    assert "expected height and width" in problems[0].message


def test_sizes_are_compared_with_the_photographs(tmp_path):
    write_image(with_images(tmp_path) / f"images/{NAMES[0]}.jpg", (SIZE[0], SIZE[1] + 1))
    path, problems = written(tmp_path, content(tmp_path)), []  # type: ignore[var-annotated]
    drawn = render_masks(path, tmp_path / "o", images=tmp_path / "images", problems=problems)
    assert [file.stem for file in drawn] == NAMES[1:]
    assert "expected 33x24 (width x height), got 32x24" in problems[0].message
    found: list[Problem] = []
    coco14(tmp_path, problems=found)
    assert found == problems


def test_command_finds_the_photographs_of_a_layout(tmp_path, capsys, monkeypatch):
    write_image(with_images(tmp_path) / f"images/{NAMES[0]}.jpg", (SIZE[0] + 2, SIZE[1]))
    path = written(tmp_path, content(tmp_path))
    monkeypatch.setattr(console, "width", 400)
    command = ["data", "masks", "coco14", str(path), "--out", str(tmp_path / "out")]
    assert main(command) == 1
    assert "expected 32x26 (width x height), got 32x24" in capsys.readouterr().out
    assert sorted(file.stem for file in (tmp_path / "out").glob("*.png")) == NAMES[1:]
    (tmp_path / "elsewhere").mkdir()
    assert main([*command, "--option", f"images={tmp_path}/elsewhere"]) == 0


def test_another_numbering_leaves_out_what_it_lacks(tmp_path):
    whole = content(tmp_path)
    whole["annotations"].append({"id": 5, "image_id": 30, "category_id": 12})
    declared = read_instances(written(tmp_path, whole))
    assert declared.labels(30) == (11,) and not declared.problems
    fewer = declared.numbered(80)
    assert fewer.labels(30) == () and fewer.labels(9) == (0, 39)
    assert fewer.incomplete == {30} and not declared.incomplete
    assert [p.message for p in fewer.problems] == [
        "category_id 12 is outside the class list (annotation 5 of image 30)"
    ]


def test_masks_are_drawn_one_object_at_a_time(tmp_path):
    """A thousand objects of a large image: run lengths are held, not a mask of each."""
    import tracemalloc

    size = (2000, 2000)
    image = {"id": 9, "file_name": "a.jpg", "height": size[0], "width": size[1]}
    runs = {"size": [*size], "counts": [0, size[0] * size[1]]}
    rows = [{"id": k, "image_id": 9, "category_id": 1, "segmentation": runs} for k in range(200)]
    path = written(tmp_path, {"images": [image], "annotations": rows})
    tracemalloc.start()
    render_masks(path, tmp_path / "out")
    assert tracemalloc.get_traced_memory()[1] < 100e6  # 800e6 for all masks at once
    tracemalloc.stop()


def test_command_draws_the_others_and_says_so(tmp_path, capsys, monkeypatch):
    whole = content(tmp_path)
    whole["annotations"][0]["segmentation"] = [[0, 0, math.nan, 1, 2, 2]]
    path = written(tmp_path, whole)
    monkeypatch.setattr(console, "width", 400)
    assert main(["data", "masks", "coco14", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "annotation 900 of image 9" in capsys.readouterr().out
    with Image.open(tmp_path / f"out/{NAMES[1]}.png") as mask:
        assert np.unique(np.array(mask)).tolist() == [0, 90]
    assert not (tmp_path / f"out/{NAMES[0]}.png").exists()
    (tmp_path / f"out/{NAMES[1]}.png").write_bytes(b"corrected")
    assert main(["data", "masks", "coco14", str(path), "--out", str(tmp_path / "out")]) == 2
    assert (tmp_path / f"out/{NAMES[1]}.png").read_bytes() == b"corrected"
    assert "weaktr did not draw it" in capsys.readouterr().out
    command = ["data", "masks", "coco14", str(path), "--out", str(tmp_path / "x"), "--option"]
    for option, message in [
        ("ids=91", "ids: expected 90, 80 or 'json', got 91"),
        ("images=[1]", "--option images: expected a folder, got [1]"),
        ("images=none", "images: expected the folder of the photographs, got 'none'"),
        ("problems=1", "--option: data masks takes ids and images, got problems"),
    ]:
        assert main([*command, option]) == 2
        assert " ".join(capsys.readouterr().out.split()) == message
        assert not (tmp_path / "x").exists()
    assert main(["data", "masks", "coco14", "none.json", "--out", str(tmp_path / "x")]) == 2
    assert not (tmp_path / "x").exists()
