"""Checkpoint and images -> masks: sliding windows over scales and flips, then the CRF.

Source: reference.md 48-52 (the published inference).
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weaktr.artifacts import MaskFolder
from weaktr.config import PredictConfig
from weaktr.crf import DenseCRF
from weaktr.data import Problem, Sample
from weaktr.models import Segmenter
from weaktr.models.packed import shared_copy
from weaktr.parallel import ordered_map, read_images
from weaktr.progress import Meter
from weaktr.stages.crf_choice import choose_crf
from weaktr.stages.precision import autocast, ready
from weaktr.stages.windows import View, merge, views, windows
from weaktr.stored_maps import write_scores

log = logging.getLogger("weaktr")

#: ensemble -> weights of the output before the decoder's last block, and of the decoder's output.
#: Source: reference.md 50.
ENSEMBLES = {"plain": (0.0, 1.0), "published": (0.8, 1.0)}


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


def for_prediction(model: Segmenter, settings: PredictConfig) -> Segmenter:
    """The same weights, ready for `probabilities`: the ensemble's decoder, packed on a CPU.

    Args:
        model: in eval mode, on its device; left as it is.
        settings: ensemble, window and amp.

    Raises:
        ValueError: the published ensemble of a decoder that has no blocks to look between.
    """
    model = for_ensemble(model, settings.ensemble)
    side = -(-settings.window // model.patch_size)
    return ready(model, settings.amp, side**2 * settings.window_batch)


def for_ensemble(model: Segmenter, ensemble: str) -> Segmenter:
    """The same weights with the decoder that an ensemble needs.

    Raises:
        ValueError: "published" with a decoder that has no blocks to look between.
    """
    decoder = model.config["decoder"]
    if ensemble == "plain" or decoder == "multi_mask_transformer":
        return model
    if decoder != "mask_transformer":
        raise ValueError(
            f"ensemble: 'published' needs a mask transformer, got {decoder!r}; use ensemble=plain"
        )
    twin = shared_copy(model)
    twin.multi = True
    twin.config["decoder"] = "multi_mask_transformer"
    return twin


@torch.inference_mode()
def probabilities(model: Segmenter, image: np.ndarray, settings: PredictConfig) -> np.ndarray:
    """Label scores of one image, averaged over ratios and flips.

        mean over views of softmax(unflip(upsample(mean over windows of logits)))

    Windows of different ratios and flips share a forward pass. Only one set of results is kept, on
    the model's device.

    Args:
        model: from `for_prediction` (or any in eval mode whose decoder suits the ensemble).
        image: uint8 [H, W, 3] RGB.
        settings: see `PredictConfig`.

    Returns:
        float32 [L, H, W]; sums to 1 over L, with the published ensemble to 1.8.

    Source: reference.md 48, 50.
    """
    device = next(model.parameters()).device
    size = (image.shape[0], image.shape[1])
    chosen = views(image, model.normalization, settings, device)
    outputs = _window_logits(model, chosen, settings)
    weights = ENSEMBLES[settings.ensemble][-2 if model.multi else -1 :]
    total: Tensor | None = None
    for view in chosen:
        count = len(view.tops) * len(view.lefts)
        logits = torch.stack(list(itertools.islice(outputs, count)))
        merged = merge(view, logits, model.patch_size, settings.window, size)
        for weight, output in zip(weights, merged, strict=True):
            if weight:
                share = output.softmax(0).mul_(weight / len(chosen))
                total = share if total is None else total.add_(share)
    assert total is not None
    return total.cpu().numpy()


def _window_logits(
    model: Segmenter, chosen: Sequence[View], settings: PredictConfig
) -> Iterator[Tensor]:
    """Patch logits [E, L, h, w] of every window of every view, E = outputs of the decoder."""
    coming = windows(chosen, settings.window)
    while batch := list(itertools.islice(coming, settings.window_batch)):
        with autocast(settings.amp, batch[0].device):
            output = model.patch_outputs(torch.stack(batch))
        yield from output.float()


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
