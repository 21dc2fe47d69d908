"""Trainings of both stages beside the published way: step, loading, and both together.

Every row has a process of its own (`training_work.py`), and the rows of a group run in turns
(`turns.py`). Photographs are drawn scenes with noise, so that no machine needs a data set.
"""

import importlib.util
from functools import cache
from statistics import median

import pytest
import torch
import training_work
from training_work import (
    CAM_SIDE,
    LABELS,
    PHOTOGRAPHS,
    PIECES,
    RECOMPUTE,
    SEG_SIDE,
    write_photographs,
)
from turns import KEPT, in_turns

from weaktr.data.parallel import cores_of_this_process

IS_GPU = torch.cuda.is_available()
STAGES = {"cam": "stage 1", "seg": "stage 2"}
SIDES = {"cam": CAM_SIDE, "seg": SEG_SIDE}
BATCHES = {"cam": 64, "seg": 16} if IS_GPU else {"cam": 8, "seg": 2}
#: "bf16": autocast, as ``amp=bf16`` asks for. On a CPU what a process keeps matters, so the
#: published way has a second row; a GPU is what its autocast is for.
STEP_ROWS = [
    "weaktr",
    "weaktr" + RECOMPUTE,
    "weaktr" + PIECES,
    "weaktr bf16",
    "published",
    "published bf16" if IS_GPU else "published" + KEPT,
]
LOADING_ROWS = ["weaktr", "published"]
TOGETHER_ROWS = ["weaktr", "weaktr bf16", "published", *(["published bf16"] if IS_GPU else [])]
#: Batches of an epoch, and epochs that are timed, of steps with loading.
EPOCH, ROUNDS = (100, 3) if IS_GPU else (3, 3)
PICTURES = "drawn scenes with noise, JPEGs of 500x375"


def require_published(stage, row):
    """Skip what the published stage 2 cannot load here."""
    if stage == "seg" and row.startswith("published") and importlib.util.find_spec("cv2") is None:
        pytest.skip("opencv-python-headless is not installed")


def rows_here(stage, rows):
    """Those of some rows that can run; see `require_published`."""
    has_opencv = stage == "cam" or importlib.util.find_spec("cv2") is not None
    return [row for row in rows if has_opencv or not row.startswith("published")]


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def hand_in(record, row, measured, items, **facts):
    """`record` a row of a group that is compared with the published way."""
    record(
        measured.seconds,
        row=row,
        baseline=row == "published",
        error=measured.error,
        peak=measured.peak,
        items=items,
        dtype="bfloat16" if row.endswith(" bf16") else "float32",
        images_per_second=items / median(measured.seconds),
        **facts,
    )


@cache
def steps(stage, device):
    return in_turns(STEP_ROWS, training_work.__file__, ["step", stage], device, BATCHES[stage])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("row", STEP_ROWS)
def bench_step(record, device, stage, row):
    batch, side = BATCHES[stage], SIDES[stage]
    labels = f", L{LABELS}" if stage == "seg" else ""
    hand_in(
        record,
        row,
        steps(stage, device)[row],
        batch,
        group=f"{STAGES[stage]} training, DeiT-S, batch {batch}, {side}x{side}{labels}",
        shape=[batch, 3, side, side],
        within=2e-2 if row.endswith(" bf16") else 1e-4 if IS_GPU else 1e-5,
    )


@cache
def loadings(stage, folder):
    rows = rows_here(stage, LOADING_ROWS)
    return in_turns(rows, training_work.__file__, ["loading", stage], folder)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("row", LOADING_ROWS)
def bench_loading(record, photographs, stage, row):
    """The difference is between mean colours: each way draws random numbers of its own."""
    require_published(stage, row)
    side = SIDES[stage]
    hand_in(
        record,
        row,
        loadings(stage, photographs)[row],
        PHOTOGRAPHS,
        group=f"{STAGES[stage]} loading, JPEGs of 500x375 to {side}x{side}, one core",
        shape=[3, side, side],
        cores=1,
        pictures=PICTURES,
        within=0.5,
    )


@cache
def epochs(stage, device, folder, processes):
    rows = rows_here(stage, TOGETHER_ROWS)
    return in_turns(
        rows, training_work.__file__, ["together", stage], device, BATCHES[stage], folder, EPOCH,
        processes, rounds=ROUNDS,
    )  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("row", TOGETHER_ROWS)
def bench_epoch(record, device, photographs, stage, row):
    """The difference is between mean losses: each way draws random numbers of its own."""
    require_published(stage, row)
    batch, side = BATCHES[stage], SIDES[stage]
    processes = max(1, cores_of_this_process() - 1) if IS_GPU else 1
    loaded = f"{processes} loading process{'es' if processes > 1 else ''}"
    hand_in(
        record,
        row,
        epochs(stage, device, photographs, processes)[row],
        batch * EPOCH,
        group=f"{STAGES[stage]} loading and steps, DeiT-S, batch {batch}, {side}x{side}, {loaded}",
        shape=[batch, 3, side, side],
        processes=processes,
        pictures=PICTURES,
        within=0.5,
    )
