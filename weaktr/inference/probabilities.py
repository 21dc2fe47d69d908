"""Segmenter and photographs -> label probabilities: sliding windows over scales and flips."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from weaktr.config import PredictConfig
from weaktr.data import Sample
from weaktr.data.photographs import Photograph
from weaktr.inference.cams import CPU_TOKENS
from weaktr.inference.transfer import pinned
from weaktr.inference.windows import (
    View,
    merge,
    on_device,
    pixels_of,
    scaled_images,
    views,
    windows,
)
from weaktr.models import Segmenter
from weaktr.models.inference import for_inference
from weaktr.models.onednn import shared_copy
from weaktr.models.precision import autocast
from weaktr.models.segmenter import gated

#: ensemble -> weights of the output before the decoder's last block, and of the decoder's output.
#: Source: reference.md 50.
ENSEMBLES = {"plain": (0.0, 1.0), "published": (0.8, 1.0)}


def for_prediction(model: Segmenter, settings: PredictConfig) -> Segmenter:
    """The same weights, ready for `probabilities`: the ensemble's decoder, oneDNN's layers on CPUs.

    Args:
        model: in eval mode, on its device; not changed.
        settings: ensemble, window and amp.

    Raises:
        ValueError: the published ensemble with a decoder that has no blocks.
    """
    model = for_ensemble(model, settings.ensemble)
    tokens = math.ceil(settings.window / model.patch_size) ** 2
    return for_inference(model, settings.amp, tokens * windows_in_a_pass(model, settings))


def for_ensemble(model: Segmenter, ensemble: str) -> Segmenter:
    """The same weights with the decoder that an ensemble needs.

    Raises:
        ValueError: "published" with a decoder that has no blocks.
    """
    decoder = model.config.decoder
    if ensemble == "plain" or decoder == "multi_mask_transformer":
        return model
    if decoder != "mask_transformer":
        raise ValueError(
            f"ensemble: 'published' needs a mask transformer, got {decoder!r}; use ensemble=plain"
        )
    twin = shared_copy(model)
    twin.config = replace(model.config, decoder="multi_mask_transformer")
    return twin


class SegInputs(NamedTuple):
    """A photograph that has been read for prediction."""

    sample: Sample
    photograph: Photograph
    image: Tensor  #: its pixels, ready for the device
    scaled: list[Tensor]  #: its `scaled_images`

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return self.image.nbytes + sum(image.nbytes for image in self.scaled)


def seg_inputs(
    sample: Sample, photograph: Photograph, settings: PredictConfig, device: torch.device
) -> SegInputs:
    """The inputs of a photograph that has been read."""
    images = scaled_images(photograph.pixels, settings)
    image = pinned(photograph.pixels, device)
    return SegInputs(sample, photograph, image, [pinned(one, device) for one in images])


@torch.inference_mode()
def probabilities(
    model: Segmenter, batch: Sequence[SegInputs], settings: PredictConfig
) -> list[Tensor]:
    """Label scores of images, averaged over ratios and flips.

        mean over views of softmax(unflip(upsample(mean over windows of logits)))

    With an image head, the logits of each view's classes are `gated` first, by the largest logit
    that any of the view's windows has for the class: a class is in the image if it is in a window.

    Windows of different ratios, flips and images share a forward pass. Only the sum of an image's
    views is kept, on the model's device.

    Args:
        model: from `for_prediction` (or any in eval mode whose decoder suits the ensemble).
        batch: from `seg_inputs`.
        settings: see `PredictConfig`.

    Returns:
        Of each image float32 [L, h, w] at its working size; sums to `sum_over_labels` over L.

    Source: reference.md 48, 50.
    """
    device = next(model.parameters()).device
    views_of = [views(one.scaled, settings) for one in batch]
    outputs = _window_logits(model, [view for own in views_of for view in own], settings, device)
    weights = _weights(model, settings)
    totals = []
    for one, image_views in zip(batch, views_of, strict=True):
        size = (one.photograph.pixels.shape[0], one.photograph.pixels.shape[1])
        total: Tensor | None = None
        for view in image_views:
            count = len(view.tops) * len(view.lefts)
            logits, classes = _stacked(itertools.islice(outputs, count))
            merged = merge(view, logits, model.patch_size, settings.window, size)
            if classes is not None:
                merged = gated(merged, classes.amax(0, keepdim=True), settings.image_weight)
            for weight, output in zip(weights, merged, strict=True):
                if weight:
                    share = output.softmax(0).mul_(weight / len(image_views))
                    total = share if total is None else total.add_(share)
        assert total is not None
        totals.append(total)
    return totals


def sum_over_labels(model: Segmenter, settings: PredictConfig) -> float:
    """What the `probabilities` of a pixel sum to: 1, with the published ensemble 1.8."""
    return sum(_weights(model, settings))


def _weights(model: Segmenter, settings: PredictConfig) -> tuple[float, ...]:
    """The weight of each output of the decoder, the last one last."""
    return ENSEMBLES[settings.ensemble][-2 if model.multi else -1 :]


@torch.inference_mode()
def patch_features(model: Segmenter, one: SegInputs, settings: PredictConfig) -> Tensor:
    """The encoder's features of an image as a whole, without windows and flip.

    Args:
        model: see `probabilities`.
        one: from `seg_inputs`; at the ratio that is nearest to 1.
        settings: see `PredictConfig`.

    Returns:
        float32 [D, h', w'] patches after the final norm, on the model's device; less than a patch
        at the end is cut.
    """
    device, patch = next(model.parameters()).device, model.patch_size
    nearest = min(range(len(settings.ratios)), key=lambda index: abs(settings.ratios[index] - 1))
    view = views(one.scaled[nearest : nearest + 1], settings)[0]
    with autocast(settings.amp, device):
        tokens = model.vit(pixels_of(view, on_device(model.normalization, device))[None])
    patches = tokens[0, model.vit.num_prefix_tokens :].float()
    return patches.T.unflatten(1, (view.size[0] // patch, view.size[1] // patch))


def _stacked(
    windows_of_a_view: Iterable[tuple[Tensor, Tensor | None]],
) -> tuple[Tensor, Tensor | None]:
    """Patch logits [n, E, L, h, w] and class logits [n, C] of n windows, of `_window_logits`."""
    logits, classes = zip(*windows_of_a_view, strict=True)
    known = [own for own in classes if own is not None]
    return torch.stack(logits), torch.stack(known) if known else None


def _window_logits(
    model: Segmenter, image_views: Sequence[View], settings: PredictConfig, device: torch.device
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Of every window of every view the patch logits [E, L, h, w], E = outputs of the decoder, and
    the logits [C] of its classes where the model has an image head."""
    crops = windows(image_views, on_device(model.normalization, device), settings.window)
    count = windows_in_a_pass(model, settings)
    while batch := list(itertools.islice(crops, count)):
        with autocast(settings.amp, device):
            logits, classes = model.patch_outputs(torch.stack(batch))
        yield from zip(
            logits.float(), [None] * len(batch) if classes is None else classes.float(), strict=True
        )


def windows_in_a_pass(model: Segmenter, settings: PredictConfig) -> int:
    """`window_batch`; on a CPU, where more is not faster, so many as have `CPU_TOKENS` patches."""
    if next(model.parameters()).device.type != "cpu":
        return settings.window_batch
    patches = math.ceil(settings.window / model.patch_size) ** 2
    return min(settings.window_batch, max(1, CPU_TOKENS // patches))
