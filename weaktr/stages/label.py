"""CAMs -> threshold -> refinement -> pseudo-label masks and their index.

The CAMs come from a checkpoint, image by image, or from files that were made before.

Source: reference.md 28 and 32 (the published generation of labels).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from weaktr.config import LabelConfig
from weaktr.data import Problem, Sample
from weaktr.data.io import size_message
from weaktr.data.masks import MaskFolder, before_refinement
from weaktr.data.parallel import ordered_map, read_images
from weaktr.data.stored_maps import read_cams, write_cams
from weaktr.inference.cams import for_labelling, image_cams
from weaktr.inference.labels import scores_from_cams
from weaktr.models import CamModel
from weaktr.progress import Meter
from weaktr.refine import Maps, Refiner, choose_refiners, refine
from weaktr.stages.run import Stage

log = logging.getLogger("weaktr")

#: The fields of `LabelConfig` that concern what is done with CAMs, not how they are made.
AFTER_CAMS = ("threshold", "refiners", "crf", "gt_prob", "unlabelled")
#: A sample, its image uint8 [H, W, 3], and CAMs [K, H, W] in the order of its K labels.
Item = tuple[Sample, np.ndarray, np.ndarray]


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
        folder: gets ``masks/``, ``index.jsonl`` and, with refiners, ``before_refinement/``.
        settings: see `LabelConfig`.
        dump_cams: also write ``cams/NAME.npz`` (large).

    Returns:
        What was done and what was left out, which is also logged.
    """
    ready = for_labelling(model, settings)

    def made(todo: Sequence[Sample], unreadable: list[Problem]) -> Iterator[Item]:
        return image_cams(ready, read_images(todo, unreadable), settings)

    no_class = [sample.name for sample in samples if not sample.labels]
    return _label(made, samples, no_class, folder, settings, dump_cams=dump_cams)


def label_stored(
    cams: Mapping[str, Path], samples: Sequence[Sample], folder: Path, settings: LabelConfig
) -> LabelReport:
    """Write a pseudo label for every image whose CAMs were stored; goes on where it stopped.

    Args:
        cams: files by the name of the sample (`weaktr.data.stored_maps.cam_files`).
        samples: images; their image-level labels are not looked at, the CAMs name their classes.
            An image without CAMs counts as one of no class.
        folder, settings: as in `label`; only `AFTER_CAMS` of the settings are used.

    Returns:
        What was done and what was left out, which is also logged.
    """

    def read(item: tuple[Sample, np.ndarray]) -> Item | Problem:
        sample, image = item
        if sample.name not in cams:
            return sample, image, np.zeros((0, *image.shape[:2]), np.float32)
        return _with_stored_cams(sample, image, cams[sample.name])

    def stored(todo: Sequence[Sample], unreadable: list[Problem]) -> Iterator[Item]:
        for item in ordered_map(read, read_images(todo, unreadable)):
            if isinstance(item, Problem):
                unreadable.append(item)
            else:
                yield item

    no_class = [sample.name for sample in samples if sample.name not in cams]
    return _label(stored, samples, no_class, folder, settings)


def _with_stored_cams(sample: Sample, image: np.ndarray, path: Path) -> Item | Problem:
    try:
        cams, classes = read_cams(path)
    except ValueError as error:
        return Problem(str(path), sample.source, str(error).removeprefix(f"{path}: "))
    if cams.shape[1:] != image.shape[:2]:
        return Problem(str(path), sample.source, size_message(cams.shape[1:], image.shape[:2]))
    return replace(sample, labels=tuple(classes.tolist())), image, cams


def _label(
    cams_of: Callable[[Sequence[Sample], list[Problem]], Iterator[Item]],
    samples: Sequence[Sample],
    no_class: list[str],
    folder: Path,
    settings: LabelConfig,
    *,
    dump_cams: bool = False,
) -> LabelReport:
    """The masks of all samples but for those that are there; `no_class`: names of such samples."""
    masks = MaskFolder(folder, verify=True)
    before = MaskFolder(before_refinement(folder), verify=True)
    refiners = choose_refiners(settings)
    report = LabelReport()
    if settings.unlabelled == "skip":
        report.unlabelled = no_class
    left_out = set(report.unlabelled)
    chosen = [sample for sample in samples if sample.name not in left_out]
    todo = [
        sample
        for sample in chosen
        if sample.name not in masks or (refiners and sample.name not in before)
    ]

    def finish(item: Item) -> tuple[Sample, tuple[np.ndarray, np.ndarray]]:
        sample, image, cams = item
        if dump_cams:
            write_cams(folder / "cams" / f"{sample.name}.npz", cams, sample.labels or ())
        return sample, pseudo_labels(image, cams, sample.labels or (), settings, refiners)

    with Meter("pseudo labels", len(chosen), done=len(chosen) - len(todo)) as meter:
        for sample, (plain, refined) in ordered_map(finish, cams_of(todo, report.unreadable)):
            if refiners:
                before.add(sample.name, plain)
            masks.add(sample.name, refined)
            meter.advance()
    masks.flush()
    before.flush()
    report.labelled = len(masks)
    _tell(report)
    return report


def pseudo_labels(
    image: np.ndarray,
    cams: np.ndarray,
    classes: Sequence[int],
    settings: LabelConfig,
    refiners: Sequence[Refiner],
) -> tuple[np.ndarray, np.ndarray]:
    """The labels of one image before and after refinement.

    Args:
        image: uint8 [H, W, 3] RGB.
        cams: float32 [K, H, W] in [0, 1].
        classes: the K class indices.
        settings: its threshold is used.
        refiners: from `choose_refiners`.

    Returns:
        Two uint8 [H, W]: 0 = background, k + 1 = class index k.
    """
    scores = scores_from_cams(cams, settings.threshold)
    plain = scores.argmax(0).astype(np.uint8)
    maps = Maps(torch.from_numpy(plain), len(scores), torch.from_numpy(scores))
    (refined,) = refine(refiners, [torch.from_numpy(image)], [maps], num_threads=1)
    values = np.array([0, *(index + 1 for index in classes)], np.uint8)
    return values[plain], values[refined.labels.numpy()]


def _tell(report: LabelReport) -> None:
    log.info("pseudo labels: %d masks", report.labelled)
    if report.unlabelled:
        log.warning(
            "%d images show no class and were left out (%s, ...); unlabelled=background keeps them",
            len(report.unlabelled), ", ".join(report.unlabelled[:3]),
        )  # fmt: skip
    for problem in report.unreadable:
        log.warning("left out: %s", problem)


LABEL = Stage(
    "label",
    settings=("label",),
    images=lambda run: [run.train_images],
    work=lambda run: label(
        run.cam_model(), run.train_images.samples, run.of("label"), run.recipe.label
    ),
    after=("train_cam",),
)
