"""Whether a confidence means what it says: of the pixels at 0.8, are 80 % right?

Source: Guo et al., "On calibration of modern neural networks", 2017, section 2 (reliability,
expected calibration error).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from weaktr.data.classes import IGNORE

BINS = 10


class Bin(NamedTuple):
    """Pixels of similar confidence; shares in [0, 1]."""

    low: float
    high: float
    pixels: int
    confidence: float  #: their mean; NaN where there are none
    right: float  #: the share whose label is right; NaN likewise


class Calibration:
    """Counts pixels by the confidence in their label and by whether it is right.

    Attributes:
        pixels: how many were counted.
        images: of how many images.
    """

    def __init__(self) -> None:
        self._counts = np.zeros((2, 256), np.int64)  # wrong and right, at each grey value
        self.images = 0

    @property
    def pixels(self) -> int:
        return int(self._counts.sum())

    def add(self, confidence: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> None:
        """Count one image.

        Args:
            confidence: uint8 [H, W], 255 = 1.
            labels: uint8 [H, W], the labels that it belongs to.
            truth: uint8 [H, W], 255 = not counted.
        """
        known = truth != IGNORE
        key = (labels == truth)[known].astype(np.int64) * 256 + confidence[known]
        self._counts += np.bincount(key, minlength=512).reshape(2, 256)
        self.images += 1

    def bins(self) -> list[Bin]:
        """`BINS` ranges of equal width, the last one with its upper end."""
        values = np.arange(256) / 255
        number = np.minimum((values * BINS).astype(int), BINS - 1)
        rows = []
        for index in range(BINS):
            counts = self._counts[:, number == index]
            pixels = counts.sum()
            mean = counts.sum(0) @ values[number == index] / pixels if pixels else np.nan
            right = counts[1].sum() / pixels if pixels else np.nan
            rows.append(
                Bin(index / BINS, (index + 1) / BINS, int(pixels), float(mean), float(right))
            )
        return rows

    def error(self) -> float:
        """Expected calibration error: mean over the pixels of |share right - mean confidence| of
        their bin, in [0, 1].
        """
        rows = [row for row in self.bins() if row.pixels]
        return sum(row.pixels * abs(row.right - row.confidence) for row in rows) / self.pixels

    def as_json(self) -> dict[str, Any]:
        """All numbers, for metrics.json."""
        rows = [row._asdict() for row in self.bins() if row.pixels]
        return {"images": self.images, "expected_calibration_error": self.error(), "bins": rows}
