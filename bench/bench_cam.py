"""Stage 1, training step and CAMs of one photograph-sized image, beside the published way.

Every row has a process of its own (`cam_work.py`), and the rows of a group run in turns, so that a
busy moment of the machine meets all of them.
"""

from functools import cache
from typing import NamedTuple

import cam_work
import pytest
from cam_work import CLASSES, KEPT, Process, taken
from conftest import largest_difference

ROUNDS = 5
#: "bf16": autocast, as `train_cam.amp=bf16` asks for. "torch": the plain definitions of all ops.
#: On a CPU what a process keeps matters, so the published way has a second row.
TRAINING_ROWS = ["weaktr", "weaktr bf16", "published", "published" + KEPT]
CAM_ROWS = ["torch", "weaktr", "published", "published" + KEPT]
SIZES = [(375, 500), (500, 600)]


class Measured(NamedTuple):
    """What was measured of a row."""

    seconds: list[float]
    peak: float | None
    error: float
    scale: float  #: largest number of the right result


def in_turns(rows: list[str], work: str, *sizes: object) -> dict[str, Measured]:
    """Run every row in turns; their results are compared with that of the first."""
    processes = {row: Process(cam_work.__file__, work, row, *sizes) for row in rows}
    first = {row: process.ask("first") for row, process in processes.items()}
    results = {row: taken(answer) for row, answer in first.items()}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(ROUNDS):
        for row, process in processes.items():
            seconds[row].append(process.ask("again")["seconds"])
    for process in processes.values():
        process.end()
    right = results[rows[0]]
    return {
        row: Measured(
            seconds[row],
            first[row]["peak"],
            largest_difference(results[row], right),
            float(right.abs().max()),
        )
        for row in rows
    }


def hand_in(record, row, measured, **facts):
    """`record` a row of a group that is compared with the published way."""
    record(
        measured.seconds,
        row=row,
        baseline=row == "published",
        error=measured.error,
        peak=measured.peak,
        dtype="bfloat16" if row == "weaktr bf16" else "float32",
        **facts,
    )


@cache
def training_steps(device, batch, side):
    return in_turns(TRAINING_ROWS, "training", device, batch, side, side)


@pytest.mark.parametrize("row", TRAINING_ROWS)
def bench_cam_training(record, device, row, batch=8, side=224):
    hand_in(
        record,
        row,
        training_steps(device, batch, side)[row],
        group=f"stage 1 training, DeiT-S, batch {batch}, {side}x{side}",
        within=1e-3 if row == "weaktr bf16" else 1e-5,
        items=batch,
    )


@cache
def cams(device, height, width):
    return in_turns(CAM_ROWS, "cams", device, 1, height, width)


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("row", CAM_ROWS)
def bench_cams(record, device, row, height, width):
    measured = cams(device, height, width)[row]
    group = f"CAMs, DeiT-S, {width}x{height}, 2 of {CLASSES} classes"
    hand_in(record, row, measured, group=group, within=1e-5 * measured.scale)
