"""Photographs in tar shards."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.test_train import said
from weaktr import cli
from weaktr.data import Classes, DataError, Manifest, Sample, check, load_manifest, read_mask
from weaktr.data.problems import Problem
from weaktr.data.sources.tar import tar
from weaktr.data.tar_shard import ShardSamples, read_shard, with_classes

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


def samples_of_shard(archive: Path, classes: Classes | None, **options: Path) -> ShardSamples:
    """The photographs of one tar."""
    return with_classes(
        read_shard(archive, "none" if classes is None else "auto"), classes, **options
    )


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


def test_labels_that_are_not_wanted(tmp_path):
    archive = shard(tmp_path / "s.tar", ("a.jpg", b""), ("a.cls", "99"), ("b.jpg", b""))
    read = read_shard(archive, "none")
    for classes in (None, CLASSES):
        nothing = with_classes(read, classes)
        assert (labels_of(nothing.samples), nothing.problems) == ([None, None], [])
    assert [sample.name for sample in nothing.samples] == ["s/a", "s/b"]
    assert [sample.name for sample in with_classes(read, None, prefix="").samples] == ["a", "b"]


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


def test_what_webdataset_writes(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(f"{tmp_path}/train-%03d.tar", maxcount=2, verbose=0) as writer:
        for number in range(3):
            image = np.full((6, 8, 3), number, np.uint8)
            mask = np.full((6, 8), number % 3, np.uint8)
            sample = {"__key__": f"x/{number}", "png": image, "cls": [0, number]}
            writer.write(sample | {"mask.png": mask, "txt": "a text"})
    manifest = tar(tmp_path, classes=CLASSES.names)
    assert [s.name for s in manifest] == ["train-000/x/0", "train-000/x/1", "train-001/x/2"]
    assert labels_of(manifest) == [(0,), (0, 1), (0, 2)]
    assert read_mask(manifest.samples[2], 4).tolist() == np.full((6, 8), 2).tolist()


# ---- the data source ----------------------------------------------------------------------------


def png(value: int = 0, mode: str = "RGB") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (8, 6), value).save(buffer, format="PNG")
    return buffer.getvalue()


def sample_files(key: str, labels: str, mask: int = 0) -> list[tuple[str, bytes | str]]:
    files: list[tuple[str, bytes | str]] = [(f"{key}.png", png(mask)), (f"{key}.cls", labels)]
    return [*files, (f"{key}.mask.png", png(mask, "L"))] if mask else files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three shards of train, one of val."""
    root = tmp_path / "shards"
    shard(root / "train-2.tar", *sample_files("a", "dog cat", 1), *sample_files("b", "cow"))
    shard(root / "train-10.tar", *sample_files("a", "dog"))
    shard(root / "train-1.tar", *sample_files("f/a", ""))
    shard(root / "val" / "0.tar", *sample_files("a", "zebra"))
    return root


def test_a_split_has_its_shards_in_natural_order(root):
    train, val = (load_manifest("tar", root, split) for split in ("train", "val"))
    names = ["train-1/f/a", "train-2/a", "train-2/b", "train-10/a"]
    assert [sample.name for sample in train] == names
    assert train.classes.names == val.classes.names == ("cat", "cow", "dog", "zebra")
    assert labels_of(train) == [(), (0, 2), (1,), (2,)]
    assert labels_of(val) == [(3,)]
    assert val.samples[0].image == root / "val/0.tar/a.png"
    assert not any(problem.level == "error" for problem in check(train))
    every = load_manifest("tar", root, "all")
    assert [sample.name for sample in every] == names


def test_a_split_of_no_shards_says_what_is_expected(root):
    message = (
        r"expected the shards test-\*\.tar or test/\*\.tar in .*, found none; there are train-1"
    )
    with pytest.raises(ValueError, match=message):
        tar(root, split="test")


@pytest.mark.parametrize("place", ["s3://bucket/shards", "https://a.org/shards", "gs:/a"])
def test_shards_elsewhere_have_to_be_copied(place):
    for root in (place, Path(place)):
        with pytest.raises(ValueError, match="copy them to a disk first"):
            tar(root)


def test_classes(root):
    (root / "classes.txt").write_text("zebra\ncow\ndog\ncat\n")
    assert tar(root).classes.names == ("zebra", "cow", "dog", "cat")
    assert tar(root, classes=["dog", "cat", "cow"]).classes.names == ("dog", "cat", "cow")
    with pytest.raises(DataError, match="label 'cow' is none of the 2 classes"):
        tar(root, classes=["dog", "cat"])


def test_indices_need_a_list_of_classes(root):
    shard(root / "train-3.tar", *sample_files("a", "2"))
    with pytest.raises(
        DataError, match=r"train-3\.tar/a\.png .*got the index '2': write the names"
    ):
        tar(root)
    assert labels_of(tar(root, classes=["cow", "dog", "cat"]))[3] == (2,)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train-3.csv", "image,labels\na,1\n"),
        ("train-3.json", '{"a": ["1"]}'),
        (None, '{"labels": ["1"]}'),
    ],
)
def test_texts_are_indices_in_cls_alone(root, name, content):
    """A text may count from 1, as people do."""
    for path in root.glob("train-*.tar"):
        path.unlink()
    inside = [("a.json", content)] if name is None else []
    shard(root / "train-3.tar", ("a.png", png()), *inside)
    if name is not None:
        (root / name).write_text(content)
    with pytest.raises(DataError, match="label '1' is none of the 2 classes; write its name: text"):
        tar(root, classes=["cow", "dog"])
    assert labels_of(tar(root, classes=["0", "1"])) == [(1,)]


def test_labels_for_all_shards_have_no_indices(root, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("image,labels\nf/a,0\ntrain-2/a,1\nb,2\ntrain-10/a,\n")
    with pytest.raises(DataError, match="label '1' is none of the 3 classes; write its name"):
        tar(root, labels=file, classes=["cow", "dog", "cat"])


def test_texts_parted_at_blanks_are_told(root, caplog):
    assert tar(root).classes.names == ("cat", "cow", "dog", "zebra")
    (told,) = caplog.messages
    assert told.startswith(
        f"{root}/train-2.tar/a.cls: 'dog cat' is read as the classes dog, cat, and 1 text is parted"
    )
    assert f"write the names of all into {root}/classes.txt" in told
    caplog.clear()
    assert tar(root, classes=["cat", "cow", "dog cat", "dog"]).samples[1].labels == (2,)
    shard(root / "train-2.tar", *sample_files("a", "dog, cat"), *sample_files("b", "cow"))
    assert tar(root).classes.names == ("cat", "cow", "dog", "zebra")
    assert caplog.messages == []


def test_shards_that_may_be_of_another_split_are_told(root, caplog):
    shard(root / "train-val-0.tar", *sample_files("a", "cow"))
    classes = ["cat", "cow", "dog"]
    assert len(tar(root, classes=classes)) == 5
    assert caplog.messages == [
        f"{root}: shards of split train are train-val-0.tar, too; if they are another split's, "
        "call them otherwise"
    ]
    caplog.clear()
    for number in (1, 2, 10):
        (root / f"train-{number}.tar").unlink()
    assert len(tar(root, classes=classes)) == 1
    assert caplog.messages == []


def test_columns_beside_shards_give_the_order_of_the_classes(root):
    for path in root.glob("train-*.tar"):
        path.unlink()
    shard(root / "train-1.tar", ("a.png", png()), ("b.png", png()))
    (root / "train-1.csv").write_text("image,zebra,ape\na,1,0\nb,1,1\n")
    manifest = tar(root)
    assert manifest.classes.names == ("zebra", "ape")
    assert labels_of(manifest) == [(0,), (0, 1)]


def test_one_label_file_for_all_shards(root, tmp_path):
    file = tmp_path / "labels.csv"
    file.write_text("image,labels\nf/a.png,cat\ntrain-2/a,dog\nb,dog;cat\ntrain-10/a,\nelse,cat\n")
    manifest = tar(root, labels=file)
    assert labels_of(manifest) == [(0,), (1,), (0, 1), ()]
    assert manifest.samples[1].source == f"{file}:3"
    file.write_text("image,labels\nf/a,cat\na,dog\nb,dog;cat\n")
    with pytest.raises(DataError, match=r"labels\.csv:3\): 'a' is in several shards: .* SHARD/a"):
        tar(root, labels=file)
    with pytest.raises(DataError, match=r"none\.csv: file is missing"):
        tar(root, labels="none.csv")


def test_all_faults_are_told_at_once(root):
    shard(root / "train-3.tar", ("a.png", png()))
    shard(root / "train-4.tar")
    (root / "train-5.tar").write_bytes((root / "train-2.tar").read_bytes()[:1000])
    (root / "train-6.tar.gz").write_bytes(gzip.compress(b"1"))
    shard(root / "train-7.tar", ("../a.png", png()), *sample_files("b", "cow"))
    with pytest.raises(DataError) as error:
        tar(root)
    expected = [
        "train-6.tar.gz: expected a tar without compression",
        "train-4.tar: holds no photographs",
        "train-5.tar: expected a tar without compression, got: unexpected end of data",
        "train-7.tar/../a.png: name: expected a relative path without '..'",
        "train-3.tar: has no labels, train-1.tar has some",
    ]
    told = str(error.value)
    assert [message for message in expected if message not in told] == []
    assert len(error.value.problems) == len(expected)
    problems: list[Problem] = []
    manifest = tar(root, problems=problems)
    assert problems == list(error.value.problems)
    assert "train-7/b" in [sample.name for sample in manifest]
    assert all(".." not in sample.image.parts for sample in manifest)


def test_masks_of_a_labelling(root, tmp_path):
    made = tmp_path / "run"
    for name in ("train-1", "train-2", "train-10"):
        shard(made / "masks" / f"{name}.tar", ("a.png", png(2, "L")))
    shard(made / "masks" / "train-1.tar", ("f/a.png", png(2, "L")))
    manifest = tar(root, masks=made)
    masks = [sample.mask for sample in manifest]
    assert masks[0] == made / "masks/train-1.tar/f/a.png"
    assert masks[1] == made / "masks/train-2.tar/a.png"
    assert masks[2] is None
    assert read_mask(manifest.samples[1], 4).tolist() == np.full((6, 8), 2).tolist()


def test_a_manifest_of_shards_can_be_saved(root, tmp_path):
    manifest = tar(root)
    manifest.save(root / "train.json")
    assert Manifest.load(root / "train.json") == manifest
    assert '"image": "train-2.tar/a.png"' in (root / "train.json").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"exif": "turn"}, "exif: expected one of ignore, apply"),
        ({"labels": 3}, "labels: expected a path"),
        ({"folder": "x"}, "options of source 'tar'"),
    ],
)
def test_options(root, options, message):
    with pytest.raises(ValueError, match=message):
        load_manifest("tar", root, "train", **options)


def test_commands(root, tmp_path):
    code, text = said(cli.main, "data", "check", "tar", root)
    assert code == 0, text
    code, text = said(cli.main, "data", "stats", "tar", root)
    assert code == 0 and "zebra" in text
    out = tmp_path / "train.json"
    assert said(cli.main, "data", "write", "tar", root, "--out", out)[0] == 0
    assert said(cli.main, "data", "check", "manifest", out)[0] == 0
    code, text = said(cli.main, "data", "write", "tar", root, "--out", root / "train-1.json")
    assert code == cli.WRONG_INPUT
    shard(root / "train-2.tar", ("a.png", b"no picture"), ("a.cls", "ape, zebra"))
    code, text = said(cli.main, "data", "check", "tar", root)
    assert code == 1
    assert "train-2.tar/a.png" in "".join(text.split())
