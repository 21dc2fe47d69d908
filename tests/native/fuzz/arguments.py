"""Random arguments of the dense CRF in Python: good ones in every form, and mistaken ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.random import Generator

NORMALIZATIONS = ("symmetric", "before", "after", "none")


# ---- good ones ----------------------------------------------------------------------------------


def random_sides(rng: Generator, grid: bool) -> tuple[int, ...]:
    """[H, W], or where it need not be a `grid` sometimes a signal or a volume."""
    axes = 2 if grid else int(rng.choice([1, 2, 2, 3]))
    return tuple(int(side) for side in rng.integers(1, 9, axes))


def random_compat(rng: Generator, labels: int, strength: float) -> Any:
    """A Potts weight, label weights or a matrix; as a number, list, array or tensor."""
    form = rng.integers(4)
    if form == 0:
        return float(rng.uniform(-1, 5)) * strength
    if form == 1:
        return (rng.uniform(-3, 1, labels) * strength).tolist()
    matrix = rng.uniform(-1, 1, (labels, labels)) / labels * strength
    return matrix if form == 2 else torch.from_numpy(matrix)


def random_problem(rng: Generator) -> dict[str, Any]:
    """Keyword arguments of `weaktr.ops.dense_crf`, all as plain as can be."""
    bilateral = bool(rng.integers(2))
    sides = random_sides(rng, grid=bilateral)
    labels = int(rng.choice([1, 2, 3, 5, 17, 33]))
    problem: dict[str, Any] = {
        "image": rng.integers(0, 256, (*sides, 3), dtype=np.uint8) if bilateral else None,
        "unary": rng.normal(size=(labels, *sides)).astype(np.float32),
        "iterations": int(rng.integers(4)),
        "normalization": str(rng.choice(NORMALIZATIONS)),
    }
    # messages that are not normalised grow with the number of pixels
    strength = 0.03 if problem["normalization"] == "none" else 1.0
    if bilateral:
        sxy, srgb = rng.uniform(1, 40, 2).tolist()
        problem["bilateral"] = (sxy, srgb, random_compat(rng, labels, strength))
    if rng.integers(2):
        problem["gaussian"] = (float(rng.uniform(0.5, 5)), random_compat(rng, labels, strength))
    if rng.integers(2):
        features = rng.normal(size=(rng.integers(1, 9), *sides)).astype(np.float32)
        problem["features"] = (features, random_compat(rng, labels, strength))
    return problem


def native_problem(rng: Generator) -> dict[str, Any]:
    """A problem of [4, 5] pixels as `weaktr._native.dense_crf_cpu` takes it."""
    labels = int(rng.integers(1, 5))
    compat = rng.normal(size=(labels, labels)[rng.integers(2) :]).astype(np.float32)
    shared = {"compat": compat, "normalization": str(rng.choice(NORMALIZATIONS))}
    features = rng.normal(size=(rng.integers(1, 9), 20)).astype(np.float32)
    kernels = [
        {"deviations": (3.0, 4.0), "features": None} | shared,
        {"deviations": (3.0, 4.0, 20.0, 20.0, 20.0), "features": None} | shared,
        {"deviations": None, "features": features} | shared,
    ]
    problem: dict[str, Any] = {
        "shape": (4, 5),
        "image": rng.integers(0, 256, (4, 5, 3), dtype=np.uint8),
        "unary": rng.normal(size=(labels, 4, 5)).astype(np.float32),
        "labels": None,
        "table": None,
        "kernels": [kernels[i] for i in rng.permutation(3)[: rng.integers(1, 4)]],
    }
    if rng.integers(2):
        problem |= {"unary": None, "labels": rng.integers(0, 3, (4, 5)).astype(np.uint8)}
        problem["table"] = rng.normal(size=(3, labels)).astype(np.float32)
    return problem


def other_form(rng: Generator, array: np.ndarray) -> Any:
    """The same numbers in another memory layout, byte order or type that holds them exactly."""
    return FORMS[rng.integers(len(FORMS))](array)


def _read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


def _every_other(array: np.ndarray) -> np.ndarray:
    wide = np.zeros((*array.shape[:-1], 2 * array.shape[-1]), array.dtype)
    wide[..., ::2] = array
    return wide[..., ::2]


def _unaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)
    unaligned = memory[1:].view(array.dtype).reshape(array.shape)
    unaligned[...] = array
    return unaligned


def _wider(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


FORMS: tuple[Callable[[np.ndarray], Any], ...] = (
    _read_only,
    _every_other,
    _unaligned,
    _wider,
    np.asfortranarray,
    lambda array: array[::-1].copy()[::-1],
    lambda array: array.astype(array.dtype.newbyteorder(">")),
    lambda array: torch.from_numpy(array.copy()),
    lambda array: torch.from_numpy(array.T.copy()).permute(*reversed(range(array.ndim))),
    lambda array: torch.from_numpy(_every_other(array)).requires_grad_(array.dtype.kind == "f"),
)


# ---- mistaken ones ------------------------------------------------------------------------------


class Unhelpful:
    """What pretends to be an array, a number and a sequence, and is none."""

    def __len__(self) -> int:
        return 3

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("no array")

    def __index__(self) -> int:
        raise ValueError("no number")


def odd_values() -> list[Any]:
    """What nobody should pass, and now and then what is fine."""
    nan, infinity = float("nan"), float("inf")
    numbers = [
        0,
        -1,
        1,
        3,
        2**31,
        2**63,
        -(2**70),
        1.5,
        -0.0,
        1e-300,
        1e300,
        nan,
        infinity,
        1j,
        True,
    ]
    texts = ["", "symmetric", "none", "torch", "cpu", "auto", "labels", b"x", "\0", "é" * 9]
    others = [None, (), [], {}, {1}, object(), Unhelpful(), range(3), iter([1]), slice(None), len]
    tuples = [(3, 3), (0, 3), (3, -1), (3, 3, 3), (3, 3, "after"), (nan, 3), (3, None), [(3, 3)]]
    tuples += [(2**33, 2**31), (2**62, 4), (-2, -3), (1,) * 70, ("3", "3"), (3.0, 2.0), ((3, 3), 3)]
    small = np.ones((2, 3), np.float32)
    arrays = [small, small.T, small[:, ::-1], small[:0], small[0, 0], small.astype(">f4")]
    arrays += [small.astype(kind) for kind in ("f8", "f2", "i8", "u1", "?", "c8", "O", "U3")]
    arrays += [np.full((2, 3), bad, np.float32) for bad in (nan, infinity, 1e38, -3e38)]
    arrays += [np.ma.masked_array(small, small > 0), np.zeros((3, 0, 2)), np.float32(3), np.ones(3)]
    arrays += [np.zeros(3, "M8[s]"), np.zeros(2, [("a", "f4")]), np.broadcast_to(small, (9, 2, 3))]
    arrays += [
        np.broadcast_to(np.float32(0), (2**20, 2**20)),
        np.zeros((1,) * 32),
        memoryview(b"xyz"),
    ]
    return [*numbers, *texts, *others, *tuples, *arrays]


def odd_tensors() -> list[Any]:
    """More of `odd_values` for where a tensor makes sense."""
    ones = torch.ones(2, 3)
    kinds = [ones.to(kind) for kind in (torch.bfloat16, torch.float64, torch.bool, torch.cfloat)]
    return [ones, ones.T, ones.to_sparse(), ones[:0], ones[0, 0], ones / 0, -ones.conj(), *kinds]
