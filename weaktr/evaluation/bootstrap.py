"""How much a mIoU depends on the choice of images: the bootstrap over images.

Each resample draws as many images as there are, with replacement, and scores them. The interval
covers the choice of images only, not how much a second training would differ.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentiles).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

RESAMPLES = 1000
#: Share of resamples inside the interval, in percent.
LEVEL = 95.0
_CHUNK = 50


class Interval(NamedTuple):
    """Bounds of the middle `LEVEL` percent, in percent mIoU."""

    low: float
    high: float


def resampled_miou(per_image: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """mIoU in percent of resampled sets of images.

    Args:
        per_image: integers [N, 3, L]: the pixels of each label in both truth and prediction, in
            the truth, and in the prediction.
        resamples: how many.
        seed: with the same seed and N, the same images are drawn, so that two ways of predicting
            can be compared resample by resample.

    Returns:
        float64 [resamples]; NaN where a resample has no known pixel.
    """
    count, _, labels = per_image.shape
    rng = np.random.default_rng(seed)
    flat = per_image.reshape(count, -1).astype(np.float64)
    mious = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        drawn = rng.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)
        hit, truth, predicted = (drawn @ flat).reshape(size, 3, labels).swapaxes(0, 1)
        union = truth + predicted - hit
        occurs = union > 0
        iou = np.divide(hit, union, out=np.zeros_like(hit), where=occurs)
        with np.errstate(invalid="ignore"):
            mious.append(100 * iou.sum(1) / occurs.sum(1))
    return np.concatenate(mious)


def interval(values: np.ndarray) -> Interval:
    """The percentile interval of resampled values, NaN left out."""
    tail = (100 - LEVEL) / 2
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return Interval(float(low), float(high))
