"""Data sets: what there is (`Manifest`), whether it is whole (`check`), how it is read."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from weaktr.data.check import check
from weaktr.data.classes import COCO80, COCO90, IGNORE, VOC, Classes, palette
from weaktr.data.datasets import CamDataset, EpochSampler, SegDataset, mixed_seed, multi_hot
from weaktr.data.io import read_image, read_labels, read_mask, read_rgb
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.names import only, read_names
from weaktr.data.problems import DataError, Problem
from weaktr.data.render import render_masks
from weaktr.data.sources.coco14 import coco14
from weaktr.data.sources.folder import folder, unlabelled
from weaktr.data.sources.voc12 import voc12
from weaktr.data.transforms import (
    IMAGENET,
    Normalization,
    cam_train_transform,
    cam_val_transform,
    seg_train_transform,
)

__all__ = [
    "COCO80",
    "COCO90",
    "IGNORE",
    "IMAGENET",
    "SOURCES",
    "VOC",
    "CamDataset",
    "Classes",
    "DataError",
    "EpochSampler",
    "Manifest",
    "Normalization",
    "Problem",
    "Sample",
    "SegDataset",
    "cam_train_transform",
    "cam_val_transform",
    "check",
    "coco14",
    "folder",
    "load_manifest",
    "mixed_seed",
    "multi_hot",
    "only",
    "palette",
    "read_image",
    "read_labels",
    "read_mask",
    "read_names",
    "read_rgb",
    "render_masks",
    "seg_train_transform",
    "unlabelled",
    "voc12",
]


def _scenes(
    root: str | Path,
    *,
    split: str,
    count: int,
    size: int = 64,
    seed: int = 0,
    masks: bool = True,
    problems: list[Problem] | None = None,  # stays empty: scenes are drawn, not declared
) -> Manifest:
    from weaktr.data.sources.scenes import scenes

    return scenes(Path(root), count, size=size, seed=seed, split=split, masks=masks)


def _unlabelled(
    root: str | Path,
    *,
    split: str,
    classes: Sequence[str] = (),
    problems: list[Problem] | None = None,  # stays empty: nothing is declared
) -> Manifest:
    return unlabelled(root, classes, split=split)


#: What `load_manifest` knows: source -> function of (root, split=..., **options).
SOURCES: dict[str, Callable[..., Manifest]] = {
    "voc12": voc12,
    "coco14": coco14,
    "folder": folder,
    "images": _unlabelled,
    "scenes": _scenes,
}


def load_manifest(source: str, root: str | Path, split: str = "train", **options: Any) -> Manifest:
    """Describe a split of a data set.

    Args:
        source: ``voc12``, ``coco14``, ``folder``, ``images`` (no labels), ``scenes`` (drawn);
            or ``manifest``: `root` is a JSON written by `Manifest.save`.
        root: the data set's folder.
        split: the part of it.
        options: further arguments of the source's function of the same name; for ``scenes`` also
            ``count``. ``problems=[]`` collects faults instead of raising them.

    Returns:
        The manifest.

    Raises:
        ValueError: unknown source or option, or what the source raises.
    """
    if source == "manifest":
        return Manifest.load(root)
    if source not in SOURCES:
        raise ValueError(f"source: expected one of {[*SOURCES, 'manifest']}, got {source!r}")
    make = SOURCES[source]
    try:
        inspect.signature(make).bind(root, split=split, **options)
    except TypeError as error:
        raise ValueError(f"options of source {source!r}: {error}") from error
    return make(root, split=split, **options)
