"""The parser of the dense CRF's dicts: what `weaktr._native` says of a mistaken one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

native = pytest.importorskip("weaktr._native", exc_type=ImportError)

UNARY = np.zeros((3, 6, 9), np.float32)
KERNEL = {"deviations": (3.0, 3.0), "compat": np.full(3, -1, np.float32), "normalization": "none"}
PROBLEM = {"shape": (6, 9), "image": np.zeros((6, 9, 3), np.uint8), "unary": UNARY}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": None}, r"shape: expected whole numbers, got .*NoneType"),
        ({"shape": (0, 9)}, r"image: expected at least one pixel .* got shape \(0, 9\)"),
        ({"shape": (2**33, 2**31)}, r"image: expected .* fewer than 2\^31, got shape"),
        ({"image": np.zeros((6, 9), np.uint8)}, r"image: expected shape \(6, 9, 3\), got \(6, 9\)"),
        ({"unary": UNARY.T}, r"unary: expected an aligned C-contiguous array of float32"),
        ({"unary": UNARY[:, 1:].copy()}, r"unary: expected shape \(3, 6, 9\), got \(3, 5, 9\)"),
        ({"unary": None}, r"unary: expected unary, or labels and a table \[V, L\]"),
        ({"labels": np.zeros(54, np.uint8)}, r"labels: expected shape \(6, 9\), got \(54,\)"),
    ],
)
def test_mistaken_problems(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.dense_crf_cpu([PROBLEM | {"kernels": []} | changes], 1, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": np.zeros((2, 53), np.float32)}, r"features: expected \[d, 54\], got \(2, 53"),
        ({"deviations": None}, r"deviations: expected 2 or 5 numbers, or features, got .*NoneType"),
        ({"deviations": (1.0,)}, r"deviations: expected 2 or 5 numbers, got 1"),
        ({"compat": None}, r"compat: expected an array, got None"),
        ({"compat": np.ones((3, 2), np.float32)}, r"compat: expected \[3\] or square.*\(3, 2\)"),
        ({"normalization": "both"}, r"normalization: expected symmetric.*got both"),
    ],
)
def test_mistaken_kernels(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        native.dense_crf_cpu([PROBLEM | {"kernels": [KERNEL | changes]}], 1, 1)


def test_cuda_takes_addresses() -> None:
    if not native.has_cuda():
        pytest.skip("weaktr._native was built without CUDA")
    with pytest.raises(ValueError, match=r"image: expected \(address, shape\) of memory on a GPU"):
        native.dense_crf_cuda_bytes([PROBLEM | {"kernels": []}])
