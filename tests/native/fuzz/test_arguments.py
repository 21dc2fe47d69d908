"""Random Python arguments of the dense CRF: every form works alike, every mistake is named."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.native.fuzz.arguments import (
    native_problem,
    odd_tensors,
    odd_values,
    other_form,
    random_problem,
)
from tests.tolerances import TOLERANCES
from weaktr.ops.dense_crf import dense_crf, dense_crf_labels
from weaktr.ops.registry import BackendUnavailable

OP = "dense_crf"
CASES = 150
SEEDS = range(4)
#: What a mistake may raise; the last one where tensors are of no device that the backend has.
CLEAN = (ValueError, TypeError, MemoryError, BackendUnavailable)
MOST_ITERATIONS = 1000
#: Arguments that take tensors.
ARRAYS = ("image", "unary", "labels", "gaussian", "bilateral", "features")
ODD_VALUES = odd_values()
ODD_FOR_ARRAYS = ODD_VALUES + odd_tensors()


def fails_cleanly(call: Callable[..., Any], *given: Any, **named: Any) -> bool:
    """Whether the call raises one of `CLEAN`; whatever else it raises fails the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(*given, **named)
        except CLEAN as error:
            assert str(error), f"{type(error).__name__} without a message"
            return True
    return False


def odd_value(rng: np.random.Generator, name: str) -> Any:
    """Something odd for the argument `name`, now and then in a list; no endless work."""
    odd = ODD_FOR_ARRAYS if name in ARRAYS else ODD_VALUES
    value = odd[rng.integers(len(odd))]
    if name == "iterations" and isinstance(value, int) and value > MOST_ITERATIONS:
        return -value
    return [value] if rng.integers(8) == 0 else value


def as_tensor(maps: Any) -> torch.Tensor:
    return torch.as_tensor(maps).detach()


@pytest.mark.parametrize("seed", SEEDS)
def test_forms_of_the_same_numbers(backend, seed):
    rng = np.random.default_rng(seed)
    for number in range(CASES // 3):
        plain = random_problem(rng)
        odd = plain | {"unary": other_form(rng, plain["unary"])}
        if plain["image"] is not None:
            odd["image"] = other_form(rng, plain["image"])
        if "features" in plain:
            odd["features"] = (other_form(rng, plain["features"][0]), *plain["features"][1:])
        expected = dense_crf(**plain, backend="torch")
        got = dense_crf(**odd, num_threads=int(rng.integers(1, 4)), backend=backend)
        assert type(got) is type(odd["unary"])
        difference = (as_tensor(got) - as_tensor(expected)).abs().max()
        assert difference <= TOLERANCES["crf_marginals"].atol, f"case {number}: {odd}"


@pytest.mark.parametrize("seed", SEEDS)
def test_mistaken_arguments(backend, seed):
    rng = np.random.default_rng(seed)
    raised = 0
    for _ in range(CASES):
        given = random_problem(rng) | {"backend": backend}
        name = str(rng.choice(["gaussian", "bilateral", "features", "num_threads", *given]))
        value = odd_value(rng, name)
        if rng.integers(2) and isinstance(given.get(name), tuple):
            parts = list(given[name])
            parts[rng.integers(len(parts))] = value
            value = tuple(parts)
        raised += fails_cleanly(dense_crf, **(given | {name: value}))
    assert CASES // 2 < raised < CASES


@pytest.mark.parametrize("seed", SEEDS)
def test_mistaken_label_maps(backend, seed):
    rng = np.random.default_rng(seed)
    raised = 0
    for _ in range(CASES):
        given = {
            "image": rng.integers(0, 256, (4, 5, 3), dtype=np.uint8),
            "labels": rng.integers(0, 3, (4, 5)),
            "n_labels": 3,
            "gt_prob": 0.7,
            "zero_unsure": False,
            "confidence": False,
            "bilateral": (5, 9, 3),
            "backend": backend,
        }
        name = str(rng.choice(list(given)))
        raised += fails_cleanly(dense_crf_labels, **(given | {name: odd_value(rng, name)}))
    assert CASES // 3 < raised < CASES


# ---- the extension itself -----------------------------------------------------------------------


def mistaken_call(rng: np.random.Generator) -> dict[str, Any]:
    """Arguments of the extension with one or two of them, or of their parts, replaced."""
    problems: list[Any] = [native_problem(rng) for _ in range(rng.integers(1, 3))]
    call: dict[str, Any] = {
        "problems": problems,
        "iterations": int(rng.integers(3)),
        "num_threads": int(rng.integers(1, 4)),
        "isa": "auto",
        "output": str(rng.choice(["marginals", "labels", "labels+confidence"])),
    }
    for _ in range(rng.integers(1, 3)):
        places = [call, *problems, *(kernel for one in problems for kernel in one["kernels"])]
        place = places[rng.integers(len(places))]
        name = str(rng.choice(list(place)))
        value = odd_value(rng, name)
        if rng.integers(4) == 0 and place is not call:
            del place[name]
        elif name == "kernels" and rng.integers(2):
            place[name].append(value)
            break
        else:
            place[name] = value
        if name in ("problems", "kernels"):
            break
    return call


@pytest.mark.parametrize("seed", SEEDS)
def test_mistaken_dicts(seed):
    native = pytest.importorskip("weaktr._native", reason="the extension is not built")
    rng = np.random.default_rng(seed)
    raised = 0
    for _ in range(2 * CASES):
        raised += fails_cleanly(native.dense_crf_cpu, **mistaken_call(rng))
    assert CASES // 2 < raised < 2 * CASES
