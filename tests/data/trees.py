"""Tiny data sets on disk, in the layouts that the readers must know."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

#: (H, W) of the images; not square, so that swapped axes show.
SIZE = (24, 32)


def write_image(path: Path, size: tuple[int, int] = SIZE, seed: int = 0) -> Path:
    """A noisy RGB image of (H, W)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_mask(path: Path, values: Iterable[int], size: tuple[int, int] = SIZE) -> Path:
    """A grey PNG of background whose first pixels hold `values`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = np.zeros(size, np.uint8)
    values = list(values)
    mask.reshape(-1)[: len(values)] = values
    Image.fromarray(mask).save(path)
    return path


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return path


def write_list(path: Path, lines: Sequence[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def write_xml(path: Path, objects: Sequence[tuple[str, bool]]) -> Path:
    """A VOC annotation of (class, difficult) objects, each with a part as in the person layout."""
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = "".join(
        f"<object><name>{name}</name><part><name>head</name></part>"
        f"<difficult>{int(difficult)}</difficult></object>"
        for name, difficult in objects
    )
    path.write_text(f"<annotation>{entries}</annotation>")
    return path


#: What each image of `voc_tree` shows.
VOC_OBJECTS: dict[str, list[tuple[str, bool]]] = {
    "2007_000001": [("cat", False), ("person", False), ("cat", False)],
    "2007_000002": [("aeroplane", True), ("tvmonitor", False)],
    "2007_000003": [],
}


def voc_tree(folder: Path) -> Path:
    """``folder/VOCdevkit/VOC2012`` with three images, XML labels and masks; returns VOC2012."""
    voc = folder / "VOCdevkit/VOC2012"
    for seed, (name, objects) in enumerate(VOC_OBJECTS.items()):
        write_image(voc / f"JPEGImages/{name}.jpg", seed=seed)
        write_xml(voc / f"Annotations/{name}.xml", objects)
        write_mask(voc / f"SegmentationClass/{name}.png", [8, 15, 255])
    lists = voc / "ImageSets/Segmentation"
    write_list(lists / "train.txt", list(VOC_OBJECTS)[:2])
    write_list(lists / "val.txt", list(VOC_OBJECTS)[2:])
    return voc


#: COCO images: id -> category ids. 44 = bottle (label 40 of 80), 90 = toothbrush (80 of 80).
COCO_LABELS = {9: [44, 1], 25: [90], 30: []}
_CATEGORIES = [(1, "person"), (13, "stop sign"), (44, "bottle"), (90, "toothbrush")]


def square(left: int, top: int, side: int) -> list[list[float]]:
    """A COCO polygon."""
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


def coco_json(path: Path, *, prefix: str = "COCO_train2014_", **changes: Any) -> Path:
    """instances JSON of `COCO_LABELS`; `changes` replace whole fields."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "images": [
            {"id": i, "file_name": f"{prefix}{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for i in COCO_LABELS
        ],
        "annotations": [
            {
                "id": 100 * i + k,
                "image_id": i,
                "category_id": category,
                "iscrowd": 0,
                "area": 16.0,
                "segmentation": square(2 + 4 * k, 3, 4),
            }
            for i, categories in COCO_LABELS.items()
            for k, category in enumerate(categories)
        ],
        "categories": [{"id": number, "name": name} for number, name in _CATEGORIES],
    }
    path.write_text(json.dumps({**content, **changes}))
    return path


def write_png(
    path: Path,
    numbers: Sequence[Sequence[int]],
    bits: int,
    *,
    palette: bool = False,
    interlaced: bool = False,
    chunks: Iterable[tuple[bytes, bytes]] = (),
) -> Path:
    """A PNG of one channel that holds just these numbers in `bits` bits.

    Args:
        path: the file.
        numbers: the rows.
        bits: 1, 2, 4, 8 or 16.
        palette: colours beside the numbers, which are then indices; else they are greys.
        interlaced: Adam7: the pixels in seven passes.
        chunks: (type, content) to insert, such as ``(b"gAMA", ...)``.

    Source: W3C, "Portable Network Graphics (PNG) Specification", 2003, sections 7, 8 and 11.
    """
    steps = [(0, 0, 1, 1)]
    if interlaced:
        steps = [
            *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
            *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
        ]
    cut = [row[left::across] for top, left, down, across in steps for row in numbers[top::down]]
    lines = [_packed(line, bits) for line in cut if line]
    size, form = (len(numbers[0]), len(numbers)), (bits, 3 * palette, 0, 0, interlaced)
    head = struct.pack(">IIBBBBB", *size, *form)
    colours = bytes(range(3 * 2 ** min(bits, 6)))
    parts = [
        (b"IHDR", head),
        *([(b"PLTE", colours)] if palette else []),
        *chunks,
        (b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))),
        (b"IEND", b""),
    ]
    with open(path, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for kind, content in parts:
            check = zlib.crc32(kind + content)
            file.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check))
    return path


def _packed(line: Sequence[int], bits: int) -> bytes:
    """Numbers one after the other, the first in the highest bits."""
    text = "".join(f"{number:0{bits}b}" for number in line)
    text += "0" * (-len(text) % 8)
    return int(text, 2).to_bytes(len(text) // 8, "big")
