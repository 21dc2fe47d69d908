"""The dense CRF as a refinement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from torch import Tensor

from weaktr.config import LabelConfig, PredictConfig
from weaktr.ops.dense_crf import device_of_crf
from weaktr.ops.dense_crf.checks import shared_kernels
from weaktr.ops.dense_crf.presets import PRESETS, DenseCRF
from weaktr.refine.maps import Maps, best_labels

#: What the settings of a recipe may be. Smaller deviations spread the pixels of a photograph too
#: far for the lattice (`weaktr.ops.dense_crf`).
DEVIATIONS, MOST_COMPAT = (0.01, 1e5), 1e6
#: What a CRF may start from.
STARTS = ("labels", "scores")
FIELDS = tuple(field.name for field in fields(DenseCRF))


@dataclass(frozen=True)
class CrfRefiner:
    """A dense CRF over the labels of each image; images with one label are not changed.

    Args:
        crf: its settings.
        gt_prob: confidence in the labels, in (0, 1), from which the CRF then starts. None: it
            starts from the scores, as probabilities.

    Source: reference.md 32 (from labels), 51 (from probabilities).
    """

    crf: DenseCRF
    gt_prob: float | None = None

    @property
    def needs_scores(self) -> bool:
        """Whether it starts from scores, and gives some."""
        return self.gt_prob is None

    @property
    def gives_scores(self) -> bool:
        """See `needs_scores`."""
        return self.gt_prob is None

    def __call__(
        self,
        images: Sequence[Tensor],
        maps: Sequence[Maps],
        *,
        num_threads: int | None = None,
        confidence: bool = False,
    ) -> list[Maps]:
        """See `weaktr.refine.maps.Refiner`.

        Raises:
            ValueError: no scores where `gt_prob` is None.
        """
        refined = list(maps)
        indices = [index for index, own in enumerate(maps) if own.num_labels > 1]
        if not indices:
            return refined
        device = device_of_crf(images[0].device)
        own_images = [images[index].to(device) for index in indices]
        own_maps = [self._used(maps[index]).to(device) for index in indices]
        counts = [own.num_labels for own in own_maps]
        if self.gt_prob is not None:
            refined_labels = self.crf.refine_labels(
                own_images,
                [own.labels for own in own_maps],
                counts,
                gt_prob=self.gt_prob,
                confidence=confidence,
                num_threads=num_threads,
            )
            labels, shares = (
                refined_labels if confidence else (refined_labels, [None] * len(counts))
            )
            results = [
                Maps(*one[:2], confidence=one[2])
                for one in zip(labels, counts, shares, strict=True)
            ]
        else:
            scores = [own.scores for own in own_maps if own.scores is not None]
            if len(scores) < len(own_maps):
                raise ValueError(
                    "maps: expected scores for a CRF that starts from them, got none (a CRF from "
                    "labels leaves none); let this one start from labels"
                )
            marginals = self.crf.refine_probabilities(own_images, scores, num_threads=num_threads)
            results = []
            for q in marginals:
                labels, shares = best_labels(q)
                results.append(Maps(labels, len(q), q, shares if confidence else None))
        for index, result in zip(indices, results, strict=True):
            refined[index] = result.to(images[0].device)
        return refined

    def _used(self, maps: Maps) -> Maps:
        """What the CRF starts from: not the scores where it starts from the labels."""
        scores = maps.scores if self.gt_prob is None else None
        return Maps(maps.labels, maps.num_labels, scores)


def crf_refiner(settings: Any, stage_settings: LabelConfig | PredictConfig) -> CrfRefiner | None:
    """The CRF of a stage: from labels in labelling, from probabilities in prediction.

    Args:
        settings: see `choose_crf`; None = `crf` of the stage. A mapping may also say ``start``:
            "labels" or "scores", from which the CRF starts; where it says nothing else, the rest is
            `crf` of the stage.
        stage_settings: of the stage.

    Raises:
        ValueError: see `choose_crf`, or another ``start``.
    """
    start = "labels" if isinstance(stage_settings, LabelConfig) else "scores"
    if isinstance(settings, dict) and "start" in settings:
        start = settings["start"]
        settings = {key: value for key, value in settings.items() if key != "start"} or None
    if start not in STARTS:
        raise ValueError(f"crf: start: expected one of {', '.join(STARTS)}, got {start!r:.60}")
    crf = choose_crf(stage_settings.crf if settings is None else settings)
    if crf is None:
        return None
    of_labels = stage_settings if isinstance(stage_settings, LabelConfig) else LabelConfig()
    return CrfRefiner(crf, of_labels.gt_prob if start == "labels" else None)


def choose_crf(setting: str | dict[str, Any] | None) -> DenseCRF | None:
    """A CRF from a recipe's value.

    Args:
        setting: a preset's name, the fields of `DenseCRF` with lists for tuples, or None / "none"
            for no CRF. ``[3, 3]`` and ``[[3, 5], 3]`` are one kernel; lists of kernels are for
            Python.

    Raises:
        ValueError: unknown preset or field, or a field's value of the wrong form or out of range.
    """
    if setting is None or setting == "none":
        return None
    if isinstance(setting, str):
        if setting not in PRESETS:
            raise ValueError(
                f"crf: expected one of {', '.join(sorted(PRESETS))}, none, or explicit settings; "
                f"got {setting!r}"
            )
        return DenseCRF.preset(setting)
    if not isinstance(setting, dict):
        raise ValueError(f"crf: expected a preset's name or settings, got {setting!r}")
    unknown = sorted(setting.keys() - set(FIELDS))
    if unknown:
        raise ValueError(f"crf: unknown key {unknown[0]!r}; known here: {', '.join(FIELDS)}")
    arguments: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in setting.items()
    }
    try:
        crf = DenseCRF(**arguments)
        _check_numbers(crf)
    except ValueError as error:
        raise ValueError(f"crf: {error}") from error
    return crf


def _check_numbers(crf: DenseCRF) -> None:
    """Refuse numbers that no photograph can use, or not all of them: images differ in their labels.

    Raises:
        ValueError: names the kernel and its part.
    """
    for name, parts, _ in shared_kernels(crf.gaussian, crf.bilateral, crf.normalization):
        low, high = DEVIATIONS
        for part, axes in (("sxy", 2), ("srgb", 3)):
            value = parts.get(part, 1)
            if np.size(value) not in (1, axes) or np.min(value) < low or np.max(value) > high:
                raise ValueError(
                    f"{name}: expected {part} as one number or {axes}, from {low} to {high:g}, got "
                    f"{value!r}"
                )
        compat = parts["compat"]
        if np.ndim(compat) > 0 or not 0 < compat <= MOST_COMPAT:
            raise ValueError(
                f"{name}: expected compat as one number above 0 and at most {MOST_COMPAT:g}, got "
                f"{compat!r}"
            )
