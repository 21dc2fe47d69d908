"""Scores of label maps, all from one confusion matrix over the data set.

Source: reference.md 29 and 53; PASCAL VOC (Everingham et al. 2010), section 4.2.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weaktr.ops import confusion


class ConfusionSum:
    """Adds up the confusion matrices of many images.

    Args:
        num_labels: L, background included.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.matrix = np.zeros((num_labels, num_labels), np.int64)
        self.images = 0

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one image.

        Args:
            prediction: uint8 [H, W], labels; 255 (undecided) counts as background.
            truth: uint8 [H, W], labels, 255 = not counted.
        """
        decided = torch.from_numpy(np.where(prediction == 255, 0, prediction))
        known = torch.from_numpy(np.ascontiguousarray(truth))
        self.matrix += confusion(decided, known, self.num_labels).numpy()
        self.images += 1


@dataclass(frozen=True)
class Scores:
    """Everything in percent; per-class arrays are [L] with NaN where the class does not occur.

    Args:
        iou: TP / (T + P - TP) of each label; NaN = absent from truth and prediction, 0 =
            predicted but absent from the truth.
        miou: mean of `iou` without the NaN.
        false_positive: mean of (P - TP) / union.
        false_negative: mean of (T - TP) / union.
        precision: mean of TP / P.
        recall: mean of TP / T (the mean accuracy of mmseg).
        pixel_accuracy: share of pixels that are right.
        images: how many images were scored.
    """

    iou: np.ndarray
    miou: float
    false_positive: float
    false_negative: float
    precision: float
    recall: float
    pixel_accuracy: float
    images: int


def scores(counted: ConfusionSum) -> Scores:
    """Scores of a summed confusion matrix.

    Raises:
        ValueError: nothing was counted.
    """
    matrix = counted.matrix.astype(np.float64)
    if not matrix.sum():
        raise ValueError("scores: expected at least one pixel with a known true label, got none")
    hit, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = truth + predicted - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = 100 * hit / union
        return Scores(
            iou=iou,
            miou=float(np.nanmean(iou)),
            false_positive=float(100 * np.nanmean((predicted - hit) / union)),
            false_negative=float(100 * np.nanmean((truth - hit) / union)),
            precision=float(100 * np.nanmean(hit / predicted)),
            recall=float(100 * np.nanmean(hit / truth)),
            pixel_accuracy=float(100 * hit.sum() / matrix.sum()),
            images=counted.images,
        )


def score_pairs(pairs: Iterable[tuple[np.ndarray, np.ndarray]], num_labels: int) -> Scores:
    """Scores of (prediction, truth) pairs, uint8 [H, W] each."""
    total = ConfusionSum(num_labels)
    for prediction, truth in pairs:
        total.add(prediction, truth)
    return scores(total)


class ThresholdCurve:
    """mIoU of labels from CAMs at many background thresholds at once.

    One histogram over (threshold level, truth, best class) holds every threshold's confusion
    matrix: a pixel is its best class below its level and background from there on.

    Args:
        thresholds: ascending background scores.
        num_labels: L.
    """

    def __init__(self, thresholds: np.ndarray, num_labels: int) -> None:
        self.thresholds = thresholds.astype(np.float32)
        self.num_labels = num_labels
        self._counts = np.zeros((len(thresholds) + 1, num_labels, num_labels), np.int64)
        self._images = 0

    def add(self, cams: np.ndarray, classes: Sequence[int], truth: np.ndarray) -> None:
        """Count one image.

        Args:
            cams: float32 [K, H, W] in [0, 1].
            classes: the K class indices.
            truth: uint8 [H, W], labels, 255 = not counted.
        """
        best = np.zeros(truth.shape, np.int64)
        level = np.zeros(truth.shape, np.int64)
        if len(classes):
            best = np.array([index + 1 for index in classes])[cams.argmax(0)]
            level = np.searchsorted(self.thresholds, cams.max(0), side="left")
        known = truth != 255
        key = (level * self.num_labels + truth) * self.num_labels + best
        counts = np.bincount(key[known], minlength=self._counts.size)
        self._counts += counts.reshape(self._counts.shape)
        self._images += 1

    def scores(self) -> list[Scores]:
        """The scores at each threshold."""
        below = self._counts.cumsum(0)
        found = []
        for index in range(len(self.thresholds)):
            total = ConfusionSum(self.num_labels)
            total.matrix = below[-1] - below[index]
            total.matrix[:, 0] += below[index].sum(1)
            total.images = self._images
            found.append(scores(total))
        return found

    def best(self) -> tuple[float, Scores]:
        """The best threshold over the whole curve (no early stop) and its scores.

        Raises:
            ValueError: nothing was counted.
        """
        found = self.scores()
        index = int(np.argmax([entry.miou for entry in found]))
        return round(float(self.thresholds[index]), 6), found[index]
