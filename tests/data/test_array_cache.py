"""Arrays kept in memory and in files: both bounds, damaged and foreign files, other processes."""

from __future__ import annotations

import logging
import os

import numpy as np
import pytest

from weaktr.contents import digest_of
from weaktr.data.array_cache import GIB, MIB, ArrayCache
from weaktr.data.parallel import ordered_map
from weaktr.files import _digits, _this_machine
from weaktr.seals import sealed_zip

KEYS = [digest_of([(number,)]) for number in range(8)]


def arrays(number=0, count=256):
    return {"a": np.full((2, count), number, np.float16), "b": np.arange(3, dtype=np.int64)}


SIZE = sum(array.nbytes for array in arrays().values())


def same(one, other):
    return one.keys() == other.keys() and all(
        np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype
        for name in one
    )


def test_in_memory_and_in_a_file(tmp_path):
    cache = ArrayCache(tmp_path / "new")
    assert cache.get(KEYS[0]) is None and KEYS[0] not in cache
    cache.put(KEYS[0], arrays(1))
    for again in (cache, ArrayCache(tmp_path / "new")):  # a later process
        assert KEYS[0] in again and KEYS[1] not in again
        assert same(again.get(KEYS[0]), arrays(1))
    assert ArrayCache(None).get(KEYS[0]) is None


def test_the_memory_has_a_bound(tmp_path):
    cache = ArrayCache(None, memory_mb=2.5 * SIZE / MIB)
    for number, key in enumerate(KEYS):
        cache.put(key, arrays(number))
        assert cache.is_full == (number >= 2)
        assert cache.is_in_memory(key) == (number < 2)
    assert cache.memory_bytes == 2 * SIZE
    assert [cache.get(key) is not None for key in KEYS] == [True] * 2 + [False] * 6
    on_disk = ArrayCache(tmp_path, memory_mb=0)
    for number, key in enumerate(KEYS):
        on_disk.put(key, arrays(number))
    assert all(same(on_disk.get(key), arrays(i)) for i, key in enumerate(KEYS))
    assert on_disk.memory_bytes == 0 and not on_disk.is_full
    small = ArrayCache(
        tmp_path / "small", memory_mb=0, disk_gb=1.5 * folder_bytes(tmp_path) / 8 / GIB
    )
    for number, key in enumerate(KEYS[:3]):
        small.put(key, arrays(number))
        assert small.is_full == (number >= 1)


def folder_bytes(folder):
    return sum(path.stat().st_size for path in folder.iterdir())


def test_the_memory_can_be_let_go(tmp_path):
    cache = ArrayCache(tmp_path, memory_mb=1)
    cache.put("0" * 32, {"a": np.arange(9)})
    cache.forget()
    assert cache.memory_bytes == 0
    assert cache.get("0" * 32)["a"].tolist() == list(range(9))  # from its file
    assert cache.memory_bytes == 72


def test_the_disk_has_a_bound(tmp_path, caplog):
    ArrayCache(tmp_path).put(KEYS[0], arrays())
    size = folder_bytes(tmp_path)
    cache = ArrayCache(tmp_path, memory_mb=0, disk_gb=3.5 * size / GIB)
    cache.get(KEYS[0])  # in use from now on
    with caplog.at_level(logging.WARNING, "weaktr"):
        for number, key in enumerate(KEYS[1:], 1):
            cache.put(key, arrays(number))
            assert folder_bytes(tmp_path) <= 3.5 * size
    assert [key in cache for key in KEYS] == [True] * 3 + [False] * 5
    assert [r.message.count("is full at disk_gb") for r in caplog.records] == [1]


def test_files_that_nobody_uses_make_room(tmp_path):
    old = ArrayCache(tmp_path)
    for number, key in enumerate(KEYS[:4]):
        old.put(key, arrays(number))
        os.utime(tmp_path / f"{key}.npz", ns=(1, 1 + 10 * (number + 1)))
    (tmp_path / "notes.txt").write_text("mine")
    size = (tmp_path / f"{KEYS[0]}.npz").stat().st_size
    cache = ArrayCache(tmp_path, disk_gb=4 * size / GIB)
    assert same(cache.get(KEYS[0]), arrays(0))  # the oldest, but in use
    cache.put(KEYS[4], arrays(4))
    cache.put(KEYS[5], arrays(5))
    assert [key in ArrayCache(tmp_path) for key in KEYS[:6]] == [True, False, False, True] + [
        True
    ] * 2
    assert (tmp_path / "notes.txt").read_text() == "mine"


def damages(content):
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    return {
        "empty": b"",
        "zeros": bytes(100),
        "cut": content[:middle],
        "one bit": flipped,
        "text": b"what is this",
        "edited": content + b"\n",
    }


@pytest.mark.parametrize("damage", damages(b"12"))
def test_a_damaged_file_is_written_again(tmp_path, damage):
    ArrayCache(tmp_path).put(KEYS[0], arrays(1))
    path = tmp_path / f"{KEYS[0]}.npz"
    path.write_bytes(damages(path.read_bytes())[damage])
    cache = ArrayCache(tmp_path)
    assert cache.get(KEYS[0]) is None
    cache.put(KEYS[0], arrays(2))
    assert same(ArrayCache(tmp_path).get(KEYS[0]), arrays(2))


def test_a_file_of_another_key_or_program_is_not_taken(tmp_path):
    ArrayCache(tmp_path).put(KEYS[0], arrays(1))
    path = tmp_path / f"{KEYS[0]}.npz"
    (tmp_path / f"{KEYS[1]}.npz").write_bytes(path.read_bytes())
    np.savez(tmp_path / f"{KEYS[2]}.npz", **arrays(1))
    np.savez(tmp_path / "sealed.npz", **arrays(1))
    (tmp_path / f"{KEYS[3]}.npz").write_bytes(sealed_zip((tmp_path / "sealed.npz").read_bytes()))
    (tmp_path / f"{KEYS[4]}.npz").symlink_to(path)
    cache = ArrayCache(tmp_path)
    assert [cache.get(key) is not None for key in KEYS[:5]] == [True] + [False] * 4


def test_several_processes_at_once(tmp_path):
    """As two processes: two caches of one folder, in threads that write the same entries."""
    caches = [ArrayCache(tmp_path, memory_mb=0) for _ in range(2)]
    jobs = [(cache, number) for number in range(8) for cache in caches] * 3

    def write_and_read(job):
        cache, number = job
        cache.put(KEYS[number], arrays(number))
        return same(cache.get(KEYS[number]), arrays(number))

    assert all(ordered_map(write_and_read, jobs, threads=4))
    assert sorted(path.stem for path in tmp_path.iterdir()) == sorted(KEYS)


def test_half_written_files_of_a_killed_process_are_removed(tmp_path):
    cache = ArrayCache(tmp_path)
    cache.put(KEYS[0], arrays())
    name = f".{_digits('x', 10)}{_this_machine()}{2**22 + 1:08x}{'0' * 8}.part"
    (tmp_path / name).write_bytes(b"half")
    ArrayCache(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f"{KEYS[0]}.npz"]


def test_a_disk_that_takes_no_files_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    cache = ArrayCache(tmp_path / "file", memory_mb=1)
    with caplog.at_level(logging.WARNING, "weaktr"):
        for key in KEYS[:3]:
            cache.put(key, arrays())
    assert [r.message.count("takes no further files") for r in caplog.records] == [1]
    assert cache.get(KEYS[0]) is not None and (tmp_path / "file").read_text() == "no folder"
