"""What a folder of masks holds, at a glance: labels per class, and a contact sheet."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table

from weaktr.data import DataError, Sample
from weaktr.data.classes import palette
from weaktr.data.masks import MaskFolder, before_refinement, png_bytes
from weaktr.data.photographs import read_photograph
from weaktr.evaluation.overlay import overlay
from weaktr.files import write_bytes
from weaktr.messages import counted, few, one_line
from weaktr.outputs import keep
from weaktr.progress import console
from weaktr.seals import is_sealed

T = TypeVar("T")

#: Of the contact sheet: how many images; in pixels the longest side of each, gaps, lines of text.
IMAGES, SIDE, GAP, LINE = 8, 360, 10, 16


def print_labels(images_of: Mapping[int, int], names: Sequence[str], masks: int) -> None:
    """Print how many masks show each label, the most frequent first, and which classes none does.

    Args:
        images_of: label -> number of masks.
        names: L names, background first.
        masks: how many there are.
    """
    counts = [(images_of.get(label, 0), name) for label, name in enumerate(names)]
    missing = [name for count, name in counts[1:] if not count]
    table = Table(title=f"labels in {masks} masks", title_justify="left")
    table.add_column("label")
    for column in ("masks", "of all"):
        table.add_column(column, justify="right")
    for count, name in sorted(counts, key=lambda pair: -pair[0]):
        if count:
            table.add_row(name, str(count), f"{count / max(masks, 1):.0%}")
    console.print(table)
    if missing and masks:
        are = counted(len(missing), "class is", "classes are")
        console.print(f"{are} in no mask: {few(missing)}")


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` of some items, spread evenly over all, in their order."""
    count = min(count, len(items))
    return [items[step * len(items) // count] for step in range(count)]


def draw_contact_sheet(
    folder: Path, samples: Sequence[Sample], names: Sequence[str]
) -> Path | None:
    """Draw some images, chosen at random but the same each time: image | masks; and a legend.

    Args:
        folder: of masks; gets ``contact_sheet.png``.
        samples: the images.
        names: L names, background first.

    Returns:
        The picture; None where no image has a mask.
    """
    masks, before = MaskFolder(folder), MaskFolder(before_refinement(folder))
    there = [sample for sample in samples if sample.name in masks]
    rows, present = [], set()
    for sample in random.Random(0).sample(there, min(IMAGES, len(there))):
        try:
            pixels, mask = read_photograph(sample, SIDE).pixels, masks.read(sample.name)
        except DataError:
            continue  # gone since, or changed by hand into something else
        if mask.max(initial=0) > 255:
            continue
        titles = [sample.name, "mask"]
        pictures = [pixels, overlay(pixels, _at_size(mask, pixels))]
        with suppress(DataError):  # gone, or changed by hand into something else
            if sample.name in before:
                plain = _at_size(before.read(sample.name), pixels)
                titles.insert(1, "before refinement")
                pictures.insert(1, overlay(pixels, plain))
        present |= set(np.unique(mask).tolist()) - {0}
        rows.append((titles, pictures))
    if not rows:
        return None
    path = folder / "contact_sheet.png"
    if path.is_file() and not is_sealed(path):
        keep(path)
    write_bytes(path, png_bytes(_sheet(rows, sorted(present), names)), durable=False)
    return path


def _sheet(
    rows: Sequence[tuple[Sequence[str], Sequence[np.ndarray]]],
    labels: Sequence[int],
    names: Sequence[str],
) -> Image.Image:
    """Pictures with their titles in rows, and below them the colours of the labels."""
    heights = [LINE + max(picture.shape[0] for picture in pictures) + GAP for _, pictures in rows]
    columns = max(len(pictures) for _, pictures in rows)
    width = columns * (SIDE + GAP) + GAP
    sheet = Image.new("RGB", (width, sum(heights) + GAP + LINE * len(labels)), "white")
    pen, top = ImageDraw.Draw(sheet), GAP
    for (titles, pictures), height in zip(rows, heights, strict=True):
        for column, (title, picture) in enumerate(zip(titles, pictures, strict=True)):
            left = GAP + column * (SIDE + GAP)
            pen.text((left, top), one_line(title)[-60:], "black")
            sheet.paste(Image.fromarray(picture), (left, top + LINE))
        top += height
    for label in labels:
        pen.rectangle((GAP, top, GAP + 16, top + LINE - 4), tuple(palette()[label].tolist()))
        name = one_line(names[label]) if label < len(names) else str(label)
        pen.text((GAP + 24, top), name, "black")
        top += LINE
    return sheet


def _at_size(mask: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """A mask uint8 [H, W] at the size of pixels [h, w, 3]."""
    height, width, _ = pixels.shape
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
