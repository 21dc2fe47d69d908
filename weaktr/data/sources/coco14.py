"""COCO 2014 (and any data in COCO's JSON format) in the common directory layouts.

Recognised below the root, with S = ``train``/``val`` and Y = ``train2014``/``val2014`` (2017
likewise)::

    JPEGImages/{S,Y}    SegmentationClass/{S,Y}
    Y                   masks[/{S,Y}]
    images              voc_format/class_labels
    images[/{S,Y}]      masks[/{S,Y}]

The JSON is ``annotations/instances_Y.json`` or ``_S.json``. Files are matched by name or by the
number at its end.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from weaktr.data.classes import COCO80, COCO90
from weaktr.data.cls_labels import read_cls_labels
from weaktr.data.instances import Ids, Instances, Numbering, numbering_of, read_instances
from weaktr.data.layout import (
    IMAGE_SUFFIXES,
    by_number,
    collect_or_raise,
    first_file,
    first_folder,
    read_lines,
    require_folder,
    trailing_number,
)
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.problems import Problem
from weaktr.data.render import drawing_faults


def coco14(
    root: str | Path,
    split: str = "train",
    *,
    ids: Ids = 90,
    mask_ids: Literal[90, 80] = 90,
    instances: str | Path | Instances | None = None,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    names: str | Path | None = None,
    cls_labels: str | Path | None = None,
    problems: list[Problem] | None = None,
) -> Manifest:
    """COCO: instances JSON, image folder and, if there are any, masks.

    Args:
        root: the data set's folder, see above for what may be in it.
        split: ``train``, ``val``; with ``voc_format/<split>.txt`` the split has just the images of
            that list (``val_5000`` is a list of ``val``).
        ids: 90 = the published numbering, 91 labels, ten of which never occur; 80 = the used
            classes, 81 labels; "json" = the JSON's own categories in the order of their ids.
        mask_ids: numbering of the mask files when `ids` is 80: COCO ids 1..90 (as in the
            widely used masks) or labels 1..80.
        instances: the JSON file, if it is elsewhere, or what `read_instances` returned
            for it with the same `ids` and `mask_ids`.
        images: the image folder, if it is elsewhere.
        masks: the mask folder, if it is elsewhere.
        names: a list of image names, one a line, if it is elsewhere.
        cls_labels: ``cls_labels.npy`` to take the labels from instead of the JSON; needs a list.
        problems: None = faults are errors; a list collects them instead.

    Returns:
        The manifest. Labels come from the JSON (crowds count), without JSON from
        ``cls_labels.npy``; images without any object have labels ``()``.

    Raises:
        ValueError: an option is unknown or nothing recognisable is below `root`.
        DataError: unknown categories, missing images and the like, listed all at once.
    """
    root = require_folder(root)
    if ids not in (90, 80, "json") or mask_ids not in (90, 80) or (ids != 80 and mask_ids == 80):
        raise ValueError(
            f"ids, mask_ids: expected 90, 80 or 'json', and 90 or (with ids=80) 80; "
            f"got {ids!r}, {mask_ids!r}"
        )
    base = split.split("_", maxsplit=1)[0]
    parts = (f"{base}2014", base, f"{base}2017")
    folder = Path(images) if images else image_folder(root, parts)
    if folder is None:
        raise ValueError(
            f"root: expected an image folder such as JPEGImages/{parts[1]}, {parts[0]} or images "
            f"below {root}, found none"
        )
    files = _Files(folder, Path(masks) if masks else mask_folder(root, parts))
    list_file = Path(names) if names else first_file([root / f"voc_format/{split}.txt"])
    if list_file is None and base != split:
        raise ValueError(f"split: {split!r} needs the list {root}/voc_format/{split}.txt")
    declared = None if cls_labels else _declared(root, parts, instances, ids, mask_ids)
    if declared is not None:
        numbering, faults = declared.numbering, declared.problems
        samples = _from_instances(declared, files, list_file)
        if problems is not None and not isinstance(instances, Instances):
            faults += drawing_faults(declared, folder)  # training does not need the outlines
    else:
        numbering, faults = numbering_of([], ids, mask_ids), []
        label_places = (root, root / "voc_format", root / "annotations")
        label_file = (
            Path(cls_labels)
            if cls_labels
            else first_file(place / "cls_labels.npy" for place in label_places)
        )
        samples = _from_cls_labels(root, label_file, list_file, files, numbering, faults)
    name = "coco14" if ids != "json" else "coco"
    manifest = Manifest(name, split, numbering.classes, tuple(samples))
    return collect_or_raise(manifest, faults, problems)


def _declared(
    root: Path,
    parts: tuple[str, ...],
    instances: str | Path | Instances | None,
    ids: Ids,
    mask_ids: Literal[90, 80],
) -> Instances | None:
    """`instances`, read if it is a path; None = the split's own JSON below `root`, if any."""
    if isinstance(instances, Instances):
        return instances
    json_file = Path(instances) if instances else instances_file(root, parts)
    return None if json_file is None else read_instances(json_file, ids=ids, mask_ids=mask_ids)


def instances_file(root: Path, parts: tuple[str, ...]) -> Path | None:
    """The instances JSON of a split below `root`; `parts` are the split's names, best first."""
    folders = (root / "annotations", root)
    return first_file(folder / f"instances_{part}.json" for folder in folders for part in parts)


def image_folder(root: Path, parts: tuple[str, ...]) -> Path | None:
    """The image folder of a split below `root`, or None; `parts` as in `instances_file`."""
    return first_folder(
        [
            *(root / folder / part for folder in ("JPEGImages", "", "images") for part in parts),
            root / "images",
            root / "JPEGImages",
        ]
    )


def mask_folder(root: Path, parts: tuple[str, ...]) -> Path | None:
    """The mask folder of a split below `root`, or None; `parts` as in `instances_file`."""
    folders = ("SegmentationClass", "voc_format/class_labels", "masks")
    return first_folder(
        [*(root / folder / part for folder in folders for part in parts)]
        + [root / folder for folder in folders]
    )


class _Files:
    """The images and masks of a split, looked up by name or by number."""

    def __init__(self, images: Path, masks: Path | None) -> None:
        self.images, self.masks = images, masks
        self._image_numbers = by_number(images, IMAGE_SUFFIXES)
        self._mask_numbers = by_number(masks, (".png",))

    def image(self, file_name: str) -> Path:
        direct = self.images / file_name
        number = trailing_number(direct.stem)
        if number is None or direct.is_file():
            return direct
        return self._image_numbers.get(number, direct)

    def mask(self, image: Path) -> Path | None:
        if self.masks is None:
            return None
        direct = self.masks / image.relative_to(self.images).with_suffix(".png")
        number = trailing_number(image.stem)
        if direct.is_file():
            return direct
        return None if number is None else self._mask_numbers.get(number)

    def sample(
        self, file_name: str, labels: tuple[int, ...], source: str, numbering: Numbering
    ) -> Sample:
        image = self.image(file_name)
        name = image.relative_to(self.images).with_suffix("").as_posix()
        return Sample(name, image, labels, self.mask(image), source, numbering.mask_ids)


def _key(name: str) -> str | int:
    """The number at the end of an image's name, else its stem; the same for every spelling."""
    stem = PurePosixPath(name).stem if name.lower().endswith(IMAGE_SUFFIXES) else name
    number = trailing_number(stem)
    return stem if number is None else number


def _from_instances(declared: Instances, files: _Files, list_file: Path | None) -> list[Sample]:
    """The JSON's images, or only those of the list, in its order."""
    samples = []
    for image in declared.images:
        source, labels = f"{declared.path}: {image.where}", declared.labels(image.id)
        samples.append(files.sample(image.file_name, labels, source, declared.numbering))
    if list_file is None:
        return samples
    by_key = {_key(sample.name): sample for sample in samples}
    chosen = []
    for number, line in read_lines(list_file):
        name = line.split()[0]
        if _key(name) in by_key:
            chosen.append(by_key[_key(name)])
        else:
            where = f"{list_file}:{number}"
            declared.problems.append(Problem(str(declared.path), where, f"has no image {name}"))
    return chosen


def _from_cls_labels(
    root: Path,
    label_file: Path | None,
    list_file: Path | None,
    files: _Files,
    numbering: Numbering,
    faults: list[Problem],
) -> list[Sample]:
    """The images of the list, with the labels of a ``cls_labels.npy``."""
    if label_file is None or list_file is None or len(numbering.classes) == 0:
        raise ValueError(
            f"root: expected annotations/instances_*.json, or (with ids 90 or 80) cls_labels.npy "
            f"and voc_format/<split>.txt, below {root}; found neither"
        )
    labels = {_key(name): vector for name, vector in read_cls_labels(label_file).items()}
    samples = []
    for number, line in read_lines(list_file):
        name, source = line.split()[0], f"{list_file}:{number}"
        vector = labels.get(_key(name))
        if vector is None or len(vector) not in (80, 90):
            held = "no labels" if vector is None else f"{len(vector)} numbers, expected 80 or 90,"
            faults.append(Problem(str(label_file), source, f"holds {held} for {name}"))
            continue
        stored = COCO80 if len(vector) == 80 else COCO90
        present = [stored.ids[index] for index in np.flatnonzero(vector)]
        index_of = numbering.index_of_category
        if unused := [identity for identity in present if identity not in index_of]:
            message = f"has the unused COCO ids {unused} for {name}"
            faults.append(Problem(str(label_file), source, message))
        indices = tuple(sorted(index_of[identity] for identity in present if identity in index_of))
        suffix = "" if name.lower().endswith(IMAGE_SUFFIXES) else ".jpg"
        samples.append(files.sample(name + suffix, indices, source, numbering))
    return samples
