"""Files are written whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

import weaktr.files
from weaktr.files import read_json, require_replaceable, whole_file, write_json


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "facts.json"
    write_json(path, {"old": 1})

    def full(_):
        raise OSError("disk full")

    monkeypatch.setattr(weaktr.files.os, "fsync", full)
    with pytest.raises(OSError, match="disk full"):
        write_json(path, {"new": 2})
    assert read_json(path) == {"old": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["facts.json"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_block_that_raises_leaves_nothing(tmp_path, durable):
    path = tmp_path / "deep" / "file"
    with pytest.raises(KeyboardInterrupt), whole_file(path, durable=durable) as temporary:
        temporary.write_bytes(b"half")
        assert not path.exists()
        raise KeyboardInterrupt
    assert list(path.parent.iterdir()) == []
    with whole_file(path, durable=durable) as temporary:
        temporary.write_bytes(b"whole")
    assert path.read_bytes() == b"whole"
    assert [file.name for file in path.parent.iterdir()] == ["file"]


def test_broken_json_names_the_file(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: expected JSON"):
        read_json(tmp_path / "x.json")
    with pytest.raises(ValueError, match=r"y\.json: no such file"):
        read_json(tmp_path / "y.json")
    write_json(tmp_path / "x.json", [1])
    assert json.loads((tmp_path / "x.json").read_text()) == [1]


def test_what_a_killed_process_left_of_a_file_is_cleared_when_it_is_written_again(tmp_path):
    """Not what another process still writes, nor what is left of other files."""
    path = tmp_path / "a.json"
    with whole_file(path) as temporary:
        temporary.write_text("{}")
        digits = temporary.name[1:-5]
    start, process, end = digits[:16], digits[16:24], digits[24:]
    assert int(process, 16) == os.getpid()
    dead = subprocess.Popen(["true"])
    dead.wait()
    others = [f".{start}{os.getppid():08x}{end}.part", f".{'0' * 16}{dead.pid:08x}{end}.part"]
    for name in (f".{start}{dead.pid:08x}{end}.part", *others):
        (tmp_path / name).write_text("half")
    write_json(path, [])
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(["a.json", *others])


def test_the_name_of_a_file_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("ä" * 125 + ".json")
    write_json(path, [1])
    assert read_json(path) == [1]


def test_a_file_that_weaktr_did_not_write_is_not_replaced(tmp_path):
    require_replaceable(tmp_path / "new")
    ours, empty, theirs = (tmp_path / name for name in ("ours", "empty", "theirs"))
    ours.write_bytes(b"x" * 99 + b"weaktr" + b"x" * 10**6)
    empty.touch()
    theirs.write_bytes(b"x" * 10**6 + b"weaktr" + b"x" * 10**6)
    (tmp_path / "link").symlink_to(ours)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    for path in (ours, empty):
        require_replaceable(path)
    for path in (theirs, tmp_path, tmp_path / "link", tmp_path / "gone"):
        with pytest.raises(ValueError, match="is there already, and weaktr did not write it"):
            require_replaceable(path)
