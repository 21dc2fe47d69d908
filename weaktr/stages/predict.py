"""Checkpoint and images -> masks: sliding windows over scales and flips, then the CRF.

Source: reference.md 48-52 (the published inference).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.artifacts import MaskFolder
from weaktr.config import PredictConfig
from weaktr.crf import DenseCRF
from weaktr.data import Problem, Sample
from weaktr.models import Segmenter
from weaktr.progress import Meter
from weaktr.stages.crf_choice import choose_crf
from weaktr.stages.parallel import ordered_map, read_images
from weaktr.stages.resize import resize_bilinear
from weaktr.stages.training import autocast

log = logging.getLogger("weaktr")

#: Weight of the earlier output in the published ensemble. Source: reference.md 50.
EARLY_WEIGHT = 0.8


class _View(NamedTuple):
    """One scale and flip of an image.

    Args:
        pixels: [3, H, W] normalised, both sides at least the window.
        scaled: height and width before they were brought up to the window.
        flipped: whether it is mirrored.
        corners: top left corners of its windows.
    """

    pixels: Tensor
    scaled: tuple[int, int]
    flipped: bool
    corners: list[tuple[int, int]]


def predict(
    model: Segmenter, samples: Sequence[Sample], folder: Path, settings: PredictConfig
) -> list[Problem]:
    """Write a mask for every image; goes on where it stopped.

    Args:
        model: in eval mode, on its device.
        samples: the images; labels and masks are not looked at.
        folder: gets ``masks/`` and ``index.jsonl``.
        settings: see `PredictConfig`.

    Returns:
        Images that could not be read (also logged).
    """
    model = for_ensemble(model, settings.ensemble)
    masks = MaskFolder(folder, verify=True)
    crf = choose_crf(settings.crf)
    todo = [sample for sample in samples if sample.name not in masks]
    unreadable: list[Problem] = []

    def scored() -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        for sample, image in read_images(todo, unreadable):
            yield sample.name, image, probabilities(model, image, settings)

    def finish(item: tuple[str, np.ndarray, np.ndarray]) -> tuple[str, np.ndarray]:
        name, image, scores = item
        return name, mask_from_probabilities(image, scores, crf)

    with Meter("predictions", len(samples), done=len(samples) - len(todo)) as meter:
        for name, mask in ordered_map(finish, scored()):
            masks.add(name, mask)
            meter.advance()
    masks.flush()
    for problem in unreadable:
        log.warning("left out: %s", problem)
    return unreadable


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
    twin = Segmenter(**{**model.config, "decoder": "multi_mask_transformer"})
    twin.load_state_dict(model.state_dict())
    twin.vit.normalization = model.normalization
    return twin.to(next(model.parameters()).device).eval()


@torch.inference_mode()
def probabilities(model: Segmenter, image: np.ndarray, settings: PredictConfig) -> np.ndarray:
    """Label scores of one image, averaged over ratios and flips.

        mean over views of softmax(unflip(upsample(mean over windows of logits)))

    Args:
        model: in eval mode, on its device; a multi decoder where `settings.ensemble` is
            "published".
        image: uint8 [H, W, 3] RGB.
        settings: see `PredictConfig`.

    Returns:
        float32 [L, H, W]; sums to 1 over L, with the published ensemble to 1.8.

    Source: reference.md 48, 50.
    """
    device = next(model.parameters()).device
    size = (image.shape[0], image.shape[1])
    views = list(_views(image, model.normalization, settings, device))
    outputs = _window_logits(model, views, settings)
    total = torch.zeros(0)
    for view in views:
        logits = _merge(view, [next(outputs) for _ in view.corners], settings.window)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if view.flipped:
            logits = logits.flip(-1)
        share = logits.softmax(1) / len(views)
        total = share if not total.numel() else total + share
    if len(total) == 2 and settings.ensemble == "published":
        return (EARLY_WEIGHT * total[0] + total[1]).cpu().numpy()
    return total[-1].cpu().numpy()


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


def _views(
    image: np.ndarray,
    normalization: tuple[Sequence[float], Sequence[float]],
    settings: PredictConfig,
    device: torch.device,
) -> Iterator[_View]:
    mean, std = (
        torch.tensor(np.round(255 * np.array(values), 2), device=device).float().view(3, 1, 1)
        for values in normalization
    )
    for ratio in settings.ratios:
        height, width = _scaled_size(image.shape[:2], int(settings.short_side * ratio))
        scaled = torch.from_numpy(resize_bilinear(image, height, width)).to(device)
        pixels = (scaled.permute(2, 0, 1).float() - mean) / std
        for flipped in (False, True) if settings.flip else (False,):
            view = _at_least(pixels.flip(-1) if flipped else pixels, settings.window)
            corners = [
                (top, left)
                for top in _anchors(view.shape[1], settings.window, settings.stride)
                for left in _anchors(view.shape[2], settings.window, settings.stride)
            ]
            yield _View(view, (height, width), flipped, corners)


def _scaled_size(size: Sequence[int], short_side: int) -> tuple[int, int]:
    """Height and width with the short side at `short_side`, rounded half up."""
    scale = short_side / min(size)
    return int(size[0] * scale + 0.5), int(size[1] * scale + 0.5)


def _at_least(pixels: Tensor, window: int) -> Tensor:
    """[3, H, W] brought up to a short side of `window` where it is smaller."""
    height, width = pixels.shape[1:]
    short = min(height, width)
    if short >= window:
        return pixels
    size = [window if side == short else int(side * (window / short)) for side in (height, width)]
    return F.interpolate(pixels[None], size=size, mode="bilinear", align_corners=False)[0]


def _anchors(length: int, window: int, stride: int) -> list[int]:
    """Starts of the windows along one axis: every `stride`, and one flush with the end."""
    return [*range(0, length - window, stride), length - window]


def _window_logits(
    model: Segmenter, views: Sequence[_View], settings: PredictConfig
) -> Iterator[Tensor]:
    """Logits [E, L, window, window] of every window of every view, E = outputs of the decoder."""
    side = settings.window
    windows = [
        view.pixels[:, top : top + side, left : left + side]
        for view in views
        for top, left in view.corners
    ]
    for start in range(0, len(windows), settings.window_batch):
        batch = torch.stack(windows[start : start + settings.window_batch])
        with autocast(settings.amp, batch.device):
            output = model(batch)
        outputs = [output] if isinstance(output, Tensor) else list(output)
        yield from torch.stack([logits.float() for logits in outputs], 1)


def _merge(view: _View, logits: Sequence[Tensor], window: int) -> Tensor:
    """Mean over overlapping windows: [E, L, H, W]."""
    height, width = view.pixels.shape[1:]
    total = logits[0].new_zeros(*logits[0].shape[:2], height, width)
    count = logits[0].new_zeros(height, width)
    for (top, left), piece in zip(view.corners, logits, strict=True):
        total[..., top : top + window, left : left + window] += piece
        count[top : top + window, left : left + window] += 1
    return total / count
