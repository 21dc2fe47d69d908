"""CAMs -> label maps by a background threshold, refined; where the CAMs are."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import torch
from torch import Tensor

from weaktr.config import ConfidenceKind, LabelConfig
from weaktr.inference.cams import CamInputs, Cams, CamSource
from weaktr.inference.results import (
    AGREEMENT,
    FINITE,
    MEAN_SCORES,
    LabelMaps,
    hand_over,
    is_finite,
    mean_scores,
)
from weaktr.inference.soft_labels import Softening, soft_labels
from weaktr.inference.threshold import THRESHOLDS, best_threshold, fisher_curve
from weaktr.inference.timeline import Steps, Timeline
from weaktr.ops.upload import upload
from weaktr.refine import Maps, Refiner, needs_features, refine
from weaktr.refine.maps import best_labels

#: Other thresholds, as multiples of the chosen one, whose labels count for `stability`: before
#: refinement, and those that are refined, too. Of maps that hold odds (`Cams.odds`) the odds are
#: multiplied, since multiples of 0.5 would soon be 1.
FACTORS, REFINED_FACTORS = (0.2, 0.4, 0.7, 1.4, 2.0, 3.0, 4.5), (0.5, 2.0)


def scores_from_cams(cams: Tensor, threshold: float) -> Tensor:
    """Scores of background and classes.

        scores = softmax([threshold, cam_1, ..., cam_K])

    The softmax keeps the order but rounds: a CAM that exceeds the threshold by one unit in the last
    place becomes equal to it, and then the first (background) wins, as in the published labels.
    Exponentials are computed in float64: those of float32 are rounded otherwise on other
    processors, some of which would let the CAM win.

    Args:
        cams: float32 [K, H, W] in [0, 1].
        threshold: background score in [0, 1].

    Returns:
        float32 [K + 1, H, W], sums to 1.

    Source: reference.md 28.
    """
    background = cams.new_full((1, *cams.shape[1:]), threshold)
    scores = torch.cat([background, cams])
    scores = scores.sub_(scores.amax(0)).double().exp_().float()
    return scores.div_(scores.sum(0))


def scores_from_odds(maps: Tensor, threshold: float) -> Tensor:
    """Probabilities of background and classes behind maps that hold odds (`Cams.odds`).

        scores = [threshold · (1 - max m), (1 - threshold) · m_1, ..., (1 - threshold) · m_K]
                 / their sum

    At a threshold of 0.5 they are the probabilities that the maps were made from; at others the
    odds of the background are those times threshold / (1 - threshold). As with CAMs, the class with
    the largest map exceeds the background where that map exceeds the threshold.

    Args:
        maps: float32 [K, H, W] in [0, 1].
        threshold: background score in [0, 1].

    Returns:
        float32 [K + 1, H, W], sums to 1; all of it background where it would be 0.
    """
    largest = maps.amax(0) if len(maps) else maps.new_zeros(maps.shape[1:])
    scores = torch.cat([threshold * (1 - largest)[None], (1 - threshold) * maps])
    scores[0].masked_fill_(scores.sum(0) == 0, 1)
    return scores / scores.sum(0)


def scores_of(cams: Cams, threshold: float) -> Tensor:
    """Scores [K + 1, H, W] of background and classes, by what the maps hold."""
    scores = scores_from_odds if cams.odds else scores_from_cams
    return scores(cams.maps, threshold)


def times(cams: Cams, threshold: float, factor: float) -> float:
    """A multiple of a threshold; see `FACTORS`."""
    multiple = factor * threshold
    return multiple / (multiple + 1 - threshold) if cams.odds else multiple


def labels_from_cams(cams: Tensor, threshold: float) -> Tensor:
    """The best class of each pixel, or background where no CAM exceeds the threshold.

    Args:
        cams, threshold: see `scores_from_cams`.

    Returns:
        uint8 [H, W]: 0 = background, i + 1 = the i-th CAM.
    """
    return best_labels(scores_from_cams(cams, threshold))[0]


def stability(
    cams: Sequence[Cams],
    thresholds: Sequence[float],
    results: Sequence[Maps],
    images: Sequence[Tensor],
    refiners: Sequence[Refiner],
) -> list[Tensor]:
    """How stable each pixel's label is: the share of other ways of labelling that agree with it.

    The other ways are the labels before refinement from the thresholds of `FACTORS`; those of each
    scale and flip alone, where the source gives them (`Cams.views`); and, where there are refiners,
    what these make of the labels from the thresholds of `REFINED_FACTORS`.

    Args:
        cams: of each image of a batch.
        thresholds: the background score of each image.
        results: of each image, with the labels in question.
        images: uint8 [h, w, 3] of each image, for the refiners.
        refiners: that led to the labels.

    Returns:
        float32 [h, w] in [0, 1] of each image, on its device.
    """
    agreeing = []
    for own, threshold, result in zip(cams, thresholds, results, strict=True):
        others = [labels_from_cams(own.maps, times(own, threshold, f)) for f in FACTORS]
        others += [labels_from_cams(view, threshold) for view in own.views]
        agreeing.append([labels == result.labels for labels in others])
    for factor in REFINED_FACTORS if refiners else ():
        given = []
        for own, threshold, result in zip(cams, thresholds, results, strict=True):
            scores = scores_of(own, times(own, threshold, factor))
            labels, _ = best_labels(scores)
            given.append(result._replace(labels=labels, scores=scores, confidence=None))
        refined = refine(refiners, images, given)
        for agreements, other, result in zip(agreeing, refined, results, strict=True):
            agreements.append(other.labels == result.labels)
    return [torch.stack(agreements).float().mean(0) for agreements in agreeing]


def _thresholds_for(all_cams: Sequence[Cams], threshold: float | Literal["auto"]) -> list[float]:
    """`threshold`, or the best one for the CAMs of each image alone."""
    if threshold != "auto":
        return [threshold] * len(all_cams)
    curves = []
    for cams in all_cams:
        assert cams.features is not None
        curves.append(fisher_curve(cams.features, cams.maps, THRESHOLDS))
    return [best_threshold(THRESHOLDS, curve) for curve in torch.stack(curves).tolist()]


def _file_labels(cams: Cams) -> tuple[int, ...] | None:
    """See `Maps.file_labels`."""
    return None if cams.classes is None else (0, *(index + 1 for index in cams.classes))


def uses_features(settings: LabelConfig, refiners: Sequence[Refiner]) -> bool:
    """Whether labels by these settings need a source with `Cams.features`."""
    return settings.threshold == "auto" or needs_features(refiners)


@torch.inference_mode()
def label_maps(
    source: CamSource,
    batch: Sequence[CamInputs],
    threshold: float | Literal["auto"],
    refiners: Sequence[Refiner],
    *,
    emit: Collection[str] = (),
    confidence: ConfidenceKind = "score",
    softening: Softening | None = None,
    timeline: Timeline | None = None,
) -> list[LabelMaps]:
    """Pseudo labels of a batch: CAMs, threshold and refinement on the source's device.

    Args:
        source: of the CAMs.
        batch: photographs that it has read.
        threshold: see `scores_from_cams`; "auto" = the best one by `fisher_curve` for each image
            alone, of a source with features.
        refiners: from `choose_refiners`; each takes the whole batch in one call.
        emit: "confidence": also float32 [h, w], how likely each pixel's label is, by the last
            refiner, or by the softmax of the scores where there is none. "cam": also the CAMs.
        confidence: "stability": `stability` in its place.
        softening: of "soft", the `soft_labels` that are also computed; None = they are not.
        timeline: gets the seconds of the steps.

    Returns:
        Maps "plain" and "refined", uint8 [h, w]: 0 = background, i + 1 = the i-th of `classes`.
    """
    steps = Steps(source.device, timeline)
    by_scores = ("confidence" in emit and confidence == "score") or softening is not None
    with steps.step("CAMs"):
        all_cams = source.cams(batch)
    with steps.step("threshold"):
        thresholds = _thresholds_for(all_cams, threshold)
        plain, finite = [], []
        for one, cams, own_threshold in zip(batch, all_cams, thresholds, strict=True):
            scores = scores_of(cams, own_threshold)
            labels, best = best_labels(scores)
            likely = best if by_scores else None
            plain.append(
                Maps(
                    labels, len(scores), scores, likely, cams.features, one.sample.name,
                    one.photograph.size, file_labels=_file_labels(cams),
                )
            )  # fmt: skip
            finite.append(is_finite(best))
    with steps.step("refinement"):
        refined = plain
        images = [upload(one.image, source.device) for one in batch] if refiners else []
        if refiners:
            refined = refine(refiners, images, plain, confidence=by_scores)
        confidences = [maps.confidence for maps in refined]
        if "confidence" in emit and confidence == "stability":
            confidences = [*stability(all_cams, thresholds, refined, images, refiners)]
    rows = [
        (one.sample, one.photograph, cams.classes, cams.probabilities)
        for one, cams in zip(batch, all_cams, strict=True)
    ]
    files = []
    for index, (cams, before, after) in enumerate(zip(all_cams, plain, refined, strict=True)):
        assert before.scores is not None
        own = {
            "plain": before.labels,
            "refined": after.labels,
            FINITE: finite[index],
            MEAN_SCORES: mean_scores(after.labels, before.scores),
        }
        if after.agreement is not None:
            own[AGREEMENT] = after.agreement
        sure = confidences[index]
        if "confidence" in emit and sure is not None:
            own["confidence"] = sure
        if "cam" in emit:
            own["cam"] = cams.maps
        if softening is not None:
            own["soft"] = soft_labels(softening, before, after)
        files.append(own)
    return hand_over(rows, files)
