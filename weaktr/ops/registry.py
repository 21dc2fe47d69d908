"""Which implementation of an op runs: registry, choice and report.

Every op (`weaktr/ops/<op>.py`) has a plain-PyTorch definition, backend ``torch``, and may have
faster twins. A backend is named by a string and imported on first use, so importing weaktr needs
neither Triton nor a compiler.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
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
    "head_stats": {
        "triton": "weaktr.kernels.head_stats:head_stats_triton",
        "torch": "weaktr.ops.head_stats.definition:head_stats_torch",
    },
    "fuse_heads": {
        "triton": "weaktr.kernels.fuse_heads:fuse_heads_triton",
        "cpu": "weaktr.ops.fuse_heads.cpu:fuse_heads_cpu",
        "torch": "weaktr.ops.fuse_heads.definition:fuse_heads_torch",
    },
    "clipped_cross_entropy": {
        "triton": "weaktr.kernels.clipped_cross_entropy:clipped_cross_entropy_triton",
        "torch": "weaktr.ops.clipped_cross_entropy.definition:clipped_cross_entropy_torch",
    },
    "dense_crf": {
        "cuda": "weaktr.ops.dense_crf.cuda:dense_crf_cuda",
        "cpu": "weaktr.ops.dense_crf.cpu:dense_crf_cpu",
        "torch": "weaktr.ops.dense_crf.definition:dense_crf_torch",
    },
    "attention": {
        "triton": "weaktr.kernels.attention:attention_triton",
        "xformers": "weaktr.ops.attention.xformers:attention_xformers",
        "cpu": "weaktr.ops.attention.cpu:attention_cpu",
        "torch": "weaktr.ops.attention.definition:attention_torch",
    },
    "confusion": {"torch": "weaktr.ops.confusion:confusion_torch"},
}


#: Ops to which the environment variable applies only where it names one of their own backends:
#: they are not the method's, and what it names for the others need not exist for them.
LENIENT = ("attention",)

#: Facts (see `pick`) of the usual inputs, for `report`.
USUAL: dict[str, dict[str, Any]] = {
    "head_stats": {"dtypes": (torch.float32,), "head_dim": 64},
    "fuse_heads": {"dtypes": (torch.float32,), "head_dim": 64},
    "clipped_cross_entropy": {"num_labels": 21, "enlarging": 16.0},
    "attention": {"dtype": torch.float32, "head_dim": 64, "dropout": False},
}


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why."""


@dataclass(frozen=True)
class Status:
    """One row of `report`: can this backend of this op run here, and if not, why.

    Args:
        op, backend: see `REGISTRY`.
        available: whether it can be imported.
        reason: why not, or "".
        picked: types of device, of those here, on which it runs where nothing else is asked for.
        limits: what it takes, "" where it takes all that its op takes.
        refused: why it is passed over where it would come first, or "".
    """

    op: str
    backend: str
    available: bool
    reason: str
    picked: tuple[str, ...] = ()
    limits: str = ""
    refused: str = ""


@cache
def _missing(target: str) -> str:
    """Import the module of ``"module:function"``; why it is not there, "" where it is."""
    module, _ = target.split(":")
    try:
        importlib.import_module(module)
    except ImportError as error:  # the only error that means "not available"
        if isinstance(error, ModuleNotFoundError) and error.name == "weaktr.kernels":
            return "weaktr/kernels is no folder: this checkout has lost its symbolic links"
        return str(error)
    return ""


def _status(op: str, backend: str) -> Status:
    target = REGISTRY[op].get(backend)
    reason = f"{op} has no backend {backend!r}" if target is None else _missing(target)
    return Status(op, backend, not reason, reason)


def _refusal(op: str, backend: str, device_type: str, facts: Mapping[str, Any]) -> str:
    """Why a backend that is there does not take such inputs, "" where it does."""
    module, _ = REGISTRY[op][backend].split(":")
    refusal = getattr(sys.modules[module], "refusal", None)
    return refusal(device_type, **facts) if refusal else ""


@cache
def _log_choice(op: str, device: str, backend: str, passed_over: tuple[str, ...]) -> None:
    reasons = f" ({'; '.join(passed_over)})" if passed_over else ""
    level = logging.WARNING if passed_over else logging.INFO
    log.log(level, "%s on %s runs on backend %s%s", op, device, backend, reasons)


def pick(
    op: str, device: torch.device | str, backend: str = "auto", **facts: Any
) -> Callable[..., Any]:
    """Return the function that computes `op` for tensors on `device`.

    Args:
        op: a name in `REGISTRY`.
        device: where the inputs live.
        backend: ``"auto"`` or a backend's name. Precedence: this argument, then the environment
            variable ``WEAKTR_BACKEND``, then auto (`PREFERENCE`).
        facts: hashable, what else of the inputs a backend may refuse. Its module says so in a
            function ``refusal(device_type, **facts)``, which returns the reason or "". What is
            refused in auto goes to the next backend; the log says so once, as a warning.

    Raises:
        ValueError: unknown op.
        BackendUnavailable: a backend named explicitly cannot run, or refuses such inputs; the
            message says why.
    """
    if op not in REGISTRY:
        raise ValueError(f"op: expected one of {sorted(REGISTRY)}, got {op!r}")
    if backend == "auto":
        backend = _asked_for(op)
    target = _choose(op, torch.device(device).type, backend, tuple(facts.items()))
    module, function = target.split(":")
    found: Callable[..., Any] = getattr(sys.modules[module], function)
    return found


def _asked_for(op: str) -> str:
    """The backend that the environment asks for."""
    wanted = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    return "auto" if op in LENIENT and wanted not in REGISTRY[op] else wanted


@torch.compiler.assume_constant_result  # torch.compile asks once, for the graph that it makes
def _choose(op: str, device_type: str, wanted: str, facts: tuple[tuple[str, Any], ...]) -> str:
    """``"module:function"`` of the backend that runs, imported."""
    found, passed_over = _search(op, device_type, wanted, dict(facts))
    reasons = tuple(f"{backend}: {reason}" for backend, reason in passed_over.items())
    if found is None:
        if wanted != "auto":
            reason = passed_over[wanted]
            raise BackendUnavailable(f"backend {wanted!r} of {op} cannot run: {reason}")
        raise BackendUnavailable(f"no backend of {op} can run on {device_type}: {reasons}")
    if wanted == "auto":
        _log_choice(op, device_type, found, reasons)
    return REGISTRY[op][found]


def _search(
    op: str, device_type: str, wanted: str, facts: Mapping[str, Any]
) -> tuple[str | None, dict[str, str]]:
    """(the backend that runs, if any; those that came before it with the reason against each)."""
    candidates = (wanted,) if wanted != "auto" else PREFERENCE.get(device_type, ("torch",))
    passed_over: dict[str, str] = {}
    for candidate in candidates:
        if wanted == "auto" and candidate not in REGISTRY[op]:
            continue
        status = _status(op, candidate)
        reason = status.reason or _refusal(op, candidate, device_type, facts)
        if not reason:
            return candidate, passed_over
        passed_over[candidate] = reason
    return None, passed_over


def report() -> list[Status]:
    """Every op × backend: where it is picked, what it takes, why it cannot run.

    What ``weaktr env`` prints. `WEAKTR_BACKEND` is heeded; inputs are the usual ones (`USUAL`).
    """
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    rows = []
    for op, backends in REGISTRY.items():
        wanted = _asked_for(op)
        found = {device: _search(op, device, wanted, USUAL.get(op, {})) for device in devices}
        for backend in backends:
            status = _status(op, backend)
            refusals = [over[backend] for _, over in found.values() if backend in over]
            module = sys.modules.get(backends[backend].split(":")[0])
            rows.append(
                replace(
                    status,
                    picked=tuple(device for device in devices if found[device][0] == backend),
                    limits=getattr(module, "LIMITS", "") if status.available else "",
                    refused=refusals[0] if refusals and status.available else "",
                )
            )
    return rows
