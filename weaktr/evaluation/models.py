"""Scores of a model on images with true masks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from weaktr import data, processes
from weaktr.config import EvaluateConfig, LabelConfig, PredictConfig
from weaktr.data import Problem, Sample
from weaktr.data.photographs import enlarged
from weaktr.evaluation.iou import ConfusionSum, Scores, ThresholdCurve, scores, thresholds_of
from weaktr.evaluation.pairs import Pair
from weaktr.inference.cams import CamInputs, CamSource
from weaktr.inference.patch_cams import cams_of
from weaktr.inference.pipeline import Parts, limits_for, run_pipeline
from weaktr.inference.predictions import Predictor
from weaktr.inference.results import FINITE, LabelMaps, hand_over, is_finite
from weaktr.models import Segmenter, Stage1Model
from weaktr.progress import Meter

log = logging.getLogger("weaktr")
T = TypeVar("T")


def cam_curve(
    model: Stage1Model,
    samples: Sequence[Sample],
    label: LabelConfig,
    settings: EvaluateConfig,
) -> ThresholdCurve:
    """mIoU of CAM labels over background thresholds; of several processes each does its part.

    Args:
        model: in eval mode.
        samples: those without mask or image-level label are skipped.
        label: scales, flip, attention type and refinement of the CAMs.
        settings: thresholds and how many images.
    """
    num_labels = model.num_classes + 1
    chosen = [s for s in samples if s.mask is not None and s.labels is not None]
    chosen = chosen[: settings.cam_images]
    curve = ThresholdCurve(thresholds_of(*settings.thresholds), num_labels)
    own = processes.part(chosen)
    source, queue_mb = cams_of(model, label), label.queue_mb
    use_cams(source, own, queue_mb, curve.counts, lambda _, counts: curve.add(counts))
    curve.add_processes()
    return curve


def use_cams(
    source: CamSource,
    samples: Sequence[Sample],
    queue_mb: int,
    work: Callable[[np.ndarray, Sequence[int], np.ndarray], T],
    use: Callable[[Sample, T], None],
    title: str = "scoring CAMs",
) -> None:
    """Compute the CAMs of images and compare them with the true masks.

    Args:
        source: of the CAMs, which knows its number of labels.
        samples: with masks.
        queue_mb: see `LabelConfig`.
        work: called with the arguments of `ThresholdCurve.counts`, in several threads.
        use: called with an image and what `work` gives of it, in their order. An image that cannot
            be read is left out, which the log says.
        title: of the progress.
    """
    num_labels = source.num_labels
    assert num_labels is not None

    def compute(batch: Sequence[CamInputs]) -> list[LabelMaps]:
        rows, maps = [], []
        for one, cams in zip(batch, source.cams(batch), strict=True):
            rows.append((one.sample, one.photograph, cams.classes, None))
            maps.append({"cam": cams.maps, FINITE: is_finite(cams.maps)})
        return hand_over(rows, maps)

    def write(result: LabelMaps) -> T | Problem:
        if (problem := result.problem()) is not None:
            return problem
        cams = enlarged(result.arrays()["cam"], result.photograph.size)
        return work(cams, result.classes or (), data.read_mask(result.sample, num_labels))

    with Meter(title, len(samples)) as meter:

        def record(sample: Sample, written: T | Problem) -> None:
            if isinstance(written, Problem):
                log.warning("not scored: %s", written)
            else:
                use(sample, written)
            meter.advance()

        run_pipeline(
            samples,
            Parts(source.read, source.fits, compute, write, record),
            limits_for(source.device, queue_mb),
        )


def score_segmenter(model: Segmenter, samples: Sequence[Sample], settings: PredictConfig) -> Scores:
    """Scores of single-scale predictions without flip, ensemble and CRF, which are fast.

    Of several processes each predicts its part.

    Raises:
        NothingToScore: see `weaktr.evaluation.iou.scores`.
    """
    quick = replace(settings, ratios=(1.0,), flip=False, ensemble="plain", refiners=())
    predictor = Predictor(model, quick)
    total = ConfusionSum(model.num_labels)

    def write(result: LabelMaps) -> Pair | Problem:
        if (problem := result.problem()) is not None:
            return problem
        return result.mask(), data.read_mask(result.sample, model.num_labels)

    def record(_: Sample, written: Pair | Problem) -> None:
        if isinstance(written, Problem):
            log.warning("not scored: %s", written)
        else:
            total.add(*written)

    run_pipeline(
        processes.part([sample for sample in samples if sample.mask is not None]),
        Parts(predictor.read, predictor.fits, predictor.label_maps, write, record),
        limits_for(predictor.device, quick.queue_mb),
    )
    total.add_processes()
    return scores(total)
