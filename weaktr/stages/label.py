"""Checkpoint and images -> CAMs (in memory) -> CRF -> pseudo-label masks and their index.

Source: reference.md 23-28 and 32 (the published generation of CAMs and labels).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from weaktr import artifacts
from weaktr.artifacts import MaskFolder
from weaktr.config import Amp, LabelConfig
from weaktr.crf import DenseCRF
from weaktr.data import Problem, Sample
from weaktr.models import CamModel
from weaktr.models.ragged import cams_ragged
from weaktr.parallel import ordered_map, read_images
from weaktr.progress import Meter
from weaktr.stages.crf_choice import choose_crf
from weaktr.stages.training import autocast

log = logging.getLogger("weaktr")

#: `LabelConfig.batch_tokens` by type of device. A CPU gains nothing by larger batches.
BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}


@dataclass
class LabelReport:
    """What became of the images.

    Args:
        labelled: masks now in the folder.
        unlabelled: names of images of no class that got no mask.
        unreadable: images that could not be read.
    """

    labelled: int = 0
    unlabelled: list[str] = field(default_factory=list)
    unreadable: list[Problem] = field(default_factory=list)


def label(
    model: CamModel,
    samples: Sequence[Sample],
    folder: Path,
    settings: LabelConfig,
    *,
    dump_cams: bool = False,
) -> LabelReport:
    """Write a pseudo label for every image with image-level labels; goes on where it stopped.

    Args:
        model: in eval mode, on its device.
        samples: images and image-level labels; masks are not looked at.
        folder: gets ``masks/``, ``index.jsonl`` and, with a CRF, ``before_crf/``.
        settings: see `LabelConfig`.
        dump_cams: also write ``cams/NAME.npz`` (large).

    Returns:
        What was done and what was left out, which is also logged.
    """
    masks = MaskFolder(folder, verify=True)
    before = MaskFolder(folder / "before_crf", verify=True)
    crf = choose_crf(settings.crf)
    report = LabelReport()
    if settings.unlabelled == "skip":
        report.unlabelled = [sample.name for sample in samples if not sample.labels]
    left_out = set(report.unlabelled)
    chosen = [sample for sample in samples if sample.name not in left_out]
    todo = [
        sample
        for sample in chosen
        if sample.name not in masks or (crf is not None and sample.name not in before)
    ]

    def finish(item: tuple[Sample, np.ndarray, np.ndarray]) -> tuple[Sample, list[np.ndarray]]:
        sample, image, cams = item
        if dump_cams:
            artifacts.write_cams(folder / "cams" / f"{sample.name}.npz", cams, sample.labels or ())
        return sample, _pseudo_labels(image, cams, sample.labels or (), settings, crf)

    with Meter("pseudo labels", len(chosen), done=len(chosen) - len(todo)) as meter:
        items = image_cams(model, read_images(todo, report.unreadable), settings)
        for sample, made in ordered_map(finish, items):
            if crf is not None:
                before.add(sample.name, made[0])
            masks.add(sample.name, made[-1])
            meter.advance()
    masks.flush()
    before.flush()
    report.labelled = len(masks)
    _tell(report)
    return report


def image_cams(
    model: CamModel, images: Iterable[tuple[Sample, np.ndarray]], settings: LabelConfig
) -> Iterator[tuple[Sample, np.ndarray, np.ndarray]]:
    """The multi-scale CAMs of every image, for the classes of its image-level label.

    Args:
        model: in eval mode, on its device.
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
            scales=settings.scales,
            flip=settings.flip,
            attention_type=settings.attention_type,
            refine=settings.refine,
            amp=settings.amp,
        )
        for (sample, image), maps in zip(batch, cams, strict=True):
            yield sample, image, maps


@torch.inference_mode()
def multi_scale_cams(
    model: CamModel,
    images: Sequence[np.ndarray],
    present: Sequence[Sequence[int]],
    *,
    scales: Sequence[float] = (1.0, 1.2),
    flip: bool = True,
    attention_type: str = "fused",
    refine: bool = True,
    amp: Amp = "none",
) -> list[np.ndarray]:
    """CAMs summed over scales and flips, then brought to [0, 1] class by class.

        cam = Σ_scales Σ_flips upsample(cams(resize(image)));  (cam - min) / (max - min + 1e-8)

    Args:
        model: in eval mode, on its device.
        images: uint8 [H, W, 3] RGB, of any sizes; those of one scale and their flips go through
            the model in one pass (`cams_ragged`).
        present: for each image the class indices to compute.
        scales: of the images; PIL's bicubic, sides ``round(side * scale)``.
        flip: also the horizontally flipped image.
        attention_type, refine: see `CamModel.cams`.
        amp: autocast of the forward passes.

    Returns:
        For each image float32 [K, H, W] in the order of `present`.

    Source: reference.md 23.
    """
    device = next(model.parameters()).device
    views = 2 if flip else 1
    sums = [
        torch.zeros(len(classes), *image.shape[:2], device=device)
        for image, classes in zip(images, present, strict=True)
    ]
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in model.normalization)
    for scale in scales:
        inputs = []
        for image in images:
            plain = _network_input(image, scale, mean, std)
            inputs += [plain, plain.flip(-1)][:views]
        asked = [classes for classes in present for _ in range(views)]
        with autocast(amp, device):
            maps = cams_ragged(model, inputs, asked, attention_type=attention_type, refine=refine)
        for index, cams in enumerate(maps):
            total = sums[index // views]
            if len(total):
                large = _upsample(cams, (total.shape[1], total.shape[2]))
                total.add_(large.flip(-1) if index % views else large)
    return [_normalise(total).cpu().numpy() for total in sums]


def labels_from_cams(cams: np.ndarray, threshold: float) -> np.ndarray:
    """The best class of each pixel, or background where no CAM exceeds the threshold.

        label = argmax softmax([threshold, cam_1, ..., cam_K])

    The softmax changes no order but rounds: a CAM one unit in the last place above the threshold
    ties with it, and the first (background) wins, as in the published labels.

    Args:
        cams: float32 [K, H, W] in [0, 1].
        threshold: background score in [0, 1].

    Returns:
        uint8 [H, W]: 0 = background, i + 1 = the i-th CAM.

    Source: reference.md 28.
    """
    background = np.full((1, *cams.shape[1:]), threshold, np.float32)
    scores = np.concatenate([background, cams.astype(np.float32, copy=False)])
    scores = np.exp(scores - scores.max(0))
    return (scores / scores.sum(0)).argmax(0).astype(np.uint8)


def _pseudo_labels(
    image: np.ndarray,
    cams: np.ndarray,
    classes: Sequence[int],
    settings: LabelConfig,
    crf: DenseCRF | None,
) -> list[np.ndarray]:
    """Labels before and, where there is a CRF, after it; uint8 [H, W] each."""
    values = np.array([0, *(index + 1 for index in classes)], np.uint8)
    compact = labels_from_cams(cams, settings.threshold)
    if crf is None:
        return [values[compact]]
    refined = compact
    if classes:
        refined = crf.refine_labels(
            image, compact, len(values), gt_prob=settings.gt_prob, num_threads=1
        )
    return [values[compact], values[refined]]


def _network_input(image: np.ndarray, scale: float, mean: Tensor, std: Tensor) -> Tensor:
    """uint8 [H, W, 3] -> normalised [3, H', W'] where mean and std [3, 1, 1] are."""
    height, width = image.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size != (width, height):
        image = np.array(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    pixels = torch.from_numpy(image).to(mean.device).permute(2, 0, 1)
    return (pixels.float() / 255 - mean) / std


def _upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _normalise(maps: Tensor) -> Tensor:
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
    tokens = 0
    for item in images:
        pixels = item[1].shape[0] * item[1].shape[1] * max(settings.scales) ** 2
        own = math.ceil(views * pixels / patch_size**2)
        if batch and (len(batch) == settings.batch_size or tokens + own > most):
            yield batch
            batch, tokens = [], 0
        batch.append(item)
        tokens += own
    if batch:
        yield batch


def _tell(report: LabelReport) -> None:
    log.info("pseudo labels: %d masks", report.labelled)
    if report.unlabelled:
        log.warning(
            "%d images show no class and were left out (%s, ...); unlabelled=background keeps them",
            len(report.unlabelled), ", ".join(report.unlabelled[:3]),
        )  # fmt: skip
    for problem in report.unreadable:
        log.warning("left out: %s", problem)
