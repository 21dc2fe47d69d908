"""Files are written whole or not at all."""

from __future__ import annotations

import json

import pytest

import weaktr.files
from weaktr.files import read_json, whole_file, write_json


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
