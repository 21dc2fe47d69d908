"""Checkpoint and images -> masks: sliding windows over scales and flips, then refinement.

Source: reference.md 48-52 (the published inference).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from weaktr.config import PredictConfig
from weaktr.data import Problem, Sample
from weaktr.data.masks import RefinedMasks
from weaktr.data.parallel import ordered_map, read_images
from weaktr.data.stored_maps import write_scores
from weaktr.inference.probabilities import for_prediction, probabilities
from weaktr.models import Segmenter
from weaktr.progress import Meter
from weaktr.refine import Maps, Refiner, choose_refiners, refine
from weaktr.stages.run import Stage, without_masks

log = logging.getLogger("weaktr")


def predict(
    model: Segmenter,
    samples: Sequence[Sample],
    folder: Path,
    settings: PredictConfig,
    *,
    dump_scores: bool = False,
) -> list[Problem]:
    """Write a mask for every image; continues where it stopped.

    Args:
        model: in eval mode, on its device.
        samples: the images; their labels and true masks are not read.
        folder: gets ``masks/``, ``index.jsonl`` and, with refiners, ``before_refinement/``.
        settings: see `PredictConfig`.
        dump_scores: also write ``scores/NAME.npz`` (large), see `write_scores`.

    Returns:
        Images that could not be read (also logged).
    """
    model = for_prediction(model, settings)
    refiners = choose_refiners(settings)
    masks = RefinedMasks(folder, refined=bool(refiners))

    def scores_path(name: str) -> Path:
        return folder / "scores" / f"{name}.npz"

    def is_complete(name: str) -> bool:
        return name in masks and (not dump_scores or scores_path(name).is_file())

    todo = [sample for sample in samples if not is_complete(sample.name)]
    unreadable: list[Problem] = []

    def predictions() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for sample, image in read_images(todo, unreadable):
            yield sample.name, image, probabilities(model, image, settings)

    def finish(item: tuple[str, np.ndarray, np.ndarray]) -> tuple[str, np.ndarray, np.ndarray]:
        name, image, scores = item
        if dump_scores:
            write_scores(scores_path(name), scores)
        return name, *masks_from_probabilities(image, scores, refiners)

    with Meter("predictions", len(samples), done=len(samples) - len(todo)) as meter:
        for result in ordered_map(finish, predictions()):
            masks.add(*result)
            meter.advance()
    masks.flush()
    for problem in unreadable:
        log.warning("left out: %s", problem)
    return unreadable


def masks_from_probabilities(
    image: np.ndarray, scores: np.ndarray, refiners: Sequence[Refiner]
) -> tuple[np.ndarray, np.ndarray]:
    """The most probable label of each pixel, before and after refinement.

    Refinement chooses among the labels that occur before it.

    Args:
        image: uint8 [H, W, 3] RGB.
        scores: float32 [L, H, W] from `probabilities`.
        refiners: from `choose_refiners`.

    Returns:
        Two uint8 [H, W].

    Source: reference.md 51.
    """
    plain = scores.argmax(0).astype(np.uint8)
    present = np.unique(plain)
    if not refiners or len(present) < 2:
        return plain, plain
    place = np.zeros(256, np.uint8)
    place[present] = np.arange(len(present))
    labels = torch.from_numpy(place[plain])
    maps = Maps(labels, len(present), torch.from_numpy(scores[present]))
    (refined,) = refine(refiners, [torch.from_numpy(image)], [maps], num_threads=1)
    return plain, present[refined.labels.numpy()]


PREDICT = Stage(
    "predict",
    settings=("predict",),
    images=lambda run: [without_masks(run.val)],
    work=lambda run: predict(
        run.segmenter(), without_masks(run.val).samples, run.of("predict"), run.recipe.predict
    ),
    after=("train_seg",),
)
