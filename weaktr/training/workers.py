"""How many processes load images during a training: enough for the model, by measurement.

An image that takes t seconds to load on one core, and m seconds in the model, needs t / m
processes, or the model waits. A GPU leaves the cores to them. On a CPU they take cores from the
model: with c cores an image takes m + t / c seconds in all, so that t / (m + t / c) are enough.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import default_collate

from weaktr import processes
from weaktr.data.datasets import SeededDataset
from weaktr.data.parallel import cores_of_this_process
from weaktr.training.state import random_state, restore_random_state

log = logging.getLogger("weaktr")

#: Images that are loaded for the measurement, after one more that warms up.
MEASURED = 5
#: A GPU gets so many times the processes that it needs on average: some images take longer.
SPARE = 1.25


class Speed(NamedTuple):
    """Seconds an image."""

    loading: float  #: on one core
    model: float  #: in a training step


def processes_for(speed: Speed, device: torch.device, cores: int) -> int:
    """How many processes let loading keep up with the model, of those that `cores` allow.

    Args:
        speed: measured here.
        device: of the model.
        cores: that this training may use, >= 1.
    """
    if device.type != "cpu":
        return min(_wanted(speed), most_processes(device, cores))
    together = speed.model + speed.loading / cores
    return min(math.ceil(speed.loading / together), most_processes(device, cores))


def seconds_an_image(speed: Speed, device: torch.device, count: int | str) -> float:
    """What an image of a training takes, loading and model together.

    Args:
        speed: measured here.
        device: of the model.
        count: processes that load images, or "auto".
    """
    cores = cores_of_this_process()
    if isinstance(count, str):
        count = processes_for(speed, device, cores)
    if count == 0:
        return speed.model + speed.loading
    loading = speed.loading / count
    if device.type != "cpu":
        return max(speed.model, loading)
    return max(speed.model + speed.loading / cores, loading)


def most_processes(device: torch.device, cores: int) -> int:
    """How many processes are sensible: one core is left for the model, or for what feeds a GPU.

    A CPU with a single core has none to spare: 0 = images are loaded between the steps.
    """
    return cores - 1 if device.type == "cpu" else max(1, cores - 1)


def _wanted(speed: Speed) -> int:
    """Processes that keep up with a GPU."""
    return max(1, math.ceil(SPARE * speed.loading / speed.model))


def choose_processes(
    stage: str,
    dataset: SeededDataset,
    step: Callable[[list[Tensor]], object],
    images: int,
    device: torch.device,
    batches: int,
) -> int:
    """Measure, choose, and say so in the log.

    Where one process is the most, nothing is measured; but processes that train together all do,
    since the losses of a step may need them all.

    Args:
        stage: its name, for the log.
        dataset: what will be loaded.
        step: a training step with a batch on the device, without a change of the model.
        images: in that batch.
        device: of the model.
        batches: of an epoch; a process loads whole ones, so that more processes have nothing to do.

    Raises:
        DataError: one of the images that are loaded is missing or corrupt.
    """
    cores = cores_of_this_process()
    most = most_processes(device, cores)
    if most <= 1 and processes.count() == 1:
        log.info("%s: %s images (%d core%s)", stage, _who(most), cores, "" if cores == 1 else "s")
        return most
    speed = measured(dataset, step, images, device)
    count = min(processes_for(speed, device, cores), batches)
    times = f"{_in_ms(speed.loading)} an image on a core, the model takes {_in_ms(speed.model)}"
    if device.type != "cpu" and count == most < (wanted := _wanted(speed)):
        times += f", which {wanted} could keep up with, if there were the cores"
    log.info("%s: %s images (%s)", stage, _who(count), times)
    return count


def _who(count: int) -> str:
    """So many processes, and what they do."""
    names = {0: "no further process loads", 1: "1 process loads"}
    return names.get(count, f"{count} processes load")


def _in_ms(seconds: float) -> str:
    """Two digits, or all of a whole number."""
    value = 1000 * seconds
    return f"{value:.0f} ms" if value >= 10 else f"{value:.2g} ms"


def measured(
    dataset: SeededDataset,
    step: Callable[[list[Tensor]], object],
    images: int,
    device: torch.device,
) -> Speed:
    """Load a few images and do two steps with them; see `choose_processes`.

    All random numbers are afterwards as they were. The number of steps is fixed, since processes
    that train together must do equally many.
    """
    state = random_state()
    try:
        items, loading = _loaded(dataset)
        batch = default_collate([items[index % len(items)] for index in range(images)])
        on_device = [part.to(device) for part in batch]
        step(on_device)  # slow: memory is new and kernels are not chosen yet
        started = _now(device)
        step(on_device)
        return Speed(loading, max(_now(device) - started, 1e-9) / images)
    finally:
        restore_random_state(state)


def _loaded(dataset: SeededDataset) -> tuple[list[Any], float]:
    """Items of some samples, evenly far apart, and the median of the seconds that an item took on
    one core."""
    read = getattr(dataset, "__getitems__", lambda indices: [dataset[i] for i in indices])
    with on_one_core():
        items: list[Any] = []
        seconds = []
        for number in range(MEASURED + 1):
            image = number * len(dataset.samples) // (MEASURED + 1)
            crops = range(image * dataset.crops, (image + 1) * dataset.crops)
            started = time.perf_counter()
            items += read(crops)
            seconds.append((time.perf_counter() - started) / dataset.crops)
        return items, statistics.median(seconds[1:])


@contextmanager
def on_one_core() -> Iterator[None]:
    """Compute below with one thread, as processes that load images do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _now(device: torch.device) -> float:
    """The time at which the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
