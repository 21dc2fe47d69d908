"""``SegmentationClassAug``: masks of 10582 + 1449 images, from VOC and the SBD additions.

Two sources are known: the folder (or zip) of that name that is passed around, and SBD itself,
whose ``dataset/cls/NAME.mat`` hold ``GTcls.Segmentation``. From SBD, VOC's own masks come first
where both exist, as in the folder that is passed around: they mark object borders as 255, SBD's
do not.

Source: Hariharan et al., "Semantic contours from inverse detectors", ICCV 2011.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath

import numpy as np

from weaktr.data.classes import IGNORE, VOC
from weaktr.data.io import read_labels
from weaktr.data.layout import first_file, read_lines
from weaktr.data.masks import write_mask
from weaktr.data.prepare.archives import ArchiveError
from weaktr.data.prepare.matlab import read_mat
from weaktr.data.prepare.meters import megabytes
from weaktr.data.prepare.pngs import is_whole_png
from weaktr.data.prepare.result import is_whole
from weaktr.data.prepare.unpack import Member, extent, members
from weaktr.files import whole_file

FOLDER = "SegmentationClassAug"
_NAME = re.compile(r"\d{4}_\d{6}")


def voc_names(voc: Path, split: str) -> list[str]:
    """Image names of a list of ``ImageSets/Segmentation``; empty where there is no such list.

    ``train_aug`` may also be spelt ``trainaug``, and lines may be paths, as in published lists.
    """
    spellings = (split, split.replace("_", ""))
    file = first_file(voc / f"ImageSets/Segmentation/{name}.txt" for name in spellings)
    lines = [] if file is None else read_lines(file)
    return [Path(line.split()[0]).stem for _, line in lines]


def is_complete(voc: Path) -> bool:
    """Whether every image of the lists train_aug and val has a mask in ``SegmentationClassAug``."""
    splits = [voc_names(voc, split) for split in ("train_aug", "val")]
    return all(splits) and all(
        is_whole(voc / FOLDER / f"{name}.png") for names in splits for name in names
    )


def build(source: Path, voc: Path) -> int:
    """Fill ``VOC2012/SegmentationClassAug``; goes on where an earlier run stopped.

    Args:
        source: a folder, zip or tar with ``SegmentationClassAug/*.png`` (or the PNGs at its top),
            or with SBD's ``cls/*.mat``.
        voc: ``VOC2012``, with the lists and masks of train and val.

    Returns:
        The number of masks written.

    Raises:
        ArchiveError: `source` is damaged, unsafe, or holds neither kind of mask.
        DataError: a mask is coloured or holds labels above 20.
        ValueError: a ``.mat`` file is not one of SBD.
    """
    target = voc / FOLDER
    target.mkdir(exist_ok=True)
    own = {*voc_names(voc, "train"), *voc_names(voc, "val")}
    found = written = 0
    with megabytes(f"reading {source.name}", extent(source)) as reach:
        for member in members(source):
            reach(member.position)
            path = PurePosixPath(member.name)
            if not _NAME.fullmatch(path.stem) or not _is_mask(path):
                continue
            found += 1
            file = target / f"{path.stem}.png"
            if (path.suffix == ".mat" and path.stem in own) or is_whole_png(file):
                continue
            (_from_mat if path.suffix == ".mat" else _from_png)(member, file, source)
            written += 1
        reach(extent(source))
    if not found:
        raise ArchiveError(
            f"{source}: expected {FOLDER}/*.png or SBD's cls/*.mat in it, found neither"
        )
    return written + add_own(voc)


def add_own(voc: Path) -> int:
    """Copy VOC's masks of train and val where ``SegmentationClassAug`` has none; how many."""
    copied = 0
    for name in (*voc_names(voc, "train"), *voc_names(voc, "val")):
        own, file = voc / f"SegmentationClass/{name}.png", voc / FOLDER / f"{name}.png"
        if is_whole(own) and not is_whole_png(file):
            with whole_file(file, durable=False) as temporary:
                shutil.copyfile(own, temporary)
            copied += 1
    return copied


def train_aug_names(voc: Path) -> list[str]:
    """The names of train_aug as they follow from the masks: all of them but those of val, sorted.

    SBD annotates 11355 images; with VOC's 1464 of train and without VOC's 1449 of val these are
    10582.
    """
    held_out = set(voc_names(voc, "val"))
    stems = {file.stem for file in (voc / FOLDER).glob("*.png") if _NAME.fullmatch(file.stem)}
    return sorted(stems - held_out)


def _is_mask(path: PurePosixPath) -> bool:
    if path.suffix == ".mat":
        return path.parent.name in ("cls", "")
    return path.suffix == ".png" and path.parent.name in (FOLDER, "")


def _from_png(member: Member, file: Path, source: Path) -> None:
    """Copy a mask as it is, once it is known to hold labels."""
    with whole_file(file, durable=False) as temporary:
        member.copy_to(temporary)
        read_labels(temporary, VOC.num_labels, f"{source}: {member.name}")


def _from_mat(member: Member, file: Path, source: Path) -> None:
    temporary = file.with_name(f".{file.name}.mat")
    member.copy_to(temporary)
    try:
        labels = _segmentation(read_mat(temporary.read_bytes()))
    except ValueError as error:
        raise ValueError(f"{source}: {member.name}: {error}") from error
    finally:
        temporary.unlink()
    write_mask(file, labels, durable=False)


def _segmentation(variables: dict[str, object]) -> np.ndarray:
    """uint8 [H, W] labels of an SBD annotation."""
    truth = variables.get("GTcls")
    labels = truth.get("Segmentation") if isinstance(truth, dict) else None
    if not isinstance(labels, np.ndarray) or labels.ndim != 2:
        raise ValueError("expected GTcls.Segmentation, a matrix of labels, as in SBD's cls folder")
    outside = np.unique(labels[(labels >= VOC.num_labels) & (labels != IGNORE)])
    if outside.size or labels.min() < 0:
        raise ValueError(f"expected labels 0..20 or {IGNORE}, got {np.unique(labels).tolist()}")
    return np.ascontiguousarray(labels, np.uint8)
