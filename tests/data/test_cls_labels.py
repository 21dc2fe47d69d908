"""cls_labels.npy: read without running what a pickle may hold."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weaktr.data.cls_labels import read_cls_labels
from weaktr.data.problems import DataError


def save(path: Path, content: Any) -> Path:
    np.save(path, content, allow_pickle=True)
    return path


def test_reads_what_numpy_wrote(tmp_path: Path) -> None:
    content = {"2007_000001": np.eye(20, dtype=np.float32)[7], "b": np.zeros(20, np.float32)}
    read = read_cls_labels(save(tmp_path / "cls_labels.npy", content))
    assert list(read) == ["2007_000001", "b"]
    assert np.flatnonzero(read["2007_000001"]).tolist() == [7]
    assert read["b"].dtype == bool
    assert not read["b"].any()


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_reads_old_pickles(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "cls_labels.npy"
    array = np.empty((), object)
    array[()] = {"a": np.ones(3, np.float32)}
    with open(path, "wb") as file:
        header = np.lib.format.header_data_from_array_1_0(array)
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(array, file, protocol=protocol)
    assert read_cls_labels(path)["a"].tolist() == [True, True, True]


def test_integer_names_become_text(tmp_path: Path) -> None:
    read = read_cls_labels(save(tmp_path / "c.npy", {139: np.ones(80)}))
    assert list(read) == ["139"]


class Bomb:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return Path.touch, (self.path,)


def test_programs_in_the_pickle_are_refused_not_run(tmp_path: Path) -> None:
    trace = tmp_path / "was_run"
    path = save(tmp_path / "cls_labels.npy", {"a": np.ones(20), "b": Bomb(trace)})
    with pytest.raises(DataError, match="only NumPy arrays are allowed") as caught:
        read_cls_labels(path)
    assert not trace.exists()
    assert str(path) in str(caught.value)
    np.load(path, allow_pickle=True)  # the ordinary reader does run it
    assert trace.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "shape"),
        ("text", "type <U4"),
        ({"a": [0, 1]}, "'a'"),
        ({"a": np.array([0.0, 0.5])}, "other than 0 and 1"),
        ({"a": np.array([[0.0]])}, "'a'"),
        ({"a": np.ones(20), "b": np.ones(21)}, "different lengths"),
        ({1.5: np.ones(20)}, "key"),
        ({"a": np.array(["x"])}, "'a'"),
    ],
)
def test_other_content(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_cls_labels(save(tmp_path / "c.npy", content))


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "c.npy"
    path.write_bytes(b"not numpy at all")
    with pytest.raises(DataError, match="expected a dict"):
        read_cls_labels(path)
    save(path, {"a": np.ones(20)})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(DataError, match="expected a dict"):
        read_cls_labels(path)
    with pytest.raises(DataError, match="missing"):
        read_cls_labels(tmp_path / "none.npy")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (np.int32(2007000032), "2007_000032"),
        (2012004331, "2012_004331"),
        (np.int64(139), "139"),
        (np.str_("2007_000032"), "2007_000032"),
        ("2007_000032.jpg", "2007_000032"),
        ("COCO_train2014_000000000009.JPEG", "COCO_train2014_000000000009"),
        ("a.png", "a"),
        ("a.b", "a.b"),
    ],
)
def test_keys_as_others_write_them(tmp_path: Path, key: Any, name: str) -> None:
    """Code that reads its list of images as numbers writes numbers for VOC's names."""
    assert list(read_cls_labels(save(tmp_path / "c.npy", {key: np.ones(20, np.float32)}))) == [name]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({2007000032: np.ones(20), "2007_000032": np.zeros(20)}, "two keys of the image"),
        ({10**400: np.ones(20)}, "more than 64 bits"),
        ({True: np.ones(20)}, "the key True"),
        ({"a": np.full(20, np.nan)}, "other than 0 and 1"),
        ({None: np.ones(20)}, "the key None"),
    ],
)
def test_keys_that_name_no_image(tmp_path: Path, content: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_cls_labels(save(tmp_path / "c.npy", content))
