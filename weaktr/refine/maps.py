"""The arguments and the result of a refinement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Maps(NamedTuple):
    """The label of each pixel of an image, and the scores behind it.

    The labels are numbered 0..K-1 for this image alone; a refiner does not know their names.
    """

    labels: Tensor  #: uint8 [H, W], 0..K-1: the most likely label
    num_labels: int  #: K
    #: float32 [K, H, W] behind the labels; None after a refiner that returns labels only (the CRF
    #: of labelling)
    scores: Tensor | None = None
    #: float32 [H, W] in [0, 1]: how likely the label of each pixel is, where that was asked for
    confidence: Tensor | None = None
    #: float32 [D, h', w'] of the image's patches, for refiners with `needs_features`
    features: Tensor | None = None
    #: of the image among those of its data
    name: str | None = None
    #: (H, W) of the photograph's file, of which the maps may have a smaller one
    size: tuple[int, int] | None = None
    #: whether label 0 is the background
    has_background: bool = True
    #: what each label is in masks as files, 0 = background, k + 1 = class index k; None = the same
    file_labels: tuple[int, ...] | None = None
    #: float32 [K], how well a teacher's masks agree, where there is a teacher; NaN = no such label
    agreement: Tensor | None = None

    def to(self, device: torch.device) -> Maps:
        """The same maps on a device."""
        scores, confidence, features = (
            None if x is None else x.to(device)
            for x in (self.scores, self.confidence, self.features)
        )
        labels = self.labels.to(device)
        return self._replace(labels=labels, scores=scores, confidence=confidence, features=features)


def best_labels(scores: Tensor) -> tuple[Tensor, Tensor]:
    """The label with the highest score, of equal ones the first, and that score.

    By `Tensor.max`, whose search along the first axis is ten times as fast as that of `argmax` on a
    CPU.

    Args:
        scores: [K, H, W].

    Returns:
        uint8 [H, W], and of the scores' dtype [H, W]: NaN where a score is.
    """
    best = scores.max(0)
    return best.indices.to(torch.uint8), best.values


def scores_of_labels(labels: Tensor, num_labels: int, gt_prob: float | Tensor) -> Tensor:
    """Probabilities that stand for labels without scores.

    Args:
        labels: uint8 [H, W], 0..K-1.
        num_labels: K.
        gt_prob: of each pixel's label, one number or float [H, W]; the others share the rest.

    Returns:
        float32 [K, H, W], sums to 1.
    """
    own = gt_prob
    if not isinstance(own, Tensor):
        own = labels.new_full(labels.shape, own, dtype=torch.float32)
    others = (1 - own) / max(1, num_labels - 1)
    scores = others.expand(num_labels, *labels.shape).clone()
    return scores.scatter_(0, labels[None].long(), own[None])


class Refiner(Protocol):
    """Redraws maps along the edges of their images.

    What else one may have:
        needs_features: True = it works on `Maps.features`.
        needs_scores, gives_scores: whether there must be `Maps.scores` before it, and are after it;
            without the latter it is as before.
        among(photographs): itself for a run that has these photographs, by name; without it a file
            that may be of several of them is read for none.
        files(name): the files that it reads for an image; a change of them makes its mask again.
        paths(): the files and folders that it reads from, among which no results may lie.
        notes(): lines for the log at the end, of the images that it has refined.
    """

    def __call__(
        self,
        images: Sequence[Tensor],
        maps: Sequence[Maps],
        *,
        num_threads: int | None = None,
        confidence: bool = False,
    ) -> list[Maps]:
        """Refine a batch on the device where it is.

        Args:
            images: uint8 [H, W, 3] RGB each, of any sizes, on one device.
            maps: of each image, on the same device.
            num_threads: CPU threads to use; None = those of torch.
            confidence: fill in the new maps' confidence, too.

        Returns:
            New maps of the same numbers of labels, on that device. What is known of the image
            (features, name, ...) may be left out, `weaktr.refine.refine` fills it in.
        """


def needs_features(refiners: Iterable[Refiner]) -> bool:
    """Whether one of the refiners works on patch features."""
    return any(getattr(refiner, "needs_features", False) for refiner in refiners)


def among(refiners: Iterable[Refiner], photographs: Sequence[str]) -> list[Refiner]:
    """Refiners of a run that has these photographs, by name."""
    return [
        refiner.among(photographs) if hasattr(refiner, "among") else refiner for refiner in refiners
    ]


def files_of(refiners: Iterable[Refiner], name: str) -> tuple[Path, ...]:
    """The files from which refiners work on an image, besides its photograph."""
    return tuple(file for refiner in refiners for file in getattr(refiner, "files", _none)(name))


def paths_of(refiners: Iterable[Refiner]) -> list[Path]:
    """The files and folders that refiners read from."""
    return [path for refiner in refiners for path in getattr(refiner, "paths", _none)()]


def notes_of(refiners: Iterable[Refiner]) -> list[str]:
    """What refiners have to report of the images that they have refined."""
    return [note for refiner in refiners for note in getattr(refiner, "notes", _none)()]


def _none(*_: object) -> tuple[Any, ...]:
    return ()
