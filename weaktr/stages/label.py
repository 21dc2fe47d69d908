"""CAMs -> threshold -> refinement -> pseudo-label masks and their index.

The CAMs come from a stage-1 model, or from files that were written before.

Source: reference.md 28 and 32 (the published generation of labels).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from weaktr.config import LabelConfig
from weaktr.data import Problem, Sample
from weaktr.data.masks import RefinedMasks
from weaktr.data.parallel import ordered_map
from weaktr.data.stored_maps import write_cams
from weaktr.inference.cams import CamsOfModel, CamSource
from weaktr.inference.labels import scores_from_cams
from weaktr.progress import Meter
from weaktr.refine import Maps, Refiner, choose_refiners, refine
from weaktr.stages.run import Stage

log = logging.getLogger("weaktr")

#: The fields of `LabelConfig` that take effect after the CAMs, not in computing them.
AFTER_CAMS = ("threshold", "crf", "gt_prob", "unlabelled", "refiners")


@dataclass
class LabelReport:
    """What was labelled and what was left out.

    Args:
        labelled: number of masks that are now in the folder.
        unlabelled: names of images without a class, which got no mask.
        unreadable: images that could not be read.
    """

    labelled: int = 0
    unlabelled: list[str] = field(default_factory=list)
    unreadable: list[Problem] = field(default_factory=list)

    def log(self) -> None:
        """Log the report."""
        log.info("pseudo labels: %d masks", self.labelled)
        if self.unlabelled:
            log.warning(
                "%d images show no class and were left out (%s, ...); unlabelled=background keeps "
                "them",
                len(self.unlabelled), ", ".join(self.unlabelled[:3]),
            )  # fmt: skip
        for problem in self.unreadable:
            log.warning("left out: %s", problem)


def label(
    source: CamSource,
    samples: Sequence[Sample],
    folder: Path,
    settings: LabelConfig,
    *,
    dump_cams: bool = False,
) -> LabelReport:
    """Write a pseudo label for every image that shows a class; continues where it stopped.

    Args:
        source: of the CAMs.
        samples: the images; their true masks are not read.
        folder: gets ``masks/``, ``index.jsonl`` and, with refiners, ``before_refinement/``.
        settings: see `LabelConfig`; for stored CAMs only those of `AFTER_CAMS` count.
        dump_cams: also write ``cams/NAME.npz`` (large), and again the mask of an image that has no
            such file.

    Returns:
        What was labelled and what was left out, which is also logged.
    """
    refiners = choose_refiners(settings)
    masks = RefinedMasks(folder, refined=bool(refiners))
    report = LabelReport()
    if settings.unlabelled == "skip":
        report.unlabelled = [s.name for s in samples if not source.shows_a_class(s)]
    left_out = set(report.unlabelled)
    chosen = [sample for sample in samples if sample.name not in left_out]

    def cams_path(name: str) -> Path:
        return folder / "cams" / f"{name}.npz"

    def is_complete(name: str) -> bool:
        return name in masks and (not dump_cams or cams_path(name).is_file())

    todo = [sample for sample in chosen if not is_complete(sample.name)]

    def finish(item: tuple[Sample, np.ndarray, np.ndarray]) -> tuple[str, np.ndarray, np.ndarray]:
        sample, image, cams = item
        if dump_cams:
            write_cams(cams_path(sample.name), cams, sample.labels or ())
        plain, refined = pseudo_labels(image, cams, sample.labels or (), settings, refiners)
        return sample.name, plain, refined

    with Meter("pseudo labels", len(chosen), done=len(chosen) - len(todo)) as meter:
        for result in ordered_map(finish, source.cams(todo, report.unreadable)):
            masks.add(*result)
            meter.advance()
    masks.flush()
    report.labelled = len(masks)
    report.log()
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


LABEL = Stage(
    "label",
    settings=("label",),
    images=lambda run: [run.train_images],
    work=lambda run: label(
        CamsOfModel(run.cam_model(), run.recipe.label),
        run.train_images.samples,
        run.of("label"),
        run.recipe.label,
    ),
    after=("train_cam",),
)
