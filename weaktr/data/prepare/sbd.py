"""``SegmentationClassAug``: masks of 10582 + 1449 images, from VOC and the SBD additions.

Two sources are known: the widely used folder (or zip) of that name, and SBD itself,
whose ``dataset/cls/NAME.mat`` hold ``GTcls.Segmentation``. From SBD, VOC's own masks come first
where both exist, as in the widely used folder: they mark object borders as 255, SBD's
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
from weaktr.data.pngs import is_whole_png
from weaktr.data.prepare.archives import ArchiveError
from weaktr.data.prepare.matlab import MOST_BYTES, read_mat
from weaktr.data.prepare.meters import megabytes
from weaktr.data.prepare.result import is_whole
from weaktr.data.prepare.unpack import Member, members, total_bytes
from weaktr.files import whole_file

FOLDER = "SegmentationClassAug"
_NAME = re.compile(r"\d{4}_\d{6}")
#: suffix of a mask -> names of the folders that it may be in; "" is the top.
_MASK_FOLDERS = {".mat": ("cls", ""), ".png": (FOLDER, "")}


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
    """Write the masks of ``VOC2012/SegmentationClassAug`` that are missing.

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
    available = written = 0
    with megabytes(f"reading {source.name}", total_bytes(source)) as advance_to:
        for member in members(source):
            advance_to(member.position)
            path = PurePosixPath(member.name)
            is_mask = path.parent.name in _MASK_FOLDERS.get(path.suffix, ())
            if not is_mask or not _NAME.fullmatch(path.stem):
                continue
            available += 1
            file = target / f"{path.stem}.png"
            if (path.suffix == ".mat" and path.stem in own) or is_whole_png(file):
                continue
            if path.suffix == ".mat":
                _write_from_mat(member, file, source)
            else:
                with whole_file(file, durable=False) as temporary:
                    member.copy_to(temporary)
                    read_labels(temporary, VOC.num_labels, f"{source}: {member.name}")
            written += 1
        advance_to(total_bytes(source))
    if not available:
        raise ArchiveError(
            f"{source}: expected {FOLDER}/*.png or SBD's cls/*.mat in it, found neither"
        )
    return written + add_own(voc)


def add_own(voc: Path) -> int:
    """Copy VOC's masks of train and val that ``SegmentationClassAug`` lacks.

    Returns:
        The number of masks copied.
    """
    copied = 0
    for name in (*voc_names(voc, "train"), *voc_names(voc, "val")):
        own, file = voc / f"SegmentationClass/{name}.png", voc / FOLDER / f"{name}.png"
        if is_whole(own) and not is_whole_png(file):
            with whole_file(file, durable=False) as temporary:
                shutil.copyfile(own, temporary)
            copied += 1
    return copied


def train_aug_names(voc: Path) -> list[str]:
    """The names of train_aug, sorted: all that have a mask, without those of val.

    SBD annotates 11355 images; with VOC's 1464 of train and without VOC's 1449 of val these are
    10582.
    """
    held_out = set(voc_names(voc, "val"))
    stems = {file.stem for file in (voc / FOLDER).glob("*.png") if _NAME.fullmatch(file.stem)}
    return sorted(stems - held_out)


def _write_from_mat(member: Member, file: Path, source: Path) -> None:
    """Write the labels of an SBD annotation as a mask."""
    try:
        labels = _segmentation(read_mat(member.read(MOST_BYTES)))
    except ArchiveError:
        raise
    except ValueError as error:
        raise ValueError(f"{source}: {member.name}: {error}") from error
    write_mask(file, labels, durable=False)


def _segmentation(variables: dict[str, object]) -> np.ndarray:
    """uint8 [H, W] labels of an SBD annotation."""
    truth = variables.get("GTcls")
    labels = truth.get("Segmentation") if isinstance(truth, dict) else None
    if not isinstance(labels, np.ndarray) or labels.ndim != 2:
        raise ValueError("expected GTcls.Segmentation, a matrix of labels, as in SBD's cls folder")
    outside = labels[~np.isin(labels, (*range(VOC.num_labels), IGNORE))]
    if outside.size or not labels.size:
        shown = np.unique(outside)[:9].tolist()
        raise ValueError(f"expected labels 0..20 or {IGNORE}, got {shown} in {labels.shape}")
    return np.ascontiguousarray(labels, np.uint8)
