"""Checkpoint and images -> masks: sliding windows over scales and flips, then the CRF.

Source: reference.md 48-52 (the published inference).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from weaktr.config import PredictConfig
from weaktr.data import Problem, Sample
from weaktr.data.masks import MaskFolder
from weaktr.data.parallel import ordered_map, read_images
from weaktr.data.stored_maps import write_scores
from weaktr.inference.probabilities import for_prediction, probabilities
from weaktr.models import Segmenter
from weaktr.ops.dense_crf.presets import DenseCRF
from weaktr.progress import Meter
from weaktr.refine.crf import choose_crf

log = logging.getLogger("weaktr")


class Prediction(NamedTuple):
    """What is written of one image."""

    name: str
    mask: np.ndarray  #: uint8 [H, W] after the CRF
    before: np.ndarray  #: uint8 [H, W] without it
    scores: np.ndarray  #: float32 [L, H, W]


def predict(
    model: Segmenter,
    samples: Sequence[Sample],
    folder: Path,
    settings: PredictConfig,
    *,
    dump_scores: bool = False,
) -> list[Problem]:
    """Write a mask for every image; goes on where it stopped.

    Args:
        model: in eval mode, on its device.
        samples: the images; labels and masks are not looked at.
        folder: gets ``masks/``, ``index.jsonl`` and, with a CRF, ``before_crf/``.
        settings: see `PredictConfig`.
        dump_scores: also write ``scores/NAME.npz`` (large), see `write_scores`.

    Returns:
        Images that could not be read (also logged).
    """
    model = for_prediction(model, settings)
    masks, before = (MaskFolder(each, verify=True) for each in (folder, folder / "before_crf"))
    crf = choose_crf(settings.crf)

    def is_done(name: str) -> bool:
        dumped = not dump_scores or _scores_path(folder, name).is_file()
        return name in masks and (crf is None or name in before) and dumped

    todo = [sample for sample in samples if not is_done(sample.name)]
    unreadable: list[Problem] = []

    def scored() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for sample, image in read_images(todo, unreadable):
            yield sample.name, image, probabilities(model, image, settings)

    def finish(item: tuple[str, np.ndarray, np.ndarray]) -> Prediction:
        name, image, scores = item
        plain = scores.argmax(0).astype(np.uint8)
        return Prediction(name, mask_from_probabilities(image, scores, crf), plain, scores)

    with Meter("predictions", len(samples), done=len(samples) - len(todo)) as meter:
        for made in ordered_map(finish, scored()):
            if dump_scores:
                write_scores(_scores_path(folder, made.name), made.scores)
            if crf is not None:
                before.add(made.name, made.before)
            masks.add(made.name, made.mask)
            meter.advance()
    masks.flush()
    before.flush()
    for problem in unreadable:
        log.warning("left out: %s", problem)
    return unreadable


def _scores_path(folder: Path, name: str) -> Path:
    return folder / "scores" / f"{name}.npz"


def mask_from_probabilities(
    image: np.ndarray, scores: np.ndarray, crf: DenseCRF | None
) -> np.ndarray:
    """The most probable label of each pixel, after the CRF among the labels that occur.

    Args:
        image: uint8 [H, W, 3] RGB.
        scores: float32 [L, H, W] from `probabilities`.
        crf: None = no CRF.

    Returns:
        uint8 [H, W].

    Source: reference.md 51.
    """
    plain = scores.argmax(0)
    present = np.unique(plain)
    if crf is None or len(present) < 2:
        return plain.astype(np.uint8)
    refined = crf.refine_probabilities(image, scores[present], num_threads=1)
    return present[refined.argmax(0)].astype(np.uint8)
