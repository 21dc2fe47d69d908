"""How much stage 2 trains, by the number of its photographs: what "auto" stands for."""

from __future__ import annotations

import math

from weaktr.config import SizedTrainSegConfig, TrainSegConfig

#: Photographs on which the constants were found, by looking at scores (PASCAL VOC 2012), and their
#: epochs.
PHOTOGRAPHS, EPOCHS = 311, 9
MOST_EPOCHS = 40


def amount_for(photographs: int) -> tuple[int, int]:
    """Epochs and batch size for N photographs.

        epochs = round(9 sqrt(311 / N)), from 1 to 40
        batch  = 2 below 16 photographs, 4 below 64, else 8; never more than N

    So the number of steps grows with the square root of N: 50 photographs give 22 epochs of 12
    batches, 311 give 9 of 38, 3,000 give 3 of 375, 20,000 give 1 of 2,500.

    Args:
        photographs: N; 0 counts as 1.
    """
    count = max(1, photographs)
    epochs = round(EPOCHS * math.sqrt(PHOTOGRAPHS / count))
    batch = 2 if count < 16 else 4 if count < 64 else 8
    return min(max(1, epochs), MOST_EPOCHS), min(batch, count)


def sized(settings: TrainSegConfig, photographs: int) -> SizedTrainSegConfig:
    """`settings` with numbers for so many photographs in place of "auto" (see `amount_for`)."""
    epochs, batch = amount_for(photographs)
    numbers = {
        "epochs": epochs if settings.epochs == "auto" else settings.epochs,
        "batch_size": batch if settings.batch_size == "auto" else settings.batch_size,
    }
    return SizedTrainSegConfig(**vars(settings) | numbers)
