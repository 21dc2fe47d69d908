"""Checkpoint and photographs -> masks: sliding windows over scales and flips, then refinement.

Source: reference.md 48-52 (the published inference).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

from weaktr.config import PredictConfig
from weaktr.contents import Contents
from weaktr.data import Sample
from weaktr.inference.predictions import Predictor
from weaktr.inference.probabilities import SegInputs
from weaktr.inference.results import LabelMaps
from weaktr.inference.timeline import Timeline
from weaktr.labelling.masks import MaskMaker, MaskReport, make_masks
from weaktr.labelling.store import MaskStore
from weaktr.models import Segmenter
from weaktr.refine import among, choose_refiners, files_of
from weaktr.stages.run import Run, Stage, masks_digest, without_masks
from weaktr.stages.train_seg import TRAIN_SEG


def predict(
    model: Segmenter,
    samples: Sequence[Sample],
    folder: Path,
    settings: PredictConfig,
    *,
    given_classes: bool = False,
    emit: Collection[str] = (),
    profile: Path | None = None,
    contents: Contents | None = None,
) -> MaskReport:
    """Write a mask for every image; continues where it stopped.

    Args:
        model: in eval mode, on its device.
        samples: the images; their true masks are not read.
        folder: gets ``masks/``, ``index.jsonl`` and, with refiners, ``before_refinement/``.
        settings: see `PredictConfig`.
        given_classes: see `Predictor`.
        emit: "scores": also ``scores/NAME.npz`` (large), see `npz_of_scores`.
        profile: see `make_masks`.
        contents: see `MaskStore`.

    Returns:
        What was made and what was left out, which is also logged.

    Raises:
        PipelineError: see `weaktr.inference.pipeline.run_pipeline`.
    """
    predictor = Predictor(model, settings, given_classes=given_classes)
    if not given_classes:  # they do not matter, and need not be the same at the next start
        samples = [replace(sample, labels=None) for sample in samples]
    predictor.refiners = among(predictor.refiners, [sample.name for sample in samples])
    refined = bool(predictor.refiners)
    store = MaskStore(
        folder,
        lambda sample: (sample.image, *files_of(predictor.refiners, sample.name)),
        refined=refined,
        emit=emit,
        contents=contents,
        num_labels=model.num_labels,
    )

    report = make_masks(prediction_maker(predictor, emit), samples, store, profile=profile)
    report.count_older(store.masks, samples)
    report.log("predictions", settings.max_side)
    return report


def prediction_maker(predictor: Predictor, emit: Collection[str] = ()) -> MaskMaker[SegInputs]:
    """What makes the masks of `predict`, whose `emit` this is."""

    def compute(batch: Sequence[SegInputs], timeline: Timeline) -> list[LabelMaps]:
        return predictor.label_maps(batch, emit=emit, timeline=timeline)

    queue_mb = predictor.settings.queue_mb
    return MaskMaker(
        "predictions", predictor.read, predictor.fits, compute, predictor.device, queue_mb,
        predictor.refiners,
    )  # fmt: skip


def predict_run(run: Run, folder: Path) -> int:
    """Predict the held-out images of a run; returns how many were left out."""
    samples, settings = without_masks(run.val).samples, run.recipe.predict
    report = predict(run.segmenter(), samples, folder, settings, contents=run.contents)
    return len(report.left_out)


PREDICT = Stage(
    "predict",
    settings=("predict",),
    images=lambda run: [without_masks(run.val)],
    work=predict_run,
    result=masks_digest,
    by_image=True,
    refiners=lambda run: choose_refiners(run.recipe.predict),
    after=(TRAIN_SEG,),
)
