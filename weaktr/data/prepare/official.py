"""What is published where: addresses, sizes and checksums of the archives, sizes of the splits.

The checksums are MD5, the only checksums of these archives that several independent places
publish. They detect damage, not attacks, so `weaktr.data.prepare.unpack` trusts no archive.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Args:
        name: its file name.
        urls: where it is, the official address first; tried in order.
        size: bytes; None = as the server says.
        md5: 32 hexadecimal digits; None = not known, only the size is checked.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    md5: str | None = None


@dataclass(frozen=True)
class VocFacts:
    """VOC 2012 as published: the devkit's data, SBD, and the number of images of each split."""

    data: Archive
    sbd: Archive
    counts: dict[str, int]


@dataclass(frozen=True)
class CocoFacts:
    """COCO 2014 as published: annotations, the images of each split, and their number.

    Only images with at least one annotation count: 702 of train2014's 82783 and 367 of val2014's
    40504 images have none.
    """

    annotations: Archive
    images: dict[str, Archive]
    counts: dict[str, int]


_VOC_PATH = "pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
_SBD_PATH = "Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz"


def _coco(path: str, size: int, md5: str) -> Archive:
    """An archive in COCO's bucket, at the project's address and at the storage provider's."""
    hosts = ("http://images.cocodataset.org", "https://s3.amazonaws.com/images.cocodataset.org")
    urls = tuple(f"{host}/{path}" for host in hosts)
    return Archive(path.rsplit("/", maxsplit=1)[-1], urls, size, md5)


VOC12 = VocFacts(
    data=Archive(
        "VOCtrainval_11-May-2012.tar",
        (f"http://host.robots.ox.ac.uk/{_VOC_PATH}", f"https://thor.robots.ox.ac.uk/{_VOC_PATH}"),
        1_999_639_040,
        "6cd6e144f989b92b3379bac3b3de84fd",
    ),
    sbd=Archive(
        "benchmark.tgz",
        (f"https://www2.eecs.berkeley.edu/{_SBD_PATH}",),
        1_419_539_633,
        "82b4d87ceb2ed10f6038a1cba92111cb",
    ),
    counts={"train": 1464, "train_aug": 10582, "val": 1449},
)

COCO14 = CocoFacts(
    annotations=_coco(
        "annotations/annotations_trainval2014.zip", 252_872_794, "0a379cfc70b0e71301e0f377548639bd"
    ),
    images={
        "train": _coco("zips/train2014.zip", 13_510_573_713, "0da8c0bd3d6becc4dcb32757491aca88"),
        "val": _coco("zips/val2014.zip", 6_645_013_297, "a3d79f5ed8d289b7a7554ce06a5782b3"),
    },
    counts={"train": 82081, "val": 40137},
)
#: A file whose size is not known here may have as many bytes: twice those of the largest archive.
MOST_BYTES = 2 * max(
    archive.size or 0
    for archive in (VOC12.data, VOC12.sbd, COCO14.annotations, *COCO14.images.values())
)
