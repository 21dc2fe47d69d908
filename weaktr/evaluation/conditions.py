"""How masks or CAMs were produced, in words that stand beside their scores."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence

from weaktr.config import LabelConfig, PredictConfig
from weaktr.data import Manifest
from weaktr.evaluation.report import Conditions
from weaktr.inference.threshold import Choice

log = logging.getLogger("weaktr")

#: The keys of scores in metrics.json: of images that were held out, of images that were not.
HELD_OUT, TRAINED_ON = "val", "not_held_out"


#: Of results that are restricted to the image-level labels of their images, which raises scores.
GIVEN = "classes given"
PREDICTED = "classes predicted by the model"


def label_conditions(
    settings: LabelConfig,
    split: str,
    choice: Choice | None = None,
    *,
    classes: str = GIVEN,
    origin: str = " of the recipe",
) -> Conditions:
    """The conditions of pseudo labels of a split that were produced with these settings.

    Args:
        settings: of the labels.
        split: what to call their images.
        choice: of the threshold, where it was not given as a number.
        classes: whence it is known which classes an image shows; "" = not known.
        origin: of a threshold that was given as a number.
    """
    if isinstance(settings.threshold, float):
        threshold = f"{settings.threshold:g}{origin}"
    else:
        threshold = choice.in_words() if choice else settings.threshold
    return Conditions(
        split, listed(settings.scales), yes_or_no(settings.flip), refinement_name(settings), "-",
        noted(f"threshold {threshold}", classes),
    )  # fmt: skip


def noted(*notes: str) -> str:
    """`Conditions.note` of several, of which some may be empty."""
    return "; ".join(filter(None, notes))


def prediction_conditions(settings: PredictConfig, split: str) -> Conditions:
    """The conditions of predictions for a split that were produced with these settings."""
    return Conditions(
        split, listed(settings.ratios), yes_or_no(settings.flip), refinement_name(settings),
        settings.ensemble,
    )  # fmt: skip


def cam_name(settings: LabelConfig) -> str:
    """The kind of CAM in words."""
    return f"{settings.attention_type}{', refined' if settings.refine else ''}"


def refinement_name(settings: LabelConfig | PredictConfig) -> str:
    """The refinement in words: the CRF's name, or the refiners one after the other."""
    names = []
    for entry in settings.refiners:
        name, options = next(iter(entry.items())) if isinstance(entry, dict) else (entry, None)
        if name == "crf":
            start = options.get("start") if isinstance(options, dict) else None
            is_of_stage = options is None or options == {"start": start}
            crf = settings.crf if is_of_stage else options
            named = "explicit" if isinstance(crf, dict) else str(crf or "none")
            names.append(f"{named} from {start}" if start and named != "none" else named)
        else:
            names.append(name if options is None else f"{name} {options}")
    return " + ".join(name for name in names if name != "none") or "none"


def listed(values: Sequence[float]) -> str:
    """``1, 1.2``."""
    return ", ".join(f"{value:g}" for value in values)


def split_name(manifest: Manifest) -> str:
    """Data set and split."""
    return f"{manifest.name} {manifest.split}"


def yes_or_no(value: bool) -> str:
    """A flag in words."""
    return "yes" if value else "no"


def held_out(train: Manifest, predicted: Manifest) -> tuple[str, str]:
    """What predictions for images are called: in metrics.json, and in words.

    A score on images that the segmenter was trained on is no validation score. A folder without
    ``val.csv``, for instance, has the images of ``labels.csv`` in every split.

    Args:
        train: the images of both trainings.
        predicted: the images that are scored.
    """
    trained = {os.path.realpath(sample.image) for sample in train}
    known = sum(os.path.realpath(sample.image) in trained for sample in predicted)
    if not known:
        return HELD_OUT, "stage-2 predictions"
    share = f"{known} of {len(predicted)} images"
    log.warning(
        "%s: %s were trained on, so these scores are called %s, not %s",
        split_name(predicted), share, TRAINED_ON, HELD_OUT,
    )  # fmt: skip
    return TRAINED_ON, f"stage-2 predictions, {share} trained on"
