"""From JPEG files to mask PNGs: labelling and prediction as a whole, beside the published way.

Every row has a process of its own (`label_work.py`), and the rows of a group run in turns. The
last group times the parts of `weaktr label` one by one, so that their sum explains the whole.
"""

import csv
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import label_work
import numpy as np
import pytest
import torch
from crf_work import photographs
from PIL import Image
from turns import Process

from weaktr.data.parallel import usable_cores

#: row -> CPU cores (0 = all), and the largest share of pixels that may differ from the first row's.
ROWS = {
    "weaktr": (0, 0.0),
    "weaktr, one core": (1, 1e-3),
    "weaktr bf16": (0, 0.05),
    "published": (0, 1e-3),
}
#: work -> what its group is called.
WORK = {
    "cams": "labelling, JPEG to PNG, DeiT-S, 500x375, 2 scales and flip, CRF",
    "cams no CRF": "labelling, JPEG to PNG, DeiT-S, 500x375, 2 scales and flip, no CRF",
    "predict": "prediction, JPEG to PNG, DeiT-S, 500x375, 2 scales and flip, CRF",
}


class Measured(NamedTuple):
    """What was measured of a row."""

    seconds: list[float]
    peak: float | None  #: MiB, of the whole process
    error: float  #: share of pixels with another label than in the first row
    #: on a CPU, of its CAMs: 10⁹ operations a photograph, and a second of a bare product
    products: dict[str, float]


def write_photographs(folder: Path, count: int) -> str:
    """JPEGs of 500x375 with two classes each, and labels.csv; returns what they are.

    From the 25th on they are the first ones, rolled by some pixels.
    """
    what, pictures = photographs(min(count, 24))
    with open(folder / "labels.csv", "w", newline="", encoding="utf-8") as file:
        for number in range(count):
            turns, index = divmod(number, len(pictures))
            picture = np.roll(pictures[index], 8 * turns, 1)
            Image.fromarray(picture).save(folder / f"{number:03}.jpg", quality=90)
            csv.writer(file).writerow([f"{number:03}.jpg", "3;14"])
    return what


def read_masks(folder: Path) -> list[np.ndarray]:
    """The masks of a run, which are deleted."""
    masks = [np.array(Image.open(path)) for path in sorted((folder / "masks").glob("*.png"))]
    shutil.rmtree(folder)
    return masks


def rows_of(work: str) -> list[str]:
    """The rows that can run here: the published way's CRF is pydensecrf."""
    is_there = find_spec("pydensecrf") is not None or work.endswith("no CRF")
    return [row for row in ROWS if is_there or row != "published"]


@cache
def in_turns(work: str, device: str, photos: Path, rounds: int) -> dict[str, Measured]:
    """Run every row in turns."""
    kind, _, rest = work.partition(" ")
    processes = {}
    for row in rows_of(work):
        cores = ROWS[row][0]
        arguments = (kind, f"{row} {rest}", device, cores or torch.get_num_threads(), photos)
        processes[row] = Process(label_work.__file__, *arguments)
    for process in processes.values():
        process.ask("first")
    answers: dict[str, list[dict]] = {row: [] for row in ROWS}
    for _ in range(rounds):
        for row, process in processes.items():
            answers[row].append(process.ask("again"))
    products = {
        row: process.ask("products")
        if kind == "cams" and device == "cpu" and "weaktr" in row
        else {}
        for row, process in processes.items()
    }
    for process in processes.values():
        process.end()
    folders = {row: [Path(a["masks"]) for a in own] for row, own in answers.items()}
    masks = {row: [read_masks(folder) for folder in own] for row, own in folders.items()}
    right = masks["weaktr"][0]
    return {
        row: Measured(
            [a["seconds"] for a in own],
            own[-1]["peak"],
            float(np.mean([(x != y).mean() for x, y in zip(masks[row][0], right, strict=True)])),
            products[row],
        )
        for row, own in answers.items()
    }


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    write_photographs(folder, 12 if request.config.getoption("--all-cells") else 6)
    return folder


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("work", WORK)
def bench_label(record, request, device, photos, work, row):
    everything = request.config.getoption("--all-cells")
    if work != "cams" and not everything:
        pytest.skip("with --all-cells")
    if row not in rows_of(work):
        pytest.skip("pydensecrf2 is not installed")
    measured = in_turns(work, device, photos, 3 if everything else 2)[row]
    count, facts = len(list(photos.glob("*.jpg"))), dict(measured.products)
    if facts:
        least = facts["gigaflops"] / facts["rate"]
        facts["share_of_products"] = least * count / float(np.median(measured.seconds))
    record(
        measured.seconds,
        group=WORK[work],
        row=row,
        baseline=row == "published",
        error=measured.error,
        within=ROWS[row][1],
        peak=measured.peak,
        items=count,
        dtype="bfloat16" if "bf16" in row else "float32",
        pictures=photographs(1)[0],
        **facts,
    )


#: row -> threads.
READING = {"one thread": 1, "a thread a core": usable_cores()}


@pytest.mark.parametrize("row", READING)
def bench_label_reading(record, device, photos, row):
    """Whether threads are enough: Pillow decodes and resizes without Python's lock."""
    samples, source = 8 * label_work.read_samples(photos), label_work.cam_source(device)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        with ThreadPoolExecutor(READING[row]) as pool:
            list(pool.map(source.read, samples))
        seconds.append(time.perf_counter() - start)
    record(
        seconds[1:],
        group="labelling, read and resize alone",
        row=row,
        baseline=row == "one thread",
        error=0.0,
        within=0.0,
        items=len(samples),
        dtype="float32",
        pictures=photographs(1)[0],
    )


@cache
def parts_in_turns(device: str, photos: Path) -> dict[str, list[float]]:
    """Seconds of each part of ``weaktr label``, one after the other."""
    threads = torch.get_num_threads()
    process = Process(label_work.__file__, "parts", "weaktr", device, threads, photos)
    process.ask("first")
    rounds = [process.ask("again")["parts"] for _ in range(2)]
    process.end()
    return {part: [each[part] for each in rounds] for part in rounds[0]}


@pytest.mark.parametrize("row", label_work.PARTS)
def bench_label_parts(record, device, photos, row):
    record(
        parts_in_turns(device, photos)[row],
        group="labelling, DeiT-S, 500x375, its parts one by one",
        row=row,
        error=0.0,
        within=0.0,
        items=len(list(photos.glob("*.jpg"))),
        dtype="float32",
    )
