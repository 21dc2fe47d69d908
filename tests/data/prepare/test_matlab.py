"""MATLAB files of strangers: no count, size or depth in them is believed."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest

from tests.data.prepare import official_archives as little
from weaktr.data.prepare.matlab import read_mat
from weaktr.data.prepare.sbd import build

HEAD = little.sbd_mat(np.zeros((1, 1), np.uint8))[:128]


def packed(content: bytes) -> bytes:
    inside = zlib.compress(content)
    return struct.pack("<II", 15, len(inside)) + inside


def a_struct(shape: tuple[int, int], names: bytes, content: bytes, width: int = 4) -> bytes:
    fields = little.element(5, struct.pack("<i", width)) + little.element(1, names) + content
    return little.matrix(2, shape, fields, b"GTcls")


def test_an_empty_array_of_many_columns() -> None:
    empty = little.matrix(9, (0, 100_000), little.element(2, b""), b"x")
    assert read_mat(HEAD + empty)["x"].shape == (0, 100_000)


NUMBER = little.matrix(9, (1, 1), little.element(2, b"\7"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (little.matrix(9, (2**31 - 1, 2**31 - 1), little.element(2, b"\7")), "bytes for shape"),
        (little.matrix(9, (-1, -1), little.element(2, b"\7")), "bytes for shape"),
        (little.matrix(9, (2, 2), little.element(2, b"\7")), "1 numbers for"),
        (little.matrix(9, (1, 1), little.element(20, b"\7")), "no type of number"),
        (little.matrix(9, (1, 1), little.element(9, b"\7")), "1 bytes of float64"),
        (a_struct((2**31 - 1, 2**31 - 1), b"", b""), "bytes for shape"),
        (a_struct((1, 50), b"", b""), "50 structs without fields"),
        (a_struct((1, 10**9), b"abc\0", NUMBER), "bytes for shape"),
        (a_struct((1, 3), b"abc\0", NUMBER), "damaged"),
        (a_struct((1, 1), b"abc\0", NUMBER, width=0), "no length"),
        (a_struct((1, 1), b"abc\0", NUMBER, width=-4), "no length"),
        (a_struct((1, 1), b"\xff\xff\xff\0", NUMBER), r"expected a name, got b'\\xff"),
        (little.matrix(9, (1, 1), little.element(2, b"\7"), b"\xe9"), r"got b'\\xe9'"),
        (little.matrix(9, (1,) * 33, little.element(2, b"\7")), "an array of 33 dimensions"),
        (little.matrix(9, (127,) * 20_000, b""), "an array of 20000 dimensions"),
        (struct.pack("<II", 14, 2**32 - 8) + bytes(8), "cut off"),
        (packed(NUMBER)[:-4], "cut off"),
        (packed(NUMBER)[:8] + b"no zlib" + bytes(30), "damaged|cut off"),
    ],
)
def test_claims(content: bytes, reason: str) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=reason):
        read_mat(HEAD + content)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_structs_in_structs() -> None:
    content = NUMBER
    for _ in range(2000):
        content = little.matrix(2, (1, 1), little.element(5, struct.pack("<i", 4))
                                + little.element(1, b"a\0\0\0") + content)  # fmt: skip
    with pytest.raises(ValueError, match="more than 32 structs in structs"):
        read_mat(HEAD + content)


def test_compressed_elements_have_one_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them fits, all together do not."""
    monkeypatch.setattr("weaktr.data.prepare.matlab.MOST_BYTES", 1 << 16)
    half = packed(little.matrix(9, (1 << 15, 1), little.element(2, bytes(1 << 15)), b"x"))
    assert read_mat(HEAD + half)["x"].size == 1 << 15
    with pytest.raises(ValueError, match="more than 65536 bytes"):
        read_mat(HEAD + half * 2)


@pytest.mark.parametrize("label", [20.5, float("nan"), float("inf"), -1.0, 21.0, 256.0])
def test_labels_that_are_none(tmp_path: Path, label: float) -> None:
    """A fraction or NaN would become some label, in silence."""
    pixels = np.array([[0.0, 255.0], [20.0, label]])
    content = a_struct(
        (1, 1), b"Segmentation\0\0\0\0",
        little.matrix(6, (2, 2), little.element(9, pixels.tobytes(order="F"))), width=16,
    )  # fmt: skip
    (tmp_path / "sbd/cls").mkdir(parents=True)
    (tmp_path / "sbd/cls/2008_000001.mat").write_bytes(HEAD + content)
    with pytest.raises(ValueError, match=r"2008_000001\.mat: expected labels 0..20 or 255"):
        build(tmp_path / "sbd", tmp_path)
    assert list(tmp_path.rglob("*.png")) == []
