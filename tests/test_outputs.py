"""A folder of results: whether it may be continued."""

from __future__ import annotations

import pytest

from weaktr.files import read_json
from weaktr.outputs import begin, begin_masks, fingerprint, is_finished, mark_finished


def test_fingerprints_ignore_key_order_and_nothing_else():
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 1.5})
    assert fingerprint("a", "b") != fingerprint("ab")


def test_a_stage_begun_from_other_inputs_starts_empty(tmp_path):
    folder = tmp_path / "label"
    begin(folder, "one")
    (folder / "half").write_text("done")
    begin(folder, "one")
    assert (folder / "half").exists()
    mark_finished(folder, "one")
    assert is_finished(folder, "one")
    assert not is_finished(folder, "two")
    begin(folder, "two", replace=True)
    assert not (folder / "half").exists()
    assert not is_finished(folder, "one")


def test_results_of_other_inputs_are_refused_or_replaced(tmp_path):
    folder = tmp_path / "masks"
    begin(folder, "one", settings={"flip": True})
    assert read_json(folder / "inputs.json") == {"made_from": "one", "settings": {"flip": True}}
    (folder / "half").write_text("done")
    with pytest.raises(ValueError, match="made from other inputs or with other settings"):
        begin(folder, "two")
    assert (folder / "half").exists()
    begin(folder, "one", replace=True, force=True)
    assert not (folder / "half").exists()


@pytest.mark.parametrize("force", [True, False])
def test_a_folder_that_weaktr_did_not_make_is_left_alone(tmp_path, force):
    (tmp_path / "annotations.txt").write_text("a week's work")
    with pytest.raises(ValueError, match=r"it holds annotations\.txt and no inputs\.json; choose"):
        begin(tmp_path, "one", replace=True, force=force)
    assert [file.name for file in tmp_path.iterdir()] == ["annotations.txt"]


def test_masks_that_weaktr_did_not_make_are_left_alone(tmp_path):
    checkpoint, out = tmp_path / "model.safetensors", tmp_path / "out"
    checkpoint.write_bytes(b"weights")
    (out / "masks").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"it holds masks and no inputs\.json"):
        begin_masks(out, checkpoint, {})
    (out / "masks").rename(out / "annotations")
    (out / ".DS_Store").touch()
    begin_masks(out, checkpoint, {})
    (out / "masks").mkdir()
    begin_masks(out, checkpoint, {})
    assert read_json(out / "inputs.json")["settings"] == {}


def test_a_kill_while_the_inputs_are_written_refuses_nothing(tmp_path, monkeypatch):
    """A killed process cleans nothing up, so what it had begun to write is still there."""
    folder = tmp_path / "label"

    def killed(_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr("weaktr.files._flush", killed)
        patch.setattr("pathlib.Path.unlink", lambda path, missing_ok=False: None)
        with pytest.raises(SystemExit):
            begin(folder, "one", replace=True)
    assert [file.suffix for file in folder.iterdir()] == [".part"]
    begin(folder, "one", replace=True)
    assert [file.name for file in folder.iterdir()] == ["inputs.json"]


def test_a_kill_while_old_results_are_removed_refuses_nothing(tmp_path, monkeypatch):
    folder = tmp_path / "label"
    begin(folder, "one", replace=True)
    (folder / "half").write_text("a mask")
    with monkeypatch.context() as patch:

        def killed(path):
            (path / "inputs.json").unlink()
            raise SystemExit

        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(SystemExit):
            begin(folder, "two", replace=True)
    assert not folder.exists() and len(list(tmp_path.iterdir())) == 1
    begin(folder, "two", replace=True)
    assert [file.name for file in tmp_path.iterdir()] == ["label"]
    assert [file.name for file in folder.iterdir()] == ["inputs.json"]
