"""A folder of results: whether it may be continued."""

from __future__ import annotations

import re

import pytest

from weaktr.files import read_json
from weaktr.outputs import (
    begin,
    claimed,
    differences,
    fingerprint,
    finished_facts,
    mark_finished,
    others_in_words,
    read_inputs,
)


def test_fingerprints_ignore_key_order_and_nothing_else():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    assert fingerprint("a", "b") != fingerprint("ab")


def test_results_of_the_same_inputs_stay_and_others_are_refused(tmp_path):
    folder = tmp_path / "masks"
    begin(folder, "one", settings={"flip": True, "threshold": 0.4})
    assert read_json(folder / "inputs.json") == {
        "made_from": "one", "settings": {"flip": True, "threshold": 0.4},
    }  # fmt: skip
    begin(folder, "zero", settings={})  # there are no results yet
    begin(folder, "one", settings={"flip": True, "threshold": 0.4})
    (folder / "half").write_text("done")
    begin(folder, "one", settings={})
    with pytest.raises(ValueError, match=r"\(settings\.threshold: 0\.4 there, 0\.6 now\); choose"):
        begin(folder, "two", settings={"flip": True, "threshold": 0.6})
    assert (folder / "half").exists()
    mark_finished(folder, "one", images=3)
    assert finished_facts(folder) == {"made_from": "one", "images": 3}


def test_a_folder_that_weaktr_did_not_make_is_left_alone(tmp_path):
    (tmp_path / "annotations.txt").write_text("a week's work")
    with pytest.raises(ValueError, match=r"it holds annotations\.txt and no inputs\.json; choose"):
        begin(tmp_path, "one")
    assert [file.name for file in tmp_path.iterdir()] == ["annotations.txt"]
    (tmp_path / "annotations.txt").rename(tmp_path / ".annotations")  # hidden, as .DS_Store
    begin(tmp_path, "one")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"made_from": 1}', b"\xff", b"[" * 9**5]
)
@pytest.mark.parametrize("name", ["inputs.json", "finished.json"])
def test_a_damaged_file_is_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / name))):
        read_inputs(tmp_path) if name == "inputs.json" else finished_facts(tmp_path)


def test_a_claim_without_results_leaves_nothing(tmp_path):
    out, own = tmp_path / "a" / "b", tmp_path / "own"
    own.mkdir()
    for folder in (out, own):
        with pytest.raises(ValueError, match="wrong"), claimed(folder):
            begin(folder, "one")
            raise ValueError("wrong")
    assert not out.parent.exists() and list(own.iterdir()) == []
    for folder in (out, own):
        for name in ("a.png", "b.png"):
            with claimed(folder):
                begin(folder, "one")
                (folder / name).touch()
        with claimed(folder):
            (folder / "a.png").unlink()
        assert {"b.png", "inputs.json"} <= {path.name for path in folder.iterdir()}


def test_differences_are_named_as_far_as_they_matter():
    one = {"made_from": "1", "settings": {"a": 1, "b": [1, 2]}, "weights": "0" * 64, "source": "x"}
    assert differences(one, {**one, "made_from": "2", "source": "y"}) == "another version of weaktr"
    other = {"settings": {"a": 2, "c": "x" * 99}, "weights": "1" * 64}
    lines = differences(one, other).split("; ")
    assert lines[0] == "settings.a: 1 there, 2 now"
    assert lines[1] == 'settings.b: [1, 2] there, "nothing" now'
    assert lines[2].startswith('settings.c: "nothing" there, "xxx') and len(lines[2]) < 120
    assert lines[2].endswith(" and 1 more")
    assert differences({"weights": "0" * 64}, {"weights": "1" * 64}) == "weights: other content"
    assert differences({"checkpoint": "x"}, other) == "noted by an older version of weaktr"
    many = {f"n{row}": row for row in range(10)}
    told = differences(many, {name: 0 for name in many})
    assert told.startswith("n1: 1 there, 0 now; n2")
    assert told.endswith("n3: 3 there, 0 now and 6 more")


def test_another_checkpoint_or_command_is_said_first():
    def facts(command="label", source="a", weights="1", **settings):
        about = {"command": command}
        return {"weights": weights, "source": source, "about": about, "settings": settings}

    told = others_in_words(facts(x=1), facts(source="b", weights="2", x=2))
    assert told == (
        "another checkpoint (a there, b now) with other settings (settings.x: 1 there, 2 now)"
    )
    told = others_in_words(facts(x=1), facts("predict", "b", "2", x=1))
    assert told == (
        "another command (weaktr label there, weaktr predict now) and another checkpoint (a there, "
        "b now)"
    )
    told = others_in_words(facts(), facts(weights="2"))
    assert told == "another checkpoint (a has changed since)"
    told = others_in_words(facts(x=1), facts(source="b", x=2))
    assert told == "other inputs or settings (settings.x: 1 there, 2 now)"
    many = {f"n{row}": row for row in range(9)}
    told = others_in_words(facts(**many), facts(weights="2", **{name: -1 for name in many}))
    assert told.count(" there, -1 now") == 3 and told.endswith(" and 6 more)")


def test_a_kill_while_the_inputs_are_written_refuses_nothing(tmp_path, monkeypatch):
    """A killed process cleans nothing up, so what it had begun to write is still there."""
    folder = tmp_path / "label"

    def killed(_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("weaktr.files.flush", killed)
        patch.setattr("pathlib.Path.unlink", lambda path, missing_ok=False: None)
        with pytest.raises(SystemExit):
            begin(folder, "one")
    assert [file.suffix for file in folder.iterdir()] == [".part"]
    begin(folder, "one")
    assert [file.name for file in folder.iterdir()] == ["inputs.json"]
