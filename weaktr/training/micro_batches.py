"""A batch that is larger than the memory: computed in pieces, with the results of the whole.

The losses of the pieces add up to those of the batch, and so do their gradients. What a loss goes
by of the whole batch (how many pixels have labels, the means by which the clipped loss decides) it
asks of `weaktr.processes.total`. So where a loss asks for something all pieces are computed once
without gradient, to add that up, and then again with what is known from it. Dropout and stochastic
depth draw for the whole batch, in each piece the same (`weaktr.models.dropping`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from weaktr import processes
from weaktr.models.dropping import Part
from weaktr.models.memory import is_out_of_memory
from weaktr.training.state import random_state, restore_random_state

log = logging.getLogger("weaktr")


class MicroBatches:
    """The pieces in which this process computes its part of every batch.

    Args:
        part: which images of a batch are its own; `Part.rows` are set to those in work.
        size: most images of a piece.
    """

    def __init__(self, part: Part, size: int) -> None:
        self.part, self.own = part, part.rows
        self._asks = True  #: whether the losses ask for totals; seen at the first batch
        self.resize(size)

    def resize(self, size: int) -> None:
        """Have at most `size` images in a piece from now on, in all nearly as many.

        Every process calls this.
        """
        images = self.own.stop - self.own.start
        self.count = -(-images // max(1, size))
        self.size = -(-images // self.count)
        bounds = [images * i // self.count for i in range(self.count + 1)]
        self._pieces = [slice(*pair) for pair in pairwise(bounds)]
        #: of any process: all have to ask for totals in the same order
        self._most = max(processes.of_each(self.count))

    def of(
        self, batch: Sequence[Tensor], losses_of: Callable[..., Mapping[str, Tensor]]
    ) -> Generator[tuple[Sequence[Tensor], bool]]:
        """The pieces of a batch, one after another; what the caller draws and asks for in between
        is that of the batch. To be closed by the caller where it stops early.

        Args:
            batch: this process's part of a batch, each [B, ...].
            losses_of: the losses of a piece, for the first pass.

        Yields:
            The tensors of a piece, and whether it is the last.
        """
        if self._most == 1:
            yield batch, True
            return
        before = random_state()
        totals = _Totals()
        if self._asks:
            for piece in self._pieces:
                with torch.no_grad(), self._at(piece, before), totals.adding():
                    losses_of(*(whole[piece] for whole in batch))
            totals.add_processes()
            self._asks = bool(totals.sums)
        for piece in self._pieces:
            with self._at(piece, before), totals.telling():
                yield [whole[piece] for whole in batch], piece is self._pieces[-1]

    @contextmanager
    def _at(self, piece: slice, before: dict[str, Any]) -> Iterator[None]:
        """Compute a piece with the random numbers of its batch."""
        restore_random_state(before)
        first = self.own.start
        self.part.rows = slice(first + piece.start, first + piece.stop)
        try:
            yield
        finally:
            self.part.rows = self.own


class _Totals:
    """What losses ask for of a whole batch, in the order in which each piece asks for it."""

    def __init__(self) -> None:
        self.sums: list[Tensor] = []
        self._next = 0

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Add up what a piece gives to each total; it gets that back."""

        def add(values: Tensor) -> Tensor:
            if self._next == len(self.sums):
                self.sums.append(torch.zeros_like(values))
            self.sums[self._next] += values
            self._next += 1
            return values

        with self._asked(add):
            yield

    @contextmanager
    def telling(self) -> Iterator[None]:
        """A piece gets the totals."""

        def tell(_: Tensor) -> Tensor:
            self._next += 1
            return self.sums[self._next - 1].clone()

        with self._asked(tell):
            yield

    @contextmanager
    def _asked(self, answer: Callable[[Tensor], Tensor]) -> Iterator[None]:
        self._next = 0
        with processes.totals_by(answer):
            yield

    def add_processes(self) -> None:
        """Add what the pieces of the other processes give."""
        for values in self.sums:
            processes.total(values)


def is_tried(compiles: bool, device: torch.device) -> bool:
    """Whether it is found by trying how many images fit (`most_that_fit`).

    A CPU says too late that it has no memory, and a graph is compiled for a whole batch.
    """
    return device.type == "cuda" and not compiles


def most_that_fit(
    stage: str,
    step: Callable[[list[Tensor]], object],
    item: Sequence[Tensor],
    images: int,
    kept: int,
    device: torch.device,
) -> int:
    """How many images of a batch a GPU's memory holds at a time, found by trying.

    All of them, or half, or a quarter, and so on; where it is not all, the log says so. Random
    numbers are afterwards as they were.

    Args:
        stage: its name, for the log.
        step: computes losses and gradients of so many images on the device.
        item: the tensors of one image.
        images: of this process's part of a batch.
        kept: bytes that a training will need beside those of `step`.
        device: the GPU.

    Raises:
        RuntimeError: (out of memory) not even one fits.
    """
    before = random_state()
    size = images
    while not _fits(step, item, size, kept, device):
        size = -(-size // 2)
    restore_random_state(before)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)  # trials are no part of the training
    if size < images:
        log.info(
            "%s: the GPU's memory holds %d of the %d images of a batch at a time, so each batch is "
            "computed in pieces, with the same results (micro_batch: %d); %s.recompute=true may "
            "be faster",
            stage, size, images, size, stage,
        )  # fmt: skip
    return size


def _fits(
    step: Callable[[list[Tensor]], object],
    item: Sequence[Tensor],
    size: int,
    kept: int,
    device: torch.device,
) -> bool:
    """Whether a step with `size` images goes through, with `kept` bytes taken."""
    taken: list[Tensor] = []
    try:
        taken.append(torch.empty(kept, dtype=torch.uint8, device=device))
        step([part.to(device) for part in default_collate([item] * size)])
    except (MemoryError, RuntimeError) as error:
        if size == 1 or not is_out_of_memory(error):
            raise
        return False
    finally:
        taken.clear()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return True
