"""Label probabilities -> masks, refined; on the model's device.

Source: reference.md 51.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from weaktr.config import PredictConfig
from weaktr.data import Sample
from weaktr.data.photographs import read_photograph, reduced
from weaktr.inference.pipeline import MIB
from weaktr.inference.probabilities import (
    SegInputs,
    for_prediction,
    patch_features,
    probabilities,
    seg_inputs,
    sum_over_labels,
    windows_in_a_pass,
)
from weaktr.inference.results import (
    FINITE,
    MEAN_SCORES,
    LabelMaps,
    hand_over,
    is_finite,
    mean_scores,
)
from weaktr.inference.timeline import Steps, Timeline
from weaktr.models import Segmenter
from weaktr.models.memory import is_out_of_memory
from weaktr.ops.upload import upload
from weaktr.refine import Maps, Refiner, choose_refiners, needs_features, refine
from weaktr.refine.maps import best_labels

log = logging.getLogger("weaktr")

#: Least sum of the probabilities of the labels that are possible, where all others are certain.
LEAST = 1e-30
#: Bytes of the probabilities of the photographs of a batch, and how many they are at most.
BATCH_BYTES, MOST_IMAGES = 256 * MIB, 16


class Predictor:
    """Masks by a stage-2 model: what a pipeline of photographs needs.

    Args:
        model: in eval mode, on its device.
        settings: see `PredictConfig`.
        given_classes: only background and the classes of a sample's image-level labels are
            possible, where it has such labels.

    Raises:
        ValueError: settings that do not fit the model, see `for_prediction`.
    """

    def __init__(
        self, model: Segmenter, settings: PredictConfig, *, given_classes: bool = False
    ) -> None:
        self.model, self.settings = for_prediction(model, settings), settings
        self.given_classes = given_classes
        self._passes = settings  #: with as large a `window_batch` as the memory has held
        self.refiners = choose_refiners(settings)
        self.device = next(model.parameters()).device

    def read(self, sample: Sample) -> SegInputs:
        """Read a photograph and scale it; called in several threads.

        Raises:
            DataError: it cannot be read.
        """
        photograph = read_photograph(sample, self.settings.max_side)
        return seg_inputs(sample, photograph, self.settings, self.device)

    def inputs(self, sample: Sample, pixels: np.ndarray) -> SegInputs:
        """The inputs of a photograph in memory, uint8 [H, W, 3]."""
        photograph = reduced(pixels, self.settings.max_side)
        return seg_inputs(sample, photograph, self.settings, self.device)

    def fits(self, batch: Sequence[SegInputs], further: SegInputs) -> bool:
        """Whether a further photograph may join a batch; on a CPU each goes by itself."""
        if self.device.type == "cpu":
            return False
        pixels = sum(one.photograph.pixels[..., 0].size for one in (*batch, further))
        return len(batch) < MOST_IMAGES and 4 * self.model.num_labels * pixels <= BATCH_BYTES

    def probabilities(self, batch: Sequence[SegInputs]) -> list[Tensor]:
        """See `weaktr.inference.probabilities`. On a CPU each photograph goes by itself, so that
        its result does not depend on its neighbours.

        A photograph that does not fit the memory alone goes through it in smaller `window_batch`es,
        and so do those after it.
        """
        if self.device.type == "cpu" and len(batch) > 1:
            return [scores for one in batch for scores in self.probabilities([one])]
        try:
            return probabilities(self.model, batch, self._passes)
        except (MemoryError, RuntimeError) as error:
            count = windows_in_a_pass(self.model, self._passes)
            if len(batch) > 1 or not is_out_of_memory(error):
                raise
            if count == 1:
                self._passes = self.settings  # it was not for the windows
                raise
        self._passes = replace(self._passes, window_batch=(count + 1) // 2)
        log.warning(
            "the memory does not hold %d windows at a time: %d from now on, which is slower; "
            "window_batch=%d saves the attempts", count, (count + 1) // 2, (count + 1) // 2,
        )  # fmt: skip
        return self.probabilities(batch)

    @torch.inference_mode()
    def label_maps(
        self,
        batch: Sequence[SegInputs],
        *,
        emit: Collection[str] = (),
        timeline: Timeline | None = None,
    ) -> list[LabelMaps]:
        """Masks of a batch.

        Args:
            batch: photographs from `read`.
            emit: "scores": also the `probabilities` before refinement, float32 [L, h, w].
            timeline: gets the seconds of the steps.

        Returns:
            Maps "plain" and "refined", uint8 [h, w] labels.
        """
        total = sum_over_labels(self.model, self.settings)
        steps = Steps(self.device, timeline)
        with steps.step("windows"):
            scores = self.probabilities(batch)
            for one, own in zip(batch, scores, strict=True):
                if self.given_classes and one.sample.labels is not None:
                    possible = {0, *(index + 1 for index in one.sample.labels)}
                    others = [label for label in range(len(own)) if label not in possible]
                    own.index_fill_(0, upload(torch.tensor(others).long(), self.device), 0)
                    own.mul_(total / own.sum(0).clamp_min(LEAST))  # or all look alike to the CRF
            plain, best = zip(*map(best_labels, scores), strict=True)
        with steps.step("refinement"):
            refined = list(plain)
            if self.refiners:
                images = [upload(one.image, self.device) for one in batch]
                given = [
                    Maps(labels, len(own), own, name=one.sample.name, size=one.photograph.size)
                    for one, labels, own in zip(batch, plain, scores, strict=True)
                ]
                if needs_features(self.refiners):
                    given = [
                        own._replace(features=patch_features(self.model, one, self.settings))
                        for one, own in zip(batch, given, strict=True)
                    ]
                refined = refined_labels(self.refiners, images, given)
        maps = [
            {
                "plain": before,
                "refined": after,
                FINITE: is_finite(highest),
                MEAN_SCORES: mean_scores(after, own) / total,  # probabilities
            }
            for before, after, highest, own in zip(plain, refined, best, scores, strict=True)
        ]
        if "scores" in emit:
            maps = [own | {"scores": one} for own, one in zip(maps, scores, strict=True)]
        rows = [(one.sample, one.photograph, None, None) for one in batch]
        return hand_over(rows, maps)


@torch.inference_mode()
def refined_labels(
    refiners: Sequence[Refiner],
    images: Sequence[Tensor],
    maps: Sequence[Maps],
) -> list[Tensor]:
    """Refine among the labels that occur in each image before it.

    Args:
        refiners: from `choose_refiners`.
        images: uint8 [h, w, 3] each, on one device.
        maps: of each, with the scores of all L labels.

    Returns:
        uint8 [h, w] of each.
    """
    occurs = torch.stack([_occurring(one.labels, one.num_labels) for one in maps]).tolist()
    given = []
    present = [[label for label, there in enumerate(row) if there] for row in occurs]
    for own, one in zip(present, maps, strict=True):
        assert one.scores is not None
        place = torch.zeros(256, dtype=torch.uint8)
        place[own] = torch.arange(len(own), dtype=torch.uint8)
        compact = upload(place, one.labels.device)[one.labels.long()]
        chosen = one.scores.index_select(0, upload(torch.tensor(own), one.labels.device))
        given.append(
            one._replace(
                labels=compact,
                num_labels=len(own),
                scores=chosen,
                has_background=0 in own,
                file_labels=tuple(own),
            )
        )
    refined = refine(refiners, images, given)
    return [
        upload(torch.tensor(own, dtype=torch.uint8), new.labels.device)[new.labels.long()]
        for own, new in zip(present, refined, strict=True)
    ]


def _occurring(labels: Tensor, num_labels: int) -> Tensor:
    """Which labels occur: uint8 [L] of 0 and 1, found without waiting for the device."""
    occurs = torch.zeros(num_labels, dtype=torch.uint8, device=labels.device)
    return occurs.index_fill_(0, labels.flatten().long(), 1)
