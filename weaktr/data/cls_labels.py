"""Reader of ``cls_labels.npy``, the image labels that published code uses.

The file is a pickled dict, and a pickle can run any program. This reader rebuilds strings,
numbers, dicts and NumPy arrays and refuses everything else before it is built.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weaktr.data.problems import DataError, Problem

#: Everything that a pickled dict of arrays needs, under old and new module names.
_ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"the file wants to load {module_name}.{global_name}; only NumPy arrays are allowed"
            )
        return super().find_class(module_name, global_name)


def read_cls_labels(path: str | Path) -> dict[str, np.ndarray]:
    """Image labels of a ``cls_labels.npy``.

    Args:
        path: an ``.npy`` file holding one pickled dict: image name -> C numbers, 0 or 1.

    Returns:
        image name -> bool [C]; C is the same for all (20 for VOC, 80 or 90 for COCO). Names that
        are integers in the file (COCO ids) become decimal strings.

    Raises:
        DataError: missing; not such a file; or it asks for anything but arrays (it is then not
            executed).
    """
    path = Path(path)
    try:
        return _validated(read_pickled_arrays(path))
    except FileNotFoundError as error:
        raise DataError(Problem(str(path), "", "file is missing")) from error
    except ValueError as error:
        message = f"expected a dict of image name -> array of 0 and 1, got: {error}"
        raise DataError(Problem(str(path), "", message)) from error


def read_pickled_arrays(path: Path) -> dict[Any, Any]:
    """The dict in an ``.npy`` file that holds one; nothing but arrays is ever built.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not such a file, or it asks for anything but arrays (it is then not executed).
    """
    try:
        with open(path, "rb") as file:
            content = _read_object(file)
    except (pickle.UnpicklingError, EOFError, TypeError, LookupError) as error:
        raise ValueError(str(error)) from error
    if not isinstance(content, dict):
        raise ValueError(f"a {type(content).__name__}")
    return content


def _read_object(file: BinaryIO) -> Any:
    """The one Python object that an npy file with an object array of shape () holds."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"an npy file of version {version}")
    shape, _, dtype = readers[version](file)
    if shape != () or not dtype.hasobject:
        raise ValueError(f"an array of shape {shape} and type {dtype}")
    array = _ArraysOnly(file, encoding="latin1").load()
    if not isinstance(array, np.ndarray) or array.shape != ():
        raise ValueError(f"a pickled {type(array).__name__}")
    return array.item()


def _validated(content: dict[Any, Any]) -> dict[str, np.ndarray]:
    """The dict with names as text and labels as bool [C]; ValueError where it holds others."""
    labels: dict[str, np.ndarray] = {}
    lengths = set()
    for name, values in content.items():
        if not isinstance(name, str | int):
            raise ValueError(f"the key {name!r}")
        if (
            not isinstance(values, np.ndarray)
            or values.ndim != 1
            or values.dtype.kind not in "fiub"
        ):
            raise ValueError(f"key {name!r} holding {values!r:.60}")
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"key {name!r} with values other than 0 and 1")
        labels[str(name)] = values.astype(bool)
        lengths.add(len(values))
    if len(lengths) > 1:
        raise ValueError(f"arrays of different lengths {sorted(lengths)}")
    return labels
