"""Class masks drawn from COCO's instances JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from weaktr.data.classes import IGNORE
from weaktr.data.instances import Ids, Instances, read_instances
from weaktr.data.manifest import is_inside
from weaktr.data.masks import write_mask
from weaktr.data.problems import DataError, Problem


def render_masks(instances_json: str | Path, out_dir: str | Path, *, ids: Ids = 90) -> list[Path]:
    """Draw the class mask of every annotated image as a palette PNG.

    Large objects are drawn first and small ones on top, since where two outlines overlap the
    smaller one is nearly always in front (the tie on a shirt, the spoon in a cup). Crowds (groups
    outlined as a whole, ``iscrowd`` = 1) are drawn below everything as 255 = ignore: their
    outline covers gaps between the objects, so neither "class" nor "background" is true of each
    pixel.

    Args:
        instances_json: COCO's annotations; needs the extra ``coco`` (pycocotools).
        out_dir: where ``<file_name without suffix>.png`` are written; created if missing.
        ids: 90 draws COCO ids, 80 labels 1..80, "json" labels 1..C of the JSON's own categories.

    Returns:
        The files written. Images without any annotation get an all-background mask; images with
        an object that has a box but no outline get none.

    Raises:
        ImportError: pycocotools is not installed.
        DataError: the JSON is not whole, or an outline cannot be drawn.
    """
    numbering: Literal[80, 90] = 80 if ids == 80 else 90
    declared = read_instances(Path(instances_json), ids=ids, mask_ids=numbering)
    for row, entry in enumerate(declared.images):
        if not is_inside(str(entry["file_name"])):
            message = f"file_name leads out of the folder: {entry['file_name']!r}"
            declared.problems.append(Problem(str(declared.path), f"images[{row}]", message))
    if declared.problems:
        raise DataError(declared.problems)
    written = []
    for entry in declared.images:
        if not all(row.get("segmentation") for row in declared.annotations[entry["id"]]):
            continue
        path = (Path(out_dir) / entry["file_name"]).with_suffix(".png")
        write_mask(path, draw_mask(declared, entry), durable=False)
        written.append(path)
    return written


def draw_mask(declared: Instances, image: dict[str, Any]) -> np.ndarray:
    """uint8 [H, W] labels of one entry of ``"images"``, in the numbering of `declared`.

    Raises:
        ImportError: pycocotools is not installed.
        DataError: an outline cannot be drawn.
    """
    mask = np.zeros((int(image["height"]), int(image["width"])), np.uint8)
    objects = [
        (bool(entry.get("iscrowd", 0)), _outline(declared, entry, mask.shape), entry)
        for entry in declared.annotations[image["id"]]
    ]
    for crowd, inside, entry in sorted(objects, key=lambda o: (not o[0], -int(o[1].sum()))):
        label = declared.numbering.index_of_category[entry["category_id"]] + 1
        mask[inside] = IGNORE if crowd else label
    return mask


def _outline(declared: Instances, entry: dict[str, Any], size: tuple[int, ...]) -> np.ndarray:
    """bool [H, W] of one annotation: polygons, run lengths or compressed run lengths."""
    from pycocotools import mask as coco_mask

    drawn = entry["segmentation"]
    if isinstance(drawn, list) and all(_is_polygon(part) for part in drawn):
        encoded = coco_mask.merge(coco_mask.frPyObjects(drawn, *size))
    elif isinstance(drawn, dict) and list(drawn.get("size", [])) == list(size):
        counts = drawn.get("counts")
        encoded = coco_mask.frPyObjects(drawn, *size) if isinstance(counts, list) else drawn
    else:
        where = f"annotation {entry.get('id')} of image {entry['image_id']}"
        message = f"expected polygons or run lengths of {size[0]}x{size[1]}, got {drawn!r:.60}"
        raise DataError(Problem(str(declared.path), where, message))
    return coco_mask.decode(encoded).astype(bool)


def _is_polygon(part: object) -> bool:
    """Whether `part` is [x0, y0, x1, y1, ...] of at least three points."""
    return isinstance(part, list) and len(part) >= 6 and len(part) % 2 == 0
