"""LabelMe: a JSON file beside each photograph, with a shape of the kind ``mask`` for each part.

Source: https://github.com/wkentaro/labelme, its label files since version 5.3.
"""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from weaktr.data import Classes
from weaktr.exchange.instances import Part, parts_of
from weaktr.exchange.items import IMAGES, Item, Options, Report

#: Of LabelMe, the first that has masks.
VERSION = "5.3.0"


def write(
    items: Iterable[Item], classes: Classes, folder: Path, options: Options, report: Report
) -> None:
    """Write ``images/NAME.json``, image-level labels as its flags; see `weaktr.exchange.Format`."""
    for item in items:
        path = folder / IMAGES / f"{item.name}.json"
        image = os.path.abspath(item.source.sample.image)
        if options.images != "none":
            image = os.path.basename(item.file)
        content = {
            "version": VERSION,
            "flags": {classes.names[index]: True for index in item.shown or ()},
            "shapes": [
                _shape(part, classes.names[part.label - 1], item.confidence.get(part.label))
                for part in parts_of(item, options, report)
            ],
            "imagePath": image,
            "imageData": None,
            "imageHeight": item.size[0],
            "imageWidth": item.size[1],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))


def _shape(part: Part, name: str, confidence: float | None) -> dict[str, Any]:
    """A part; both corners of its box are pixels in it."""
    left, top, width, height = part.box
    buffer = io.BytesIO()
    Image.fromarray(part.inside).save(buffer, format="PNG")
    return {
        "label": name,
        "points": [[left, top], [left + width - 1, top + height - 1]],
        "group_id": None,
        "description": "" if confidence is None else f"confidence {confidence:.3f}",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(buffer.getvalue()).decode("ascii"),
    }
