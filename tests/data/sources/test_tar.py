"""Photographs in tar shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import pytest

from weaktr.data import Classes, Sample
from weaktr.data.sources.tar import samples_of_shard

CLASSES = Classes(("cat", "dog", "traffic light"))


def shard(path: Path, *files: tuple[str, bytes | str]) -> Path:
    """A tar with files of these names and contents, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files:
            stored = content.encode() if isinstance(content, str) else content
            info = tarfile.TarInfo(name)
            info.size = len(stored)
            tar.addfile(info, io.BytesIO(stored))
    return path


def labels_of(samples: Iterable[Sample]) -> list[tuple[int, ...] | None]:
    return [sample.labels for sample in samples]


@pytest.mark.parametrize(
    ("name", "content", "labels"),
    [
        ("a.cls", "1", (1,)),
        ("a.cls", "2 0", (0, 2)),
        ("a.cls", "dog", (1,)),
        ("a.cls", "dog cat\n", (0, 1)),
        ("a.cls", "dog;cat", (0, 1)),
        ("a.cls", "traffic light, cat", (0, 2)),
        ("a.cls", "traffic light", (2,)),
        ("a.cls", "[0, 2]", (0, 2)),
        ("a.cls", "['dog', 'traffic light']", (1, 2)),
        ("a.cls", "", ()),
        ("a.json", '{"labels": ["dog", 0]}', (0, 1)),
        ("a.json", '{"labels": [], "caption": NaN}', ()),
        ("a.json", '{"caption": "a dog"}', None),
        ("a.json", "[1]", None),
    ],
)
def test_labels_inside(tmp_path, name, content, labels):
    archive = shard(tmp_path / "s.tar", ("a.jpg", b""), (name, content))
    result = samples_of_shard(archive, CLASSES)
    assert not result.problems
    assert labels_of(result.samples) == [labels]
    assert result.labels == ("none" if labels is None else "inside")
    assert result.samples[0].image == archive / "a.jpg"
    if labels is not None:
        assert result.samples[0].source == f"{archive}/{name}"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("s.csv", "image,labels\na,dog\nb.jpg,dog;cat\n"),
        ("s.csv", "image,cat,dog\na.jpg,0,1\ns/b,1,1\n"),
        ("s.json", json.dumps({"a": ["dog"], "b": ["cat", "dog"]})),
    ],
)
def test_labels_beside(tmp_path, name, content):
    archive = shard(tmp_path / "s.tar", ("a.jpg", b""), ("a.cls", "cat"), ("b.jpg", b""))
    (tmp_path / name).write_text(content)
    result = samples_of_shard(archive, CLASSES)
    assert not result.problems
    assert (labels_of(result.samples), result.labels) == ([(1,), (0, 1)], "beside")


def test_labels_that_are_given_or_not_wanted(tmp_path):
    archive = shard(tmp_path / "s.tar", ("a.jpg", b""), ("a.cls", "99"), ("b.jpg", b""))
    given = samples_of_shard(archive, CLASSES, labels={"a": (2,), "b": ()}, prefix="")
    assert (labels_of(given.samples), given.problems, given.labels) == ([(2,), ()], [], "given")
    assert [sample.name for sample in given.samples] == ["a", "b"]
    for classes in (None, CLASSES):
        nothing = samples_of_shard(archive, classes, labels="none")
        assert (labels_of(nothing.samples), nothing.problems) == ([None, None], [])
    assert [sample.name for sample in nothing.samples] == ["s/a", "s/b"]


def test_masks_inside_or_elsewhere(tmp_path):
    files = [("a.jpg", b""), ("a.mask.png", b""), ("b.jpg", b""), ("b.seg.png", b"")]
    archive = shard(tmp_path / "s.tar", *files)
    samples = samples_of_shard(archive, None).samples
    assert [sample.mask for sample in samples] == [archive / "a.mask.png", archive / "b.seg.png"]
    made = shard(tmp_path / "run" / "masks" / "s.tar", ("b.png", b""))
    samples = samples_of_shard(archive, None, masks=tmp_path / "run").samples
    assert [sample.mask for sample in samples] == [None, made / "b.png"]
    (fault,) = samples_of_shard(archive, None, masks=tmp_path).problems
    assert str(fault).startswith(f"{tmp_path}/masks/s.tar: file is missing")


@pytest.mark.parametrize(
    ("files", "member", "message"),
    [
        ([("a.cls", "1")], "a.cls", "no photograph has the key 'a'"),
        ([("a.jpg", ""), ("a.png", "")], "a.png", "two photographs have the key 'a'"),
        ([("a.jpg", ""), ("a.jpg", "")], "a.jpg", "stands in the tar twice"),
        ([("a.jpg", ""), ("b.jpg", ""), ("a.txt", "")], "a.txt", "stands apart from the other"),
        ([("a.jpg", ""), ("a.seg.png", ""), ("a.mask.png", "")], "a.seg.png", "two masks have"),
        ([("a.jpg", ""), ("a.cls", "3")], "a.jpg", "class indices: expected 0 to 2, got 3"),
        ([("a.jpg", ""), ("a.cls", "-1")], "a.jpg", "class indices: expected 0 to 2, got -1"),
        ([("a.jpg", ""), ("a.cls", "dgo")], "a.jpg", "is none of the 3 classes; did you mean"),
        ([("a.jpg", ""), ("a.cls", b"\xff")], "a.cls", "expected names or indices of classes"),
        ([("a.jpg", ""), ("a.json", "{")], "a.json", "expected JSON, got"),
        ([("a.jpg", ""), ("a.json", '{"labels": "dog"}')], "a.json", "labels: expected a list"),
        ([("a.jpg", ""), ("a.json", '{"labels": [true]}')], "a.json", "labels: expected a list"),
        ([("a.jpg", ""), ("b.jpg", ""), ("b.cls", "1")], "a.jpg", "has no labels in KEY.cls"),
        ([("../a.jpg", "")], "../a.jpg", "expected a relative path without '..'"),
        ([("/a.jpg", "")], "/a.jpg", "expected a relative path without '..'"),
        ([("b/../a.jpg", "")], "b/../a.jpg", "expected a relative path without '..'"),
        ([("b\\a.jpg", "")], "b\\a.jpg", "expected one without \\"),
        ([("a\n.jpg", "")], "a\\n.jpg", "expected one without \\"),
        ([(f"{'a' * 250}.jpg", "")], f"{'a' * 250}.jpg", "expected at most 243 bytes"),
    ],
)
def test_a_fault_names_the_file_in_the_shard(tmp_path, files, member, message):
    archive = shard(tmp_path / "s.tar", *files)
    (fault,) = samples_of_shard(archive, CLASSES).problems
    assert str(fault).startswith(f"{archive}/{member}")
    assert message in str(fault)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "file is missing"),
        (b"", "expected a tar without compression"),
        (b"\x1f\x8b" + bytes(600), "expected a tar without compression"),
        (bytes(1024), "holds no photographs: expected KEY.jpg"),
    ],
)
def test_a_fault_names_a_shard_that_cannot_be_read(tmp_path, content, message):
    if content is not None:
        (tmp_path / "s.tar").write_bytes(content)
    result = samples_of_shard(tmp_path / "s.tar", CLASSES)
    assert not result.samples
    (fault,) = result.problems
    assert str(fault).startswith(f"{tmp_path}/s.tar: ")
    assert message in str(fault)


def test_what_systems_put_into_tars_is_passed_over(tmp_path):
    files = [("./._a.jpg", ""), ("./a.jpg", ""), ("__MACOSX/a.jpg", ""), ("README", "")]
    samples, problems, _ = samples_of_shard(shard(tmp_path / "s.tar", *files), None)
    assert ([sample.name for sample in samples], problems) == (["s/a"], [])
