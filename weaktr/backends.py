"""Which implementation of an op runs: registry, choice and report.

Every op (`weaktr/ops/<op>.py`) has a plain-PyTorch definition, backend ``torch``, and may have
faster twins. A backend is named by a string and imported on first use, so importing weaktr needs
neither Triton nor a compiler.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

log = logging.getLogger("weaktr")

#: Order in which ``backend="auto"`` tries the backends, by device type.
PREFERENCE = {
    "cuda": ("triton", "cuda", "torch"),
    "cpu": ("cpu", "torch"),
}
ENVIRONMENT_VARIABLE = "WEAKTR_BACKEND"

#: op -> backend -> "module:function"
REGISTRY: dict[str, dict[str, str]] = {
    "head_stats": {"torch": "weaktr.ops.head_stats:head_stats_torch"},
    "fuse_heads": {"torch": "weaktr.ops.fuse_heads:fuse_heads_torch"},
    "clipped_cross_entropy": {
        "torch": "weaktr.ops.clipped_cross_entropy:clipped_cross_entropy_torch"
    },
    "dense_crf": {
        "cuda": "weaktr.native_cuda:dense_crf_cuda",
        "cpu": "weaktr.native:dense_crf_cpu",
        "torch": "weaktr.ops.dense_crf:dense_crf_torch",
    },
    "confusion": {"torch": "weaktr.ops.confusion:confusion_torch"},
}


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why."""


@dataclass(frozen=True)
class Status:
    """One row of `report`: can this backend of this op run here, and if not, why."""

    op: str
    backend: str
    available: bool
    reason: str


@cache
def _load(target: str) -> Callable[..., Any]:
    """Import ``"module:function"``. Raises ImportError where the backend is not there."""
    module, function = target.split(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def _status(op: str, backend: str) -> Status:
    target = REGISTRY[op].get(backend)
    if target is None:
        return Status(op, backend, False, f"{op} has no backend {backend!r}")
    try:
        _load(target)
    except ImportError as error:  # the only error that means "not available"
        return Status(op, backend, False, str(error))
    return Status(op, backend, True, "")


@cache
def _log_choice(op: str, device: str, backend: str) -> None:
    log.info("%s on %s runs on backend %s", op, device, backend)


def pick(op: str, device: torch.device | str, backend: str = "auto") -> Callable[..., Any]:
    """Return the function that computes `op` for tensors on `device`.

    Args:
        op: a name in `REGISTRY`.
        device: where the inputs live.
        backend: ``"auto"`` or a backend's name. Precedence: this argument, then the environment
            variable ``WEAKTR_BACKEND``, then auto (`PREFERENCE`).

    Raises:
        ValueError: unknown op.
        BackendUnavailable: a backend named explicitly cannot run; the message says why.
    """
    if op not in REGISTRY:
        raise ValueError(f"op: expected one of {sorted(REGISTRY)}, got {op!r}")
    device_type = torch.device(device).type
    wanted = backend if backend != "auto" else os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if wanted != "auto":
        status = _status(op, wanted)
        if not status.available:
            raise BackendUnavailable(f"backend {wanted!r} of {op} cannot run: {status.reason}")
        return _load(REGISTRY[op][wanted])
    for candidate in PREFERENCE.get(device_type, ("torch",)):
        if _status(op, candidate).available:
            _log_choice(op, device_type, candidate)
            return _load(REGISTRY[op][candidate])
    raise BackendUnavailable(f"no backend of {op} can run on {device_type}")


def report() -> list[Status]:
    """Every op × backend with the reason where it cannot run (what `weaktr env` prints)."""
    return [_status(op, backend) for op, backends in REGISTRY.items() for backend in backends]
