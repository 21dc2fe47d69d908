"""What an exported photograph consists of: its pixels, its mask, its image-level labels."""

from __future__ import annotations

import io
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from weaktr import tars
from weaktr.data import IGNORE, Sample, read_image
from weaktr.data.io import image_size, open_image, orientation, require_same_size
from weaktr.data.manifest import name_fault
from weaktr.data.mask_index import MaskEntry, labels_shown
from weaktr.data.masks import MaskFolder, areas_of
from weaktr.files import write_bytes

#: Parts with a smaller share of their photograph are counted as tiny ones.
TINY = 0.0005
#: The folder of the photographs in an export.
IMAGES = "images"


class Source(NamedTuple):
    """A photograph, and where its mask is."""

    sample: Sample
    masks: MaskFolder
    maker: str  #: "label" (pseudo labels) or "predict"
    is_held_out: bool = False  #: whether the model was not trained on it


@dataclass(frozen=True)
class Item:
    """A photograph with its mask, as the formats take it.

    Args:
        source: where both are.
        file: name and suffix that the photograph has among the exported ones.
        mask: uint8 [H, W], 0 = background, k + 1 = class index k, 255 = ignore.
        shown: image-level labels as class indices: given ones, else predicted ones; None = not
            known.
        confidence: label -> mean score of its pixels, else its predicted probability; of those
            labels for which one is known.
        content: of the file that goes into the export; None = none does, or a link.
        is_turned: whether viewers turn the photograph's own file, by its EXIF.
    """

    source: Source
    file: str
    mask: np.ndarray
    shown: tuple[int, ...] | None
    confidence: dict[int, float]
    content: bytes | None
    is_turned: bool

    @property
    def name(self) -> str:
        """Of the sample."""
        return self.source.sample.name

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.mask.shape[0], self.mask.shape[1]


@dataclass(frozen=True)
class Options:
    """What may be chosen of an export.

    Args:
        images: "copy" the photographs, "link" to them, or "none" of them.
        least_area: parts that cover less than this share of their photograph are left out.
        coco_segmentation: "rle" (exact) or "polygons".
    """

    images: str = "copy"
    least_area: float = 0.0
    coco_segmentation: str = "rle"


@dataclass
class Report:
    """What should be known of an export.

    Args:
        written: how many photographs are in it, by the makers of their masks.
        unlike: photographs whose predictions show other classes than their image-level labels: name
            -> class indices of the labels, and of the mask.
        told: how many predictions are of photographs with known labels.
        parts, tiny: how many parts are written, and how many of them are below `TINY`.
        left_out: why each of the others is not; names it.
        notes: what happened to parts of masks -> how often.
    """

    written: Counter[str] = field(default_factory=Counter)
    unlike: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    told: int = 0
    parts: int = 0
    tiny: int = 0
    left_out: list[str] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)

    def count(self, item: Item) -> None:
        """Count a photograph that is written."""
        self.written[item.source.maker] += 1
        given = item.source.sample.labels
        if item.source.maker != "predict" or given is None:
            return
        self.told += 1
        shown = labels_shown(areas_of(item.mask)) - {0, IGNORE}
        if shown != {index + 1 for index in given}:
            self.unlike[item.name] = given, tuple(sorted(label - 1 for label in shown))

    def leave_out(self, item: Item, why: str) -> None:
        """Note that a photograph is not in the export after all."""
        self.written[item.source.maker] -= 1
        self.told -= item.source.maker == "predict" and item.source.sample.labels is not None
        self.unlike.pop(item.name, None)
        self.left_out.append(f"{item.name}: {why}")


def read_item(source: Source, images: str) -> Item:
    """Read the mask of a photograph, and the photograph's file where it is wanted.

    Args:
        source: the photograph.
        images: see `Options`; a photograph that viewers turn, or that is in a tar, is read for a
            link, too.

    Raises:
        DataError: one of them cannot be read, or the mask has another size.
        ValueError: the photograph has a name that no exported file can have.
        OSError: the photograph's file cannot be read.
    """
    sample, masks = source.sample, source.masks
    mask = masks.read(sample.name).astype(np.uint8, copy=False)
    size = image_size(sample.image, sample.source, sample.exif)
    require_same_size(mask, size, masks.path(sample.name), sample.source)
    is_turned = open_image(sample.image, sample.source, orientation) != 1
    in_tar = images == "link" and tars.archive_of(sample.image) is not None
    is_read = images == "copy" or (images == "link" and (is_turned or in_tar))
    suffix = ".png" if is_turned and is_read else sample.image.suffix
    file = f"{sample.name}{suffix}"
    if fault := name_fault(file):
        raise ValueError(f"{sample.image}: {fault}")
    entry = masks.entries[sample.name]
    return Item(
        source,
        file,
        mask,
        _shown(sample, entry),
        {**(entry.predicted or {}), **(entry.confidence or {})},
        _content(sample, is_turned) if is_read else None,
        is_turned,
    )


def _content(sample: Sample, is_turned: bool) -> bytes:
    """The file of a photograph that every viewer shows as its mask has it.

    It is the photograph's own one; where viewers would turn that, a PNG of the pixels to which the
    mask belongs, without EXIF.
    """
    if not is_turned:
        return tars.read_bytes(sample.image)
    buffer = io.BytesIO()
    Image.fromarray(read_image(sample)).save(buffer, format="PNG")
    return buffer.getvalue()


def _shown(sample: Sample, entry: MaskEntry) -> tuple[int, ...] | None:
    if sample.labels is None and entry.predicted is not None:
        return tuple(sorted(label - 1 for label in entry.predicted if label > 0))
    return sample.labels


def put_photograph(item: Item, folder: Path) -> None:
    """Put a photograph, or a link to it, beside its masks in the folder of an export."""
    path = folder / IMAGES / item.file
    if item.content is not None:
        write_bytes(path, item.content, durable=False)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.abspath(item.source.sample.image))
