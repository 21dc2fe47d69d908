"""The batches of a training, epoch by epoch, loaded by other processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from weaktr import processes
from weaktr.data.datasets import EpochSampler, SeededDataset
from weaktr.stopping import ignore_signals


class EpochLoader:
    """Shuffled batches of an epoch, or this process's part of each.

    They are the same for any number of workers, and when an epoch starts in its middle. The last,
    smaller batch is left out.

    Args:
        dataset: what to load, seeded.
        batch_size: items in a batch of all processes together.
        seed: of the order.
        num_workers: loading processes; "auto" = `TrainingLoop.train` measures how many are needed.
        device: where batches go; on their way to a GPU they are in pinned memory.

    Raises:
        ValueError: fewer items than `batch_size`, or fewer of these than processes.
    """

    def __init__(
        self,
        dataset: SeededDataset,
        batch_size: int,
        seed: int,
        num_workers: int | Literal["auto"] = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset, self.num_workers = dataset, num_workers
        self.device = torch.device(device)
        rows = processes.rows(batch_size)
        self._sampler = EpochSampler(
            len(dataset), batch_size, seed=seed, rows=rows, crops=dataset.crops
        )
        self._generator = torch.Generator().manual_seed(seed)  # not the model's generator
        self._loader: DataLoader[Any] | None = None

    def __len__(self) -> int:
        return self._sampler.batches_per_epoch

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]:
        """The batches of `epoch` from batch `start` on."""
        self.dataset.set_epoch(epoch)
        self._sampler.set_epoch(epoch, start)
        if self._loader is None:
            workers = 0 if self.num_workers == "auto" else self.num_workers
            self._loader = DataLoader(
                self.dataset,
                batch_sampler=self._sampler,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=self.device.type == "cuda",
                generator=self._generator,
                worker_init_fn=_leave_signals,
            )
        return iter(self._loader)

    def names(self, epoch: int, batch: int) -> list[str]:
        """The images of a batch, of all processes."""
        names = (self.dataset.sample_of(index).name for index in self._sampler.batch(epoch, batch))
        return list(dict.fromkeys(names))

    def close(self) -> None:
        """End the loading processes, which otherwise wait for a further epoch."""
        running = getattr(self._loader, "_iterator", None)  # torch has no public name for it
        if running is not None:
            running._shutdown_workers()
        self._loader = None


def _leave_signals(_: int) -> None:
    """Let a loading process live for as long as the training, which signals reach too."""
    ignore_signals()
