"""Checkpoint and images -> CAMs of every image, over scales and flips, in memory.

Source: reference.md 23-27 (the published generation of CAMs).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from weaktr.config import LabelConfig
from weaktr.data import Problem, Sample
from weaktr.data.parallel import read_images
from weaktr.models import CamModel
from weaktr.models.onednn import for_inference, shared_copy
from weaktr.models.precision import autocast

#: `LabelConfig.batch_tokens` by type of device. A CPU gains nothing by larger batches.
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


class CamSource(Protocol):
    """Where the CAMs of images come from: a model, or files (`weaktr.data.stored_maps`)."""

    def shows_a_class(self, sample: Sample) -> bool:
        """Whether an image shows any class, as far as is known without reading it."""
        ...

    def cams(
        self, samples: Iterable[Sample], unreadable: list[Problem]
    ) -> Iterator[tuple[Sample, np.ndarray, np.ndarray]]:
        """Sample, image uint8 [H, W, 3], CAMs float32 [K, H, W] in the order of its K labels.

        Images or CAMs that cannot be read are left out and added to `unreadable`.
        """
        ...


class CamsOfModel:
    """CAMs of a stage-1 model for the image-level labels of the samples (`CamSource`).

    Args:
        model: in eval mode, on its device.
        settings: how the CAMs are computed, see `LabelConfig`.
    """

    def __init__(self, model: CamModel, settings: LabelConfig) -> None:
        self.model, self.settings = for_labelling(model, settings), settings

    def shows_a_class(self, sample: Sample) -> bool:
        """Whether the sample has an image-level label."""
        return bool(sample.labels)

    def cams(
        self, samples: Iterable[Sample], unreadable: list[Problem]
    ) -> Iterator[tuple[Sample, np.ndarray, np.ndarray]]:
        """See `CamSource`."""
        return image_cams(self.model, read_images(samples, unreadable), self.settings)


def image_cams(
    model: CamModel, images: Iterable[tuple[Sample, np.ndarray]], settings: LabelConfig
) -> Iterator[tuple[Sample, np.ndarray, np.ndarray]]:
    """The multi-scale CAMs of every image, for the classes of its image-level label.

    Args:
        model: from `for_labelling`, or any in eval mode, on its device.
        images: samples with their pixels, uint8 [H, W, 3]; neighbours of any sizes share a batch.
        settings: see `LabelConfig`.

    Yields:
        Sample, image, CAMs float32 [K, H, W] in [0, 1] in the order of `Sample.labels`.
    """
    device = next(model.parameters()).device
    most = settings.batch_tokens or BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])
    for batch in _batches(images, settings, most, model.patch_size):
        cams = multi_scale_cams(
            model,
            [image for _, image in batch],
            [sample.labels or () for sample, _ in batch],
            settings,
        )
        for (sample, image), own_cams in zip(batch, cams, strict=True):
            yield sample, image, own_cams


def for_labelling(model: CamModel, settings: LabelConfig) -> CamModel:
    """A copy for inference that shares the model's weights.

    Its backbone is prepared by `for_inference`; head and fusion stay in float32.
    """
    twin = shared_copy(model)
    twin.vit = for_inference(model.vit, settings.amp, BATCH_TOKENS["cpu"])
    return twin


@torch.inference_mode()
def multi_scale_cams(
    model: CamModel,
    images: Sequence[np.ndarray],
    classes: Sequence[Sequence[int]],
    settings: LabelConfig,
) -> list[np.ndarray]:
    """CAMs summed over scales and flips, then scaled to [0, 1] class by class.

        cam = Σ_scales Σ_flips unflip(upsample(cams(resize(image))))
        (cam - min) / (max - min + 1e-8)

    Args:
        model: in eval mode, on its device.
        images: uint8 [H, W, 3] RGB, of any sizes; those of one scale and their flips go through
            the model in one pass (`CamModel.cams_of_sizes`).
        classes: for each image the class indices to compute.
        settings: see `LabelConfig`. Images are scaled by PIL's bicubic.

    Returns:
        For each image float32 [K, H, W] in the order of its classes.

    Source: reference.md 23.
    """
    device = next(model.parameters()).device
    views = 2 if settings.flip else 1
    sums = [
        torch.zeros(len(own), *image.shape[:2], device=device)
        for image, own in zip(images, classes, strict=True)
    ]
    classes_of_views = [own for own in classes for _ in range(views)]
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in model.normalization)
    for scale in settings.scales:
        inputs = []
        for image in images:
            plain = _network_input(image, scale, mean, std)
            inputs += [plain, plain.flip(-1)][:views]
        with autocast(settings.amp, device):
            small = model.cams_of_sizes(
                inputs,
                classes_of_views,
                attention_type=settings.attention_type,
                refine=settings.refine,
            )
        for index, cams in enumerate(small):
            total = sums[index // views]
            if len(total):
                size = (total.shape[1], total.shape[2])
                large = F.interpolate(cams[None], size, mode="bilinear", align_corners=False)[0]
                total.add_(large.flip(-1) if index % views else large)
    return [_normalise(total).cpu().numpy() for total in sums]


def _network_input(image: np.ndarray, scale: float, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [H, W, 3] -> normalised [3, H', W'] where mean and std [3, 1, 1] are."""
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size != (width, height):
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(image).to(mean.device).permute(2, 0, 1)
    return (pixels.float() / 255 - mean) / std


def _normalise(maps: Tensor) -> Tensor:
    """Each map [H, W] of [K, H, W] scaled to [0, 1]."""
    if not len(maps):
        return maps
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low + 1e-8)


def _batches(
    images: Iterable[tuple[Sample, np.ndarray]], settings: LabelConfig, most: int, patch_size: int
) -> Iterator[list[tuple[Sample, np.ndarray]]]:
    """Neighbouring images in batches of at most `batch_size` images and `most` patches."""
    views = 2 if settings.flip else 1
    batch: list[tuple[Sample, np.ndarray]] = []
    patches = 0
    for item in images:
        pixels = item[1].shape[0] * item[1].shape[1] * max(settings.scales) ** 2
        own = math.ceil(views * pixels / patch_size**2)
        if batch and (len(batch) == settings.batch_size or patches + own > most):
            yield batch
            batch, patches = [], 0
        batch.append(item)
        patches += own
    if batch:
        yield batch
