"""Reader of ``cls_labels.npy``, the image labels that published code uses.

The file is a pickled dict, and a pickle can run any program; `weaktr.data.arrays` reads it and
runs nothing.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from weaktr.data.arrays import read_pickled_arrays
from weaktr.data.problems import DataError, Problem
from weaktr.files import require_readable


def read_cls_labels(path: str | Path) -> dict[str, np.ndarray]:
    """Image labels of a ``cls_labels.npy``.

    Args:
        path: an ``.npy`` file holding one pickled dict: image name -> C numbers, 0 or 1.

    Returns:
        image name -> bool [C]; C is the same for all (20 for VOC, 80 or 90 for COCO). Names that
        are integers in the file become decimal strings (COCO ids), those of VOC's year and number
        in one (2007000032) what VOC calls the image ("2007_000032"). Names lose a suffix ``.jpg``
        or ``.png``.

    Raises:
        OSError: it may not be read.
        DataError: missing; not such a file; two names of one image; or it asks for anything but
            arrays (it is then not executed).
    """
    path = Path(path)
    require_readable(path)
    try:
        return _validated(read_pickled_arrays(path))
    except FileNotFoundError as error:
        raise DataError(Problem(str(path), "", "file is missing")) from error
    except (OSError, ValueError) as error:
        message = f"expected a dict of image name -> array of 0 and 1, got: {error}"
        raise DataError(Problem(str(path), "", message)) from error


def _validated(content: dict[Any, Any]) -> dict[str, np.ndarray]:
    """The dict with names as text and labels as bool [C]; ValueError where it holds others."""
    labels: dict[str, np.ndarray] = {}
    lengths = set()
    for key, values in content.items():
        if not isinstance(key, str | int) or isinstance(key, bool):
            raise ValueError(f"the key {key!r:.60}")
        if (
            not isinstance(values, np.ndarray)
            or values.ndim != 1
            or values.dtype.kind not in "fiub"
        ):
            raise ValueError(f"key {key!r:.60} holding {_words(values)}")
        if not np.isin(values, (0, 1)).all():
            raise ValueError(f"key {key!r:.60} with values other than 0 and 1")
        name = _image_name(key)
        if name in labels:
            raise ValueError(f"two keys of the image {name!r:.60}")
        labels[name] = values.astype(bool)
        lengths.add(len(values))
    if len(lengths) > 1:
        raise ValueError(f"arrays of different lengths {sorted(lengths)[:5]}")
    return labels


def _words(value: Any) -> str:
    """A value in a message: an array by shape and type, a container (which may hold itself) by
    its type."""
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    return f"a {type(value).__name__}"


def _image_name(key: str | int) -> str:
    """The image that a key stands for."""
    if isinstance(key, str):
        return re.sub(r"\.(jpe?g|png)$", "", key, flags=re.IGNORECASE)
    if abs(key) >= 1 << 63:
        raise ValueError("a key of more than 64 bits")
    text = str(key)
    return f"{text[:4]}_{text[4:]}" if re.fullmatch(r"(19|20)\d{8}", text) else text
