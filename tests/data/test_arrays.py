"""NumPy's files of strangers: no size that they claim is believed, no type is built from them."""

from __future__ import annotations

import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from weaktr.data.arrays import read_npz, read_pickled_arrays
from weaktr.data.stored_maps import npz_of_cams, read_cams
from weaktr.files import write_bytes

TYPES = ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", ">f4", ">i2"]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0, 3)])
def test_arrays_come_back(tmp_path: Path, kind: str, shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind)
    fortran = np.asfortranarray(array)
    np.savez(tmp_path / "a.npz", array=array, fortran=fortran)
    np.savez_compressed(tmp_path / "b.npz", array=array, fortran=fortran)
    for name in ("a.npz", "b.npz"):
        for read in read_npz(tmp_path / name).values():
            assert read.dtype == array.dtype.newbyteorder("=") and read.flags.writeable
            np.testing.assert_array_equal(read, array)
    np.save(tmp_path / "c.npy", {"array": array, "fortran": fortran}, allow_pickle=True)
    for value in read_pickled_arrays(tmp_path / "c.npy").values():
        np.testing.assert_array_equal(value, array)


@pytest.mark.parametrize("kind", TYPES)
def test_arrays_of_the_newest_pickles(tmp_path: Path, kind: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(kind)
    arrays = {"a": array, "f": np.asfortranarray(array), "b": array[:, 1], "0": array[:0]}
    arrays["fixed"] = array.copy()
    arrays["fixed"].flags.writeable = False
    content = pickle.dumps(np.array(arrays, object), 5)
    (tmp_path / "a.npy").write_bytes(npy(header("()", "'|O'"), content))
    read = read_pickled_arrays(tmp_path / "a.npy")
    assert read.keys() == arrays.keys()
    for name, value in arrays.items():
        np.testing.assert_array_equal(read[name], value)
        assert read[name].dtype == array.dtype


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (b"(C\x02abh\0(K\3tX\1\0\0\0CtR", r"2 bytes for an array \(3,\)"),
        (b"(C\x02abh\0(K\2tX\1\0\0\0KtR", "another order"),
        (b"(C\x02abh\0(K\2tX\1\0\0\0KK\0\x85tR", "another order"),
        (b"(C\x02abK\1(K\2tX\1\0\0\0CtR", "without a type"),
        (b"(]h\0(K\2tX\1\0\0\0CtR", "without bytes"),
    ],
)
def test_buffers_that_lie(tmp_path: Path, call: bytes, reason: str) -> None:
    kind = b"cnumpy\ndtype\n(X\2\0\0\0u1tRq\x000"
    content = kind + b"}X\1\0\0\0acnumpy._core.numeric\n_frombuffer\n" + call + b"s."
    (tmp_path / "a.npy").write_bytes(npy(header("()", "'|O'"), content))
    with pytest.raises(ValueError, match=reason):
        read_pickled_arrays(tmp_path / "a.npy")


def test_scalars_become_plain_values(tmp_path: Path) -> None:
    content = {np.int32(7): np.float64(0.5), np.str_("Ω name"): np.bool_(True), "x": np.uint8(255)}
    np.save(tmp_path / "a.npy", content, allow_pickle=True)
    read = read_pickled_arrays(tmp_path / "a.npy")
    assert read == {7: 0.5, "Ω name": True, "x": 255}
    assert [type(key) for key in read] == [int, str, str]


def npy(header: str, content: bytes = b"", version: bytes = b"\1\0") -> bytes:
    size = struct.pack("<H" if version == b"\1\0" else "<I", len(header))
    return b"\x93NUMPY" + version + size + header.encode() + content


def header(shape: object = "(1, 1, 1)", descr: object = "'<f4'", order: object = False) -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npy(header("(1000000000000, 1, 1)"), b"1234"), "4 bytes for an array"),
        (npy(header("(2000, 1 << 40, 1)"), b"1234"), "damaged npy header"),
        (npy(header("(-1, -4, 1)"), b"1234"), "an array of shape"),
        (npy(header(f"({2**62}, 4, 1)"), b"1234"), "an array of shape"),
        (npy(header("(0, 99999999999999999999999)"), b""), "an array of shape"),
        (npy(header("(1.0, 1, 1)"), b"1234"), "an array of shape"),
        (npy(header("1"), b"1234"), "an array of shape"),
        (npy(header(f"({'1, ' * 40})"), b"1234"), "an array of shape"),
        (npy(header(descr="'|O'"), b"1234"), "expected numbers"),
        (npy(header(descr="'<U1'"), b"1234"), "expected numbers"),
        (npy(header(descr="'xf4'"), b"1234"), "expected numbers"),
        (npy(header(descr="'|V2147483647'"), b"1234"), "expected numbers"),
        (npy(header(descr="'<M8[ns]'"), b"1234"), "expected numbers"),
        (npy(header(descr="'f4,f4'"), b"1234"), "expected numbers"),
        (npy(header(descr="'<c8'"), b"1234"), "expected numbers"),
        (npy(header(descr="[('a', '<f4')]"), b"1234"), "and type"),
        (npy(header(descr="('<f4', (100000,))"), b"1234"), "and type"),
        (npy(header(order=3), b"1234"), "an array of shape"),
        (npy(header(), b"123"), "3 bytes for an array"),
        (npy(header(), b"12345"), "5 bytes for an array"),
        (npy(header(), b"1234", b"\3\0"), "version 1 or 2"),
        (npy("{'descr': '<f4'}"), "damaged npy header"),
        (npy("[" * 9000), "damaged npy header"),
        (npy("(" * 9000), "damaged npy header"),
        (npy("-" * 9000 + "1"), "damaged npy header"),
        (npy("__import__('os')"), "damaged npy header"),
        (b"\x93NUMPY\1\0\xff\xff{", "npy header of 65535 bytes"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff{", "npy header of 4294967295 bytes"),
        (b"\x93NUMPY", "version 1 or 2"),
        (b"", "version 1 or 2"),
    ],
)
def test_headers_that_lie(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("cams.npy", content)
        archive.writestr("classes.npy", npy(header("(1,)", "'<i8'"), bytes(8)))
    with pytest.raises(ValueError, match=f"^{path}: expected CAMs.*{reason}"):
        read_cams(path)


def test_an_archive_that_inflates_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is refused by what it claims; a limit of 4 MiB stands for 512."""
    monkeypatch.setattr("weaktr.data.arrays.MOST_INFLATED", 1 << 22)
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cams.npy", npy(header("(1, 2048, 2048)"), bytes(1 << 24)))
        archive.writestr("classes.npy", npy(header("(1,)", "'<i8'"), bytes(8)))
    with pytest.raises(ValueError, match=r"\d+ bytes that claims to hold 1677"):
        read_cams(path)
    write_bytes(path, npz_of_cams(np.zeros((1, 512, 512), np.float32), [3]))
    assert read_cams(path)[0].shape == (1, 512, 512)


def test_a_member_that_claims_more_bytes_than_the_archive_has(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, cams=np.zeros((1, 2, 2), np.float32), classes=np.array([3]))
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\1\2") + 20, 1_851_880_020)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"\d+ bytes that claims to hold 1851880020"):
        read_cams(path)


@pytest.mark.parametrize("cut", [0, 10, 100, -30, -1])
def test_damaged_archives(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.npz"
    write_bytes(path, npz_of_cams(np.random.rand(2, 9, 9).astype(np.float32), [3, 5]))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=f"^{path}: expected CAMs"):
        read_cams(path)


def test_cams_of_no_class(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", {}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy: expected CAMs .* got: an empty dict$"):
        read_cams(tmp_path / "a.npy")


SHAPE = (2, 3, 4)


@pytest.mark.parametrize(
    ("cams", "reason"),
    [
        (np.full(SHAPE, 1.0005, np.float16), None),
        (np.full(SHAPE, -0.0005, np.float32), None),
        (np.ones(SHAPE, bool), None),
        (np.zeros((0, 3, 4), np.float32), None),
        (np.full(SHAPE, 1.01, np.float32), r"values from 1\.01 to 1\.01; give each class's CAM"),
        (np.linspace(-3, 1, 24).reshape(SHAPE), "values from -3 to 1;"),
        (np.arange(24, dtype=np.uint8).reshape(SHAPE), "values from 0 to 23;"),
        (np.full(SHAPE, 1e300), r"values from 1e\+300 to"),
        (np.full(SHAPE, np.nan), "NaN or infinity"),
        (np.full(SHAPE, np.inf), "NaN or infinity"),
    ],
)
def test_cams_are_from_0_to_1(tmp_path: Path, cams: np.ndarray, reason: str | None) -> None:
    classes = list(range(len(cams)))
    write_bytes(tmp_path / "a.npz", npz_of_cams(cams, classes))
    paths = [tmp_path / "a.npz"]
    if classes:
        np.save(tmp_path / "a.npy", dict(enumerate(cams)), allow_pickle=True)
        paths.append(tmp_path / "a.npy")
    for path in paths:
        if reason is None:
            np.testing.assert_array_equal(read_cams(path)[0], cams)
        else:
            with pytest.raises(ValueError, match=rf"^{path}: expected CAMs .* got: {reason}"):
                read_cams(path)


def test_other_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, maps=np.zeros(3))
    with pytest.raises(ValueError, match="without cams, classes"):
        read_cams(path)
    with pytest.raises(FileNotFoundError):
        read_npz(tmp_path / "none.npz")


def pickled(*operations: bytes) -> bytes:
    """An npy file of one object whose pickle does this."""
    return npy(header("()", "'|O'"), b"".join(operations) + b".")


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
FLOATS = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
NUMBERS = ARRAY + b"(I1\n(I1\nt" + FLOATS + b"I00\nS'1234'\ntb"


def outer(inside: bytes) -> bytes:
    """An array of shape () that holds the dict {0: inside}."""
    objects = FLOATS.replace(b"f4", b"O8")
    return pickled(ARRAY, b"(I1\n(t", objects, b"I00\n(}I0\n", inside, b"sltb")


def test_what_numpy_pickled_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(outer(NUMBERS))
    read = read_pickled_arrays(tmp_path / "a.npy")
    np.testing.assert_array_equal(read[0], np.frombuffer(b"1234", "<f4"))


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"(I1\nt", b"(I1000000000000\nt", "4 bytes for an array"),
        (b"(I1\nt", b"(I-1\nt", "without a shape"),
        (b"(I1\nt", b"(F1\nt", "without a shape"),
        (b"(I1\nt", b"I1\n", "without a shape"),
        (b"(I1\nt", b"(" + b"I1\n" * 40 + b"t", "without a shape"),
        (b"S'1234'", b"S'123'", "3 bytes for an array"),
        (b"S'1234'\n", b"I5\n", "without"),
        (b"S'1234'\n", b"N", "without"),
        (b"S'f4'", b"S'V4'", "no plain number"),
        (b"S'f4'", b"S'f4,f4'", "no plain number"),
        (b"S'f4'", b"S'M8[ns]'", "no plain number"),
        (b"S'f4'", b"S'O'", "array of objects of shape"),
        (b"S'f4'\n", b"]", "type a list is no plain number"),
        (b"S'f4'\n", b"I" + b"9" * 4000 + b"\n", "type a number of many digits is no plain"),
        (b"S'f4'", b"S'U'", "no plain number"),
        (FLOATS, b"N", "without a type"),
        (FLOATS, ARRAY, "without a type"),
        (b"I00\nS'1234'\ntb", b"tb", "not enough values|without a type"),
    ],
)
def test_arrays_are_not_built_by_the_file(
    tmp_path: Path, old: bytes, new: bytes, reason: str
) -> None:
    """A type of the file's own and bytes as objects were a write to an address that it names."""
    (tmp_path / "a.npy").write_bytes(outer(NUMBERS.replace(old, new)))
    with pytest.raises(ValueError, match=reason):
        read_pickled_arrays(tmp_path / "a.npy")


def test_one_array_under_many_keys(tmp_path: Path) -> None:
    """It may be, but not so that copies of it fill the memory."""
    shared = np.zeros(1 << 20, np.float32)
    path = tmp_path / "a.npy"
    for count, refused in ((8, False), (1000, True)):
        np.save(path, dict.fromkeys(range(count), shared), allow_pickle=True)
        if refused:
            with pytest.raises(ValueError, match="claims to hold more numbers"):
                read_pickled_arrays(path)
        else:
            assert len(read_pickled_arrays(path)) == count


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array(["x"], object), "array of objects of shape"),
        (print, "builtins.print, which could run code; only NumPy arrays are allowed"),
        (Path("x"), "pathlib.*Path, which could run code"),
        (np.dtype("f4"), "a type alone"),
        (np.array(["2020"], "M8[Y]"), "no plain number"),
        (np.zeros(2, "f4,f4"), "no plain number|numpy"),
        (np.ma.zeros(3), "which could run code"),
    ],
)
def test_other_objects(tmp_path: Path, value: Any, reason: str) -> None:
    np.save(tmp_path / "a.npy", {"a": value}, allow_pickle=True)
    with pytest.raises(ValueError, match=reason):
        read_pickled_arrays(tmp_path / "a.npy")


def test_a_bare_pickle_is_no_npy_file(tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="begins with"):
        read_pickled_arrays(tmp_path / "a.npy")
