"""`pydensecrf.eigen`: its vectors and matrices, which here are NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def vectorXf(arr: Any) -> Float32:
    """A copy of a float32 vector.

    Raises:
        ValueError: of another dtype or number of axes.
        TypeError: None.
    """
    return float32("arr", arr, 1)


def matrixXf(arr: Any) -> Float32:
    """A copy of a float32 matrix.

    Raises:
        ValueError: of another dtype or number of axes.
        TypeError: None.
    """
    return float32("arr", arr, 2)


def float32(name: str, value: Any, axes: int) -> Float32:
    """A C-contiguous copy of a float32 array of any strides, read-only ones included.

    Raises:
        ValueError: of another dtype or number of axes; pydensecrf's "Buffer dtype mismatch".
        TypeError: None.
    """
    if value is None:
        raise TypeError(f"{name}: expected a float32 array with {axes} axes, got None")
    array = np.asarray(value)
    if array.dtype != np.float32:
        raise ValueError(
            f"{name}: expected float32, got {array.dtype}; convert it with "
            f"{name}.astype(np.float32)"
        )
    if array.ndim != axes:
        advice = f"; flatten the pixels: {name}.reshape(len({name}), -1)" if axes == 2 else ""
        raise ValueError(f"{name}: expected {axes} axes, got shape {array.shape}{advice}")
    return np.array(array, order="C")
