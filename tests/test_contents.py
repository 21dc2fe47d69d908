"""Which content a file has, read only when it may have changed."""

from __future__ import annotations

import hashlib
import os

import pytest

from weaktr import contents as module
from weaktr.contents import Contents, digest_of


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    return path


def sha(content):
    return hashlib.sha256(content).hexdigest()


def settle(monkeypatch):
    """Let the files of a test count as old."""
    monkeypatch.setattr(module, "SETTLED_AFTER_NS", -1)


def test_a_file_is_read_again_only_when_it_may_have_changed(file, tmp_path, monkeypatch):
    settle(monkeypatch)
    reads = []
    read = module._state_of
    monkeypatch.setattr(module, "_state_of", lambda path: reads.append(path) or read(path))
    known = Contents(tmp_path / "known.json")
    assert known.digest(file) == known.digest(file) == sha(b"one")
    known.save()
    again = Contents(tmp_path / "known.json")
    assert again.digest(file) == sha(b"one") and len(reads) == 1
    before = file.stat()
    file.write_bytes(b"two")  # of the same size, and given the same time
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert again.digest(file) == sha(b"two") and len(reads) == 2
    other = tmp_path / "b.png"
    other.write_bytes(b"six")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(file)
    assert again.digest(file) == sha(b"six")


def test_a_young_file_is_read_every_time(file, tmp_path):
    known = Contents(tmp_path / "known.json")
    assert known.digest(file) == sha(b"one")
    known.save()
    assert '", 3, ' in (tmp_path / "known.json").read_text()
    assert Contents(tmp_path / "known.json")._states[str(file)].changed_ns == 0


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"a": 1}', b'{"a": [1]}', b"[" * 99999])
def test_a_damaged_memory_is_none(file, tmp_path, damage):
    (tmp_path / "known.json").write_bytes(damage)
    assert Contents(tmp_path / "known.json").digest(file) == sha(b"one")


def test_a_name_that_is_no_text_is_remembered(tmp_path, monkeypatch):
    settle(monkeypatch)
    file = tmp_path / os.fsdecode(b"\xff.png")
    file.write_bytes(b"one")
    known = Contents(tmp_path / "known.json")
    known.digest(file)
    known.save()
    assert Contents(tmp_path / "known.json").digest(file) == sha(b"one")


def test_digests_of_rows_depend_on_every_part():
    rows = [("a", (1, 2), None), ("b", (), "x")]
    assert digest_of(rows) == digest_of(iter(rows))
    assert len({digest_of(rows), digest_of(rows[::-1]), digest_of(rows[:1]), digest_of([])}) == 4
