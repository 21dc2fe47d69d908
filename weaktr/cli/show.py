"""``weaktr show RUN``: image | CAMs plain and refined | pseudo label | prediction | truth."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from weaktr.cli.common import FAILED, add_device, refuse_idle
from weaktr.files import require_replaceable
from weaktr.progress import log
from weaktr.recipes import load_recipe

if TYPE_CHECKING:
    import numpy as np

    from weaktr.config import Recipe
    from weaktr.data import Manifest, Sample
    from weaktr.data.masks import MaskFolder
    from weaktr.evaluation.pictures import Panel, Strip
    from weaktr.models import Stage1Model
    from weaktr.stages.run import Run

HELP = """\
Draw image | CAMs plain, fused, refined | pseudo label | prediction | truth of a run.

examples:
  weaktr show runs/demo
  weaktr show runs/voc --names 2007_000032 2007_000039
"""
#: How many classes of an image have their CAMs drawn, at most.
MAX_CLASSES = 2
#: Images of a split in one picture: where their number is not given, and at most.
COUNT = 5
MOST_IMAGES = 1000
#: Strips of a picture, whose layout takes long where there are many.
MOST_STRIPS = 40
#: What is drawn of each class: title -> (attention type, refined).
KINDS: dict[str, tuple[Literal["coarse", "fused"], bool]] = {
    "plain CAM": ("coarse", False),
    "fused": ("fused", False),
    "refined": ("fused", True),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="a run's folder")
    parser.add_argument("--count", type=int, help=f"images of each split (default {COUNT})")
    parser.add_argument("--names", nargs="*", default=[], help="draw these samples instead")
    add_device(parser)


def run(arguments: argparse.Namespace) -> int:
    from weaktr.stages.run import Run

    refuse_idle(bool(arguments.names), "expected without --names", count=arguments.count)
    file = arguments.run / "recipe.yaml"
    if not file.is_file():
        raise ValueError(f"{arguments.run}: expected the folder of a run, {file} is missing")
    recipe = replace(load_recipe(file), device=arguments.device)
    shown = Run(recipe, arguments.run)
    count = COUNT if arguments.count is None else arguments.count
    paths, left_out = show_run(shown, count=count, names=arguments.names)
    for path in paths:
        log.info("picture: %s", path)
    return FAILED if left_out else 0


def show_run(run: Run, *, count: int = COUNT, names: Sequence[str] = ()) -> tuple[list[Path], int]:
    """Draw pictures of a run into its ``pictures`` folder: SPLIT.png, SPLIT.2.png, ...

    Args:
        run: results that it does not have yet are left out.
        count: images of each split, spread evenly.
        names: draw these samples instead.

    Returns:
        The PNGs; how many masks and images cannot be used.

    Raises:
        ValueError: a name that no split has; `count` is not 1 to `MOST_IMAGES`.
    """
    from weaktr.data import DataError
    from weaktr.data.names import known_names
    from weaktr.evaluation.overview import spread
    from weaktr.stages.run import MODEL

    if not 1 <= count <= MOST_IMAGES:
        raise ValueError(f"--count: expected 1 to {MOST_IMAGES} images, got {count}")
    recipe = run.recipe
    splits = [split for split in (run.score, run.predicted) if split is not None]
    manifests = list({manifest.split: manifest for manifest in splits}.values())
    known = {sample.name for manifest in manifests for sample in manifest.samples}
    names = known_names(names, known)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"names: expected samples of the run's splits, got {unknown}")
    model = run.cam_model() if (run.of("train_cam") / MODEL).is_file() else None

    paths: list[Path] = []
    left_out = 0
    for manifest in manifests:
        if names:
            samples = [sample for sample in manifest.samples if sample.name in set(names)]
        else:
            samples = spread(manifest.samples, count)
        if not samples:
            continue
        masks = _folders(run, manifest.split, manifest.classes.num_labels)
        for why in (why for folder in masks.values() for why in folder.unusable.values()):
            log.warning("left out: %s", why)
            left_out += 1
        strips: list[Strip] = []
        for sample in samples:
            try:
                strips += _strips(sample, manifest, recipe, model, masks)
            except DataError as error:
                log.warning("left out: %s", error)
                left_out += 1
        paths += _pages(run, manifest, strips)
    return paths, left_out


def _pages(run: Run, manifest: Manifest, strips: Sequence[Strip]) -> list[Path]:
    """Draw strips of a split into pictures of `MOST_STRIPS` each: SPLIT.png, SPLIT.2.png, ...

    Raises:
        ValueError: the folder of the pictures is a link, or a picture was changed by hand.
    """
    from weaktr.evaluation.pictures import draw

    folder = run.folder / "pictures"
    if folder.is_symlink():
        raise ValueError(f"{folder}: is a link, through which nothing is written")
    file = re.sub(r"[^0-9A-Za-z_.-]", "_", manifest.split)[:100]
    title = f"{run.recipe.name}: {manifest.name} {manifest.split}"
    paths = []
    for page, start in enumerate(range(0, len(strips), MOST_STRIPS), 1):
        path = folder / (f"{file}.png" if page == 1 else f"{file}.{page}.png")
        require_replaceable(path)
        own = strips[start : start + MOST_STRIPS]
        draw(own, manifest.classes.label_names, path, title)
        paths.append(path)
    return paths


def _folders(run: Run, split: str, num_labels: int) -> dict[str, MaskFolder]:
    """The masks that belong to a split (samples of two splits may share names)."""
    from weaktr.data.masks import MaskFolder, before_refinement
    from weaktr.evaluation.conditions import refinement_name
    from weaktr.evaluation.report import refined_by

    paths: dict[str, Path] = {}
    if split in (run.recipe.data.train_split, run.recipe.data.score_split):
        refined = refined_by(refinement_name(run.recipe.label))
        paths[f"pseudo label before {refined}"] = before_refinement(run.of("label"))
        paths["pseudo label"] = run.of("label")
    if split == run.recipe.data.val_split:
        paths["prediction"] = run.of("predict")
    folders = {
        title: MaskFolder(path, verify=True, contents=run.contents, num_labels=num_labels)
        for title, path in paths.items()
    }
    return {title: masks for title, masks in folders.items() if len(masks)}


def _strips(
    sample: Sample,
    manifest: Manifest,
    recipe: Recipe,
    cam_model: Stage1Model | None,
    folders: dict[str, MaskFolder],
) -> list[Strip]:
    """A strip for each of the sample's first classes; the first one also shows the masks."""
    from weaktr import data
    from weaktr.evaluation.pictures import Panel, Strip

    image = data.read_image(sample)
    masks: list[Panel | None] = [
        Panel(title, mask=folder.read(sample.name)) if folder.is_usable(sample.name) else None
        for title, folder in folders.items()
    ]
    if sample.mask is not None:
        truth = data.read_mask(sample, manifest.classes.num_labels)
        masks.append(Panel("truth", mask=truth))
    if cam_model is None:
        return [Strip(sample.name, image, masks)]
    if not sample.labels:
        return [Strip(sample.name, image, [None] * len(_kinds(cam_model)) + masks)]
    first, *others = _cam_panels(sample, image, manifest, recipe, cam_model)
    return [
        Strip(sample.name, image, [*first, *masks]),
        *(Strip(sample.name, image, panels) for panels in others),
    ]


def _kinds(model: Stage1Model) -> dict[str, tuple[Literal["coarse", "fused"], bool]]:
    """The CAMs that are drawn of a model; one of patches has no attention to apply."""
    from weaktr.models import PatchModel

    return {"CAM": ("fused", True)} if isinstance(model, PatchModel) else KINDS


def _cam_panels(
    sample: Sample,
    image: np.ndarray,
    manifest: Manifest,
    recipe: Recipe,
    model: Stage1Model,
) -> list[list[Panel]]:
    """For each of the sample's first classes its CAM of each kind."""
    from weaktr.data.photographs import enlarged
    from weaktr.evaluation.pictures import Panel
    from weaktr.inference.patch_cams import cams_of

    classes = (sample.labels or ())[:MAX_CLASSES]
    few = replace(sample, labels=classes)
    cams = {}
    for title, (attention_type, refine) in _kinds(model).items():
        kind = replace(recipe.label, attention_type=attention_type, refine=refine)
        source = cams_of(model, kind)
        read = source.read(few)
        (own,) = source.cams([read])
        cams[title] = enlarged(own.maps.numpy(force=True), read.photograph.size)
    return [
        [
            Panel(f"{manifest.classes.names[index]}: {title}", heat=cams[title][position])
            for title in cams
        ]
        for position, index in enumerate(classes)
    ]
