"""Predictions of a test set without masks -> the archive that the VOC evaluation server takes.

    results/VOC2012/Segmentation/comp6_test_cls/NAME.png

Indexed PNGs of the images' own size, 0 = background, 1..20 = classes, VOC's colours.

Source: the PASCAL VOC 2012 development kit's documentation, section 5, "Submission of Results".
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from weaktr.contents import CONTENTS, Contents
from weaktr.data.classes import VOC
from weaktr.data.masks import MaskFolder, png_of
from weaktr.files import write_bytes

#: comp5: trained on the challenge's data alone; comp6: on any data but the test set's.
COMPETITIONS = ("comp5", "comp6")
SUFFIXES = (".tar", ".tar.gz", ".tgz")
#: Who wrote an archive: its gzip header or the owner of its files, where both end in a zero.
WRITER = "weaktr"
ARCHIVE_MARK = WRITER.encode() + b"\0"


def require_suffix(path: Path) -> None:
    """Raise ValueError unless a file's name ends like an archive."""
    if not path.name.endswith(SUFFIXES):
        raise ValueError(
            f"archive: expected a name that ends in {', '.join(SUFFIXES)}, got {path.name!r}"
        )


def write_voc_archive(
    path: Path, folder: Path, names: Sequence[str], competition: str = "comp6"
) -> None:
    """Write the archive, whole or not at all; the same masks give the same bytes.

    Args:
        path: ends in one of `SUFFIXES`; all but ``.tar`` are compressed.
        folder: of the predictions, which count as they are now.
        names: every image of the test set.
        competition: one of `COMPETITIONS`.

    Raises:
        ValueError: another suffix or competition; a mask that is missing or no mask any more, is
            undecided (255) or holds a label that VOC does not have; a name in a subfolder.
    """
    require_suffix(path)
    if competition not in COMPETITIONS:
        raise ValueError(f"competition: expected one of {COMPETITIONS}, got {competition!r}")
    masks = MaskFolder(
        folder, verify=True, contents=Contents(folder / CONTENTS), num_labels=VOC.num_labels
    )
    for name in names:
        _check(name, masks)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(names):
            content = masks.path(name).read_bytes()
            if name in masks.edited:  # by a program that may store another kind of PNG
                content = png_of(masks.read(name).astype(np.uint8))
            member = f"results/VOC2012/Segmentation/{competition}_test_cls/{name}.png"
            entry = tarfile.TarInfo(member)
            entry.size, entry.mode, entry.uname = len(content), 0o644, WRITER
            archive.addfile(entry, io.BytesIO(content))
    content = buffer.getvalue()
    if path.suffix != ".tar":
        packed = io.BytesIO()
        with gzip.GzipFile(WRITER, "wb", fileobj=packed, mtime=0) as file:
            file.write(content)
        content = packed.getvalue()
    write_bytes(path, content)


def _check(name: str, masks: MaskFolder) -> None:
    """Raise ValueError for a mask that the server would refuse."""
    if name not in masks:
        raise ValueError(f"archive: expected a mask of every image, {name!r} has none")
    if name in masks.unusable:
        raise ValueError(f"archive: {masks.unusable[name]}")
    if "/" in name:
        raise ValueError(f"archive: expected names without folders, got {name!r}")
    outside = [label for label in masks.entries[name].labels if label >= VOC.num_labels]
    if outside:
        raise ValueError(
            f"archive: {masks.path(name)}: expected labels 0..{VOC.num_labels - 1}, got {outside}"
        )
