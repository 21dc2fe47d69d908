"""Which shards there are."""

from __future__ import annotations

import gzip
import hashlib
import os
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.shards import work
from weaktr.contents import Contents
from weaktr.data import DataError, Sample, unlabelled
from weaktr.shards.inputs import (
    ListShards,
    TarShards,
    find_archives,
    is_pattern,
    resolved,
    shard_count,
)


@pytest.fixture
def folder(tmp_path):
    for name in ("2.tar", "10.tar", "a.tar", "below/1.tar", ".hidden.tar", ".x/1.tar", "note.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a", "below/1", "2", "10"]),
        ("*.tar", ["a", "2", "10"]),
        ("[0-9]*.tar", ["2", "10"]),
        ("?.tar", ["a", "2"]),
        ("**/*.tar", ["a", "below/1", "2", "10"]),
        ("below", ["1"]),
        ("10.tar", ["10"]),
        ("{2..3}.tar", ["2", "3"]),
        ("{09..11}.tar", ["09", "10", "11"]),
        ("s{0..1}-{00..01}.tar", ["s0-00", "s0-01", "s1-00", "s1-01"]),
    ],
)
def test_names_in_natural_order(folder, pattern, names):
    archives = find_archives(os.path.join(folder, pattern))
    assert list(archives) == names
    assert all(path.endswith(f"{name}.tar") for name, path in archives.items())


@pytest.mark.parametrize("pattern", ["", "**/*.tar"])
def test_tars_of_masks_are_none_of_photographs(folder, pattern, monkeypatch):
    work.write_tar(folder / "below/out/masks/1.tar", {})
    (folder / "below/out/inputs.json").write_text('{"made_from": "x"}')
    monkeypatch.chdir(folder)
    names = ["a", "below/1", "2", "10"]
    assert list(find_archives(os.path.join(folder, pattern))) == names
    assert list(find_archives(pattern or ".")) == names
    assert list(find_archives("below/out/masks/*.tar")) == ["1"]
    assert list(find_archives("below/out")) == ["masks/1"]


@pytest.mark.parametrize("pattern", ["x*.tar", "*.png", "{3..2}.tar"])
def test_patterns_that_mean_nothing(folder, pattern):
    with pytest.raises(ValueError, match="expected tar archives, found none"):
        find_archives(os.path.join(folder, pattern))


def test_too_many_are_refused_at_once(folder):
    with pytest.raises(ValueError, match="at most 10 million"):
        find_archives(f"{folder}/{{0..99999999}}.tar")


def test_rows_of_tars_that_are_not_given_are_not_told(folder):
    labels = folder / "all.csv"
    labels.write_text("image,labels\n10/1,cat\n10/2.png,cat\nno/3,cat\n4,cat\n")
    first = TarShards(str(folder / "2.tar"), str(labels), ["cat"], "ignore")
    assert first.rows_without_photograph([("2", "0")]) == ["no/3", "4"]
    both = TarShards(str(folder / "*.tar"), str(labels), ["cat"], "ignore")
    assert both.rows_without_photograph([("10", "1"), ("2", "4")]) == ["10/2.png", "no/3"]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("now", "d1"), ("now//", "d1"), ("now/*.tar", "d1/*.tar"),
        ("now/{0..1}.tar", "d1/{0..1}.tar"),
        ("now/a.tar", "d1/a.tar"), ("*.tar", "*.tar"), ("Trip [1]", "d1"),
        ("all.json", "d1/b.json"),
    ],
)  # fmt: skip
def test_links_are_followed_up_to_the_names_of_tars(tmp_path, monkeypatch, name, place):
    monkeypatch.chdir(tmp_path)
    Path("d1").mkdir()
    for link, target in (("now", "d1"), ("Trip [1]", "d1"), ("all.json", "d1/b.json")):
        Path(link).symlink_to(target)
    for file in ("d1/b.json", "d1/kept"):
        Path(file).touch()
    Path("d1/a.tar").symlink_to("kept")
    assert resolved(name) == f"{tmp_path}/{place}"
    assert resolved("s3://now/*.tar") == "s3://now/*.tar"


def test_what_is_a_pattern(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert is_pattern(".") and is_pattern("a.tar") and is_pattern("nowhere.tar")
    assert is_pattern("*.tar") and is_pattern("s3://bucket/x") and is_pattern("{1..2}.tar")
    assert not is_pattern("note.txt") and not is_pattern("nowhere")
    Path("a[b]").mkdir()
    assert not is_pattern("a[b]")  # a folder of that name
    Path("a[b]/below").mkdir()
    Path("a[b]/below/1.tar").touch()
    assert is_pattern("a[b]")
    Path("a[b]/out").mkdir()
    Path("a[b]/out/inputs.json").write_text('{"made_from": "x"}')
    Path("a[b]/out/mask.png").touch()
    assert is_pattern("a[b]")
    Path("a[b]/x.JPG").touch()
    assert not is_pattern("a[b]")


def samples(names):
    return [Sample(name, Path("/photos") / f"{name}.png", None, None, "") for name in names]


def test_photographs_stay_in_their_shards():
    names = [f"{number}" for number in range(200)]
    shards = ListShards(samples(names), 7, Path("/photos"))
    before = {name: photographs(shards, name) for name in shards.names}
    assert sorted(name for own in before.values() for name in own) == sorted(names)
    assert all(before.values())
    shards = ListShards(samples([*names[:50], *names[51:], "new"]), 7, Path("/photos"))
    for name, own in before.items():
        assert set(own) - {"50"} == set(photographs(shards, name)) - {"new"}


def photographs(shards, name):
    with ExitStack() as stack:
        return [sample.name for sample in shards.read(name, stack, None).samples]


@pytest.mark.parametrize(
    ("count", "size", "shards"), [(0, 5, 1), (1, 5, 1), (5, 5, 1), (6, 5, 2), (82_081, 1000, 83)]
)
def test_how_many_shards_a_list_makes(count, size, shards):
    assert shard_count(count, size) == shards


def test_data_of_a_list_tell_what_changed(tmp_path):
    work.photographs(tmp_path, 2)
    given = [Sample(f"{i:02d}", tmp_path / f"{i:02d}.png", (i,), None, "") for i in range(2)]

    def data(own):
        return ListShards(own, 1, tmp_path).data_of("00000")

    before = data(given)
    assert data(given) == before
    assert data(given[::-1]) != before
    assert data(given[:1]) != before
    assert data([given[0], Sample("01", given[1].image, (0,), None, "")]) != before
    (tmp_path / "01.png").write_bytes(work.photograph(7))
    assert data(given) != before
    (tmp_path / "01.png").unlink()
    assert data(given)["photographs"] == 2


def test_faults_of_keys_and_of_the_tar(tmp_path):
    files = {"a.png": b"1", "a.cls": b"cat", "b.cls": b"cat", "c.png": b"2", "c.cls": b"bird"}
    archive = work.write_tar(tmp_path / "0.tar", files)
    shards = TarShards(str(archive), "inside", work.CLASSES, "ignore")
    with ExitStack() as stack:
        given = shards.read("0", stack, None)
    assert [sample.name for sample in given.samples] == ["a"]
    assert given.faults.keys() == {"b", "c"}
    assert "no photograph" in given.faults["b"].message
    assert "'bird'" in given.faults["c"].message
    archive.write_bytes(archive.read_bytes()[:1500])
    with ExitStack() as stack, pytest.raises(DataError, match=r"0\.tar"):
        shards.read("0", stack, None)


def test_where_labels_are_is_said_by_the_first_tar_that_can_be_used(tmp_path, caplog):
    (tmp_path / "0.tar").write_bytes(b"no tar")
    work.write_tar(tmp_path / "1.tar", {"a.png": b"1", "a.cls": b"cat"})
    work.write_tar(tmp_path / "2.tar", {"a.png": b"1"})
    assert TarShards(str(tmp_path), "auto", work.CLASSES, "ignore").labels == "inside"
    (tmp_path / "1.tar").unlink()
    assert TarShards(str(tmp_path), "auto", work.CLASSES, "ignore").labels == "none"
    assert "no labels in the tars, so the model predicts" in caplog.text
    work.write_tar(tmp_path / "3.tar", {"a.png": b"1", "a.cls": b"cat"})
    work.write_tar(tmp_path / "4.tar", {"a.png": b"1"})
    (tmp_path / "4.csv").write_text("image,labels\na,cat\n")
    shards = TarShards(str(tmp_path), "auto", work.CLASSES, "ignore")
    with ExitStack() as stack:
        assert shards.read("2", stack, None).samples[0].labels is None
        for name, place in (("3", "inside"), ("4", "beside")):
            with pytest.raises(ValueError, match=rf"{name}\.tar: has labels, {place} it, and the"):
                shards.read(name, stack, None)
    for name in "234":
        (tmp_path / f"{name}.tar").unlink()
    with pytest.raises(DataError, match="expected a tar without compression"):
        TarShards(str(tmp_path), "auto", work.CLASSES, "ignore")


@pytest.mark.parametrize("name", ["1.tar.gz", "b/1.tgz", "1.tar.zst"])
def test_compressed_tars_beside_others_are_refused(tmp_path, name):
    work.write_tar(tmp_path / "in/0.tar", {"a.png": b"1"})
    packed = tmp_path / "in" / name
    packed.parent.mkdir(exist_ok=True)
    packed.write_bytes(gzip.compress(b"1"))
    for pattern in (tmp_path / "in", tmp_path / "in/**/*"):
        with pytest.raises(ValueError, match=rf"{name}: expected a tar without compression"):
            find_archives(str(pattern))
    assert list(find_archives(str(tmp_path / "in/*.tar"))) == ["0"]
    (tmp_path / "in/0.tar").unlink()
    with pytest.raises(ValueError, match=r"expected images below .*without compression"):
        unlabelled(tmp_path / "in")


def test_names_whose_masks_would_have_one_place_are_named(tmp_path):
    files = {"a.png": b"1", "a.png/b.png": b"1", "c.png": b"1"}
    work.write_tar(tmp_path / "0.tar", files)
    shards = TarShards(str(tmp_path), "none", None, "ignore")
    with ExitStack() as stack:
        given = shards.read("0", stack, None)
    assert [sample.name for sample in given.samples] == ["a", "c"]
    assert "called like the mask of 'a'" in given.faults["a.png/b"].message


def test_labels_need_classes(tmp_path):
    work.write_tar(tmp_path / "1.tar", {"a.png": b"1", "a.cls": b"cat"})
    with pytest.raises(ValueError, match="does not name its classes"):
        TarShards(str(tmp_path), "auto", None, "ignore")
    assert TarShards(str(tmp_path), "none", None, "ignore").labels == "none"


@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_data_of_a_tar_tell_that_labels_beside_it_changed(tmp_path, place):
    tar = work.write_tar(tmp_path / "000.tar", {"00.png": work.photograph(0)})
    beside = tar.with_suffix(".csv")
    beside.write_text("image,labels\n00.png,cat\n")
    pattern = str(tar) if place == "here" else tar.as_uri()
    shards = TarShards(pattern, "beside", work.CLASSES, "ignore")
    before = shards.data_of("000")
    assert shards.data_of("000") == before
    beside.write_text("image,labels\n00.png,cat;dog\n")
    assert shards.data_of("000") != before
    with ExitStack() as stack:
        assert shards.read("000", stack, None).samples[0].labels == (0, 1)


def test_a_file_of_labels_is_read_once_for_all_tars(tmp_path, monkeypatch):
    tars = work.tars(tmp_path / "tars", 3, 2)
    file = tmp_path / "all.csv"
    file.write_text("image,labels\n" + "".join(f"{i:02d}.png,dog\n" for i in range(6)))
    shards = TarShards(str(tars), str(file), work.CLASSES, "ignore")
    monkeypatch.setattr(Contents, "digest", None)
    data = [shards.data_of(name) for name in shards.names]
    assert {one["labels"] for one in data} == {hashlib.sha256(file.read_bytes()).hexdigest()}
