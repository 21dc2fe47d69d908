"""The arguments and the result of a refinement."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

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

    def to(self, device: torch.device) -> Maps:
        """The same maps on a device."""
        scores, confidence, features = (
            None if x is None else x.to(device)
            for x in (self.scores, self.confidence, self.features)
        )
        labels = self.labels.to(device)
        return Maps(labels, self.num_labels, scores, confidence, features, self.name)


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


class Refiner(Protocol):
    """Redraws maps along the edges of their images.

    One that works on the patch features of the images has the attribute ``needs_features = True``.
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
            New maps of the same numbers of labels, on that device; their features and names are
            filled in by `weaktr.refine.refine`.
        """


def needs_features(refiners: Iterable[Refiner]) -> bool:
    """Whether one of the refiners works on patch features."""
    return any(getattr(refiner, "needs_features", False) for refiner in refiners)
