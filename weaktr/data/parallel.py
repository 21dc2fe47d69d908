"""Work on images in threads: results in order, memory bounded, unreadable files listed."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from weaktr.data.io import read_image
from weaktr.data.manifest import Sample
from weaktr.data.problems import DataError, Problem

T = TypeVar("T")
R = TypeVar("R")

#: Threads for image files and the CRF.
THREADS = max(2, min(16, os.cpu_count() or 2))


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], threads: int = THREADS
) -> Iterator[R]:
    """``map(function, items)`` in threads, a few items ahead; errors are raised in order."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_images(
    samples: Iterable[Sample], unreadable: list[Problem]
) -> Iterator[tuple[Sample, np.ndarray]]:
    """Each sample with its image, uint8 [H, W, 3]; files that cannot be read go to `unreadable`."""

    def read(sample: Sample) -> tuple[Sample, np.ndarray | DataError]:
        try:
            return sample, read_image(sample)
        except DataError as error:
            return sample, error

    for sample, image in ordered_map(read, samples):
        if isinstance(image, DataError):
            unreadable.extend(image.problems)
        else:
            yield sample, image
