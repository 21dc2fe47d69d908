"""The ops and their backends as they declare themselves, and which backend runs.

An op declares itself where it is defined (`weaktr/ops/<op>/`), its fastest backend first; the
`OP` of `weaktr.ops.confusion` is the shortest example. The function of a backend is
``<op>_<backend>`` in its module, there `confusion_torch`. What it does not take it declares itself
(`takes`). Modules are imported on first use, so importing weaktr needs neither Triton nor a
compiler. Backend ``torch`` exists for every op and is its definition.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, TypeVar

import torch

log = logging.getLogger("weaktr")

ENVIRONMENT_VARIABLE = "WEAKTR_BACKEND"

Function = TypeVar("Function", bound=Callable[..., Any])


class BackendUnavailable(RuntimeError):
    """A backend was asked for by name and cannot run here; the message says why."""


# ---- declarations -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Backend:
    """One implementation of an op.

    Args:
        name: how it is asked for.
        module: where its function is; imported on first use.
        devices: types of device on whose tensors it runs; all where none is named.
        auto: whether ``backend="auto"`` tries it, on these devices. Otherwise it runs only where
            it is asked for.
        advice: what to do about tensors on another device, a part of the message.
    """

    name: str
    module: str
    devices: tuple[str, ...] = ()
    auto: bool = True
    advice: str = ""

    def is_for(self, device_type: str) -> bool:
        """Whether `device_type` is among its devices."""
        return not self.devices or device_type in self.devices

    def device_refusal(self, device_type: str) -> str:
        """Why it does not run on tensors of such a device, "" where it does."""
        if self.is_for(device_type):
            return ""
        names = " and ".join(device.upper() for device in self.devices)
        advice = f"; {self.advice}" if self.advice else ""
        return f"it runs on {names} tensors, got {device_type}{advice}"


class Triton(Backend):
    """Kernels in Triton, for CUDA; Triton's interpreter runs them on tensors of any device."""

    def __init__(self, module: str) -> None:
        advice = "set TRITON_INTERPRET=1 before Python starts to run its kernels on the CPU, slowly"
        super().__init__("triton", module, devices=("cuda",), advice=advice)

    def device_refusal(self, device_type: str) -> str:
        """Like `Backend.device_refusal`; the module has been imported."""
        interpreted = sys.modules["weaktr.kernels"].INTERPRETED
        return "" if interpreted else super().device_refusal(device_type)


@dataclass(frozen=True)
class Limits:
    """What a backend takes of what its op takes.

    Args:
        text: for `report`.
        refusal: the facts of some inputs (see `Op.pick`) -> why it does not take them, or "".
    """

    text: str = ""
    refusal: Callable[..., str] = lambda **_: ""


@dataclass(eq=False)
class Op:
    """An op, its backends, and the choice among them.

    Args:
        name: unique.
        backends: in the order in which ``backend="auto"`` tries those that are for a device.
        usual: facts (see `pick`) of the usual inputs, for `report`.
        lenient: ignore ``WEAKTR_BACKEND`` where it names no backend of this op.
    """

    name: str
    backends: tuple[Backend, ...]
    usual: Mapping[str, Any] = field(default_factory=dict)
    lenient: bool = False

    def pick(
        self, device: torch.device | str, backend: str = "auto", **facts: Any
    ) -> Callable[..., Any]:
        """The function that computes this op for tensors on `device`.

        Args:
            device: where the inputs are.
            backend: ``"auto"`` or a backend's name. Precedence: this argument, then the environment
                variable ``WEAKTR_BACKEND``, then auto.
            facts: hashable, what else of the inputs a backend may refuse (`takes`). What is refused
                in auto goes to the next backend; the log says so once, as a warning.

        Raises:
            BackendUnavailable: a backend named explicitly cannot run, or refuses such inputs; the
                message says why.
        """
        if backend == "auto":
            backend = self.asked_for()
        device_type = device.type if isinstance(device, torch.device) else torch.device(device).type
        chosen = _choose(self.name, device_type, backend, tuple(facts.items()))
        function: Callable[..., Any] = getattr(_FUNCTIONS, chosen)
        return function

    def asked_for(self) -> str:
        """The backend that the environment asks for."""
        if ENVIRONMENT_VARIABLE not in os.environ:  # `get` takes four times as long to see that
            return "auto"
        wanted = os.environ[ENVIRONMENT_VARIABLE]
        own = any(backend.name == wanted for backend in self.backends)
        return "auto" if self.lenient and not own else wanted

    def choice(
        self, device_type: str, wanted: str, facts: Mapping[str, Any]
    ) -> tuple[Backend | None, dict[str, str]]:
        """(the backend that runs, if any; the reason against each one that came before it)."""
        if wanted == "auto":
            candidates = [x for x in self.backends if x.auto and x.is_for(device_type)]
        else:
            candidates = [x for x in self.backends if x.name == wanted]
            if not candidates:
                return None, {wanted: f"{self.name} has no backend {wanted!r}"}
        passed_over: dict[str, str] = {}
        for backend in candidates:
            reason = (
                _missing(backend.module)
                or backend.device_refusal(device_type)
                or self.limits(backend).refusal(**facts)
            )
            if not reason:
                return backend, passed_over
            passed_over[backend.name] = reason
        return None, passed_over

    def limits(self, backend: Backend) -> Limits:
        """What a backend, whose module has been imported, takes."""
        return _LIMITS.get(self.function(backend), Limits())

    def function(self, backend: Backend) -> Callable[..., Any]:
        """The function of a backend, whose module has been imported."""
        function: Callable[..., Any] = getattr(
            sys.modules[backend.module], f"{self.name}_{backend.name}"
        )
        return function


class _Functions:
    """Holds the chosen functions as attributes.

    A dictionary would not do, because torch.compile may use an outdated copy of it.
    """


_FUNCTIONS = _Functions()
#: What `register` has collected.
OPS: dict[str, Op] = {}
#: What `takes` has collected.
_LIMITS: dict[Callable[..., Any], Limits] = {}


def register(op: Op) -> Op:
    """Collect an op, and return it."""
    assert op.name not in OPS
    OPS[op.name] = op
    return op


def takes(text: str, refusal: Callable[..., str] | None = None) -> Callable[[Function], Function]:
    """Declare at a backend's function that it takes only a part of what its op takes; see `Limits`.

    Without `refusal` the text is for `report` only: the backend takes all inputs.
    """

    def declare(function: Function) -> Function:
        _LIMITS[function] = Limits(text) if refusal is None else Limits(text, refusal)
        return function

    return declare


# ---- choice -------------------------------------------------------------------------------------


@cache
def _missing(module: str) -> str:
    """Import a module; why it cannot be imported, "" where it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:  # the only error that means "not available"
        if isinstance(error, ModuleNotFoundError) and error.name == "weaktr.kernels":
            return "weaktr/kernels is no folder: this checkout has lost its symbolic links"
        return str(error)
    return ""


@torch.compiler.assume_constant_result  # torch.compile asks once, for the graph that it makes
def _choose(name: str, device_type: str, wanted: str, facts: tuple[tuple[str, Any], ...]) -> str:
    """The backend of an op that runs: the name of its function, an attribute of `_FUNCTIONS`."""
    chosen, function = _chosen(OPS[name], device_type, wanted, facts)
    setattr(_FUNCTIONS, chosen, function)
    return chosen


@lru_cache(maxsize=4096)
def _chosen(
    op: Op, device_type: str, wanted: str, facts: tuple[tuple[str, Any], ...]
) -> tuple[str, Callable[..., Any]]:
    """`_choose`, looked into once for each kind of inputs: the name, and the function itself.

    Raises:
        BackendUnavailable: none can run, each time anew.
    """
    backend, passed_over = op.choice(device_type, wanted, dict(facts))
    reasons = tuple(f"{other}: {reason}" for other, reason in passed_over.items())
    if backend is None:
        if wanted != "auto":
            reason = passed_over[wanted]
            raise BackendUnavailable(f"backend {wanted!r} of {op.name} cannot run: {reason}")
        raise BackendUnavailable(f"no backend of {op.name} can run on {device_type}: {reasons}")
    if wanted == "auto":
        _log_choice(op.name, device_type, backend.name, reasons)
    return f"{op.name}_{backend.name}", op.function(backend)


@cache
def _log_choice(op: str, device: str, backend: str, passed_over: tuple[str, ...]) -> None:
    reasons = f" ({'; '.join(passed_over)})" if passed_over else ""
    level = logging.WARNING if passed_over else logging.INFO
    log.log(level, "%s on %s runs on backend %s%s", op, device, backend, reasons)


# ---- report -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Status:
    """One row of `report`: can this backend of this op run here, and if not, why.

    Args:
        op, backend: their names.
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


def report() -> list[Status]:
    """Every op × backend: where it is picked, what it takes, why it cannot run.

    What ``weaktr env`` prints. `WEAKTR_BACKEND` is heeded; inputs are the usual ones (`Op.usual`).
    """
    devices = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    statuses = []
    for op in OPS.values():
        wanted = op.asked_for()
        choices = {device: op.choice(device, wanted, op.usual) for device in devices}
        for backend in op.backends:
            reason = _missing(backend.module)
            picked = tuple(device for device in devices if choices[device][0] is backend)
            limits = refused = ""
            if not reason:
                limits = op.limits(backend).text
                reasons = (passed_over.get(backend.name) for _, passed_over in choices.values())
                refused = next(filter(None, reasons), "")
            statuses.append(
                Status(op.name, backend.name, not reason, reason, picked, limits, refused)
            )
    return statuses
