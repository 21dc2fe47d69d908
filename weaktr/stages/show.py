"""Pictures of a run: image | CAMs plain and refined | pseudo label | prediction | truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from weaktr import data
from weaktr.artifacts import MaskFolder
from weaktr.config import Recipe
from weaktr.data import Manifest, Sample
from weaktr.models import CamModel
from weaktr.pictures import Panel, Row, draw
from weaktr.stages.label import image_cams
from weaktr.stages.pipeline import MODEL, Pipeline

#: Most classes of one image whose CAMs are drawn.
MAX_CLASSES = 2


def show_run(pipeline: Pipeline, *, count: int = 6, names: Sequence[str] = ()) -> list[Path]:
    """Draw pictures of a run into its ``pictures`` folder, one PNG for each split.

    Args:
        pipeline: the run; what it has not made yet is left out.
        count: images of each split, spread evenly.
        names: draw these samples instead.

    Returns:
        The PNGs.

    Raises:
        ValueError: a name that no split has.
    """
    recipe, run = pipeline.recipe, pipeline.run
    manifests = (pipeline.score, pipeline.val)
    cam_model = pipeline.cam_model() if (run / "train_cam" / MODEL).is_file() else None
    known = {sample.name for manifest in manifests for sample in manifest.samples}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"names: expected samples of the run's splits, got {unknown}")
    paths = []
    for manifest in manifests:
        chosen = _choose(manifest.samples, count, names)
        if not chosen:
            continue
        folders = {
            "pseudo label before CRF": MaskFolder(run / "label" / "before_crf"),
            "pseudo label": MaskFolder(run / "label"),
            "prediction": MaskFolder(run / "predict"),
        }
        rows = [_row(sample, manifest, recipe, cam_model, folders) for sample in chosen]
        path = run / "pictures" / f"{manifest.split}.png"
        title = f"{recipe.name}: {manifest.name} {manifest.split}"
        draw(rows, manifest.classes.label_names, path, title)
        paths.append(path)
    return paths


def _choose(samples: Sequence[Sample], count: int, names: Sequence[str]) -> list[Sample]:
    if names:
        return [sample for sample in samples if sample.name in set(names)]
    if not samples or count < 1:
        return []
    step = max(1, len(samples) // count)
    return list(samples[::step][:count])


def _row(
    sample: Sample,
    manifest: Manifest,
    recipe: Recipe,
    cam_model: CamModel | None,
    folders: dict[str, MaskFolder],
) -> Row:
    image = data.read_image(sample)
    panels: list[Panel] = []
    if cam_model is not None and sample.labels:
        panels += _cam_panels(sample, image, manifest, recipe, cam_model)
    for title, masks in folders.items():
        if sample.name in masks:
            panels.append(Panel(title, mask=masks.read(sample.name)))
    if sample.mask is not None:
        truth = data.read_mask(sample, manifest.classes.num_labels)
        panels.append(Panel("truth", mask=truth))
    return Row(sample.name, image, panels)


def _cam_panels(
    sample: Sample, image: np.ndarray, manifest: Manifest, recipe: Recipe, model: CamModel
) -> list[Panel]:
    """The plain CAM, the fused one and the refined one of the first classes."""
    few = replace(sample, labels=(sample.labels or ())[:MAX_CLASSES])
    used = recipe.label
    kinds = {
        "plain CAM": replace(used, attention_type="coarse", refine=False),
        "fused": replace(used, attention_type="fused", refine=False),
        "refined": replace(used, attention_type="fused", refine=True),
    }
    panels = []
    for position, index in enumerate(few.labels or ()):
        for title, kind in kinds.items():
            ((_, _, cams),) = image_cams(model, [(few, image)], kind)
            name = manifest.classes.names[index]
            panels.append(Panel(f"{name}: {title}", heat=cams[position]))
    return panels
