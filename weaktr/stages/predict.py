"""Checkpoint and photographs -> masks: sliding windows over scales and flips, then refinement.

Source: reference.md 48-52 (the published inference).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from weaktr.config import PredictConfig
from weaktr.data import Sample
from weaktr.inference.predictions import Predictor
from weaktr.inference.probabilities import SegInputs
from weaktr.inference.results import LabelMaps
from weaktr.inference.timeline import Timeline
from weaktr.models import Segmenter
from weaktr.stages.masks import MaskReport, make_masks
from weaktr.stages.run import Stage, without_masks


def predict(
    model: Segmenter,
    samples: Sequence[Sample],
    folder: Path,
    settings: PredictConfig,
    *,
    given_classes: bool = False,
    emit: Collection[str] = (),
    profile: Path | None = None,
) -> MaskReport:
    """Write a mask for every image; continues where it stopped.

    Args:
        model: in eval mode, on its device.
        samples: the images; their true masks are not read.
        folder: gets ``masks/``, ``index.jsonl`` and, with refiners, ``before_refinement/``.
        settings: see `PredictConfig`.
        given_classes: see `Predictor`.
        emit: "scores": also ``scores/NAME.npz`` (large), see `write_scores`.
        profile: see `make_masks`.

    Returns:
        What was made and what was left out, which is also logged.

    Raises:
        PipelineError: see `weaktr.inference.pipeline.run_pipeline`.
    """
    predictor = Predictor(model, settings, given_classes=given_classes)

    def compute(batch: Sequence[SegInputs], timeline: Timeline) -> list[LabelMaps]:
        return predictor.label_maps(batch, emit=emit, timeline=timeline)

    report = make_masks(
        "predictions",
        samples,
        folder,
        read=predictor.read,
        fits=predictor.fits,
        compute=compute,
        device=predictor.device,
        queue_mb=settings.queue_mb,
        refined=bool(predictor.refiners),
        emit=emit,
        profile=profile,
    )
    report.log("predictions", settings.max_side)
    return report


PREDICT = Stage(
    "predict",
    settings=("predict",),
    images=lambda run: [without_masks(run.val)],
    work=lambda run: predict(
        run.segmenter(), without_masks(run.val).samples, run.of("predict"), run.recipe.predict
    ),
    after=("train_seg",),
)
