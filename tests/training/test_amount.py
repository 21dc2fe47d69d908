"""How much stage 2 trains where its recipe says "auto"."""

from __future__ import annotations

from dataclasses import fields
from itertools import pairwise

import pytest

from weaktr.config import TrainSegConfig
from weaktr.training.amount import amount_for, sized


@pytest.mark.parametrize(
    ("photographs", "amount"),
    [
        (0, (40, 1)), (1, (40, 1)), (2, (40, 2)), (12, (40, 2)), (15, (40, 2)), (16, (40, 4)),
        (50, (22, 4)), (63, (20, 4)), (64, (20, 8)), (311, (9, 8)), (3_000, (3, 8)),
        (20_000, (1, 8)), (1_000_000, (1, 8)),
    ],
)  # fmt: skip
def test_the_amount_by_hand(photographs, amount):
    assert amount_for(photographs) == amount


def test_more_photographs_never_mean_fewer_steps_by_much():
    """Rounded to whole epochs and batches: the steps of the next number are at least half as many
    (64 photographs, in batches of 8, after 63, in batches of 4)."""
    steps = [epochs * (n // batch) for n in range(1, 20_001) for epochs, batch in [amount_for(n)]]
    assert min(steps) >= 40
    assert all(after >= before / 2 for before, after in pairwise(steps))
    epochs, batches = zip(*map(amount_for, range(1, 20_001)), strict=True)
    assert list(epochs) == sorted(epochs, reverse=True) and list(batches) == sorted(batches)


@pytest.mark.parametrize(
    ("settings", "amount"),
    [
        ({"epochs": "auto", "batch_size": "auto"}, (22, 4)),
        ({"epochs": "auto", "batch_size": 5}, (22, 5)),
        ({"epochs": 0, "batch_size": "auto"}, (0, 4)),
        ({"epochs": 7, "batch_size": 9}, (7, 9)),
    ],
)
def test_only_auto_is_replaced(settings, amount):
    asked = TrainSegConfig(**settings, labels="soft", loss="soft_ce", lr=0.5)
    found = sized(asked, 50)
    assert (found.epochs, found.batch_size) == amount
    for field in fields(TrainSegConfig):
        if field.name not in ("epochs", "batch_size"):
            assert getattr(found, field.name) == getattr(asked, field.name)
