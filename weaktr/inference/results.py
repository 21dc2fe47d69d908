"""The label maps of a photograph between the model, which computes them, and the writers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weaktr.data import DataError, Problem, Sample
from weaktr.data.photographs import Photograph, enlarged
from weaktr.inference.transfer import Download

#: The map that says whether all scores behind the others are numbers (`is_finite`), and the one of
#: `mean_scores`.
FINITE, MEAN_SCORES = "finite", "mean_scores"
#: The map of `Maps.agreement`, where there is a teacher.
AGREEMENT = "agreement"


class LabelMaps(NamedTuple):
    """What a photograph's files are written from; all maps have its working size."""

    sample: Sample
    photograph: Photograph
    classes: tuple[int, ...] | None  #: class indices that were possible; None = all
    probabilities: tuple[float, ...] | None  #: of these classes, where they were predicted
    download: Download  #: of the maps of a batch
    names: tuple[str, ...]  #: "plain", "refined", `FINITE`, then what else was asked for
    first: int  #: where its maps begin in `download`

    @property
    def nbytes(self) -> int:
        """Bytes of its maps and pixels."""
        return self.photograph.pixels.nbytes + self.download.nbytes_of(self.first, len(self.names))

    def arrays(self) -> dict[str, np.ndarray]:
        """Its maps by name; waits until they are on the host.

        Raises:
            DataError: see `problem`.
        """
        if (problem := self.problem()) is not None:
            raise DataError(problem)
        return self._maps()

    def problem(self) -> Problem | None:
        """Of an image whose scores are NaN or infinite, so that no map means anything."""
        if self._maps()[FINITE]:
            return None
        message = "the model's scores of it are NaN or infinite; try amp=none"
        return Problem(str(self.sample.image), self.sample.source, message)

    def _maps(self) -> dict[str, np.ndarray]:
        own = self.download.arrays()[self.first : self.first + len(self.names)]
        return dict(zip(self.names, own, strict=True))

    def mask(self, kind: str = "refined") -> np.ndarray:
        """Labels uint8 [H, W] of the file, k + 1 = class index k; `kind` may also be "plain".

        Raises:
            DataError: see `arrays`.
        """
        return enlarged(self._labels()[self.arrays()[kind]], self.photograph.size)

    def confidence(self) -> dict[int, float] | None:
        """Label -> mean score of its pixels in the refined mask; None = they are not known.

        Raises:
            DataError: see `arrays`.
        """
        return self._by_label(MEAN_SCORES)

    def agreement(self) -> dict[int, float] | None:
        """Label -> how well the teacher's mask agrees; None = there is no teacher for it.

        Raises:
            DataError: see `arrays`.
        """
        return self._by_label(AGREEMENT)

    def _by_label(self, name: str) -> dict[int, float] | None:
        """Label -> its value in a map of a number for each label; NaN = it has none."""
        values = self.arrays().get(name)
        if values is None:
            return None
        labels, known = self._labels(), np.flatnonzero(~np.isnan(values))
        return {int(labels[i]): round(float(values[i]), 4) for i in known}

    def _labels(self) -> np.ndarray:
        """What the values of its maps are in the file, uint8 [256]."""
        values = np.arange(256, dtype=np.uint8)
        if self.classes is not None:
            values[1 : len(self.classes) + 1] = np.array(self.classes, np.uint8) + 1
        return values


def is_finite(scores: Tensor) -> Tensor:
    """Whether all are numbers, as uint8 [] on their device, which the host does not wait for."""
    return scores.isfinite().all().to(torch.uint8)


def mean_scores(labels: Tensor, scores: Tensor) -> Tensor:
    """The mean score that the pixels of each label have for it; the host does not wait.

    Args:
        labels: uint8 [h, w], 0..L-1; other values, such as 255, are left out.
        scores: float [L, h, w] on the same device.

    Returns:
        float32 [L] on their device; NaN of a label that does not occur.
    """
    count, values = len(scores), labels.long()
    own = scores.gather(0, values.clamp_max(count - 1)[None])[0].double()
    bins = values.clamp_max(count)  # the last one gets what is no label
    # a bin for each column of the image: many threads of a GPU that add to one wait for each other
    empty = own.new_zeros(count + 1, labels.shape[1])
    sums = empty.scatter_add(0, bins, own).sum(1)
    pixels = empty.scatter_add(0, bins, torch.ones_like(own)).sum(1)
    return (sums / pixels)[:count].float()


def hand_over(
    rows: Sequence[tuple[Sample, Photograph, tuple[int, ...] | None, tuple[float, ...] | None]],
    maps: Sequence[dict[str, Tensor]],
) -> list[LabelMaps]:
    """Start one copy of all maps to the host.

    Args:
        rows: of each photograph the first four fields of its `LabelMaps`.
        maps: of each photograph its maps by name, on one device.
    """
    download = Download([one for own in maps for one in own.values()])
    results, first = [], 0
    for row, own in zip(rows, maps, strict=True):
        results.append(LabelMaps(*row, download, tuple(own), first))
        first += len(own)
    return results
