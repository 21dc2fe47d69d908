"""The files of a shard: begun, gone on with, whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.shards.work import in_tar
from weaktr.shards.output import (
    Layout,
    ShardWriter,
    alone_at,
    clear_whole,
    read_earlier,
    read_record,
    remove_unfinished,
    whole_record,
)
from weaktr.shards.rows import Row

KINDS = {"masks": ("masks", ".png"), "confidence": ("confidence", ".png")}
DATA = {"photographs": 3}


@pytest.fixture
def layout(tmp_path):
    return Layout(tmp_path, "tar", KINDS, nested=True)


def files(number):
    return {"masks": bytes([number]) * (600 * number), "confidence": b"c" * number}


def row(number, **facts):
    digest = hashlib.sha256(files(number)["masks"]).hexdigest()
    return Row(str(number), "s", f"{number}.png", "labelled", mask_digest=digest, **facts)


def begun(layout, *numbers, shard="s", made_from="m"):
    writer = ShardWriter(layout, shard, made_from)
    for number in numbers:
        writer.add(row(number), files(number))
    return writer


def finished(layout, *numbers, **options):
    writer = begun(layout, *numbers, **options)
    writer.finish(DATA)
    return read_record(layout, options.get("shard", "s"))


def content_of(earlier, number):
    return earlier.files_of(earlier.rows[str(number)], list(KINDS))


def test_a_whole_shard(layout):
    record = finished(layout, 1, 2, 3)
    assert whole_record(layout, "s", "m")
    assert not whole_record(layout, "s", "other")
    assert not whole_record(layout, "t", "m")
    assert record["data"] == DATA
    assert in_tar(layout.archive("masks", "s")) == {
        f"{i}.png": files(i)["masks"] for i in (1, 2, 3)
    }
    assert sorted(os.listdir(layout.out)) == ["confidence", "index", "masks"]
    earlier = read_earlier(layout, "s", "m")
    assert [content_of(earlier, i) for i in (1, 2, 3)] == [files(i) for i in (1, 2, 3)]
    assert read_earlier(layout, "s", "other").rows == {}


def test_the_same_photographs_give_the_same_bytes(layout, tmp_path):
    finished(layout, 1, 2, 3)
    other = Layout(tmp_path / "other", "tar", KINDS, nested=True)
    finished(other, 1, 2, 3)
    for kind in KINDS:
        assert layout.archive(kind, "s").read_bytes() == other.archive(kind, "s").read_bytes()
    assert layout.table("s").read_bytes() == other.table("s").read_bytes()


def test_what_was_begun_is_found(layout):
    begun(layout, 1, 2)
    assert not whole_record(layout, "s", "m")
    earlier = read_earlier(layout, "s", "m")
    assert [content_of(earlier, i) for i in (1, 2)] == [files(i) for i in (1, 2)]
    assert read_earlier(layout, "s", "other").rows == {}


@pytest.mark.parametrize("left", [0, 1, 300, 900])
def test_a_journal_or_tar_that_was_cut_off(layout, left):
    begun(layout, 1, 2).close()
    folder = layout.unfinished("s")
    (archive,) = folder.glob("*.masks.tar")
    os.truncate(archive, left)
    earlier = read_earlier(layout, "s", "m")
    assert content_of(earlier, 2) is None
    assert content_of(earlier, 1) in (None, files(1))
    (journal,) = folder.glob("*.jsonl")
    for size in range(0, journal.stat().st_size, 7):
        content = journal.read_bytes()
        journal.write_bytes(content[:size])
        assert read_earlier(layout, "s", "m").rows.keys() <= {"1", "2"}
        journal.write_bytes(content)


@pytest.mark.parametrize(
    "line",
    [
        b"{}\n", b"null\n", b"[1]\n", b"\xff\n", b"\0\0\0\0\n", b'{"row": {}, "files": {}}\n',
        b'{"row": {"name": 1}, "files": 3}\n',
    ],
)  # fmt: skip
def test_a_journal_with_a_damaged_line(layout, line):
    begun(layout, 1).close()
    (journal,) = layout.unfinished("s").glob("*.jsonl")
    with journal.open("ab") as file:
        file.write(line)
    assert content_of(read_earlier(layout, "s", "m"), 1) == files(1)


def test_a_tar_that_has_its_name_already_is_found_by_the_journal(layout):
    """A process was killed between giving the tar its name and writing the record."""
    finished(layout, 1, 2)
    archive, record = layout.archive("masks", "s"), layout.record("s")
    moved = layout.out / "kept"
    archive.rename(moved)
    record.unlink()
    begun(layout, 1, 2).close()
    for begun_tar in layout.unfinished("s").glob("*.masks.tar"):
        begun_tar.unlink()
    moved.rename(archive)
    assert content_of(read_earlier(layout, "s", "m"), 2) == files(2)


@pytest.mark.parametrize("kind", ["masks", "confidence", "index"])
def test_a_file_that_is_missing_or_of_another_size(layout, kind):
    finished(layout, 1, 2)
    path = layout.table("s") if kind == "index" else layout.archive(kind, "s")
    content = path.read_bytes()
    path.write_bytes(content + b"\0")
    assert not whole_record(layout, "s", "m")
    path.unlink()
    assert not whole_record(layout, "s", "m")
    path.write_bytes(content)
    assert whole_record(layout, "s", "m")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"format": "weaktr-shard-1"}']
)
def test_a_record_that_is_damaged_is_none(layout, content):
    finished(layout, 1)
    layout.record("s").write_bytes(content)
    assert read_record(layout, "s") is None
    assert not whole_record(layout, "s", "m")
    assert read_earlier(layout, "s", "m").rows == {}


@pytest.mark.parametrize("key", ["outputs", "statistics", "data", "made_from"])
def test_a_record_that_lacks_something(layout, key):
    finished(layout, 1, 2)
    content = json.loads(layout.record("s").read_bytes())
    del content[key]
    layout.record("s").write_text(json.dumps(content))
    assert (whole_record(layout, "s", "m") is not None) == (key == "data")
    finished(layout, 1, 2)
    assert whole_record(layout, "s", "m")


def test_a_shard_of_other_content_replaces_its_tar_and_keeps_none_of_others(layout):
    finished(layout, 1, 2)
    finished(layout, 3)
    assert os.listdir(layout.out / "masks") == ["s.tar"]
    archive = layout.archive("masks", "s")
    archive.write_bytes(b"mine")
    finished(layout, 3)
    (kept,) = (path for path in archive.parent.iterdir() if path != archive)
    assert kept.read_bytes() == b"mine"


def test_a_process_that_goes_on_knows_the_tars_of_the_one_before(layout, monkeypatch):
    """It was killed between two tars, of content that was replaced."""
    finished(layout, 1, 2)
    writer, real = begun(layout, 3), ShardWriter._publish

    def publish(self, kind, known):
        real(self, kind, known)
        raise KeyboardInterrupt

    monkeypatch.setattr(ShardWriter, "_publish", publish)
    with pytest.raises(KeyboardInterrupt):
        writer.finish(DATA)
    monkeypatch.undo()
    finished(layout, 1)
    assert [os.listdir(layout.out / kind) for kind in KINDS] == [["s.tar"], ["s.tar"]]


def test_links_and_folders_where_a_tar_goes_are_kept(layout, tmp_path):
    (tmp_path / "mine").write_bytes(b"mine")
    layout.archive("masks", "s").parent.mkdir()
    layout.archive("masks", "s").symlink_to(tmp_path / "mine")
    layout.archive("confidence", "s").mkdir(parents=True)
    finished(layout, 1)
    assert (tmp_path / "mine").read_bytes() == b"mine"
    assert whole_record(layout, "s", "m")
    assert any(path.is_dir() for path in (layout.out / "confidence").iterdir())


def test_one_at_a_time(layout):
    with (
        alone_at(layout, "s") as first,
        alone_at(layout, "s") as second,
        alone_at(layout, "t") as t,
    ):
        assert (first, second, t) == (True, False, True)
    assert not (layout.out / "unfinished").exists()
    with alone_at(layout, "s") as again:
        assert again
        begun(layout, 1).close()
    assert read_earlier(layout, "s", "m").rows.keys() == {"1"}


def test_a_folder_that_others_remove_while_it_is_made(layout, monkeypatch):
    """Just when this process has found it there."""
    folder, is_dir, removed = layout.unfinished("s"), Path.is_dir, []
    folder.mkdir(parents=True)

    def asked(path, **options):
        if path == folder and not removed:
            removed.append(path)
            folder.rmdir()
            folder.parent.rmdir()
        return is_dir(path, **options)

    monkeypatch.setattr(Path, "is_dir", asked)
    with alone_at(layout, "s") as alone:
        assert alone and removed and folder.exists()


def test_a_lock_that_is_left_stays_out_of_the_way_of_what_was_begun(layout):
    with alone_at(layout, "a/b"):
        begun(layout, 1, shard="a/b").close()
        with alone_at(layout, "a"):
            finished(layout, 1, shard="a")
        assert read_earlier(layout, "a/b", "m").rows.keys() == {"1"}
    remove_unfinished(layout, "a/b")
    assert not (layout.out / "unfinished").exists()


def test_what_is_left_of_whole_shards_is_cleared(layout):
    finished(layout, 1)
    begun(layout, 1).close()
    begun(layout, 1, shard="t").close()
    clear_whole(layout, ["s"])
    assert os.listdir(layout.out / "unfinished") == ["t"]
    remove_unfinished(layout, "t")
    layout.unfinished("u").parent.mkdir(parents=True)
    clear_whole(layout, ["s"])
    assert not (layout.out / "unfinished").exists()


@pytest.mark.parametrize(
    "name", ["a b", "ä", os.fsdecode(b"caf\xe9"), "x/y", "n" * 240, "'$(x)", "-"]
)
def test_names(layout, name):
    writer = ShardWriter(layout, "s", "m")
    mask = files(2)
    digest = hashlib.sha256(mask["masks"]).hexdigest()
    writer.add(Row(name, "s", name, "labelled", mask_digest=digest), mask)
    writer.close()
    for _ in range(2):  # of the journal, of the whole shard
        earlier = read_earlier(layout, "s", "m")
        assert earlier.files_of(earlier.rows[name], list(KINDS)) == mask
        writer = ShardWriter(layout, "s", "m")
        writer.add(earlier.rows[name], mask)
        writer.finish(DATA)
    assert in_tar(layout.archive("masks", "s")) == {f"{name}.png": mask["masks"]}
