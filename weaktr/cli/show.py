"""Pictures of a run: image | CAMs plain and refined | pseudo label | prediction | truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np

from weaktr import data
from weaktr.config import Recipe
from weaktr.data import Manifest, Sample
from weaktr.data.masks import MaskFolder, before_refinement
from weaktr.evaluation.pictures import Panel, Row, draw
from weaktr.inference.cams import image_cams
from weaktr.models import CamModel
from weaktr.stages.run import MODEL, Run

#: Most classes of one image whose CAMs are drawn.
MAX_CLASSES = 2
#: What is drawn of each class: title -> (attention type, refined).
KINDS: dict[str, tuple[Literal["coarse", "fused"], bool]] = {
    "plain CAM": ("coarse", False),
    "fused": ("fused", False),
    "refined": ("fused", True),
}


def show_run(run: Run, *, count: int = 5, names: Sequence[str] = ()) -> list[Path]:
    """Draw pictures of a run into its ``pictures`` folder, one PNG for each split.

    Args:
        run: what it has not made yet is left out.
        count: images of each split, spread evenly.
        names: draw these samples instead.

    Returns:
        The PNGs.

    Raises:
        ValueError: a name that no split has.
    """
    recipe = run.recipe
    found = [m for m in (run.score, run.predicted) if m is not None]
    manifests = list({m.split: m for m in found}.values())
    cam_model = run.cam_model() if (run.of("train_cam") / MODEL).is_file() else None
    known = {sample.name for manifest in manifests for sample in manifest.samples}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"names: expected samples of the run's splits, got {unknown}")
    paths = []
    for manifest in manifests:
        chosen = _choose(manifest.samples, count, names)
        if not chosen:
            continue
        folders = _folders(run, manifest.split)
        rows = [
            row for sample in chosen for row in _rows(sample, manifest, recipe, cam_model, folders)
        ]
        path = run.folder / "pictures" / f"{manifest.split}.png"
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


def _folders(run: Run, split: str) -> dict[str, MaskFolder]:
    """The masks that belong to a split (samples of two splits may share names)."""
    found: dict[str, Path] = {}
    if split in (run.recipe.data.train_split, run.recipe.data.score_split):
        found["pseudo label before CRF"] = before_refinement(run.of("label"))
        found["pseudo label"] = run.of("label")
    if split == run.recipe.data.val_split:
        found["prediction"] = run.of("predict")
    folders = {title: MaskFolder(folder) for title, folder in found.items()}
    return {title: masks for title, masks in folders.items() if len(masks)}


def _rows(
    sample: Sample,
    manifest: Manifest,
    recipe: Recipe,
    cam_model: CamModel | None,
    folders: dict[str, MaskFolder],
) -> list[Row]:
    """A row for each of the sample's first classes; the masks stand in the first."""
    image = data.read_image(sample)
    masks: list[Panel | None] = [
        Panel(title, mask=folder.read(sample.name)) if sample.name in folder else None
        for title, folder in folders.items()
    ]
    if sample.mask is not None:
        truth = data.read_mask(sample, manifest.classes.num_labels)
        masks.append(Panel("truth", mask=truth))
    if cam_model is None:
        return [Row(sample.name, image, masks)]
    if not sample.labels:
        return [Row(sample.name, image, [None] * len(KINDS) + masks)]
    cams = _cam_panels(sample, image, manifest, recipe, cam_model)
    first, *others = cams
    return [
        Row(sample.name, image, [*first, *masks]),
        *(Row(sample.name, image, panels) for panels in others),
    ]


def _cam_panels(
    sample: Sample, image: np.ndarray, manifest: Manifest, recipe: Recipe, model: CamModel
) -> list[list[Panel]]:
    """For each of the sample's first classes its CAM of each kind."""
    classes = (sample.labels or ())[:MAX_CLASSES]
    few = replace(sample, labels=classes)
    made = {}
    for title, (attention_type, refine) in KINDS.items():
        kind = replace(recipe.label, attention_type=attention_type, refine=refine)
        ((_, _, made[title]),) = image_cams(model, [(few, image)], kind)
    return [
        [
            Panel(f"{manifest.classes.names[index]}: {title}", heat=made[title][position])
            for title in KINDS
        ]
        for position, index in enumerate(classes)
    ]
