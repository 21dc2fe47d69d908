"""COCO 2014 (and any data in COCO's JSON format) in the common directory layouts.

Recognised below the root, with S = ``train``/``val`` and Y = ``train2014``/``val2014`` (2017
likewise)::

    JPEGImages/{S,Y}    SegmentationClass/{S,Y}
    Y                   masks[/{S,Y}]
    images              voc_format/class_labels
    images[/{S,Y}]      masks[/{S,Y}]

The JSON is ``annotations/instances_Y.json`` or ``_S.json``. Files are matched by name. Where there
is none of that name, COCO's own names, whose form changed over the years, are matched by their
number: ``COCO_train2014_000000000009.jpg``, ``000000000009.png``, ``9.png``; but no file whose
very name another image has.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Generic, Literal, TypeVar

import numpy as np

from weaktr.data.classes import COCO80, COCO90
from weaktr.data.cls_labels import read_cls_labels
from weaktr.data.instances import Ids, Instances, Numbering, numbering_of, read_instances
from weaktr.data.layout import (
    IMAGE_SUFFIXES,
    collect_or_raise,
    first_file,
    first_folder,
    read_lines,
    require_folder,
)
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.names import readings
from weaktr.data.problems import Problem
from weaktr.data.render import drawing_faults
from weaktr.files import is_clutter
from weaktr.messages import brief, few

log = logging.getLogger("weaktr")

T = TypeVar("T")

#: The names of COCO's own images, without suffix.
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+[0-9]{4}_)?([0-9]{1,12})")


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
    list_file = Path(names) if names else first_file([root / f"voc_format/{split}.txt"])
    if list_file is None and base != split:
        raise ValueError(f"split: {split!r} needs the list {root}/voc_format/{split}.txt")
    declared = None if cls_labels else _declared(root, parts, instances, ids, mask_ids)
    faults = [] if declared is None else declared.problems
    asked = _asked(list_file) if declared is None else (stem(i.file_name) for i in declared.images)
    files = _Files(folder, Path(masks) if masks else mask_folder(root, parts), asked, faults)
    if declared is not None:
        numbering = declared.numbering
        samples = _from_instances(declared, files, list_file)
        if problems is not None and list_file is None:
            faults += files.not_declared(samples, declared.path)
        if problems is not None and not isinstance(instances, Instances):
            faults += drawing_faults(declared, folder)  # training does not need the outlines
    else:
        numbering = numbering_of([], ids, mask_ids)
        label_places = (root, root / "voc_format", root / "annotations")
        label_file = (
            Path(cls_labels)
            if cls_labels
            else first_file(place / "cls_labels.npy" for place in label_places)
        )
        samples = _from_cls_labels(root, label_file, list_file, files, numbering, faults)
    files.log()
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


def photographs_of(instances_json: Path) -> Path | None:
    """The image folder of an instances JSON in one of the layouts, or None."""
    split = instances_json.stem.removeprefix("instances_")
    folder = instances_json.absolute().parent
    root = folder.parent if folder.name == "annotations" else folder
    return image_folder(root, (split, split.rstrip("0123456789")))


def mask_folder(root: Path, parts: tuple[str, ...]) -> Path | None:
    """The mask folder of a split below `root`, or None; `parts` as in `instances_file`."""
    folders = ("SegmentationClass", "voc_format/class_labels", "masks")
    return first_folder(
        [*(root / folder / part for folder in folders for part in parts)]
        + [root / folder for folder in folders]
    )


class Numbered(Generic[T]):
    """Things with names: found by name, or else by the number in one of COCO's own names.

    Args:
        things: (name, thing), names without suffix.
        asked: names that are looked for: a thing that has one of them is found by that name alone.
    """

    def __init__(self, things: Iterable[tuple[str, T]], asked: Iterable[str] = ()) -> None:
        asked = set(asked)
        self._by_name: dict[str, T] = {}
        self._by_number: dict[int, list[tuple[str, T]]] = {}
        for name, thing in things:
            self._by_name[name] = thing
            if name not in asked and (number := coco_number(name)) is not None:
                self._by_number.setdefault(number, []).append((name, thing))
        #: (wanted, found) names of what was found by its number
        self.looser: list[tuple[str, str]] = []

    def find(self, *names: str) -> T | None:
        """The thing of the first of these names that one has, else of the first whose number.

        Raises:
            ValueError: none has such a name, but two have the number.
        """
        if exact := next((name for name in names if name in self._by_name), None):
            return self._by_name[exact]
        for name in names:
            number = coco_number(name)
            same = [] if number is None else self._by_number.get(number, [])
            if len(same) > 1:
                raise ValueError(
                    f"{brief(name)} has the number of {few([other for other, _ in same])}: "
                    "call one of them by that very name"
                )
            if same:
                self.looser.append((name, same[0][0]))
                return same[0][1]
        return None


def coco_number(name: str) -> int | None:
    """The number in a name as COCO's own (``COCO_val2014_000000000042``, ``42``), else None."""
    match = _COCO_NAME.fullmatch(PurePosixPath(name).name)
    return int(match[1]) if match else None


def stem(path: str) -> str:
    """A path of an image or mask without its suffix."""
    return os.path.splitext(path)[0] if path.lower().endswith(IMAGE_SUFFIXES) else path


class _Files:
    """The images and masks of a split, looked up by name or by COCO's number.

    Args:
        images, masks: their folders.
        asked: names of the images that are looked for, see `Numbered`.
        faults: gets those of which two fit.
    """

    def __init__(
        self, images: Path, masks: Path | None, asked: Iterable[str], faults: list[Problem]
    ) -> None:
        self.images, self.masks, self._faults = images, masks, faults
        found = listed(images, IMAGE_SUFFIXES)
        of_masks = [] if masks is None else listed(masks, (".png",))
        self._numbered = {
            "images": Numbered(found, asked),
            "masks": Numbered(of_masks, (name for name, _ in found)),
        }

    def image(self, line: str, source: str) -> Path:
        """The image of this path, or that a line of a list means."""
        direct = self.images / line
        if os.path.isfile(direct):
            return direct
        suffix = "" if line.lower().endswith(IMAGE_SUFFIXES) else ".jpg"
        found = self._find("images", source, *readings(line))
        return self.images / f"{line}{suffix}" if found is None else found

    def mask(self, image: Path, source: str) -> Path | None:
        if self.masks is None:
            return None
        name = stem(image.relative_to(self.images).as_posix())
        direct = self.masks / f"{name}.png"
        return direct if os.path.isfile(direct) else self._find("masks", source, name)

    def sample(
        self, line: str, labels: tuple[int, ...], source: str, numbering: Numbering
    ) -> Sample:
        image = self.image(line, source)
        name = stem(image.relative_to(self.images).as_posix())
        return Sample(name, image, labels, self.mask(image, source), source, numbering.mask_ids)

    def not_declared(self, samples: Sequence[Sample], json_file: Path) -> Iterator[Problem]:
        """A warning for each image and mask of the folders that belongs to no sample."""
        used = {path for sample in samples for path in (sample.image, sample.mask)}
        for what, folder, suffixes in (
            ("image", self.images, IMAGE_SUFFIXES),
            ("mask", self.masks, (".png",)),
        ):
            for _, file in [] if folder is None else listed(folder, suffixes):
                if file not in used:
                    message = f"{json_file} has no image of this name"
                    kind = f"{what} that is not listed"
                    yield Problem(str(file), "", message, "warning", kind)

    def log(self) -> None:
        """Say how many files were found by their number."""
        for what, numbered in self._numbered.items():
            if numbered.looser:
                log.info(
                    "coco14: %d %s are matched by COCO's number, such as %r by %r",
                    len(numbered.looser), what, *numbered.looser[0],
                )  # fmt: skip

    def _find(self, what: str, source: str, *names: str) -> Path | None:
        try:
            return self._numbered[what].find(*names)
        except ValueError as error:
            folder = self.images if what == "images" else self.masks
            self._faults.append(Problem(str(folder), source, str(error), kind="two files fit"))
            return None


def listed(folder: Path, suffixes: Sequence[str]) -> list[tuple[str, Path]]:
    """(name without suffix, file) of the files of a folder."""
    with os.scandir(folder) as entries:
        names = [
            entry.name
            for entry in entries
            if entry.name.lower().endswith(tuple(suffixes)) and not is_clutter(entry.name)
        ]
    return [(stem(name), folder / name) for name in sorted(names)]


def _from_instances(declared: Instances, files: _Files, list_file: Path | None) -> list[Sample]:
    """The JSON's images, or only those of the list, in its order."""
    path, faults = str(declared.path), declared.problems
    samples = []
    for image in declared.images:
        source, labels = f"{declared.path}: {image.where}", declared.labels(image.id)
        samples.append(files.sample(image.file_name, labels, source, declared.numbering))
    if list_file is None:
        return samples
    known = Numbered(((sample.name, sample) for sample in samples), _asked(list_file))
    chosen = []
    for number, line in read_lines(list_file):
        where = f"{list_file}:{number}"
        try:
            sample = known.find(*readings(line))
        except ValueError as error:
            faults.append(Problem(path, where, str(error), kind="two images fit"))
            continue
        if sample is not None:
            chosen.append(sample)
        else:
            faults.append(Problem(path, where, f"has no image {line}", kind="no such image"))
    return chosen


def _asked(list_file: Path | None) -> set[str]:
    """The names that the lines of a list may mean."""
    lines = [] if list_file is None else read_lines(list_file)
    return {name for _, line in lines for name in readings(line)}


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
    stored_labels = read_cls_labels(label_file)
    of_stem = ((stem(name), vector) for name, vector in stored_labels.items())
    known = Numbered(of_stem, _asked(list_file))
    samples = []
    for number, line in read_lines(list_file):
        source = f"{list_file}:{number}"
        try:
            vector = known.find(*readings(line))
        except ValueError as error:
            faults.append(Problem(str(label_file), source, str(error), kind="two labels fit"))
            continue
        if vector is None or len(vector) not in (80, 90):
            held = "no labels" if vector is None else f"{len(vector)} numbers, expected 80 or 90,"
            faults.append(Problem(str(label_file), source, f"holds {held} for {line}"))
            continue
        stored = COCO80 if len(vector) == 80 else COCO90
        present = [stored.ids[index] for index in np.flatnonzero(vector)]
        index_of = numbering.index_of_category
        if unused := [identity for identity in present if identity not in index_of]:
            message = f"has the unused COCO ids {unused} for {line}"
            faults.append(Problem(str(label_file), source, message))
        indices = tuple(sorted(index_of[identity] for identity in present if identity in index_of))
        samples.append(files.sample(line, indices, source, numbering))
    return samples
