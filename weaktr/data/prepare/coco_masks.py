"""Class masks of a COCO split, drawn in one run or in several."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from weaktr.data.instances import Instances
from weaktr.data.manifest import is_inside
from weaktr.data.masks import write_mask
from weaktr.data.parallel import usable_cores
from weaktr.data.prepare.pngs import is_whole_png
from weaktr.data.render import draw_mask
from weaktr.progress import track


def can_draw() -> bool:
    """Whether pycocotools, which reads COCO's outlines, is installed."""
    return importlib.util.find_spec("pycocotools") is not None


def draw_masks(declared: Instances, folder: Path, *, workers: int | None = None) -> int:
    """Draw the masks that `folder` does not hold yet, as palette PNGs; see `render_masks`.

    Objects get their COCO id 1..90 (if `declared` is in that numbering), large ones first and
    small ones on top. Crowds lie below everything as 255 = ignore: a crowd's outline covers the
    gaps between its members as well, so neither "class" nor "background" is true of each pixel.

    Args:
        declared: the split's annotations.
        folder: where ``<file_name without suffix>.png`` are written; created if missing.
        workers: threads; None = the number of CPU cores, at most 8.

    Returns:
        The number of masks drawn. Images without annotations, and those with an object that has
        no outline, get none.

    Raises:
        ImportError: pycocotools is not installed and a mask is to be drawn.
        DataError: an outline cannot be drawn.
    """
    to_draw = []
    for entry in declared.images:
        name, objects = str(entry["file_name"]), declared.annotations[entry["id"]]
        outlined = bool(objects) and all(row.get("segmentation") for row in objects)
        if not outlined or not is_inside(name):
            continue
        path = (folder / name).with_suffix(".png")
        if not is_whole_png(path, (entry["height"], entry["width"])):
            to_draw.append((entry, path))

    def draw(job: tuple[dict[str, Any], Path]) -> None:
        entry, path = job
        write_mask(path, draw_mask(declared, entry), durable=False)

    if not to_draw:
        return 0
    pool = ThreadPoolExecutor(workers or min(8, usable_cores()))
    try:
        for _ in track(pool.map(draw, to_draw), "drawing masks", len(to_draw)):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return len(to_draw)
