"""All numbers of one folder of masks, counted in one pass over the images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from weaktr import processes
from weaktr.data.parallel import ordered_map
from weaktr.evaluation.bootstrap import Interval, interval, resampled_miou
from weaktr.evaluation.boundary import boundary_f
from weaktr.evaluation.iou import Confused, ConfusionSum, Scores, confused_pairs, scores

log = logging.getLogger("weaktr")

T = TypeVar("T")
#: (prediction, truth), uint8 [H, W] each.
Pair = tuple[np.ndarray, np.ndarray]
#: Length of the list of confused pairs of labels, at most.
CONFUSED = 20


class ImageCounts(NamedTuple):
    """The counts of one image."""

    matrix: np.ndarray  #: int64 [L, L + 1], see `ConfusionSum`
    ignored: int  #: likewise
    boundary: np.ndarray  #: float64 [L] boundary F-score in [0, 1], NaN where there is none


@dataclass(frozen=True)
class Evaluation:
    """Numbers of one set of masks, in percent.

    Args:
        scores: from the confusion matrix over all images.
        boundary: [L] boundary F-score, mean over the images with a boundary of that label; NaN =
            there is none.
        confused: pairs of labels with the most wrong pixels.
        resampled: [R] mIoU of bootstrap resamples of the images.
    """

    scores: Scores
    boundary: np.ndarray
    confused: list[Confused]
    resampled: np.ndarray

    @property
    def boundary_f(self) -> float:
        """Mean of `boundary` without the NaN; NaN where no label has a boundary."""
        known = self.boundary[~np.isnan(self.boundary)]
        return float(known.mean()) if len(known) else float("nan")

    @property
    def interval(self) -> Interval | None:
        """Bootstrap interval of the mIoU; None for fewer than two images."""
        return interval(self.resampled) if self.scores.images > 1 else None

    def gain_over(self, other: Evaluation) -> Interval:
        """Bootstrap interval of this mIoU minus another's on the same images."""
        return interval(self.resampled - other.resampled)


def evaluate_pairs(
    items: Iterable[T], read: Callable[[T], Pair], num_labels: int, **options: Any
) -> Evaluation:
    """Read and score pairs of masks in threads; of several processes each does its part.

    Args:
        items: what to read, in the same order for sets of masks that are to be compared.
        read: item -> (prediction, truth) of one size.
        num_labels: L, background included.
        options: ``tolerance`` of `boundary_f`.

    Raises:
        NothingToScore: no pixel with a known label.
        ValueError: what `read` raises.
    """
    total = ConfusionSum(num_labels)
    areas, of_boundary = [np.zeros((0, 3, num_labels), np.int64)], [np.zeros((0, num_labels))]

    def count(item: T) -> ImageCounts:
        return count_image(*read(item), num_labels, **options)

    if processes.count() > 1:
        items = list(items)
        number, items = len(items), processes.part(items)
    for matrix, ignored, boundary in ordered_map(count, items):
        total.matrix += matrix
        total.ignored += ignored
        total.images += 1
        areas.append(np.stack([np.diag(matrix), matrix.sum(1), matrix.sum(0)[:-1]])[None])
        of_boundary.append(boundary[None])
    per_image, boundary = np.concatenate(areas), np.concatenate(of_boundary)
    if processes.count() > 1:
        total.add_processes()
        per_image, boundary = (processes.rows_of_all(a, number) for a in (per_image, boundary))
    sums, counts = np.nan_to_num(boundary).sum(0), (~np.isnan(boundary)).sum(0)
    if total.undecided:
        share = 100 * total.undecided / total.matrix.sum()
        log.warning(
            "%d pixels (%.2f %%) are undecided in the masks (255): they count as wrong",
            total.undecided, share,
        )  # fmt: skip
    if total.doubt is not None:
        log.warning("%s", total.doubt)
    boundaries = np.divide(100 * sums, counts, out=np.full(num_labels, np.nan), where=counts > 0)
    pairs = confused_pairs(total.matrix, CONFUSED)
    return Evaluation(scores(total), boundaries, pairs, resampled_miou(per_image))


def count_image(
    prediction: np.ndarray, truth: np.ndarray, num_labels: int, **options: Any
) -> ImageCounts:
    """Counts of one image; see `ConfusionSum.add` and `boundary_f`."""
    one = ConfusionSum(num_labels)
    one.add(prediction, truth)
    return ImageCounts(
        one.matrix, one.ignored, boundary_f(prediction, truth, num_labels, **options)
    )
