"""PASCAL VOC 2012 in the layout of its devkit, with or without the SBD additions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from weaktr.data.classes import VOC
from weaktr.data.cls_labels import read_cls_labels
from weaktr.data.layout import (
    collect_or_raise,
    first_file,
    first_folder,
    read_lines,
    require_folder,
)
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.problems import DataError, Problem

_ALIASES = {"train_aug": "trainaug", "trainaug": "train_aug"}
#: (name, source) -> class indices of an image, or None where nothing is known.
Labeller = Callable[[str, str], tuple[int, ...] | None]


def voc12(
    root: str | Path,
    split: str = "train",
    *,
    cls_labels: str | Path | None = None,
    masks: str | Path | None = None,
    difficult: bool = True,
    problems: list[Problem] | None = None,
) -> Manifest:
    """The VOC 2012 segmentation data.

    Args:
        root: ``VOCdevkit``, ``VOC2012`` in it, or the folder that holds ``VOCdevkit``.
        split: ``train``, ``train_aug`` (also ``trainaug``), ``val``, ``test`` or any other list
            of ``ImageSets/Segmentation``; or the path of a ``.txt`` list. A line is a name
            (``2007_000032``) or an image path and a mask path, relative to ``VOC2012``.
        cls_labels: ``cls_labels.npy`` with the image labels. None = the one in ``VOC2012``, in
            ``ImageSets/Segmentation`` or in `root`, else the XML files of ``Annotations``.
        masks: folder of the true masks. None = ``SegmentationClassAug``, else
            ``SegmentationClass``, else no masks.
        difficult: whether objects marked difficult give an image their label. True is what the
            published ``cls_labels.npy`` hold. XML only.
        problems: None = faults are errors; a list collects them instead.

    Returns:
        The manifest. An image whose annotation shows none of the classes has labels ``()``; one
        without any annotation (the test split) has None.

    Raises:
        ValueError: `root` holds no VOC 2012, or there is no such split.
        DataError: unknown classes, unreadable XML, missing images or labels, listed all at once.
    """
    root = require_folder(root)
    candidates = [root, root / "VOC2012", root / "VOCdevkit/VOC2012"]
    images = first_folder(folder / "JPEGImages" for folder in candidates)
    if images is None:
        raise ValueError(
            f"root: expected JPEGImages in one of {', '.join(map(str, candidates))}; "
            "found in none of them"
        )
    voc = images.parent
    list_file = _list_file(voc, root, split)
    faults: list[Problem] = []
    label_file = find_cls_labels(voc, root, cls_labels)
    xml = _xml_labeller(voc / "Annotations", difficult, faults)
    labels_of = xml if label_file is None else _npy_labeller(label_file, xml, faults)
    mask_folder = (
        Path(masks)
        if masks
        else first_folder(voc / name for name in ("SegmentationClassAug", "SegmentationClass"))
    )
    samples = []
    for number, line in read_lines(list_file):
        source = f"{list_file}:{number}"
        name, mask = _name_and_mask(line, voc, mask_folder)
        image = images / f"{name}.jpg"
        samples.append(Sample(name, image, labels_of(name, source), mask, source))
    manifest = Manifest("voc12", list_file.stem, VOC, tuple(samples))
    return collect_or_raise(manifest, faults, problems)


def find_cls_labels(voc: Path, root: Path, given: str | Path | None = None) -> Path | None:
    """The ``cls_labels.npy`` to take labels from: `given`, else one that exists, else None."""
    if given:
        return Path(given)
    folders = (voc, voc / "ImageSets/Segmentation", root)
    return first_file(folder / "cls_labels.npy" for folder in folders)


def _list_file(voc: Path, root: Path, split: str) -> Path:
    """The list of a split; see `voc12`."""
    lists = voc / "ImageSets/Segmentation"
    if split.endswith(".txt"):
        candidates = [Path(split), root / split, lists / split]
    else:
        candidates = [lists / f"{name}.txt" for name in (split, _ALIASES.get(split, split))]
    list_file = first_file(candidates)
    if list_file is None:
        known = sorted(file.stem for file in lists.glob("*.txt"))
        raise ValueError(
            f"split: expected one of {known} of {lists} or the path of a list, got {split!r}"
            + ("; weaktr data prepare voc12 makes that list" if split in _ALIASES else "")
        )
    return list_file


def _name_and_mask(line: str, voc: Path, masks: Path | None) -> tuple[str, Path | None]:
    """Name and mask of a line ``name`` or ``image-path [mask-path]``."""
    first, *rest = line.split()
    name = Path(first).stem if first.endswith(".jpg") else first
    if rest and rest[0].endswith(".png"):
        return name, voc / rest[0].lstrip("/")
    mask = None if masks is None else masks / f"{name}.png"
    return name, mask if mask is not None and mask.is_file() else None


def _npy_labeller(path: Path, otherwise: Labeller, faults: list[Problem]) -> Labeller:
    """Labels from a ``cls_labels.npy``; for names that it does not hold, from `otherwise`."""
    labels = read_cls_labels(path)
    for vector in labels.values():
        if len(vector) != len(VOC):
            message = f"expected {len(VOC)} numbers an image, got {len(vector)}"
            raise DataError(Problem(str(path), "", message))

    def label(name: str, source: str) -> tuple[int, ...] | None:
        if name in labels:
            return tuple(np.flatnonzero(labels[name]).tolist())
        known = otherwise(name, source)
        if known is None:
            faults.append(Problem(str(path), source, f"holds no labels for {name}"))
        return known

    return label


def _xml_labeller(folder: Path, difficult: bool, faults: list[Problem]) -> Labeller:
    """Labels from the XML files of ``Annotations``."""

    def label(name: str, source: str) -> tuple[int, ...] | None:
        path = folder / f"{name}.xml"
        if not path.is_file():
            return None
        try:
            objects = ElementTree.parse(path).getroot().findall("object")
        except ElementTree.ParseError as error:
            faults.append(Problem(str(path), source, f"expected XML, got: {error}"))
            return ()
        indices = set()
        for entry in objects:
            class_name = (entry.findtext("name") or "").strip()
            if class_name not in VOC.index_of_name:
                message = f"object {class_name!r} is none of the {len(VOC)} VOC classes"
                faults.append(Problem(str(path), source, message))
            elif difficult or (entry.findtext("difficult") or "0").strip() != "1":
                indices.add(VOC.index_of_name[class_name])
        return tuple(sorted(indices))

    return label
