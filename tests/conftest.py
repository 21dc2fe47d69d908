"""Fixtures that every test gets: seeds, NaN in uninitialised memory, backends, devices, goldens."""

from __future__ import annotations

import gc
import importlib.util
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
os.environ.setdefault("WEAKTR_TUNE", "0")  # on a GPU, every shape of every test would be measured
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # shells start background jobs like that
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests import interpreter
from tests.native import emulation as native_emulation
from weaktr.models.precision import keep_float32_in_convolutions
from weaktr.ops import registry
from weaktr.ops.registry import ENVIRONMENT_VARIABLE, OPS, report

#: Comma-separated backends whose absence is a failure instead of a skip (set in CI).
REQUIRED_BACKENDS = "WEAKTR_TEST_REQUIRE"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`backend`: every registered backend of the test module's `OP`; `device`: what is here."""
    if "backend" in metafunc.fixturenames:
        names = [backend.name for backend in OPS[metafunc.module.OP].backends]
        metafunc.parametrize("backend", names, indirect=True)
    if "device" in metafunc.fixturenames:
        devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
        metafunc.parametrize("device", devices)


def pytest_configure() -> None:
    """All tests are imported, which leaves no garbage to look for."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is there before the first test stays: looking for garbage passes over it from now on."""
    gc.freeze()
    gc.enable()


def unavailable(backend: str, reason: str) -> NoReturn:
    """Skip the test, or fail it where the backend is required."""
    required = os.environ.get(REQUIRED_BACKENDS, "").split(",")
    (pytest.fail if backend in required else pytest.skip)(reason)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """One backend's name; the test is skipped, or fails where required, if it cannot run."""
    name: str = request.param
    (status,) = (s for s in report() if (s.op, s.backend) == (request.module.OP, name))
    if not status.available:
        unavailable(name, f"{name}: {status.reason}")
    return name


@pytest.fixture
def kernels(request: pytest.FixtureRequest) -> ModuleType:
    """The kernels of the test module's `OP`; the test is skipped, with the reason, without them."""
    module: ModuleType = pytest.importorskip(
        f"weaktr.kernels.{request.module.OP}", exc_type=ImportError
    )
    return module


@pytest.fixture
def compiled_kernels(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The registry sees kernels that are compiled, not interpreted, for one test."""
    monkeypatch.setattr(importlib.import_module("weaktr.kernels"), "INTERPRETED", False)
    registry._chosen.cache_clear()
    yield
    registry._chosen.cache_clear()


@pytest.fixture(scope="session")
def emulation() -> ModuleType:
    """The CUDA code of the dense CRF on the CPU; compiled once, by what asks for it first."""
    problem = native_emulation.problem()
    if problem:
        unavailable("cpu", problem)
    return native_emulation.load()


@pytest.fixture
def golden() -> Path:
    """The folder of stored outputs of the published code (see its README)."""
    return Path(__file__).parent / "golden"


@pytest.fixture(autouse=True, scope="session")
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """No test turns the power off; what fails where a disk is full is put in by the tests of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_backend_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture(autouse=True, scope="session")
def _float32_as_in_every_command() -> None:
    """`choose_device` does it, which tests of models on a GPU do not call."""
    if torch.cuda.is_available():
        keep_float32_in_convolutions()


@pytest.fixture(autouse=True, scope="session")
def _quick_interpreter() -> None:
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton"):
        interpreter.quicken()


def _poison(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`allocate` with its result full of NaN, or of the largest integer."""

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = allocate(*args, **kwargs)
        if type(tensor) is not torch.Tensor:  # traced: no graph may hold what is filled in place
            return tensor
        if tensor.dtype.is_floating_point or tensor.dtype.is_complex:
            tensor.detach().fill_(float("nan"))
        elif tensor.dtype != torch.bool:
            tensor.fill_(torch.iinfo(tensor.dtype).max)
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def _nan_in_uninitialised_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever an op forgets to write shows up as NaN."""
    with torch.device("meta"):
        torch.empty(0)  # what makes tensors is looked up at the first use, and is then not replaced
    for owner, name in [
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (torch.Tensor, "new_empty"),
    ]:
        monkeypatch.setattr(owner, name, _poison(getattr(owner, name)))
