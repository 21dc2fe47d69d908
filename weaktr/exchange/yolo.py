"""YOLO's folders for segmentation: a text file of polygons for each photograph.

Source: https://docs.ultralytics.com/datasets/segment.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import yaml

from weaktr.data import Classes
from weaktr.exchange.instances import corners, parts_of, rings_of, without_holes
from weaktr.exchange.items import IMAGES, Item, Options, Report


def write(
    items: Iterable[Item], classes: Classes, folder: Path, options: Options, report: Report
) -> None:
    """Write ``data.yaml`` and ``labels/NAME.txt`` (see `_labels_of`); `weaktr.exchange.Format`.

    Where some photographs are held out and others are not, ``train.txt`` and ``val.txt`` list them;
    else ``data.yaml`` has the same photographs for both.

    A polygon goes round the holes of its part over bridges (`without_holes`). Its corners lie in
    the first halves of their pixels: there readers that cut coordinates down to whole pixels
    (ultralytics) and those that round them (supervision) both find these pixels.
    """
    splits: dict[bool, list[str]] = {False: [], True: []}
    for item in items:
        splits[item.source.is_held_out].append(f"./{IMAGES}/{item.file}")
        lines, (height, width) = [], item.size
        for part in parts_of(item, options, report):
            ring = corners(without_holes(rings_of(part)))
            halved = np.floor(ring) + (ring - np.floor(ring)) / 2
            numbers = " ".join(f"{number:.8f}" for number in (halved / (width, height)).ravel())
            lines.append(f"{part.label - 1} {numbers}\n")
        path = folder / _labels_of(f"{IMAGES}/{item.file}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines))
    names = dict(enumerate(classes.names))
    description = {**_splits(splits[False], splits[True], folder, report), "names": names}
    text = yaml.safe_dump(description, allow_unicode=True, sort_keys=False)
    (folder / "data.yaml").write_text(text, encoding="utf-8")


def _labels_of(image: str) -> str:
    """Where ultralytics looks for the polygons of a photograph: the last folder of its path that is
    called ``images`` stands for ``labels`` then, also where it is one of the user's own."""
    above, _, below = f"/{image}".rpartition(f"/{IMAGES}/")
    return f"{above}/labels/{below.rpartition('.')[0]}.txt".lstrip("/")


def _splits(
    train: Sequence[str], val: Sequence[str], folder: Path, report: Report
) -> dict[str, str]:
    """What ``data.yaml`` says of the splits; writes their lists where there are two."""
    both = {"train": IMAGES, "val": IMAGES}
    if not train or not val:
        return both
    if unlisted := [path for path in (*train, *val) if not _may_be_listed(path)]:
        report.notes[
            "photographs have names that no list can hold, so data.yaml has no splits"
        ] += len(unlisted)
        return both
    lists = {"train": "train.txt", "val": "val.txt"}
    for split, paths in (("train", train), ("val", val)):
        (folder / lists[split]).write_text("".join(f"{p}\n" for p in paths), encoding="utf-8")
    return lists


def _may_be_listed(path: str) -> bool:
    """Whether ultralytics finds a path in a list again: it puts its folder before every ``./``."""
    is_text = path.encode(errors="replace").decode() == path
    return is_text and path.count("./") == 1 and path.strip().splitlines() == [path]
