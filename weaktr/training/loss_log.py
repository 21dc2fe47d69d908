"""The losses of a training: on the device until they are written, then a line for each step."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from weaktr import processes
from weaktr.progress import TensorBoard
from weaktr.training.loader import EpochLoader
from weaktr.training.metrics import MetricsLog, entries_in

log = logging.getLogger("weaktr")

METRICS = "metrics.jsonl"


class _Step(NamedTuple):
    """A step whose losses are still on the device."""

    epoch: int
    number: int
    lr: float
    last_batch: int  #: of the epoch, counted from 1
    losses: dict[str, Tensor]  #: name -> scalar; "loss" = their sum
    of_batches: list[Tensor]  #: that sum of each batch of the step


class LossLog:
    """metrics.jsonl and curves of a training, which the first process writes.

    Losses are copied from the device every few steps, all at once, so that no step waits for it;
    then it is also seen whether they are finite.

    Args:
        folder: of the stage.
        stage: its name.
        loader: knows the images of a batch.
        every: steps between two copies.
        beside: names among the losses of what is only logged, no part of the sum.
        watch: gets the entries whenever some are written.
    """

    def __init__(
        self,
        folder: Path,
        stage: str,
        loader: EpochLoader,
        every: int,
        beside: Collection[str] = (),
        watch: Callable[[Sequence[Mapping[str, float]]], None] | None = None,
    ) -> None:
        self.stage, self.loader, self.every = stage, loader, every
        self.beside, self.watch = beside, watch
        self.note = ""  #: the last loss, in words
        self.saved = ""  #: where the training's checkpoint stands, in words
        is_first = processes.is_first()
        self.metrics = MetricsLog(folder / METRICS, is_written=is_first)
        self.board = TensorBoard(folder / "tensorboard", is_written=is_first)
        self._sums: dict[str, Tensor] = {}
        self._of_batches: list[Tensor] = []
        self._pending: list[_Step] = []
        self._of_epoch: list[dict[str, float]] = []

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The sum that is minimised."""
        return torch.stack([v for name, v in losses.items() if name not in self.beside]).sum()

    def add(self, total: Tensor, losses: Mapping[str, Tensor], batches: int) -> None:
        """Take the losses of a batch, or a piece of one, and their `total`.

        Args:
            total, losses: scalars.
            batches: of a step, over which means are taken.
        """
        for name, loss in {"loss": total, **losses}.items():
            own = loss.detach() / batches
            self._sums[name] = self._sums[name] + own if name in self._sums else own

    def end_batch(self, loss: Tensor) -> None:
        """Take the sum of a batch's losses, by which it can be found if that is not finite."""
        self._of_batches.append(loss)

    def end_step(self, epoch: int, number: int, lr: float, last_batch: int) -> None:
        """A step is done with what was added since the last; writes when due."""
        self._pending.append(_Step(epoch, number, lr, last_batch, self._sums, self._of_batches))
        self._sums, self._of_batches = {}, []
        if len(self._pending) >= self.every:
            self.write()

    def write(self) -> None:
        """Copy the losses since the last call from the device, check and write them.

        Raises:
            ValueError: one is not finite.
        """
        if not self._pending:
            return
        names = list(self._pending[0].losses)
        rows = [[*(step.losses[n] for n in names), *step.of_batches] for step in self._pending]
        values = processes.total(torch.stack([torch.stack(row) for row in rows]))
        entries = []
        for step, numbers in zip(self._pending, values.double().tolist(), strict=True):
            if not all(map(math.isfinite, numbers)):
                raise ValueError(self._not_finite(step, names, numbers))
            losses = dict(zip(names, numbers, strict=False))
            entries.append({"epoch": step.epoch, "step": step.number, "lr": step.lr, **losses})
        self._pending = []
        self.note = f"loss {entries[-1]['loss']:.3f}"
        self._of_epoch += entries
        if self.watch is not None:
            self.watch(entries)
        self.metrics.write(entries)
        self.board.scalars({n: entries[-1][n] for n in ("lr", *names)}, entries[-1]["step"])

    def _not_finite(self, step: _Step, names: Sequence[str], numbers: Sequence[float]) -> str:
        """What to say of a step whose losses, then those of its batches, are `numbers`."""
        shown = ", ".join(f"{n} {value:.3g}" for n, value in zip(names, numbers, strict=False))
        of_batches = numbers[len(names) :]
        wrong = next((i for i, one in enumerate(of_batches) if not math.isfinite(one)), 0)
        images = self.loader.names(step.epoch, step.last_batch - len(of_batches) + wrong)
        return (
            f"{self.stage}: loss not finite at epoch {step.epoch + 1}, step {step.number} "
            f"({shown}), in the batch of {', '.join(images)}. {self.advice()}"
        )

    def advice(self) -> str:
        """What to do about numbers that are no longer finite."""
        stage, kept = self.stage, "Nothing is saved yet"
        if self.saved:
            kept = f"The same command goes on after {self.saved}, other settings begin anew"
        return (
            f"Try a lower {stage}.lr, a longer warm-up, {stage}.clip_grad=1, or {stage}.amp=bf16 "
            f"or none. {kept}"
        )

    def write_scores(self, epoch: int, step: int, scores: Mapping[str, float]) -> None:
        """Write the scores of a step beside its losses."""
        self.write()
        self.metrics.write([{"epoch": epoch, "step": step, **scores}])
        self.board.scalars(scores, step)

    def end_epoch(self) -> tuple[str, float] | None:
        """The mean losses of the steps of an epoch that has ended, in words, and the last rate.

        Returns:
            None where there were no steps.
        """
        self.write()
        entries, self._of_epoch = self._of_epoch, []
        if not entries:
            return None
        names = [name for name in entries[0] if name not in ("epoch", "step", "lr", "loss")]
        means = {n: sum(e[n] for e in entries) / len(entries) for n in ("loss", *names)}
        losses = [name for name in names if name not in self.beside]
        shown = [n for n in names if n in self.beside or len(losses) > 1]  # one is the loss itself
        parts = ", ".join(f"{name} {means[name]:.4f}" for name in shown)
        said = f"loss {means['loss']:.4f}{f' ({parts})' if parts else ''}"
        return said, entries[-1]["lr"]

    def position(self) -> int:
        """Write what is pending; the bytes of metrics.jsonl then."""
        self.write()
        return self.metrics.position()

    def resume(self, position: int, epoch: int) -> None:
        """Go on in the midst of an epoch, where metrics.jsonl had so many bytes."""
        self.metrics.cut(position)
        if position and processes.is_first():
            self._of_epoch = [
                entry
                for entry in entries_in(self.metrics.path)
                if entry.get("epoch") == epoch and "loss" in entry
            ]

    def close(self) -> None:
        """Write what is pending, and close the files."""
        self.write()
        self.metrics.close()
        self.board.close()
