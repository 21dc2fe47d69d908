"""YOLO's folders for segmentation: a text file of polygons for each photograph.

Source: https://docs.ultralytics.com/datasets/segment.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import yaml

from weaktr.data import Classes
from weaktr.exchange.instances import corners, parts_of, rings_of, without_holes
from weaktr.exchange.items import IMAGES, Item, Options, Report


def write(
    items: Iterable[Item], classes: Classes, folder: Path, options: Options, report: Report
) -> None:
    """Write ``data.yaml`` and ``labels/NAME.txt``; see `weaktr.exchange.Format`.

    A polygon goes round the holes of its part over bridges (`without_holes`). Its corners lie in
    the first halves of their pixels: there readers that cut coordinates down to whole pixels
    (ultralytics) and those that round them (supervision) both find these pixels.
    """
    for item in items:
        lines, (height, width) = [], item.size
        for part in parts_of(item, options, report):
            ring = corners(without_holes(rings_of(part)))
            halved = np.floor(ring) + (ring - np.floor(ring)) / 2
            numbers = " ".join(f"{number:.8f}" for number in (halved / (width, height)).ravel())
            lines.append(f"{part.label - 1} {numbers}\n")
        path = folder / "labels" / f"{item.name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    names = dict(enumerate(classes.names))
    description = {"train": IMAGES, "val": IMAGES, "names": names}
    text = yaml.safe_dump(description, allow_unicode=True, sort_keys=False)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
