"""A folder of results: whether it may be continued."""

from __future__ import annotations

import pytest

from weaktr.files import read_json
from weaktr.outputs import begin, fingerprint, is_finished, mark_finished


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


@pytest.mark.parametrize("replace", [True, False])
def test_a_folder_that_weaktr_did_not_make_is_left_alone(tmp_path, replace):
    (tmp_path / "annotations.txt").write_text("a week's work")
    with pytest.raises(ValueError, match=r"it holds files and no inputs\.json; choose another"):
        begin(tmp_path, "one", replace=replace, force=replace)
    assert [file.name for file in tmp_path.iterdir()] == ["annotations.txt"]
