"""The CAMs of a run's photographs, small and quickly computed: one scale, not flipped."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from weaktr.data import DataError
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.patch_cams import CamsOfPatches
from weaktr.models import PatchModel
from weaktr.progress import track
from weaktr.report.photographs import Photo
from weaktr.stages.run import MODEL, Run
from weaktr.stages.train_patches import features_of_run

log = logging.getLogger("weaktr")

#: The `id` of a photograph -> its classes' labels, and the CAM of each, uint8 [h, w] with 255 = 1.
CamsOf = dict[int, list[tuple[int, np.ndarray]]]
#: Longest side of a CAM in the page; of how many classes of a photograph there is one.
CAM_SIDE, MOST_CLASSES = 44, 3
#: Of how many photographs where they take a pass through the model.
MOST_PASSES = 200


def has_cams(run: Run | None) -> bool:
    """Whether there is a model that gives CAMs."""
    return run is not None and (run.of("train_cam") / MODEL).is_file()


def most_cams(run: Run) -> int | None:
    """Of how many photographs CAMs take no long time; None = of all: their features are kept."""
    is_kept = run.recipe.cam_model.kind == "patches" and run.recipe.cache.disk_gb > 0
    return None if is_kept else MOST_PASSES


@torch.inference_mode()
def small_cams(run: Run, photos: Sequence[Photo]) -> CamsOf:
    """The CAMs of photographs, of up to `MOST_CLASSES` classes each.

    Args:
        run: its stage-1 model gives them.
        photos: those without a class, and those that cannot be read, are left out.
    """
    model = run.cam_model()
    settings = replace(run.recipe.label, scales=(1.0,), flip=False)
    source: CamsOfModel | CamsOfPatches
    found: CamsOf = {}
    if isinstance(model, PatchModel):  # whose maps come at any size
        settings = replace(settings, max_side=CAM_SIDE)
        source = CamsOfPatches(model, settings, cache=features_of_run(model, run))
        source.fill_cache([photo.sample for photo in photos if _first_classes(photo)])
    else:
        source = CamsOfModel(model, settings)
    for photo in track(photos, "CAMs for the report", len(photos), is_minor=True):
        labels = sorted(_first_classes(photo))
        if not labels:
            continue
        sample = replace(photo.sample, labels=tuple(label - 1 for label in labels))
        try:
            (cams,) = source.cams([source.read(sample)])
        except DataError as error:
            log.debug("no CAM: %s", error)
            continue
        height, width = cams.maps.shape[1:]
        scale = CAM_SIDE / max(height, width)
        size = max(1, round(height * scale)), max(1, round(width * scale))
        maps = F.interpolate(cams.maps[None], size, mode="area")[0]
        grey = maps.mul(255).round_().clamp_(0, 255).byte().numpy(force=True)
        found[id(photo)] = list(zip(labels, grey, strict=True))
    return found


def _first_classes(photo: Photo) -> list[int]:
    """The classes whose CAMs say most: those that the mask lacks, then the largest."""
    known = photo.shown if photo.given is None else photo.given
    in_order = sorted(known, key=lambda label: photo.areas.get(label, 0), reverse=True)
    return sorted(in_order, key=lambda label: label not in photo.missing)[:MOST_CLASSES]
