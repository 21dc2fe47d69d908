"""Reader of MATLAB's ``.mat`` files, level 5: as much as SBD's annotations need.

Structs and full numeric arrays are read; cells, text, sparse matrices and objects become None.
Nothing in such a file is executed.

Source: MathWorks, "MAT-File Format", the chapter on level 5.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from weaktr.messages import brief

#: Storage types of numbers: number in the file -> NumPy's name.
_NUMBERS = {
    1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8",
}  # fmt: skip
#: Array classes of full numeric arrays -> NumPy's name.
_CLASSES = {
    6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8",
}  # fmt: skip
_MATRIX, _COMPRESSED, _STRUCT = 14, 15, 2
_HEADER = 128
#: SBD's files have less than 1 MB; one that inflates to more than this is refused.
MOST_BYTES = 1 << 24
#: Structs inside structs; SBD's have two.
MOST_DEPTH = 32
#: Dimensions of an array; SBD's have two.
MOST_DIMENSIONS = 32


def read_mat(content: bytes) -> dict[str, Any]:
    """The variables of a MAT-file of level 5.

    Args:
        content: the file.

    Returns:
        name -> array [rows, columns, ...]; dict (a struct of one element) or list of dicts (more);
        None for what is not read.

    Raises:
        ValueError: not such a file, damaged, or claiming more than it holds.
    """
    order = {b"IM": "<", b"MI": ">"}.get(content[126:128])
    if order is None or len(content) < _HEADER:
        raise ValueError("expected a MATLAB file of level 5 (not 7.3), got something else")
    try:
        variables = {}
        for kind, data in _inflated(_elements(memoryview(content)[_HEADER:], order), order):
            if kind == _MATRIX:
                name, value = _matrix(data, order)
                variables[name] = value
        return variables
    except (struct.error, zlib.error, LookupError, ArithmeticError, StopIteration) as error:
        raise ValueError(f"the MATLAB file is damaged: {error}") from error


def _inflated(
    elements: Iterator[tuple[int, memoryview]], order: str
) -> Iterator[tuple[int, memoryview]]:
    """The elements, each compressed one replaced by those that it contains."""
    left = MOST_BYTES
    for kind, data in elements:
        if kind != _COMPRESSED:
            yield kind, data
            continue
        inflater = zlib.decompressobj()
        content = inflater.decompress(data, left + 1)
        left -= len(content)
        if left < 0 or not inflater.eof:
            raise ValueError(f"the MATLAB file is cut off, or holds more than {MOST_BYTES} bytes")
        yield from _elements(memoryview(content), order)


def _elements(data: memoryview, order: str) -> Iterator[tuple[int, memoryview]]:
    """(type, content) of the data elements that follow one another."""
    position = 0
    while position + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, position)
        if kind >> 16:  # small element: size, type and up to four bytes in eight bytes
            kind, size, start, position = kind & 0xFFFF, kind >> 16, position + 4, position + 8
        else:
            start = position + 8
            padding = 0 if kind == _COMPRESSED else -size % 8
            position = start + size + padding
        if start + size > len(data):
            raise ValueError(f"the MATLAB file is cut off: {size} bytes expected at {start}")
        yield kind, data[start : start + size]


def _matrix(data: memoryview, order: str, depth: int = 0) -> tuple[str, Any]:
    """(name, value) of one array, which is inside `depth` structs."""
    if depth > MOST_DEPTH:
        raise ValueError(f"the MATLAB file is damaged: more than {MOST_DEPTH} structs in structs")
    parts = _elements(data, order)
    if not data:
        return "", None
    flags = _numbers(*next(parts), order)
    sides = _numbers(*next(parts), order)
    if len(sides) > MOST_DIMENSIONS:
        raise ValueError(f"the MATLAB file is damaged: an array of {len(sides)} dimensions")
    shape = tuple(int(n) for n in sides)
    name = _name(bytes(next(parts)[1]))
    array_class = int(flags[0]) & 0xFF
    if array_class != _STRUCT and array_class not in _CLASSES:
        return name, None
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count > len(data):
        raise ValueError(f"the MATLAB file is damaged: {len(data)} bytes for shape {shape[:9]}")
    if array_class == _STRUCT:
        return name, _struct(parts, count, order, depth + 1)
    values = _numbers(*next(parts), order)
    if values.size != count:
        raise ValueError(f"the MATLAB file is damaged: {values.size} numbers for {shape}")
    kind = order + _CLASSES[array_class]
    return name, values.reshape(shape, order="F").astype(np.dtype(kind).newbyteorder("="))


def _struct(
    parts: Iterator[tuple[int, memoryview]], count: int, order: str, depth: int
) -> dict[str, Any] | list[dict[str, Any]]:
    """A struct array of `count` elements: a dict for one element, else a list of dicts."""
    width = int(_numbers(*next(parts), order)[0])
    if width < 1:
        raise ValueError("the MATLAB file is damaged: field names of no length")
    names = bytes(next(parts)[1])
    fields = [
        _name(names[start : start + width].split(b"\0")[0]) for start in range(0, len(names), width)
    ]
    if count > 1 and not fields:
        raise ValueError(f"the MATLAB file is damaged: {count} structs without fields")
    entries = [
        {name: _matrix(next(parts)[1], order, depth)[1] for name in fields} for _ in range(count)
    ]
    return entries[0] if count == 1 else entries


def _name(content: bytes) -> str:
    """The name of a variable or field."""
    if not content.isascii():
        raise ValueError(f"the MATLAB file is damaged: expected a name, got {brief(content, 60)}")
    return content.decode("ascii")


def _numbers(kind: int, data: memoryview, order: str) -> np.ndarray:
    """The numbers of a data element, one dimension."""
    if kind not in _NUMBERS:
        raise ValueError(f"the MATLAB file is damaged: {kind} is no type of number")
    dtype = np.dtype(order + _NUMBERS[kind])
    if len(data) % dtype.itemsize:
        raise ValueError(f"the MATLAB file is damaged: {len(data)} bytes of {dtype}")
    return np.frombuffer(data, dtype)
