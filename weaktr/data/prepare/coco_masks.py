"""Class masks of a COCO split, drawn in one run or in several."""

from __future__ import annotations

import importlib.util
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from weaktr.data.instances import CocoImage, Instances
from weaktr.data.masks import write_mask
from weaktr.data.parallel import usable_cores
from weaktr.data.prepare.pngs import is_whole_png
from weaktr.data.problems import DataError, Problem
from weaktr.data.render import draw_mask, mask_path
from weaktr.progress import track


def can_draw() -> bool:
    """Whether pycocotools, which reads COCO's outlines, is installed."""
    return importlib.util.find_spec("pycocotools") is not None


def draw_masks(
    declared: Instances, folder: Path, images: Path | None = None, *, workers: int | None = None
) -> tuple[int, list[Problem]]:
    """Draw the masks that `folder` does not hold yet, as palette PNGs; see `render_masks`.

    Objects get their COCO id 1..90 (if `declared` is in that numbering), large ones first and
    small ones on top. Crowds lie below everything as 255 = ignore: a crowd's outline covers the
    gaps between its members as well, so neither "class" nor "background" is true of each pixel.

    Args:
        declared: the split's annotations.
        folder: where ``<file_name without suffix>.png`` are written; created if missing.
        images: the photographs, whose sizes are compared with the annotations'.
        workers: threads; None = the number of CPU cores, at most 8.

    Returns:
        The number of masks drawn, and the faults for which others were not. Images without
        annotations, and those with an object that has no outline, get none.

    Raises:
        ImportError: pycocotools is not installed and a mask is to be drawn.
    """
    if declared.foreign:
        return 0, declared.problems
    annotated = (image for image in declared.images if declared.annotations[image.id])
    to_draw = [
        image
        for image in filter(declared.is_outlined, annotated)
        if not is_whole_png(mask_path(folder, image), (image.height, image.width))
    ]

    def draw(image: CocoImage) -> list[Problem]:
        try:
            mask = draw_mask(declared, image, images)
        except DataError as error:
            return list(error.problems)
        write_mask(mask_path(folder, image), mask, durable=False)
        return []

    if not to_draw:
        return 0, []
    pool = ThreadPoolExecutor(workers or min(8, usable_cores()))
    try:
        jobs = track(pool.map(draw, to_draw), "drawing masks", len(to_draw))
        faults = [faults for faults in jobs if faults]
    finally:
        pool.shutdown(cancel_futures=True)
    return len(to_draw) - len(faults), [fault for of_image in faults for fault in of_image]
