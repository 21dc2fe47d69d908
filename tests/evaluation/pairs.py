"""Scores of pairs of masks in memory."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from weaktr.evaluation.iou import ConfusionSum, Scores, scores


def score_pairs(pairs: Iterable[tuple[np.ndarray, np.ndarray]], num_labels: int) -> Scores:
    """Scores of (prediction, truth) pairs, uint8 [H, W] each."""
    total = ConfusionSum(num_labels)
    for prediction, truth in pairs:
        total.add(prediction, truth)
    return scores(total)
