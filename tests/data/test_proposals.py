"""Files of proposals: whose an entry is, and what is refused."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.data.proposals import proposal, run_lengths
from weaktr.data import DataError, proposals
from weaktr.data.outlines import runs_of
from weaktr.data.proposals import read_proposals

MASK = np.zeros((3, 4), bool)
MASK[1:, 2] = True


def written(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def rows(entries):
    return [(entry.file.name, entry.row) for entry in entries]


def test_a_file_for_each_photograph(tmp_path):
    written(tmp_path / "a.json", [proposal(MASK), proposal(~MASK)])
    written(tmp_path / "b/c.json", [proposal(MASK, image_id="c"), proposal(MASK, image="b/c.jpg")])
    written(tmp_path / "empty.json", [])
    there = read_proposals(tmp_path)
    assert rows(there.of("a")) == [("a.json", 0), ("a.json", 1)]
    assert rows(there.of("b/c")) == [("c.json", 0), ("c.json", 1)]
    assert there.of("empty") == there.of("no such") == []
    assert there.files("b/c") == (tmp_path / "b/c.json",) and there.files("no such") == ()
    written(tmp_path / "late.json", [proposal(MASK)])  # read when asked for
    assert rows(there.of("late")) == [("late.json", 0)]
    written(tmp_path / "wrong.json", [proposal(MASK), proposal(MASK, file_name="a.jpg")])
    with pytest.raises(DataError, match=r"wrong.json \(entry 1\): expected an entry of 'wrong'"):
        there.of("wrong")


@pytest.mark.parametrize("names", [
    ("x.jpg", "sub/y.png"),
    ("data/x.jpg", "C:\\photos\\sub\\y.PNG"),
    ("x", "sub/y"),
])  # fmt: skip
@pytest.mark.parametrize("field", ["file_name", "image", "image_id"])
def test_one_file_whose_entries_name_their_image(tmp_path, field, names):
    entries = [proposal(MASK, **{field: name}) for name in (*names, names[0])]
    there = read_proposals(written(tmp_path / "all.json", entries))
    assert rows(there.of("x")) == [("all.json", 0), ("all.json", 2)]
    assert rows(there.of("sub/y")) == [("all.json", 1)]
    assert there.of("z") == [] and there.files("z") == ()
    assert there.files("x") == (tmp_path / "all.json",)


def test_a_folder_of_files_whose_entries_name_their_image(tmp_path):
    written(tmp_path / "part_0.json", [proposal(MASK, image_id="x"), proposal(MASK, image_id="y")])
    written(tmp_path / "part_1.json", [proposal(MASK, image_id="x")])
    there = read_proposals(tmp_path)
    assert rows(there.of("x")) == [("part_0.json", 0), ("part_1.json", 0)]
    assert there.files("y") == (tmp_path / "part_0.json",)


def test_numbers_of_coco(tmp_path):
    entries = [proposal(MASK, image_id=42), proposal(MASK, image_id=7.0)]
    there = read_proposals(written(tmp_path / "results.json", entries))
    assert rows(there.of("COCO_val2014_000000000042")) == [("results.json", 0)]
    assert rows(there.of("000000000007")) == rows(there.of("7")) == [("results.json", 1)]
    assert there.of("000000000043") == []
    instances = {
        "images": [{"id": 42, "file_name": "a.jpg"}, {"id": 43, "file_name": "b.jpg"}],
        "annotations": [proposal(MASK, image_id=43), proposal(MASK, image_id=42)],
    }
    there = read_proposals(written(tmp_path / "instances.json", instances))
    assert rows(there.of("a")) == [("instances.json", 1)]
    assert rows(there.of("b")) == [("instances.json", 0)]


def test_segment_anythings_own_data(tmp_path):
    """One object a file, with its image beside the annotations."""
    image = {"image_id": 1, "file_name": "sa_1.jpg", "height": 3, "width": 4}
    written(tmp_path / "sa_1.json", {"image": image, "annotations": [proposal(MASK, id=5)]})
    there = read_proposals(tmp_path)
    assert rows(there.of("sa_1")) == [("sa_1.json", 0)]


def test_a_name_that_could_be_several_is_none(tmp_path):
    entries = [proposal(MASK, image="a/x.jpg"), proposal(MASK, image="b/x.jpg")]
    there = read_proposals(written(tmp_path / "all.json", entries))
    assert there.of("x") == []
    assert rows(there.of("b/x")) == [("all.json", 1)]


@pytest.mark.parametrize(("named", "photographs", "meant"), [
    ("0001.jpg", ["shop1/0001"], "shop1/0001"),
    ("0001.jpg", ["shop1/0001", "shop2/0001"], None),
    ("0001.jpg", ["0001", "shop2/0001"], "0001"),
    ("shop1/0001.jpg", ["a/shop1/0001", "a/shop2/0001"], "a/shop1/0001"),
    ("shop1/0001.jpg", ["a/shop1/0001", "b/shop1/0001"], None),
    ("data/shop1/0001.jpg", ["0001", "shop1/0001"], "shop1/0001"),
    ("data/shop1/0001.jpg", ["0001", "shop2/0001"], "0001"),
    (42, ["a/000000000042"], "a/000000000042"),
    (42, ["a/000000000042", "b/000000000042"], None),
])  # fmt: skip
def test_an_entry_is_of_one_photograph_of_a_run(tmp_path, named, photographs, meant):
    all_of_run = read_proposals(written(tmp_path / "all.json", [proposal(MASK, image=named)]))
    there = all_of_run.among(photographs)
    assert {name: bool(there.of(name)) for name in photographs} == {
        name: name == meant for name in photographs
    }
    assert [bool(there.files(name)) for name in photographs] == [n == meant for n in photographs]
    assert bool(there.unclear) == (meant is None)


def test_without_the_photographs_of_a_run_names_are_whole(tmp_path):
    entries = [proposal(MASK, image="x.jpg"), proposal(MASK, image="data/sub/y.jpg")]
    there = read_proposals(written(tmp_path / "all.json", entries))
    assert there.of("sub/x") == []
    assert rows(there.of("sub/y")) == [("all.json", 1)]


def test_files_are_read_once_until_they_change(tmp_path, monkeypatch):
    file = written(tmp_path / "all.json", [proposal(MASK, image="x")])
    first = read_proposals(file)
    monkeypatch.setattr(proposals, "read_entries", None)
    assert read_proposals(file) is first
    monkeypatch.undo()
    written(file, [proposal(MASK, image="x"), proposal(MASK, image="x")])
    os.utime(file, ns=(1, 1))
    with pytest.raises(DataError, match=r"all.json: changed since it was read; start again"):
        first.of("x")
    assert len(read_proposals(file).of("x")) == 2


@pytest.mark.parametrize(("content", "message"), [
    ("{", r"p.json: expected JSON"),
    ("{}", r"p.json: expected a list of proposals"),
    ("[3]", r"p.json \(entry 0\): expected an object with a segmentation"),
    ('[{"segmentation": [[1, 2, 3, 4, 5, 6]]}]', r"entry 0\): expected an object with a segm"),
    ('[{"segmentation": {}, "image_id": [1]}]', r"entry 0\): expected the name or the number"),
    ('[{"segmentation": {}, "image_id": true}]', r"entry 0\): expected the name or the number"),
    ('[{"segmentation": {}, "image_id": NaN}]', r"entry 0\): expected the name or the number"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, content, message):
    (tmp_path / "p.json").write_text(content)
    for path in (tmp_path / "p.json", tmp_path):
        with pytest.raises(DataError, match=message):
            read_proposals(path)


def test_what_is_not_there_or_too_large(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nowhere: expected a JSON file of proposals, or a"):
        read_proposals(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no JSON in"):
        read_proposals(tmp_path)
    file = written(tmp_path / "a.json", [proposal(MASK)])
    monkeypatch.setattr(proposals, "MOST_BYTES", file.stat().st_size - 1)
    for path in (file, tmp_path):
        with pytest.raises(ValueError, match=r"expected at most 0 MiB of proposals"):
            read_proposals(path)


def test_the_helper_of_these_tests_writes_run_lengths():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        mask = rng.random((3, 1 + seed % 4)) < rng.random()
        packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        text = {"size": packed["size"], "counts": packed["counts"].decode()}
        own = runs_of(run_lengths(mask), mask.shape)
        assert runs_of(text, mask.shape).tolist() == own.tolist()
