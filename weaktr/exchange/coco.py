"""COCO's JSON of instances: run lengths, exact, or polygons.

Source: Lin et al., "Microsoft COCO", ECCV 2014; https://cocodataset.org/#format-data.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weaktr.data import Classes
from weaktr.exchange.instances import Part, corners, parts_of, rings_of, runs_of_part
from weaktr.exchange.items import Item, Options, Report


def write(
    items: Iterable[Item], classes: Classes, folder: Path, options: Options, report: Report
) -> None:
    """Write ``annotations.json``; see `weaktr.exchange.Format`.

    Ids of categories are labels, 1..C. Image-level labels are in the further key ``labels`` of an
    image, confidence in ``score`` of an annotation.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for item in items:
        image = {"id": len(images) + 1, "file_name": item.file}
        image |= {"height": item.size[0], "width": item.size[1]}
        if item.shown is not None:
            image["labels"] = [classes.names[index] for index in item.shown]
        images.append(image)
        for part in parts_of(item, options, report):
            known = item.confidence.get(part.label)
            score = {} if known is None else {"score": known}
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image["id"],
                    "category_id": part.label,
                    "segmentation": _segmentation(part, item.size, options, report),
                    "area": part.area,
                    "bbox": list(part.box),
                    "iscrowd": 0,
                    **score,
                }
            )
    categories = [
        {"id": label, "name": name, "supercategory": ""}
        for label, name in enumerate(classes.names, 1)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))


def _segmentation(part: Part, size: tuple[int, int], options: Options, report: Report) -> Any:
    """Run lengths, or a polygon where that was chosen and the part has no hole."""
    from pycocotools import mask as coco_mask

    if options.coco_segmentation == "polygons":
        outline, *holes = rings_of(part)
        if not holes:
            return [corners(outline).round(2).ravel().tolist()]
        report.notes["parts with holes are run lengths, which polygons cannot be"] += 1
    runs = {"size": list(size), "counts": runs_of_part(part, size)}
    packed = coco_mask.frPyObjects(runs, *size)
    return {"size": list(size), "counts": packed["counts"].decode("ascii")}
