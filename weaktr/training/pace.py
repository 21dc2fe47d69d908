"""How fast a training goes, and how long it will still take."""

from __future__ import annotations

import logging
import time

from weaktr.messages import duration

log = logging.getLogger("weaktr")

#: Seconds of training by which the first estimate of its time is made.
ESTIMATE_SECONDS = 15.0


class Pace:
    """The time of the batches of this process, of which the first does not count: it is slow, since
    processes and memory are new.

    Args:
        stage: its name.
        epochs: of the whole training.
        batches: of each epoch.
    """

    def __init__(self, stage: str, epochs: int, batches: int) -> None:
        self.stage, self.epochs, self.batches = stage, epochs, batches
        self._started, self._counted = time.monotonic(), -1
        self._first = 0.0
        self._is_told = False

    def count(self, epoch: int, batch: int) -> None:
        """A batch is done, the `batch`-th of `epoch`; logs an estimate once."""
        self._counted += 1
        if self._counted == 0:
            self._first = time.monotonic() - self._started
            self._started = time.monotonic()
        if self._is_told or self._counted < 1:
            return
        if time.monotonic() - self._started < ESTIMATE_SECONDS:
            return
        self._is_told = True
        log.info(
            "%s: about %s left for %d epochs, by the first %d batches",
            self.stage, duration(self.seconds_left(epoch, batch)), self.epochs, self._counted,
        )  # fmt: skip

    def seconds_each(self) -> float:
        """Of a batch, on average; scores in between count too."""
        if self._counted < 1:
            return self._first
        return (time.monotonic() - self._started) / self._counted

    def seconds_left(self, epoch: int, batch: int) -> float:
        """Of the training after `batch` batches of `epoch`, at this speed."""
        done = epoch * self.batches + batch
        return (self.epochs * self.batches - done) * self.seconds_each()
