"""PASCAL VOC 2012 in the layout of its devkit, with or without the SBD additions."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from weaktr.data.classes import VOC
from weaktr.data.cls_labels import read_cls_labels
from weaktr.data.layout import (
    collect_or_raise,
    first_file,
    first_folder,
    flag,
    read_lines,
    read_xml,
    require_folder,
)
from weaktr.data.manifest import Manifest, Sample, is_inside
from weaktr.data.names import readings
from weaktr.data.problems import DataError, Problem
from weaktr.messages import few

log = logging.getLogger("weaktr")

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
            (``2007_000032``), or the path of an image, or those of an image and its mask, relative
            to ``VOC2012``.
        cls_labels: ``cls_labels.npy`` with the image labels. None = the one in ``VOC2012``, in
            ``ImageSets/Segmentation`` or in `root`, else the XML files of ``Annotations``. The
            log says for how many images the XML files had to do.
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
    faults: list[Problem] = [] if problems is None else problems
    label_file = find_cls_labels(voc, root, cls_labels)
    mask_folder = (
        Path(masks)
        if masks
        else first_folder(voc / name for name in ("SegmentationClassAug", "SegmentationClass"))
    )
    declared = [
        (f"{list_file}:{number}", *_name_and_mask(line, images, mask_folder))
        for number, line in read_lines(list_file)
    ]
    labels_of = _xml_labeller(voc / "Annotations", difficult, faults)
    if label_file is not None:
        names = [name for _, name, _ in declared]
        must_know = cls_labels is not None
        labels_of = _npy_labeller(label_file, names, labels_of, faults, must_know=must_know)
    samples = [
        Sample(name, images / f"{name}.jpg", labels_of(name, source), mask, source)
        for source, name, mask in declared
    ]
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
            f"split: expected one of {known[:20]} of {lists} or the path of a list, got {split!r}"
            + ("; weaktr data prepare voc12 makes that list" if split in _ALIASES else "")
        )
    return list_file


def _name_and_mask(line: str, images: Path, masks: Path | None) -> tuple[str, Path | None]:
    """Name and mask of a line: the first of its `readings` that is an image, else its last."""
    name = line
    for name in readings(line):
        if is_inside(name) and os.path.isfile(images / f"{name}.jpg"):
            break
    words = line.split()
    if name != line and len(words) == 2 and words[1].endswith(".png"):
        return name, images.parent / words[1].lstrip("/")
    return name, first_file([] if masks is None else [masks / f"{name}.png"])


def _npy_labeller(
    path: Path,
    names: Sequence[str],
    otherwise: Labeller,
    faults: list[Problem],
    *,
    must_know: bool,
) -> Labeller:
    """Labels from a ``cls_labels.npy``; for those of `names` that it lacks, from `otherwise`.

    Raises:
        DataError: vectors of another length; or, with `must_know`, it has none of `names`.
    """
    labels = read_cls_labels(path)
    lacking = [name for name in names if name not in labels]
    if lacking:
        message = (
            f"has no labels for {len(lacking)} of {len(names)} images ({few(lacking)}), but for "
            f"{len(labels)} names such as {few(list(labels)[:1])}"
        )
        if must_know and len(lacking) == len(names):
            raise DataError(Problem(str(path), "", message))
        log.warning("%s: %s: theirs come from the XML files", path, message)
    for vector in labels.values():
        if len(vector) != len(VOC):
            message = f"expected {len(VOC)} numbers an image, got {len(vector)}"
            raise DataError(Problem(str(path), "", message))

    def label(name: str, source: str) -> tuple[int, ...] | None:
        if name in labels:
            return tuple(np.flatnonzero(labels[name]).tolist())
        known = otherwise(name, source)
        if known is None:
            message = f"holds no labels for {name}"
            faults.append(Problem(str(path), source, message, kind="no labels"))
        return known

    return label


def _xml_labeller(folder: Path, difficult: bool, faults: list[Problem]) -> Labeller:
    """Labels from the XML files of ``Annotations``; None where there is nothing of the name."""

    def label(name: str, source: str) -> tuple[int, ...] | None:
        path = folder / f"{name}.xml"
        if not path.is_file():
            if not os.path.lexists(path):
                return None
            message = "expected a file, got a folder, a pipe or a link to nothing"
            faults.append(Problem(str(path), source, message))
            return ()
        try:
            annotation = read_xml(path)
        except ValueError as error:
            faults.append(Problem(str(path), source, str(error)))
            return ()
        if annotation.tag != "annotation":
            message = f"expected <annotation>, got <{annotation.tag:.60}>"
            faults.append(Problem(str(path), source, message, kind="no annotation"))
        indices = set()
        for entry in annotation.findall("object"):
            class_name = (entry.findtext("name") or "").strip()
            mark = flag(entry.findtext("difficult") or "")
            if class_name not in VOC.index_of_name:
                message = f"object {class_name!r:.60} is none of the {len(VOC)} VOC classes"
                faults.append(Problem(str(path), source, message, kind="unknown label"))
            elif mark is None:
                message = f"difficult of {class_name}: expected 0 or 1"
                faults.append(Problem(str(path), source, message, kind="no 0 or 1"))
            elif difficult or not mark:
                indices.add(VOC.index_of_name[class_name])
        return tuple(sorted(indices))

    return label
