"""What memory a training needs: said after its first step, and where there is too little."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from weaktr.messages import size_in_words
from weaktr.models.memory import is_out_of_memory

log = logging.getLogger("weaktr")
R = TypeVar("R")


class StepMemory:
    """Measures the first step of a training, and says in one line what it needs.

    Args:
        stage: its name.
        model: on its device.
        optimizer: of the model's parameters.
    """

    def __init__(self, stage: str, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.stage, self.model, self.optimizer = stage, model, optimizer
        self._kept: int | None = None
        self._is_told = False

    @contextmanager
    def first_pass(self) -> Iterator[None]:
        """Measure what autograd keeps of the forward pass below, if it is the first."""
        if self._kept is not None:
            yield
            return
        known = {_place(parameter) for parameter in self.model.parameters()}
        sizes: dict[tuple[torch.device, int], int] = {}

        def note(x: Tensor) -> Tensor:
            if (place := _place(x)) not in known:
                sizes[place] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            yield
        self._kept = sum(sizes.values())

    def tell(self) -> None:
        """Log the line, after the first step."""
        if self._is_told or self._kept is None:
            return
        self._is_told = True
        device = next(self.model.parameters()).device
        most = ""
        if device.type == "cuda":
            most = f"; at most {size_in_words(torch.cuda.max_memory_allocated(device))} at a time"
        log.info(
            "%s: a step keeps %s for its backward pass, model, gradients and optimiser %s%s",
            self.stage, size_in_words(self._kept), size_in_words(self._held()), most,
        )  # fmt: skip

    def _held(self) -> int:
        """Bytes of the model, of its gradients and of the optimiser's state."""
        gradients = [p for p in self.model.parameters() if p.requires_grad]
        states = [v for state in self.optimizer.state.values() for v in state.values()]
        return _bytes_of([*self.model.parameters(), *self.model.buffers()]) + sum(
            x.nbytes for x in [*gradients, *states] if isinstance(x, Tensor)
        )


def _place(x: Tensor) -> tuple[torch.device, int]:
    """Where a tensor's memory is; views of one have the same."""
    return x.device, x.untyped_storage().data_ptr()


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the memory of tensors, which may share some."""
    return sum({_place(x): x.untyped_storage().nbytes() for x in tensors}.values())


class _Settings(Protocol):
    @property
    def compile(self) -> bool: ...
    @property
    def recompute(self) -> bool: ...


class _Micro(Protocol):
    size: int


class _Training(Protocol):
    stage: str

    @property
    def settings(self) -> _Settings: ...
    @property
    def micro(self) -> _Micro: ...


def tells_of_too_little_memory(train: Callable[..., R]) -> Callable[..., R]:
    """Have a method of a training say what to set where the memory does not suffice.

    Raises:
        MemoryError: (what is returned) in one line.
    """

    @wraps(train)
    def run(self: _Training, *arguments: Any, **options: Any) -> R:
        try:
            return train(self, *arguments, **options)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            stage, settings, size = self.stage, self.settings, self.micro.size
            ways = [] if settings.recompute else [f"{stage}.recompute=true"]
            if size > 1:
                alone = f"{stage}.compile=false with " if settings.compile else ""
                half = f"{stage}.micro_batch={size // 2}"
                ways.append(f"{alone}{half}, which computes a batch in pieces")
            advice = f"set {' or '.join(ways)}" if ways else "take a smaller model or image"
            reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
            raise MemoryError(f"{stage}: out of memory: {advice} ({reason:.300})") from error

    return run
