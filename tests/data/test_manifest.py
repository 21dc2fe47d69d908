"""The manifest: written, read, told apart."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.data.trees import write_image
from weaktr.data.classes import Classes
from weaktr.data.manifest import Manifest, Sample, name_fault
from weaktr.data.problems import DataError, Problem

CLASSES = Classes(("cat", "dög"), (3, 7))


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    inside, outside = tmp_path / "set/images/a.png", tmp_path / "elsewhere/b.png"
    for seed, path in enumerate((inside, outside)):
        write_image(path, seed=seed)
    samples = (
        Sample("a", inside, (0, 1), tmp_path / "set/masks/a.png", "labels.csv:2", (3, 7)),
        Sample("b", outside, None, None, "labels.csv:3", (3, 7)),
        Sample("c", outside, (), None, "labels.csv:4", (3, 7)),
    )
    return Manifest("own", "train", CLASSES, samples)


def test_saved_and_loaded_is_equal(manifest: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "set/manifest.json"
    manifest.save(path)
    assert Manifest.load(path) == manifest
    assert [file.name for file in path.parent.glob("*manifest*")] == ["manifest.json"]


def test_files_below_the_manifest_move_with_it(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "set/manifest.json")
    (tmp_path / "set").rename(tmp_path / "moved")
    moved = Manifest.load(tmp_path / "moved/manifest.json")
    assert moved.samples[0].image == tmp_path / "moved/images/a.png"
    assert moved.samples[0].mask == tmp_path / "moved/masks/a.png"
    assert moved.samples[1].image == tmp_path / "elsewhere/b.png"


def test_fingerprint_follows_the_data(manifest: Manifest, tmp_path: Path) -> None:
    first = manifest.fingerprint()
    manifest.save(tmp_path / "m.json")
    assert Manifest.load(tmp_path / "m.json").fingerprint() == first
    a, b, c = manifest.samples
    assert replace(manifest, samples=(c, a, b)).fingerprint() == first
    changed = [
        replace(manifest, samples=(replace(a, labels=(0,)), b, c)),
        replace(manifest, samples=(a, replace(b, labels=()), c)),
        replace(manifest, samples=(a, b)),
        replace(manifest, samples=(replace(a, mask=None), b, c)),
        replace(manifest, classes=Classes(("cat", "cow"), (3, 7))),
    ]
    fingerprints = {other.fingerprint() for other in changed}
    assert len(fingerprints) == len(changed)
    assert first not in fingerprints
    write_image(a.image, size=(50, 50))
    resized = manifest.fingerprint()
    a.image.unlink()
    assert len({first, resized, manifest.fingerprint()}) == 3


def test_masks_of_one_manifest_share_a_numbering(manifest: Manifest) -> None:
    a, b, c = manifest.samples
    with pytest.raises(ValueError, match="same mask_ids"):
        replace(manifest, samples=(a, b, replace(c, mask_ids=None)))
    with pytest.raises(ValueError, match="2 classes, got 1"):
        replace(manifest, samples=(replace(a, mask_ids=(3,)),))


@pytest.mark.parametrize("name", ["../a", "a/../../b", "/etc/a", "", "a\\..\\..\\b"])
def test_names_stay_in_the_folder_of_results(manifest: Manifest, name: str) -> None:
    first, *others = manifest.samples
    with pytest.raises(DataError, match=r"labels\.csv:2\): name: expected a relative path"):
        replace(manifest, samples=(replace(first, name=name), *others))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "expected JSON"),
        ('{"format": "other"}', "format"),
        ('{"format": "weaktr-manifest-1"}', "classes"),
        ('{"format": "weaktr-manifest-1", "classes": 3, "mask_ids": null}', "not a whole"),
    ],
)
def test_files_that_are_no_manifest(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        Manifest.load(path)
    assert str(path) in str(caught.value)


def test_json_is_readable(manifest: Manifest, tmp_path: Path) -> None:
    manifest.save(tmp_path / "set/m.json")
    content = json.loads((tmp_path / "set/m.json").read_text(encoding="utf-8"))
    assert content["samples"][0]["image"] == "images/a.png"
    assert content["classes"] == {"names": ["cat", "dög"], "ids": [3, 7]}
    assert content["mask_ids"] == [3, 7]


def test_errors_list_and_travel() -> None:
    problems = [Problem(f"{k}.jpg", f"list.txt:{k}", "gone") for k in range(25)]
    error = DataError(problems)
    assert "25 problems" in str(error)
    assert "19.jpg (list.txt:19): gone" in str(error)
    assert "20.jpg" not in str(error)
    assert "and 5 more" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.problems, str(again)) == (error.problems, str(error))
    told = DataError(str(error))
    assert str(pickle.loads(pickle.dumps(told))) == str(told) == str(error)
    assert str(DataError(problems[0])) == "0.jpg (list.txt:0): gone"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"samples": [{"name": 3}]}, r"samples\.0\.name: .*string, got 3"),
        ({"samples": [{"labels": [True]}]}, r"samples\.0\.labels\.0: .*integer, got True"),
        ({"samples": [{"labels": "01"}]}, r"samples\.0\.labels: .*list, got '01'"),
        ({"samples": [{"labels": [1, 1]}]}, r"\('a'\): labels: .* each once; got \[1, 1\]"),
        ({"samples": [{"labels": [1, 0]}]}, r"0 to 1, ascending, each once; got \[1, 0\]"),
        ({"samples": [{"labels": [2]}]}, r"0 to 1, ascending, each once; got \[2\]"),
        ({"samples": [{"labels": [-1, 0]}]}, r"0 to 1, ascending, each once; got \[-1, 0\]"),
        ({"samples": [{"labels": [3]}, {"name": "b", "labels": [4]}]}, r"(?s)'a'.*'b'"),
        ({"samples": [{"mask": False}]}, r"samples\.0\.mask: .*string, got False"),
        ({"samples": [{"exif": "no"}]}, "exif: expected one of ignore, apply; got 'no'"),
        (
            {"samples": [{}, {"image": "b.png"}]},
            r"line 1\): name 'a' was already declared at line 1",
        ),
        ({"mask_ids": [0, 3]}, "mask_ids from 1 to 254, each once, got"),
        ({"mask_ids": [3, 3]}, "mask_ids from 1 to 254, each once, got"),
        ({"classes": {"names": ["cat", 1], "ids": [1, 2]}}, r"classes\.names\.1: .*string, got 1"),
        ({"classes": {"names": ["cat", "cat "], "ids": [1, 2]}}, "expected each class once"),
        ({"classes": {"names": ["cat", "dog"], "ids": [1, 999]}}, r"ids: expected 1\.\.254"),
    ],
)
def test_fields_of_the_wrong_kind(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    sample = {"name": "a", "image": "a.png", "labels": [0], "mask": None, "source": "line 1"}
    content = {"format": "weaktr-manifest-1", "name": "own", "split": "train", "mask_ids": None}
    content |= {"classes": {"names": ["cat", "dog"], "ids": [1, 2]}, "samples": [{}]} | change
    content["samples"] = [sample | changes for changes in content["samples"]]
    path = tmp_path / "m.json"
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=told) as caught:
        Manifest.load(path)
    assert str(path) in str(caught.value) or "already declared" in told


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json: no such file"):
        Manifest.load(tmp_path / "none.json")


def test_names_that_are_not_utf8_are_written(tmp_path: Path) -> None:
    sample = Sample("b\udcff", tmp_path / "b\udcff.png", (0,), None, "line 1")
    manifest = Manifest("own", "train", CLASSES, (sample,))
    manifest.save(tmp_path / "m.json")
    assert Manifest.load(tmp_path / "m.json").samples == manifest.samples
    assert "\\udcff" in str(Problem("b\udcff.png", "a\nb", "gone\x1b[0m"))
    assert str(Problem("b\udcff.png", "a\nb", "gone\x1b[0m")).isprintable()


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("a/b", True),
        ("ä" * 121, True),
        ("a" * 243 + "/" + "b" * 243, True),
        ("b\udcff", True),
        ("ä" * 122, False),
        ("a/" + "b" * 244, False),
        ("b\ud800", False),
        ("a\0", False),
        ("../a", False),
        ("/a", False),
        ("", False),
    ],
)
def test_names_that_a_mask_can_have(name: str, fine: bool) -> None:
    assert (name_fault(name) is None) == fine
