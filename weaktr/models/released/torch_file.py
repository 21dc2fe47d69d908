"""A reader of ``.pth`` files that runs no code from them.

torch's `weights_only` unpickler builds tensors, plain containers, numbers and strings. Training
scripts also leave their command line (`argparse.Namespace`) and numpy numbers (a score) beside the
weights; those two are allowed here, the latter through stand-ins that only decode the bytes of one
number. Anything else in the file is refused by its name.
"""

from __future__ import annotations

import argparse
import re
import struct
from pathlib import Path
from typing import Any

import torch

#: numpy's codes of plain numbers -> struct's; numpy's "<" and ">" mean the same to struct.
_NUMBERS = {
    "f8": "d", "f4": "f", "f2": "e", "b1": "?",
    "i8": "q", "i4": "i", "i2": "h", "i1": "b",
    "u8": "Q", "u4": "I", "u2": "H", "u1": "B",
}  # fmt: skip


class _NumberType:
    """Stands in for ``numpy.dtype``: remembers the code of a plain number's type."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _NUMBERS:
            raise ValueError(f"numpy type {code!r} is no plain number")
        self.code = _NUMBERS[code]

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(kind: _NumberType, data: bytes) -> float | int | bool:
    """Stands in for numpy's constructor of scalars."""
    value: float | int | bool = struct.unpack(kind.order + kind.code, data)[0]
    return value


#: What a file may name beside tensors and plain containers.
ALLOWED: list[Any] = [
    argparse.Namespace,
    (_NumberType, "numpy.dtype"),
    (_number, "numpy.core.multiarray.scalar"),
    (_number, "numpy._core.multiarray.scalar"),
]


def read_torch_file(path: Path) -> Any:
    """What a file written by ``torch.save`` holds, tensors on the CPU.

    Args:
        path: a ``.pth`` or ``.pt`` file, zipped or in torch's older format.

    Returns:
        Tensors, containers, numbers and strings, as they were saved.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a torch file, cut off, or one that asks for code; none of it was run.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    try:
        with torch.serialization.safe_globals(ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a hostile or broken file can make the unpickler raise anything
        raise ValueError(f"{path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """torch's message in one line."""
    text = str(error)
    if named := re.search(r"GLOBAL (\S+)", text):
        return (
            f"refused: beside its weights this file asks for {named[1]}, which could run code. "
            "Nothing was run. If you trust its author, load it where it was made and save "
            "{'model': model.state_dict()} alone"
        )
    first = text.split(". ", maxsplit=1)[0].splitlines()[0] if text else "no message"
    return f"not a whole file of torch.save ({type(error).__name__}: {first})"
