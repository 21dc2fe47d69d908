"""The background threshold of a folder of masks where its settings do not give a number.

It is chosen before the first mask and kept in the folder, so that a run that was stopped goes on
with it, and so that photographs which come later are labelled like the first ones.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from weaktr.config import LabelConfig
from weaktr.data import Manifest, Sample
from weaktr.evaluation.bootstrap import LEVEL, interval, resampled_miou
from weaktr.evaluation.charts import threshold_chart
from weaktr.evaluation.conditions import split_name
from weaktr.evaluation.iou import NothingToScore, ThresholdCurve
from weaktr.evaluation.models import use_cams
from weaktr.inference.cams import CamSource
from weaktr.inference.threshold import (
    THRESHOLDS,
    Choice,
    choose_by_features,
    read_choice,
    require_patch_features,
    write_choice,
)
from weaktr.messages import one_line
from weaktr.outputs import keep
from weaktr.seals import is_sealed
from weaktr.stages.run import Run

log = logging.getLogger("weaktr")

#: The chart of a choice, beside its file.
CHART = "threshold.png"
NO_MASKS = (
    "threshold: 'search_on_masks' expected images with true masks in the score split of a recipe "
    "(data.score_split), got none: give a number, or auto"
)


def threshold_of(
    source: CamSource,
    samples: Sequence[Sample],
    folder: Path,
    settings: LabelConfig,
    masked: Manifest | None,
) -> float:
    """The threshold of a folder of masks: as given, as chosen before, or chosen now.

    Args:
        source: of the CAMs.
        samples: images that may show a class, at least one.
        folder: of the masks; gets ``threshold.json`` and its chart.
        settings: of the labels.
        masked: images with true masks, for "search_on_masks".

    Raises:
        ValueError: there is nothing by which to choose; or see `read_choice`.
    """
    if isinstance(settings.threshold, float):
        return settings.threshold
    choice = read_choice(folder)
    if choice is not None:
        log.info("threshold %s; chosen before, of %d images", choice.in_words(), len(choice.images))
        return choice.threshold
    if settings.threshold == "auto":
        choice = choose_by_features(source, samples, settings.queue_mb)
        log.info("threshold %s, by %d images", choice.in_words(), len(choice.images))
    else:
        assert masked is not None  # see `require_way`
        choice = search_on_masks(source, masked, settings)
    write_choice(choice, folder)
    chart, caption = folder / CHART, f"{choice.criterion}; {len(choice.images)} images"
    if chart.exists() and not is_sealed(chart):
        keep(chart)
    try:
        threshold_chart(choice.curve, choice.threshold, chart, title="threshold", caption=caption)
    except (ValueError, RuntimeError) as error:  # of matplotlib, its fonts and its settings
        log.warning("%s: is not drawn: %s", chart, one_line(str(error))[:300])
    return choice.threshold


def search_on_masks(source: CamSource, masked: Manifest, settings: LabelConfig) -> Choice:
    """The threshold with the best mIoU on true masks; the log says so, with the mIoU.

    Args:
        source: of the CAMs.
        masked: images with true masks and image-level labels, at least one.
        settings: of the labels; with `val_masks` the mIoU is logged with its bootstrap interval.

    Raises:
        ValueError: no image has a true mask with a known label.
    """
    num_labels = source.num_labels
    assert num_labels is not None  # of a model's CAMs
    curve = ThresholdCurve(np.array(THRESHOLDS), num_labels)
    overlaps: list[np.ndarray] = []
    names: list[str] = []

    def use(sample: Sample, counts: np.ndarray) -> None:
        names.append(sample.name)
        curve.add(counts)
        if settings.val_masks is not None:
            overlaps.append(curve.overlaps(counts))

    use_cams(source, masked.samples, settings.queue_mb, curve.counts, use, "threshold")
    try:
        best, scores = curve.best()
    except NothingToScore as error:
        raise ValueError(f"threshold: 'search_on_masks': {error}") from error
    points = tuple(zip(THRESHOLDS, (round(p.miou, 4) for p in curve.scores()), strict=True))
    criterion, split = "mIoU of the CAMs in % on true masks", split_name(masked)
    choice = Choice(best, "search_on_masks", criterion, tuple(names), points, split)
    log.warning("threshold %s: this run uses pixel labels", choice.in_words())
    bounds = ""
    if len(overlaps) > 1:
        at_best = np.stack([own[THRESHOLDS.index(best)] for own in overlaps])
        low, high = interval(resampled_miou(at_best))
        bounds = f" ({LEVEL:g} % interval {low:.1f} to {high:.1f})"
    log.info(
        "CAM mIoU at this threshold, on the same %d pixel-labelled images: %.1f%s",
        curve.images, scores.miou, bounds,
    )  # fmt: skip
    return choice


def require_way(settings: LabelConfig, source: CamSource, masked: Manifest | None = None) -> None:
    """Raise `ValueError` where the threshold is to be chosen and cannot be."""
    if settings.threshold == "auto":
        require_patch_features(source)
    if settings.threshold == "search_on_masks" and not masked:
        raise ValueError(NO_MASKS)


def require_masks(run: Run) -> None:
    """Raise `ValueError` where a run is to search on true masks and has too few."""
    if run.recipe.label.threshold == "search_on_masks" and not masks_to_search_on(run):
        raise ValueError(NO_MASKS)


def masks_to_search_on(run: Run) -> Manifest | None:
    """The images with true masks by which a run chooses its threshold, drawn by its seed; None =
    it does so otherwise.

    Raises:
        ValueError: there are fewer than `LabelConfig.val_masks`.
    """
    settings = run.recipe.label
    if settings.threshold != "search_on_masks":
        return None
    samples = [s for s in run.score.samples if s.mask is not None and s.labels]
    if settings.val_masks is None:
        return replace(run.score, samples=tuple(samples))
    if settings.val_masks > len(samples):
        raise ValueError(
            f"val_masks: expected at most the {len(samples)} images of the score split that have a "
            f"true mask and show a class, got {settings.val_masks}"
        )
    by_name = sorted(samples, key=lambda sample: sample.name)
    drawn = random.Random(run.recipe.seed).sample(by_name, settings.val_masks)
    return replace(run.score, samples=tuple(drawn))
