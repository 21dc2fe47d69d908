"""Checkpoint and photographs -> CAMs over scales and flips, in memory.

Source: reference.md 23-27 (the published generation of CAMs).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from weaktr.config import LabelConfig
from weaktr.data import Sample
from weaktr.data.photographs import Photograph, read_photograph, reduced
from weaktr.inference.transfer import pinned
from weaktr.models import CamModel
from weaktr.models.cam import EncodedImages
from weaktr.models.inference import for_inference
from weaktr.models.onednn import shared_copy
from weaktr.models.precision import autocast
from weaktr.ops.upload import upload

#: Patches of a forward pass: what oneDNN's layout is chosen for on a CPU, and the default of
#: `LabelConfig.batch_tokens` on a GPU.
CPU_TOKENS, GPU_TOKENS = 2048, 32768
#: GiB of a GPU's memory for so many; DeiT-S needs 4 of them in float32.
GIB_FOR_GPU_TOKENS = 20
#: Values of CAMs that are enlarged at once: 0.5 GiB.
MOST_VALUES = 2**27
#: A map whose values differ by less than this share of the largest holds rounding alone.
FLAT = 1e-5
#: Images that are refined together on a CPU, where each has a forward pass of its own.
CPU_BATCH = 4


class CamInputs(NamedTuple):
    """A photograph as a source of CAMs has read it."""

    sample: Sample
    photograph: Photograph
    image: Tensor  #: its pixels, ready for the device
    parts: list[Tensor]  #: what the source needs; a model: uint8 [h, w, 3] at each scale

    @property
    def nbytes(self) -> int:
        """Bytes of all pixels."""
        return self.image.nbytes + sum(part.nbytes for part in self.parts)


class Cams(NamedTuple):
    """The CAMs of one photograph."""

    classes: tuple[int, ...]  #: the K class indices
    maps: Tensor  #: float32 [K, h, w] in [0, 1] at the working size, on the source's device
    #: of each class, where they were predicted from the photograph
    probabilities: tuple[float, ...] | None = None
    #: float32 [D, h', w'] patch features, where the caller asked for them: those of the last block,
    #: of the photograph as it is (not flipped) at the first scale
    features: Tensor | None = None
    #: float32 [K, h, w] of each scale and flip alone, scaled as `maps`, where they were asked for
    views: tuple[Tensor, ...] = ()
    #: whether the maps are to each other, and to 1 less the largest of them, as the probabilities
    #: of the classes and the background are
    odds: bool = False


class CamSource(Protocol):
    """Where the CAMs of images come from: a model, or files (`weaktr.inference.stored_cams`)."""

    device: torch.device
    num_labels: int | None  #: L, background included; None = not known
    with_features: bool  #: whether the CAMs come with `Cams.features`

    def shows_a_class(self, sample: Sample) -> bool:
        """Whether an image may show a class, as far as is known without reading it."""
        ...

    def files(self, sample: Sample) -> tuple[Path, ...]:
        """The files that `read` reads, the photograph first."""
        ...

    def read(self, sample: Sample) -> CamInputs:
        """Read a photograph; called in several threads.

        Raises:
            DataError: it, or its CAMs, cannot be read.
        """
        ...

    def fits(self, batch: Sequence[CamInputs], further: CamInputs) -> bool:
        """Whether a further photograph may join a batch."""
        ...

    def cams(self, batch: Sequence[CamInputs]) -> list[Cams]:
        """The CAMs of each photograph of a batch."""
        ...


class CamsOfModel:
    """CAMs of a stage-1 model (`CamSource`).

    Args:
        model: in eval mode, on its device.
        settings: how the CAMs are computed, see `LabelConfig`.
        predict_above: images without image-level labels get the classes whose probability is above
            this; None = they have no class.
        with_features: give the patch features of each photograph, too.
        with_views: likewise the CAMs of each scale and flip.
    """

    def __init__(
        self,
        model: CamModel,
        settings: LabelConfig,
        predict_above: float | None = None,
        *,
        with_features: bool = False,
        with_views: bool = False,
    ) -> None:
        self.model, self.settings = for_labelling(model, settings), settings
        self.predict_above, self.with_features = predict_above, with_features
        self.with_views = with_views
        self.num_labels: int | None = model.num_classes + 1
        self.device = next(model.parameters()).device

    def shows_a_class(self, sample: Sample) -> bool:
        """Whether the sample has an image-level label, or may get one."""
        return bool(sample.labels) or (sample.labels is None and self.predict_above is not None)

    def files(self, sample: Sample) -> tuple[Path, ...]:
        """See `CamSource`."""
        return (sample.image,)

    def read(self, sample: Sample) -> CamInputs:
        """See `CamSource`."""
        return self._inputs(sample, read_photograph(sample, self.settings.max_side))

    def inputs(self, sample: Sample, pixels: np.ndarray) -> CamInputs:
        """The inputs of a photograph in memory, uint8 [H, W, 3]."""
        return self._inputs(sample, reduced(pixels, self.settings.max_side))

    def _inputs(self, sample: Sample, photograph: Photograph) -> CamInputs:
        image = pinned(photograph.pixels, self.device)
        parts = []
        for scale in self.settings.scales:
            pixels = scaled_pixels(photograph.pixels, scale, self.model.patch_size)
            same = pixels is photograph.pixels
            parts.append(image if same else pinned(pixels, self.device))
        return CamInputs(sample, photograph, image, parts)

    def fits(self, batch: Sequence[CamInputs], further: CamInputs) -> bool:
        """See `CamSource`: by `batch_size`, and on a GPU by the patches at the largest scale."""
        if self.device.type == "cpu":
            return len(batch) < min(CPU_BATCH, self.settings.batch_size)
        patches = sum(self._patches(one) for one in (*batch, further))
        most = most_patches_on(self.device, self.settings)
        return len(batch) < self.settings.batch_size and patches <= most

    def _patches(self, inputs: CamInputs) -> int:
        height, width, _ = max((part.shape for part in inputs.parts), key=math.prod)
        views = 2 if self.settings.flip else 1
        return math.ceil(views * height * width / self.model.patch_size**2)

    def cams(self, batch: Sequence[CamInputs]) -> list[Cams]:
        """See `CamSource`. On a CPU each photograph has a forward pass of its own."""
        if self.device.type == "cpu" and len(batch) > 1:
            return [cams for one in batch for cams in self.cams([one])]
        order = sorted(range(len(batch)), key=lambda i: batch[i].photograph.pixels.shape)
        cams = self._cams_together([batch[i] for i in order])
        return [one for _, one in sorted(zip(order, cams, strict=True), key=lambda pair: pair[0])]

    def _cams_together(self, batch: Sequence[CamInputs]) -> list[Cams]:
        """`cams` in one pass; neighbours of one size are embedded at once."""
        return multi_scale_cams(
            self.model,
            [one.parts for one in batch],
            [one.photograph.pixels.shape[:2] for one in batch],
            [None if one.sample.labels is None else one.sample.labels for one in batch],
            self.settings,
            self.predict_above,
            with_features=self.with_features,
            with_views=self.with_views,
        )


def for_labelling(model: CamModel, settings: LabelConfig) -> CamModel:
    """A copy for inference that shares the model's weights.

    Its backbone is prepared by `for_inference`; head and fusion stay in float32.
    """
    twin = shared_copy(model)
    twin.vit = for_inference(model.vit, settings.amp, CPU_TOKENS)
    return twin


@torch.inference_mode()
def multi_scale_cams(
    model: CamModel,
    scaled: Sequence[Sequence[Tensor]],
    sizes: Sequence[tuple[int, int]],
    labels: Sequence[Sequence[int] | None],
    settings: LabelConfig,
    predict_above: float | None = None,
    *,
    with_features: bool = False,
    with_views: bool = False,
) -> list[Cams]:
    """CAMs summed over scales and flips, then scaled to [0, 1] class by class.

        cam = Σ_scales Σ_flips unflip(upsample(cams(resize(image))))
        (cam - min) / (max - min + 1e-8), or 0 where all are the same

    Args:
        model: in eval mode, on its device.
        scaled: of each image its `scaled_pixels` at each scale; those of one scale and their flips
            go through the model in one pass, as do several scales of small images.
        sizes: (h, w) of the CAMs of each image.
        labels: for each image the class indices to compute; None = those that the model predicts
            at the first scale.
        settings: see `LabelConfig`.
        predict_above, with_features, with_views: see `CamsOfModel`. The features are after the
            backbone's final norm where the head's are (`CamModelConfig.patch_norm`).

    Source: reference.md 23.
    """
    device = next(model.parameters()).device
    views = 2 if settings.flip else 1
    most_patches = most_patches_on(device, settings)
    mean, std = (upload(torch.tensor(v), device).view(3, 1, 1) for v in model.normalization)
    with_attention = settings.refine or settings.attention_type != "coarse"
    groups = _neighbours(sizes)
    classes: list[tuple[int, ...]] = []
    predicted: list[tuple[float, ...] | None] = []
    sums: list[Tensor] = []
    features: list[Tensor | None] = [None] * len(scaled)
    views_of: list[tuple[Tensor, ...]] = [()] * len(scaled)
    for numbers in _passes(scaled, most_patches // views, model.patch_size):
        inputs = []
        for number, group in product(numbers, groups):
            pixels = torch.stack([upload(parts[number], device) for parts in scaled[group]])
            plain = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
            both = torch.stack([plain, plain.flip(-1)][:views], 1)  # an image's side by side
            inputs.append(both.flatten(0, 1))
        with autocast(settings.amp, device):
            encoded = model.encode_groups(inputs, with_attention=with_attention)
            if not sums:
                classes, predicted = _classes(model, encoded, labels, views, predict_above)
                sums = [_zeros(classes[group], sizes[group.start], device) for group in groups]
                if with_features:
                    each = [one for maps in encoded.encoding.patch_maps for one in maps]
                    firsts = each[: views * len(scaled) : views]
                    features = [patch_map.contiguous().float() for patch_map in firsts]
            small = model.cams_of_groups(
                encoded,
                [own for _ in numbers for own in classes for _ in range(views)],
                attention_type=settings.attention_type,
                refine=settings.refine,
            )
        del encoded  # or its queries and keys stay while the next scale is encoded
        for index, cams in enumerate(small):
            total, first = sums[index % len(groups)], groups[index % len(groups)].start
            size = (total.shape[2], total.shape[3])
            for some, parts_of in _enlarged(cams, total.shape[1], size, views):
                for view in parts_of:
                    total[some].add_(view)
                    if not with_views:
                        continue
                    for image, maps in enumerate(view, first + some.start):
                        views_of[image] += (_normalise(maps[: len(classes[image])]),)
    sums = [one for total in sums for one in _normalise(total)]
    return [
        Cams(own, total[: len(own)], probabilities, patches, of_views)
        for own, total, probabilities, patches, of_views in zip(
            classes, sums, predicted, features, views_of, strict=True
        )
    ]


def most_patches_on(device: torch.device, settings: LabelConfig) -> int:
    """Most patches in a forward pass, flips included."""
    if device.type == "cpu":
        return CPU_TOKENS
    return settings.batch_tokens or gpu_tokens(device)


@cache
def gpu_tokens(device: torch.device) -> int:
    """The default of `LabelConfig.batch_tokens`: more on a GPU with more memory, up to 4 times."""
    gib = torch.cuda.get_device_properties(device).total_memory / 2**30
    return GPU_TOKENS * max(1, min(4, int(gib / GIB_FOR_GPU_TOKENS)))


def _neighbours(sizes: Sequence[tuple[int, int]]) -> list[slice]:
    """Where neighbours of one size begin and end."""
    slices, start = [], 0
    for _, group in groupby(sizes):
        stop = start + len(list(group))
        slices.append(slice(start, stop))
        start = stop
    return slices


def _zeros(classes: Sequence[Sequence[int]], size: tuple[int, int], device: torch.device) -> Tensor:
    """Room for the CAMs of images of one size: [images, C', h, w], C' the most classes of one."""
    return torch.zeros(len(classes), max(map(len, classes)), *size, device=device)


def _enlarged(
    cams: Tensor, wide: int, size: tuple[int, int], views: int
) -> Iterator[tuple[slice, list[Tensor]]]:
    """CAMs of images of one size at that size, some images at a time: which they are, each view.

    Args:
        cams: [images · views, C', h, w], an image's views side by side, the second one flipped.
        wide: how many of the C' are wanted; nothing is yielded where none are.
        size: (H, W).
        views: of each image.

    Yields:
        Images and their views, each [some images, wide, H, W], not flipped.
    """
    images = len(cams) // views
    step = max(1, MOST_VALUES // max(1, views * wide * math.prod(size)))
    for start in range(0, images if wide else 0, step):
        some = slice(start, min(start + step, images))
        part = cams[some.start * views : some.stop * views, :wide]
        large = F.interpolate(part, size, mode="bilinear", align_corners=False)
        plain, *flipped = large.unflatten(0, (-1, views)).unbind(1)
        yield some, [plain, *(view.flip(-1) for view in flipped)]


def _passes(scaled: Sequence[Sequence[Tensor]], most: int, patch_size: int) -> list[list[int]]:
    """Which scales go through the model together: as many as have at most `most` patches."""
    passes: list[list[int]] = []
    patches = 0
    for number, images in enumerate(zip(*scaled, strict=True)):
        own = sum(math.prod(image.shape[:2]) for image in images) // patch_size**2
        if not passes or patches + own > most:
            passes.append([])
            patches = 0
        passes[-1].append(number)
        patches += own
    return passes


def _classes(
    model: CamModel,
    encoded: EncodedImages,
    labels: Sequence[Sequence[int] | None],
    views: int,
    predict_above: float | None,
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...] | None]]:
    """The classes of each image, and the probabilities of those that are predicted."""
    if predict_above is None or all(own is not None for own in labels):
        return [tuple(own or ()) for own in labels], [None] * len(labels)
    rows = model.class_probabilities(encoded)[: views * len(labels)]  # those of the first scale
    means = rows.unflatten(0, (-1, views)).mean(1).tolist()
    classes, predicted = [], []
    for own, row in zip(labels, means, strict=True):
        likely = tuple(index for index, share in enumerate(row) if share > predict_above)
        classes.append(likely if own is None else tuple(own))
        predicted.append(tuple(row[index] for index in likely) if own is None else None)
    return classes, predicted


def scaled_pixels(pixels: np.ndarray, scale: float, least: int) -> np.ndarray:
    """uint8 [h, w, 3], each side times `scale` and at least `least`, by PIL's bicubic."""
    height, width = (max(least, round(side * scale)) for side in pixels.shape[:2])
    return scaled_to(pixels, (height, width))


def scaled_to(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] of a size (h, w), by PIL's bicubic."""
    if size == pixels.shape[:2]:
        return pixels
    return np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.BICUBIC))


def _normalise(maps: Tensor) -> Tensor:
    """Each map [H, W] of [..., H, W], at least 0, scaled to [0, 1]; a `FLAT` one is 0."""
    if not maps.numel():
        return maps
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    spread = high - low
    return (maps - low) / (spread + 1e-8).masked_fill(spread <= FLAT * high, torch.inf)
