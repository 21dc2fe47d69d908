"""Photographs with masks, as exports take them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from weaktr.data import Classes, Sample
from weaktr.data.masks import MaskFolder
from weaktr.exchange import FORMATS, Options, Report, Source, export_masks

#: Names that break out of XML, YAML, HTML and lists where they are not escaped.
HOSTILE = ('</tag>&"', "a, b: c", "- x #1", "katzenähnlich 猫 🐈", "'; rm -rf ~", "null", "../../x")


def photograph(path: Path, size: tuple[int, int], *, orientation: int = 1) -> np.ndarray:
    """Write a photograph of random pixels; gives them, uint8 [H, W, 3], as stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(256, size=(*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


def sources_of(folder: Path, masks: dict[str, np.ndarray], **facts: object) -> list[Source]:
    """A photograph and a mask of each name; `facts`: fields of the samples."""
    blank = {"labels": None, "mask": None, "source": ""} | facts
    store, found = MaskFolder(folder / "results"), []
    for name, mask in masks.items():
        image = folder / "photographs" / f"{name}.png"
        photograph(image, mask.shape)
        store.add(name, mask)
        found.append(Source(Sample(**{**blank, "name": name, "image": image}), store, "label"))
    return found


def exported(
    folder: Path, to: str, sources: list[Source], classes: Classes, **options: object
) -> tuple[Path, Report]:
    """The folder of an export, and its report."""
    out = folder / to
    out.mkdir(parents=True)
    return out, export_masks(sources, classes, FORMATS[to], out, Options(**options))


def difficult(num_classes: int = 3) -> np.ndarray:
    """A mask uint8 [40, 53] with holes in holes, single pixels, edges, diagonals and 255."""
    mask = np.zeros((40, 53), np.uint8)
    mask[0:20, 0:30] = 1
    mask[3:17, 4:26] = 0  # a hole, with a part in it that has holes
    mask[5:15, 6:24] = 1
    mask[7, 8] = mask[9:12, 12:15] = mask[8, 20] = mask[10, 21] = 0
    mask[10, 13] = 2  # one pixel of another class in a hole
    mask[22:40, 40:53] = 2
    mask[25:30, 45:50] = 3
    mask[27, 47] = 255
    mask[30:34, 2:10] = np.eye(4, 8, dtype=np.uint8) * 3  # diagonal
    mask[39, 0] = mask[0, 52] = num_classes
    mask[35:, 20:30] = 1
    mask[36:39, 22:28] = 255
    return mask
