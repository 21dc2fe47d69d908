"""What a training is resumed from: its state on disk and the state of all random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weaktr.files import require_file, whole_file, written_by_library
from weaktr.models.released.torch_file import read_torch_file

#: The file with the state, in the folder of the stage.
STATE = "state.pt"
#: How an optimiser's step is computed, in which versions differ; results are the same to rounding.
HOW = ("fused", "foreach")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors and plain values only)."""
    with whole_file(path) as temporary, written_by_library(path):
        torch.save(state, temporary)


def load_state(path: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote; None where there is no file.

    Raises:
        ValueError: see `refused_if_damaged`; or it is no file.
    """
    if not path.exists():
        return None
    require_file(path)
    with refused_if_damaged(path):
        state = read_torch_file(path)
        if not isinstance(state, dict):
            raise TypeError(f"a {type(state).__name__}")
    return state


@contextmanager
def refused_if_damaged(path: Path) -> Iterator[None]:
    """Whatever goes wrong below, while a state is read or taken over, is said in one line.

    Raises:
        ValueError: names the file and says what to do.
    """
    try:
        yield
    except (
        ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
    ) as error:  # fmt: skip
        reason = " ".join(str(error).removeprefix(f"{path}: ").split())
        raise ValueError(
            f"{path}: the state of the training is damaged or of another training "
            f"({type(error).__name__}: {reason:.300}). What was trained since the start of the "
            "stage is lost: delete this file to begin the stage again"
        ) from error


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`Optimizer.load_state_dict` that compares kinds of values and shapes.

    A step is still computed as this optimiser does it, not as that of the state did.

    Raises:
        ValueError, KeyError, TypeError: not the state of this optimiser.
    """
    before = [dict(group) for group in optimizer.param_groups]
    state = _of_groups([group.get("name") for group in before], state)
    groups = [
        {**group, **{name: own[name] for name in HOW if name in own}}
        for group, own in zip(state["param_groups"], before, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    for own, now in zip(before, optimizer.param_groups, strict=True):
        for name in own.keys() - {"params"}:
            if _kind(now.get(name)) != _kind(own[name]):
                got = f"got {now[name]!r:.60}"
                raise ValueError(f"optimizer: {name}: expected {own[name]!r}, {got}")
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"optimizer: {name}: expected a tensor, got {value!r:.60}")
            if value.ndim and value.shape != parameter.shape:
                shapes = f"{tuple(value.shape)} for {tuple(parameter.shape)}"
                raise ValueError(f"optimizer: {name} of shape {shapes}")


def _of_groups(names: Sequence[str | None], state: dict[str, Any]) -> dict[str, Any]:
    """The state without groups that this optimiser lacks.

    Older versions also trained blocks behind the last of ``seg_model.layers``, on which no loss
    depends.
    """
    if None in names:
        return state
    groups = [group for group in state["param_groups"] if group.get("name") in names]
    kept = {number for group in groups for number in group["params"]}
    values = {number: own for number, own in state["state"].items() if number in kept}
    return {**state, "param_groups": groups, "state": values}


def _kind(value: object) -> object:
    """What a value of an optimiser's settings is, as far as another one may take its place."""
    if isinstance(value, tuple | list):
        return [_kind(part) for part in value]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return "number" if is_number else type(value)


def position_in(state: dict[str, Any], epochs: int, batches: int) -> list[int]:
    """Where the training was: epoch, batch, step, bytes of metrics.jsonl.

    Args:
        state: of `save_state`.
        epochs, batches: of the training, and of each epoch.

    Raises:
        ValueError, KeyError: it is not in there, or outside the training.
    """
    position = state["position"]
    if not isinstance(position, list) or not all(type(n) is int and n >= 0 for n in position):
        raise ValueError(f"position: expected whole numbers, got {position!r:.60}")
    if position[0] > epochs or position[1] > batches:
        raise ValueError(
            f"position: expected up to epoch {epochs}, batch {batches}, got {position[:2]!r:.60}"
        )
    return position


def random_state() -> dict[str, Any]:
    """The states of all random number generators, as tensors and plain values.

    Of GPUs the current one's, where this process uses one: a run may go on with another number.
    """
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state()] if torch.cuda.is_initialized() else [],
        "numpy": (torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the states that `random_state` returned."""
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_initialized():
        states = state["cuda"]  # older versions: of every GPU there was
        torch.cuda.set_rng_state(states[min(torch.cuda.current_device(), len(states) - 1)])


def set_seeds(seed: int) -> None:
    """Seed torch, numpy and python."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
