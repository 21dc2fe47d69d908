"""What memory a training needs: said after its first step, and where there is too little."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from weaktr.messages import size_in_words

log = logging.getLogger("weaktr")


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

    def log_once(self) -> None:
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


def out_of_memory(
    error: BaseException, stage: str, images: int, *, compile: bool, recompute: bool
) -> MemoryError:
    """An error that says in one line what to set where the memory does not suffice.

    Args:
        error: of torch.
        stage: its name.
        images: that are computed at once.
        compile, recompute: as the stage is set.
    """
    ways = [] if recompute else [f"{stage}.recompute=true"]
    if images > 1:
        alone = f"{stage}.compile=false with " if compile else ""
        half = f"{stage}.micro_batch={images // 2}"
        ways.append(f"{alone}{half}, which computes a batch in pieces")
    advice = f"set {' or '.join(ways)}" if ways else "take a smaller model or image"
    reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return MemoryError(f"{stage}: out of memory: {advice} ({reason:.300})")
