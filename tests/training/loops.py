"""A training without a stage, in milliseconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from weaktr.config import Recipe, TrainCamConfig
from weaktr.training.loader import EpochLoader
from weaktr.training.loop import TrainingLoop


def loop_in(folder: Path, width: int = 3, **settings: Any) -> TrainingLoop[torch.nn.Linear]:
    """A training of a small model, at its start or where the state in the folder says."""
    model = torch.nn.Linear(width, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    steps = TrainCamConfig(**{"ema_decay": 0.9} | settings)
    loader = EpochLoader(Numbers(), 2, seed=0)
    return TrainingLoop(folder, model, optimizer, loader, steps, Recipe(), lambda *_: None)


class Numbers(torch.utils.data.Dataset):
    """Eight numbers, as a data set of the trainings."""

    crops = 1

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return (torch.tensor(float(index)),)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch has the same."""
