"""Scores of label maps, all from one confusion matrix over the data set.

Source: reference.md 29 and 53; PASCAL VOC (Everingham et al. 2010), section 4.2.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import torch

from weaktr import processes
from weaktr.data.classes import IGNORE, NUMBERED
from weaktr.messages import few
from weaktr.ops import confusion

log = logging.getLogger("weaktr")
T = TypeVar("T")


class NothingToScore(ValueError):
    """No true mask has a pixel of a known label."""


class NothingDecided(NothingToScore):
    """No mask that is to be scored has a label where the truth has one."""


class ConfusionSum:
    """Adds up the confusion matrices of many images.

    Args:
        num_labels: L, background included.

    Attributes:
        matrix: int64 [L, L + 1], rows = truth, columns = prediction; the last column counts the
            pixels that the prediction leaves undecided (255). These are in the truth of their label
            and in the prediction of none, so they are wrong.
        ignored: pixels that the truth does not count (255).
        images: how many were counted.
    """

    def __init__(self, num_labels: int) -> None:
        self.num_labels = num_labels
        self.matrix = np.zeros((num_labels, num_labels + 1), np.int64)
        self.ignored = self.images = 0

    @property
    def undecided(self) -> int:
        """Pixels with a known true label that the predictions leave undecided."""
        return int(self.matrix[:, -1].sum())

    @property
    def doubt(self) -> str | None:
        """What to tell where the truth has 255 in place of classes, as masks of 0 and 255 do."""
        true, predicted = self.matrix.sum(1)[1:], self.matrix.sum(0)[1:-1]
        unseen = [index + 1 for index in np.flatnonzero((predicted > 0) & (true == 0)).tolist()]
        if not unseen or self.ignored <= true.sum():
            return None
        return (
            f"no true mask shows label {few(unseen)}, which the predictions do, and of the true "
            f"masks' pixels more are {IGNORE} than of all classes together ({NUMBERED})"
        )

    def add(self, prediction: np.ndarray, truth: np.ndarray) -> None:
        """Count one image.

        Args:
            prediction: uint8 [H, W], labels; 255 = undecided.
            truth: uint8 [H, W], labels, 255 = not counted.

        Raises:
            ValueError: a value that is neither a label nor 255.
        """
        for what, labels in (("prediction", prediction), ("truth", truth)):
            if ((labels >= self.num_labels) & (labels != IGNORE)).any():
                raise ValueError(f"{what}: expected labels below {self.num_labels} or {IGNORE}")
        known = torch.from_numpy(np.ascontiguousarray(truth))
        columns = np.where(prediction == IGNORE, self.num_labels, prediction)
        counts = confusion(torch.from_numpy(columns), known, self.num_labels + 1)
        self.matrix += counts[:-1].numpy()
        self.ignored += int((truth == IGNORE).sum())
        self.images += 1

    def add_processes(self) -> None:
        """Count what the other processes of the run have counted too."""
        self.ignored = int(processes.total(torch.tensor([self.ignored])))
        self.matrix, self.images = _of_processes(self.matrix, self.images)


def _of_processes(counts: np.ndarray, images: int) -> tuple[np.ndarray, int]:
    """Counts int64 [...] and images of all processes, from those of each."""
    own = torch.from_numpy(np.append(counts, np.int64(images)))
    every = processes.total(own).numpy()
    return every[:-1].reshape(counts.shape), int(every[-1])


@dataclass(frozen=True)
class Scores:
    """Everything in percent; arrays are [L] with NaN where the divisor of a label is 0.

    T, P, TP: pixels of a label in the truth, in the prediction, in both; union = T + P - TP.

    Args:
        iou: TP / union of each label; NaN = absent from truth and prediction, 0 = predicted but
            absent from the truth.
        false_positives: (P - TP) / union of each label.
        false_negatives: (T - TP) / union of each label.
        precisions: TP / P of each label.
        recalls: TP / T of each label.
        pixel_accuracy: share of pixels that are right.
        images: how many images were scored.
    """

    iou: np.ndarray
    false_positives: np.ndarray
    false_negatives: np.ndarray
    precisions: np.ndarray
    recalls: np.ndarray
    pixel_accuracy: float
    images: int

    @property
    def miou(self) -> float:
        """Mean of `iou` without the NaN."""
        return float(np.nanmean(self.iou))

    @property
    def false_positive(self) -> float:
        """Mean of `false_positives` without the NaN."""
        return float(np.nanmean(self.false_positives))

    @property
    def false_negative(self) -> float:
        """Mean of `false_negatives` without the NaN."""
        return float(np.nanmean(self.false_negatives))

    @property
    def precision(self) -> float:
        """Mean of `precisions` without the NaN."""
        return float(np.nanmean(self.precisions))

    @property
    def recall(self) -> float:
        """Mean of `recalls` without the NaN (the mean accuracy of mmseg)."""
        return float(np.nanmean(self.recalls))


def scores(total: ConfusionSum) -> Scores:
    """Scores of a summed confusion matrix.

    Raises:
        NothingToScore: nothing was counted.
        NothingDecided: nothing but undecided pixels.
    """
    matrix = total.matrix.astype(np.float64)
    if not matrix.sum():
        raise NothingToScore(
            "expected at least one pixel with a known true label, got none in the true masks of "
            f"{total.images} images ({IGNORE} is not counted)"
        )
    if not matrix[:, :-1].any():
        raise NothingDecided(
            "expected a label at one known pixel at least, got only undecided pixels in the masks "
            f"of {total.images} images ({IGNORE} is no label)"
        )
    hit, truth, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)[:-1]
    union = truth + predicted - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        return Scores(
            iou=100 * hit / union,
            false_positives=100 * (predicted - hit) / union,
            false_negatives=100 * (truth - hit) / union,
            precisions=100 * hit / predicted,
            recalls=100 * hit / truth,
            pixel_accuracy=float(100 * hit.sum() / matrix.sum()),
            images=total.images,
        )


def scored(score: Callable[[], T], what: str) -> T | None:
    """What `score` returns; None where there is nothing to score, which the log says of `what`."""
    try:
        return score()
    except NothingToScore as error:
        log.warning("%s: not scored: %s", what, error)
        return None


class Confused(NamedTuple):
    """Pixels of one label that were taken for another.

    Args:
        truth, predicted: labels; a `predicted` of L = undecided.
        pixels: how many.
        share: of the true label's pixels, in percent.
    """

    truth: int
    predicted: int
    pixels: int
    share: float


def confused_pairs(matrix: np.ndarray, count: int) -> list[Confused]:
    """The pairs of labels with the most wrong pixels, largest first.

    Args:
        matrix: int64 [L, L + 1], see `ConfusionSum`.
        count: how many pairs at most.
    """
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:count]
    pairs = [divmod(int(index), matrix.shape[1]) for index in order]
    return [
        Confused(truth, label, int(wrong[truth, label]), float(100 * wrong[truth, label] / pixels))
        for truth, label in pairs
        if wrong[truth, label] and (pixels := matrix[truth].sum())
    ]


def thresholds_of(first: float, last: float, step: float) -> np.ndarray:
    """The thresholds first, first + step, ... up to `last`, float64."""
    count = math.floor((last - first) / step + 1e-6) + 1  # steps such as 0.1 are rounded
    return np.minimum(first + step * np.arange(count), last)


class ThresholdCurve:
    """mIoU of labels from CAMs at many background thresholds at once.

    One histogram over (threshold level, truth, best class) holds every threshold's confusion
    matrix: at thresholds below its level a pixel has its best class, at the others background.

    Args:
        thresholds: ascending background scores.
        num_labels: L.

    Attributes:
        images: how many were counted.
    """

    def __init__(self, thresholds: np.ndarray, num_labels: int) -> None:
        self.thresholds = thresholds.astype(np.float32)
        self.num_labels = num_labels
        self._counts = np.zeros((len(thresholds) + 1, num_labels, num_labels), np.int64)
        self.images = 0

    def counts(self, cams: np.ndarray, classes: Sequence[int], truth: np.ndarray) -> np.ndarray:
        """The histogram of one image, for `add`; for threads.

        Args:
            cams: float32 [K, H, W] in [0, 1].
            classes: the K class indices.
            truth: uint8 [H, W], labels, 255 = not counted.

        Returns:
            int64 [T + 1, L, L].
        """
        best = np.zeros(truth.shape, np.int64)
        level = np.zeros(truth.shape, np.int64)
        if len(classes):
            best = np.array([index + 1 for index in classes])[cams.argmax(0)]
            level = np.searchsorted(self.thresholds, cams.max(0), side="left")
        known = truth != 255
        key = (level * self.num_labels + truth) * self.num_labels + best
        counts = np.bincount(key[known], minlength=self._counts.size)
        return counts.reshape(self._counts.shape)

    def add(self, counts: np.ndarray) -> None:
        """Count one image, by its `counts`."""
        self._counts += counts
        self.images += 1

    def add_processes(self) -> None:
        """Count what the other processes of the run have counted too."""
        self._counts, self.images = _of_processes(self._counts, self.images)

    def scores(self) -> list[Scores]:
        """The scores at each threshold."""
        below = self._counts.cumsum(0)
        curve = []
        for index in range(len(self.thresholds)):
            total = ConfusionSum(self.num_labels)
            total.matrix[:, :-1] = below[-1] - below[index]
            total.matrix[:, 0] += below[index].sum(1)
            total.images = self.images
            curve.append(scores(total))
        return curve

    @staticmethod
    def overlaps(counts: np.ndarray) -> np.ndarray:
        """int64 [T, 3, L] of `counts`: at each threshold the pixels of each label in both truth and
        labels, in the truth, and in the labels; what `weaktr.evaluation.bootstrap` takes of an
        image.
        """
        below = counts.cumsum(0)
        at = below[-1] - below[:-1]
        at[:, :, 0] += below[:-1].sum(2)
        return np.stack([np.diagonal(at, axis1=1, axis2=2), at.sum(2), at.sum(1)], 1)

    def best(self) -> tuple[float, Scores]:
        """The best threshold over the whole curve (no early stop) and its scores.

        Raises:
            NothingToScore: nothing was counted.
        """
        curve = self.scores()
        index = int(np.argmax([point.miou for point in curve]))
        return float(f"{self.thresholds[index]:.7g}"), curve[index]  # digits of float32
