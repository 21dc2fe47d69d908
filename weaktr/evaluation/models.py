"""Scores of a model on images with true masks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from weaktr import data
from weaktr.config import EvaluateConfig, LabelConfig, PredictConfig
from weaktr.data import Sample
from weaktr.data.parallel import read_images
from weaktr.evaluation.iou import Scores, ThresholdCurve, score_pairs
from weaktr.inference.cams import for_labelling, image_cams
from weaktr.inference.probabilities import for_prediction, probabilities
from weaktr.models import CamModel, Segmenter
from weaktr.progress import track


def cam_curve(
    model: CamModel, samples: Sequence[Sample], label: LabelConfig, settings: EvaluateConfig
) -> ThresholdCurve:
    """mIoU of CAM labels over background thresholds.

    Args:
        model: in eval mode.
        samples: those without mask or image-level label are skipped.
        label: scales, flip, attention type and refinement of the CAMs.
        settings: thresholds and how many images.
    """
    num_labels = model.num_classes + 1
    chosen = [s for s in samples if s.mask is not None and s.labels is not None]
    chosen = chosen[: settings.cam_images]
    first, last, step = settings.thresholds
    count = round((last - first) / step) + 1
    curve = ThresholdCurve(first + step * np.arange(count), num_labels)
    all_cams = image_cams(for_labelling(model, label), read_images(chosen, []), label)
    for sample, _, cams in track(all_cams, "scoring CAMs", len(chosen)):
        curve.add(cams, sample.labels or (), data.read_mask(sample, num_labels))
    return curve


def score_segmenter(model: Segmenter, samples: Sequence[Sample], settings: PredictConfig) -> Scores:
    """Scores of single-scale predictions without flip, ensemble and CRF, which are fast."""
    quick = replace(settings, ratios=(1.0,), flip=False, ensemble="plain", crf=None)
    plain = for_prediction(model, quick)

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for sample, image in read_images([s for s in samples if s.mask is not None], []):
            mask = probabilities(plain, image, quick).argmax(0).astype(np.uint8)
            yield mask, data.read_mask(sample, model.num_labels)

    return score_pairs(pairs(), model.num_labels)
