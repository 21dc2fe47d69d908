"""NumPy's files, and what NumPy pickles, as plain numbers: files of strangers.

Nothing is allocated before the size that a header claims was compared with the bytes that are
there, and no type or array is built by what a pickle says.

Source: NumPy Enhancement Proposal 1 (the npy format); ``__reduce__`` of NumPy's arrays, types and
scalars.
"""

from __future__ import annotations

import ast
import io
import math
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weaktr.data.pickles import Built, Maker, Refused, read_pickle
from weaktr.files import require_readable
from weaktr.messages import brief

#: The first bytes of an npy file.
_MAGIC = b"\x93NUMPY"
#: NumPy's codes of plain numbers, without the byte order.
NUMBERS = {f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)} | {"f2", "f4", "f8", "b1"}
#: Bytes at the end of a zip archive that say how long the comment behind them is.
COMMENT_LENGTH = 2
#: An archive may hold this many bytes, or `RATIO` times as many as it has itself, if that is more.
#: COCO's annotations shrink to a quarter and CAMs to a half; zeros shrink a thousandfold, which is
#: how a small file fills a memory or a disk.
MOST_INFLATED, RATIO = 1 << 29, 32
#: The arrays of a pickle may have this many bytes, or as many as the file has, if that is more;
#: one array that stands under many keys counts as many times.
MOST_SHARED = 1 << 26
#: What a damaged or foreign archive makes `zipfile` and `zlib` raise, beside ValueError.
_BROKEN = (
    OSError,
    EOFError,
    LookupError,
    RuntimeError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
)


def most_inflated(size: int) -> int:
    """The most bytes that an archive of `size` bytes may hold."""
    return max(MOST_INFLATED, RATIO * size)


def read_npz(path: Path, *names: str, optional: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Arrays of numbers in an ``.npz``.

    Args:
        path: the file.
        names: of the arrays; none = all that are in it.
        optional: further names, of which it may lack some.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it may not be read.
        ValueError: no file, or damaged; one of `names` is missing or no array of numbers; or the
            file claims more bytes than it can account for (`most_inflated`).
    """
    require_readable(path)
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - len(archive.comment) - COMMENT_LENGTH))
            if int.from_bytes(file.read(COMMENT_LENGTH), "little") != len(archive.comment):
                raise ValueError("it is cut off")  # in its comment, which zipfile does not mind
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            if missing := [name for name in names if name not in members]:
                raise ValueError(f"an archive without {', '.join(missing)}")
            there = [name for name in optional if name in members]
            members = {name: members[name] for name in (*names, *there) or members}
            packed = max((info.compress_size for info in members.values()), default=0)
            claimed = max(packed, sum(info.file_size for info in members.values()))
            if packed > size or claimed > most_inflated(size):
                raise ValueError(f"an archive of {size} bytes that claims to hold {claimed}")
            return {name: _array(archive.read(info), name) for name, info in members.items()}
    except FileNotFoundError:
        raise
    except _BROKEN as error:
        raise ValueError(f"a damaged or foreign archive ({error})") from error


def _array(content: bytes, name: str) -> np.ndarray:
    """The array in an npy file of numbers; messages begin with its name."""
    file = io.BytesIO(content)
    shape, in_fortran_order, code = _header(file)
    if code[:1] not in ("<", ">", "|", "=") or code[1:] not in NUMBERS:
        raise ValueError(f"{name}: an array of {code!r:.40}, expected numbers")
    dtype, size = np.dtype(code), len(content) - file.tell()
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{name}: {size} bytes for an array {shape} of {dtype}")
    flat = np.frombuffer(content, dtype, offset=file.tell()) if size else np.empty(0, dtype)
    array = flat.reshape(shape, order="F" if in_fortran_order else "C")
    return array.astype(dtype.newbyteorder("="), order="C")


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, str]:
    """(shape, whether in Fortran's order, type) of an npy file, which is left behind its header.

    The type is NumPy's code with the byte order before it, such as ``<f4``.

    Raises:
        ValueError: not an npy file of version 1 or 2, or damaged.
    """
    magic = file.read(len(_MAGIC) + 2)
    version = tuple(magic[len(_MAGIC) :])
    if not magic.startswith(_MAGIC) or version not in ((1, 0), (2, 0)):
        raise ValueError(f"no npy file of version 1 or 2, it begins with {magic!r}")
    size = int.from_bytes(file.read(2 if version == (1, 0) else 4), "little")
    if size > 10_000:
        raise ValueError(f"an npy header of {size} bytes")
    text = file.read(size).decode("latin1")
    try:
        header = ast.literal_eval(re.sub(r"(\d)L\b", r"\1", text).strip())  # Python 2's numbers
        shape, order, code = header["shape"], header["fortran_order"], header["descr"]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError) as error:
        raise ValueError(f"a damaged npy header {text!r:.60}") from error
    if not _is_shape(shape) or not isinstance(order, bool) or not isinstance(code, str):
        raise ValueError(f"an array of shape {shape!r:.60} and type {brief(code)}")
    return shape, order, code


def read_pickled_arrays(path: Path) -> dict[Any, Any]:
    """The dict in an ``.npy`` file that holds one: plain values, and arrays of numbers.

    NumPy's scalars become Python's numbers and text.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file; more numbers than it can account for (`MOST_SHARED`); or it
            asks for anything else, of which nothing is run.
    """
    require_readable(path)
    content = path.read_bytes()
    file = io.BytesIO(content)
    shape, _, code = _header(file)
    if shape != () or code != "|O":
        raise ValueError(f"an array of shape {shape} and type {code:.60}")
    try:
        outer = read_pickle(file, NUMPY)
    except Refused as error:
        raise ValueError(f"{error}; only NumPy arrays are allowed, nothing was run") from error
    inner = outer.value() if isinstance(outer, _PickledArray) else outer
    if not isinstance(inner, dict):
        raise ValueError(f"a pickled {type(inner).__name__}")
    arrays: dict[Any, Any] = {}
    size = 0
    for key, value in inner.items():
        arrays[key] = value.value() if isinstance(value, _PickledArray) else value
        if isinstance(arrays[key], Built):
            raise ValueError("a type alone, without an array")
        size += getattr(arrays[key], "nbytes", 0)
        if size > max(MOST_SHARED, len(content)):
            raise ValueError(f"a file of {len(content)} bytes that claims to hold more numbers")
    return arrays


class _PickledType(Built):
    """Stands in for ``numpy.dtype``: one of `NUMBERS`, text ("U5"), or objects ("O")."""

    def __init__(self, code: str, *_: Any) -> None:
        if not isinstance(code, str) or not (code in NUMBERS | {"O", "O8"} or _is_text(code)):
            raise ValueError(f"numpy type {brief(code)} is no plain number")
        self.code, self.order = code, "<"

    def build(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def dtype(self) -> np.dtype[Any]:
        """The type of numbers or text that this stands for."""
        if self.code[0] == "O":
            raise ValueError("an array of objects")
        return np.dtype(self.order + self.code)


def _is_text(code: str) -> bool:
    """Whether this is NumPy's type of a text: U and the number of characters."""
    return re.fullmatch(r"U\d{1,4}", code, re.ASCII) is not None


class _PickledArray(Built):
    """Stands in for ``numpy.ndarray``: keeps what the pickle says until it is asked for."""

    def __init__(self, *_: Any) -> None:
        self.shape: tuple[int, ...] = ()
        self.kind: _PickledType | None = None
        self.in_fortran_order = False
        self.data: Any = None
        self.made: np.ndarray | None = None

    def build(self, state: Any) -> None:
        self.shape, self.kind, self.in_fortran_order, self.data = state[-4:]
        self.made = None

    def value(self) -> Any:
        """The array; of an object array of shape () what is in it.

        Raises:
            ValueError: other objects, or another number of bytes than the shape has.
        """
        if not isinstance(self.kind, _PickledType):
            raise ValueError("an array without a type")
        if self.kind.code[0] == "O":
            if self.shape != () or not isinstance(self.data, list) or len(self.data) != 1:
                shape = self.shape if _is_shape(self.shape) else brief(self.shape)
                raise ValueError(f"an array of objects of shape {shape!s:.40}")
            return self.data[0]
        if self.made is None:
            dtype, data = self.kind.dtype(), self.data
            if isinstance(data, str):  # Python 2 has one type for text and bytes
                data = data.encode("latin1")
            if not isinstance(data, bytes) or not _is_shape(self.shape):
                raise ValueError("an array without a shape or without bytes")
            if math.prod(self.shape) * dtype.itemsize != len(data):
                raise ValueError(f"{len(data)} bytes for an array {self.shape} of {dtype}")
            order = "F" if self.in_fortran_order else "C"
            flat = np.frombuffer(data, dtype) if data else np.empty(0, dtype)
            self.made = flat.reshape(self.shape, order=order)  # type: ignore[call-overload]
        return self.made


def _is_shape(value: Any) -> bool:
    """Whether this is a tuple of at most 32 sides, of which each fits into memory."""
    if not isinstance(value, tuple) or len(value) > 32:
        return False
    return all(type(side) is int and 0 <= side < 1 << 48 for side in value)


def _scalar(kind: _PickledType, data: bytes | str) -> float | int | bool | str:
    """Stands in for NumPy's constructor of scalars."""
    dtype = kind.dtype()
    if len(data) != dtype.itemsize or not data:
        raise ValueError(f"{len(data)} bytes for a number of type {dtype}")
    content = data.encode("latin1") if isinstance(data, str) else data
    value: float | int | bool | str = np.frombuffer(content, dtype)[0].item()
    return value


def _from_buffer(
    data: Any, kind: Any, shape: Any, order: Any, axis_order: Any = None
) -> _PickledArray:
    """Stands in for NumPy's constructor of arrays in pickles of protocol 5."""
    if order not in ("C", "F") or axis_order is not None:
        raise ValueError("an array in another order than C's and Fortran's")
    array = _PickledArray()
    array.build((shape, kind, order == "F", data))
    return array


#: NumPy's scalars, as pickles name them under old and new module names.
NUMPY_SCALARS = {
    "numpy.dtype": Maker(_PickledType),
    "numpy.core.multiarray.scalar": Maker(_scalar),
    "numpy._core.multiarray.scalar": Maker(_scalar),
}
#: The same and NumPy's arrays.
NUMPY = {
    **NUMPY_SCALARS,
    "numpy.ndarray": None,
    "numpy.core.multiarray._reconstruct": Maker(_PickledArray),
    "numpy._core.multiarray._reconstruct": Maker(_PickledArray),
    "numpy.core.numeric._frombuffer": Maker(_from_buffer),
    "numpy._core.numeric._frombuffer": Maker(_from_buffer),
}
