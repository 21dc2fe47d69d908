"""Shards of other places: here those of fsspec's own memory, which may fail."""

from __future__ import annotations

import os
from contextlib import ExitStack

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from tests.shards import work
from tests.shards.work import label
from weaktr.cli import FAILED, WRONG_INPUT
from weaktr.shards import fetch
from weaktr.shards.inputs import TarShards, find_archives, is_pattern
from weaktr.shards.records import read_results
from weaktr.shards.rows import rows_of

ADDRESS = "memory://bucket/shards/a.tar"


@pytest.fixture
def place(monkeypatch):
    """An empty place that is asked again without a pause."""
    monkeypatch.setattr(fetch, "PAUSE", 0)
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]
    yield memory
    memory.store.clear()


@pytest.fixture
def failing(monkeypatch):
    """Let the next calls of a method raise an error, each of a count."""

    def fail(method, times, error):
        real, left = getattr(MemoryFileSystem, method), [times]

        def failing(self, *arguments, **options):
            if left[0]:
                left[0] -= 1
                raise error
            return real(self, *arguments, **options)

        monkeypatch.setattr(MemoryFileSystem, method, failing)
        return left

    return fail


def test_a_file_comes_and_goes(place, tmp_path):
    place.pipe(ADDRESS, b"content")
    with fetch.fetched(ADDRESS, tmp_path) as path:
        assert path.name == "a.tar"
        assert path.read_bytes() == b"content"
    assert os.listdir(tmp_path) == []


def test_it_is_asked_for_again(place, failing, tmp_path, caplog):
    place.pipe(ADDRESS, b"content")
    failing("get_file", fetch.ATTEMPTS - 1, ConnectionError("reset by peer"))
    with fetch.fetched(ADDRESS, tmp_path) as path:
        assert path.read_bytes() == b"content"
    assert caplog.text.count("reset by peer; is asked for again") == fetch.ATTEMPTS - 1


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("token expired"), KeyError(1)])
def test_in_the_end_the_address_is_named(place, failing, tmp_path, error):
    place.pipe(ADDRESS, b"content")
    failing("get_file", fetch.ATTEMPTS, error)
    with pytest.raises(OSError, match=f"{ADDRESS}: cannot be had"), fetch.fetched(ADDRESS):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("error", "told"), [(FileNotFoundError("x"), "no such file"), (PermissionError("x"), "may not")]
)
def test_what_will_not_change_is_asked_once(place, failing, error, told):
    place.pipe(ADDRESS, b"content")
    left = failing("get_file", 3, error)
    with pytest.raises(type(error), match=told), fetch.fetched(ADDRESS):
        pass
    assert left == [2]


def test_a_file_that_comes_short_is_fetched_again(place, monkeypatch, tmp_path):
    place.pipe(ADDRESS, b"content")
    real, sizes = MemoryFileSystem.get_file, [3, 0]

    def short(self, source, target, **options):
        real(self, source, target, **options)
        if sizes:
            os.truncate(target, sizes.pop())

    monkeypatch.setattr(MemoryFileSystem, "get_file", short)
    with fetch.fetched(ADDRESS, tmp_path) as path:
        assert path.read_bytes() == b"content"
    sizes += [1] * fetch.ATTEMPTS
    with pytest.raises(OSError, match="expected 7 bytes, got 1"), fetch.fetched(ADDRESS):
        pass


def test_addresses_that_cannot_be_opened():
    with pytest.raises(ValueError, match="cannot be opened"), fetch.fetched("nowhere://a/b.tar"):
        pass


def test_marks_tell_that_a_file_is_another_one(place):
    place.pipe(ADDRESS, b"content")
    marks = fetch.marks_of(ADDRESS)
    assert marks["bytes"] == 7
    assert fetch.marks_of(ADDRESS) == marks
    place.pipe(ADDRESS, b"CONTENT")
    assert fetch.marks_of(ADDRESS) != marks


def test_the_next_one_is_fetched_meanwhile_and_an_error_is_its_own():
    asked = []

    def function(item):
        asked.append(item)
        if item == 2:
            raise OSError("2")
        return item * 10

    results = []
    for wait in fetch.one_ahead(function, [1, 2, 3]):
        try:
            results.append(wait())
        except OSError as error:
            results.append(str(error))
    assert results == [10, "2", 30]
    assert asked == [1, 2, 3]
    assert list(fetch.one_ahead(function, [])) == []


def test_one_is_ahead_and_not_two():
    asked = []
    for number, wait in enumerate(fetch.one_ahead(asked.append, range(5))):
        wait()
        assert len(asked) <= number + 2
    assert asked == [0, 1, 2, 3, 4]


# ---- shards -------------------------------------------------------------------------------------


@pytest.fixture
def home(place, tmp_path):
    """A model, tars here and the same tars there."""
    work.model(tmp_path / "cam.safetensors")
    work.tars(tmp_path / "tars", 3, 2)
    for path in (tmp_path / "tars").iterdir():
        place.pipe(f"memory://bucket/shards/{path.name}", path.read_bytes())
    return tmp_path


def statuses(out):
    return {row.name: row.status for table in read_results(out).tables() for row in rows_of(table)}


@pytest.mark.parametrize(
    "pattern",
    [
        "memory://bucket/shards",
        "memory://bucket/shards/*.tar",
        "memory://bucket/shards/{000..002}.tar",
    ],
)
def test_patterns_of_addresses(home, pattern):
    assert is_pattern(pattern)
    assert list(find_archives(pattern)) == ["000", "001", "002"]


def test_the_masks_are_those_of_tars_here(home):
    assert label(home, images="tars", out="here") == 0
    assert label(home, images="memory://bucket/shards") == 0
    expected = work.files_in(home / "here")
    assert work.files_in(home / "out") == expected
    assert label(home, images="memory://bucket/shards") == 0
    assert work.files_in(home / "out") == expected


def test_a_start_over_whole_shards_fetches_the_first_at_most(home, monkeypatch):
    """Which says where the labels are."""
    assert label(home, images="memory://bucket/shards") == 0
    fetched = []
    real = MemoryFileSystem.get_file

    def noting(self, source, target, **options):
        fetched.append(source)
        return real(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "get_file", noting)
    assert label(home, images="memory://bucket/shards") == 0
    assert {os.path.basename(path) for path in fetched} <= {"000.tar"}
    fetched.clear()
    assert label(home, "--labels", "inside", images="memory://bucket/shards") == 0
    assert fetched == []


def test_a_shard_that_is_gone_is_left_out(home, place, caplog):
    numbered = "memory://bucket/shards/{000..002}.tar"
    place.rm("memory://bucket/shards/000.tar")
    assert label(home, images=numbered) == FAILED
    assert "shard 000 is left out: memory://bucket/shards/000.tar: no such file" in caplog.text
    assert len(statuses(home / "out")) == 4
    place.rm("memory://bucket/shards/001.tar")  # which is whole
    assert label(home, images=numbered) == FAILED
    assert "shard 001 is left out" in caplog.text
    assert len(statuses(home / "out")) == 4  # nothing of it is lost
    place.pipe("memory://bucket/shards/000.tar", (home / "tars" / "000.tar").read_bytes())
    place.pipe("memory://bucket/shards/001.tar", (home / "tars" / "001.tar").read_bytes())
    assert label(home, images=numbered) == 0
    assert set(statuses(home / "out").values()) == {"labelled"}


def test_a_place_that_is_away_leaves_everything_as_it_is(home, failing, caplog):
    numbered = "memory://bucket/shards/{000..002}.tar"
    assert label(home, images=numbered) == 0
    before = work.files_in(home / "out")
    left = failing("info", 10**6, OSError("no route"))
    assert label(home, "--labels", "inside", images=numbered) == FAILED
    assert "shard 002 is left out" in caplog.text
    assert work.files_in(home / "out") == before
    left[0] = 0
    assert label(home, "--labels", "inside", images=numbered) == 0
    assert work.files_in(home / "out") == before


def test_no_shard_at_all(home, place):
    assert label(home, images="memory://bucket/none/*.tar") == WRONG_INPUT
    assert label(home, images="memory://bucket/none/a.tar") in (FAILED, WRONG_INPUT)
    assert label(home, images="nowhere://bucket/*.tar") == WRONG_INPUT
    assert not (home / "out").exists()


def test_labels_beside_a_shard_come_with_it(home, place, tmp_path):
    for number in range(3):
        rows = [f"{i:02d}.png,{work.CLASSES[i % 2]}" for i in (2 * number, 2 * number + 1)]
        files = {f"{i:02d}.png": work.photograph(i) for i in (2 * number, 2 * number + 1)}
        archive = work.write_tar(tmp_path / "bare" / f"{number:03d}.tar", files)
        place.pipe(f"memory://bare/{archive.name}", archive.read_bytes())
        table = "\n".join(["image,labels", *rows, ""])
        place.pipe(f"memory://bare/{number:03d}.csv", table.encode())
    assert label(home, images="memory://bare") == 0
    assert label(home, images="tars", out="here") == 0
    masks = [work.files_in(home / out / "masks") for out in ("here", "out")]
    assert masks[0] == masks[1]


def test_what_was_fetched_is_removed(home, tmp_path):
    shards = TarShards("memory://bucket/shards", "inside", work.CLASSES, "ignore")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with ExitStack() as stack:
        given = shards.read("001", stack, scratch)
        assert [sample.name for sample in given.samples] == ["02", "03"]
        assert given.images == {"02": "02.png", "03": "03.png"}
        assert os.listdir(scratch) != []
    assert os.listdir(scratch) == []
