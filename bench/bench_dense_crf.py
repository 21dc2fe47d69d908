"""`dense_crf` on the CPU beside pydensecrf: photographs of 500 x 375.

A cell is one of four settings with 2, 4 or 21 labels. Its implementations take turns, picture by
picture, so that whatever else the machine does meets all of them; no lattice of positions is kept
from picture to picture. `--all-cells` adds 81 labels and rounds.
"""

from __future__ import annotations

from functools import lru_cache
from time import perf_counter
from typing import NamedTuple

import numpy as np
import pytest
import torch
from conftest import largest_difference
from crf_work import (
    HEIGHT,
    WIDTH,
    Problem,
    Solve,
    forget_positions,
    peaks,
    photographs,
    smooth_problem,
    solver,
)

from weaktr.ops.dense_crf.presets import PRESETS

SETTINGS = ("voc_cam", "coco_cam", "voc_seg", "coco_seg")
ROWS = ("cpu", "torch", "pydensecrf")
QUICK_LABELS, QUICK_ROUNDS = (2, 4, 21), 3
ALL_LABELS, ALL_ROUNDS = (2, 4, 21, 81), 7
#: Largest difference from the definition, and how many values may differ more, up to `ANYWHERE`:
#: where two labels are balanced to the last bits, mean field multiplies what rounding leaves.
WITHIN, FEW, ANYWHERE = 1e-4, 1e-5, 1e-2
#: Smallest share of pixels that get the label which pydensecrf finds.
AGREEMENT = 0.999
#: The batch, on one thread and on two.
BATCH, BATCH_CELL, BATCH_ROWS = 20, ("voc_cam", 4), ("cpu", "cpu x2")


class Turns(NamedTuple):
    """What came of a cell's rounds: times and largest differences."""

    seconds: dict[str, list[float]]  #: by row
    facts: dict[str, dict[str, float]]  #: by row: see `compare`
    pictures: str


def available(rows: tuple[str, ...]) -> dict[str, Solve]:
    """The implementations that are installed."""
    solvers = {}
    for row in rows:
        try:
            solvers[row] = solver(row)
        except ImportError:
            continue
    return solvers


def timed_turn(solve: Solve, problems: list[Problem], preset: str) -> tuple[float, list]:
    """Seconds of one call, and its marginals."""
    forget_positions(solve, preset, len(problems[0].unary))
    start = perf_counter()
    marginals = solve(problems, preset)
    return perf_counter() - start, marginals


@lru_cache(maxsize=1)
def take_turns(preset: str, num_labels: int, rounds: int) -> Turns:
    """Solve `rounds` photographs, each by every implementation, on one thread."""
    rows = available(ROWS)
    kind, images = photographs(rounds + 1)
    turns = Turns({row: [] for row in rows}, {row: {} for row in rows}, kind)
    for number, image in enumerate(images):
        problems = [smooth_problem(image, num_labels, seed=number)]
        order = list(rows) if number % 2 else list(rows)[::-1]
        solved = {row: timed_turn(rows[row], problems, preset) for row in order}
        compare({row: marginals[0] for row, (_, marginals) in solved.items()}, turns)
        for row, (seconds, _) in solved.items():
            if number:  # the first picture warms up
                turns.seconds[row].append(seconds)
    return turns


def compare(solved: dict[str, np.ndarray], turns: Turns) -> None:
    """Note the largest differences so far.

    error: max |Q - Q of the definition|; beyond: share of values where that is above `WITHIN`;
    from_pydensecrf: max |Q - pydensecrf's|; disagreement: share of pixels with another label.
    """
    outside = solved.get("pydensecrf")
    for row, marginals in solved.items():
        error = np.abs(marginals - solved["torch"])
        differences = {"error": error.max(), "beyond": (error > WITHIN).mean()}
        if outside is not None:
            differences["from_pydensecrf"] = np.abs(marginals - outside).max()
            differences["disagreement"] = (marginals.argmax(0) != outside.argmax(0)).mean()
        facts = turns.facts[row]
        facts.update({name: max(float(x), facts.get(name, 0.0)) for name, x in differences.items()})


@lru_cache(maxsize=3)
def cell_peaks(row: str, labels: tuple[int, ...]) -> dict[tuple[str, int], float | None]:
    """MiB at the peak of each cell, on one picture."""
    cells = [(preset, num_labels) for preset in SETTINGS for num_labels in labels]
    return dict(zip(cells, peaks(row, cells), strict=True))


@pytest.fixture(autouse=True)
def _one_thread():
    """Everything but a batch runs on one, as pydensecrf always does."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_generate_tests(metafunc):
    """Cell by cell, so that a cell's rows come from the same turns."""
    if "num_labels" in metafunc.fixturenames:
        labels = ALL_LABELS if metafunc.config.getoption("--all-cells") else QUICK_LABELS
        cells = [(p, n, row) for p in SETTINGS for n in labels for row in ROWS]
        metafunc.parametrize(("preset", "num_labels", "row"), cells)


def bench_dense_crf(record, pytestconfig, preset, num_labels, row):
    if not available((row,)):
        pytest.skip(f"{row} is not installed")
    everything = pytestconfig.getoption("--all-cells")
    peak = cell_peaks(row, ALL_LABELS if everything else QUICK_LABELS)[preset, num_labels]
    turns = take_turns(preset, num_labels, ALL_ROUNDS if everything else QUICK_ROUNDS)
    facts = turns.facts[row]
    assert facts["beyond"] <= FEW
    assert facts.get("disagreement", 0.0) <= 1 - AGREEMENT
    record(
        turns.seconds[row],
        group=f"dense_crf {WIDTH}x{HEIGHT} {preset} L{num_labels}",
        series=f"dense_crf {WIDTH}x{HEIGHT} L{num_labels}",
        row=row,
        baseline=row == "pydensecrf",
        within=ANYWHERE,
        peak=peak,
        **facts,
        pictures=turns.pictures,
        iterations=PRESETS[preset].iterations,
        dtype="float32",
    )


# ---- a batch ------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def take_batch_turns(rounds: int) -> Turns:
    """Solve a batch, no two pictures of the same size, on one thread and on two."""
    preset, num_labels = BATCH_CELL
    rows = available(BATCH_ROWS)
    kind, images = photographs(BATCH)
    parts = [image[: HEIGHT - i, : WIDTH - i].copy() for i, image in enumerate(images)]
    problems = [smooth_problem(part, num_labels, seed=i) for i, part in enumerate(parts)]
    turns = Turns({row: [] for row in rows}, {row: {} for row in rows}, kind)
    expected = solver("torch")(problems, preset)
    for number in range(rounds + 1):
        for row in list(rows) if number % 2 else list(rows)[::-1]:
            seconds, solved = timed_turn(rows[row], problems, preset)
            if number:
                turns.seconds[row].append(seconds)
            turns.facts[row]["error"] = largest_difference(solved, expected)
    return turns


@pytest.mark.parametrize("row", BATCH_ROWS)
def bench_batch(record, pytestconfig, row):
    if not available((row,)):
        pytest.skip(f"{row} is not installed")
    turns = take_batch_turns(ALL_ROUNDS if pytestconfig.getoption("--all-cells") else QUICK_ROUNDS)
    preset, num_labels = BATCH_CELL
    record(
        turns.seconds[row],
        group=f"dense_crf batch of {BATCH} around {WIDTH}x{HEIGHT} {preset} L{num_labels}",
        row=row,
        baseline=row == BATCH_ROWS[0],
        items=BATCH,
        **turns.facts[row],
        within=WITHIN,
        threads=int(row.partition(" x")[2] or 1),
        pictures=turns.pictures,
        iterations=PRESETS[preset].iterations,
        dtype="float32",
    )
