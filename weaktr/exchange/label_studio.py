"""Label Studio: tasks with predictions, a brush of run lengths for each class of a photograph.

Source: https://labelstud.io/guide/predictions; the run lengths are those of thi.ng's ``rle-pack``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from weaktr.data import Classes
from weaktr.data.classes import IGNORE, palette
from weaktr.exchange.items import IMAGES, Item, Options, Report
from weaktr.exchange.xml_text import require_xml

#: Bits of a packed number of values, of a value, and the four widths of lengths of which a run
#: may choose; ours all have the last.
COUNT_BITS, VALUE_BITS, WIDTHS = 32, 8, (3, 4, 8, 16)
#: Values of a pixel: red, green, blue and alpha.
CHANNELS = 4


def write(
    items: Iterable[Item], classes: Classes, folder: Path, options: Options, report: Report
) -> None:
    """Write ``tasks.json`` and ``config.xml``; see `weaktr.exchange.Format`.

    Parts of a class are one brush; image-level labels are the choices of a task.

    Raises:
        ValueError: XML cannot hold the name of a class.
    """
    require_xml(classes.names)
    (folder / "config.xml").write_bytes(_config(classes))
    with open(folder / "tasks.json", "w") as file:
        before = "[\n"
        for item in items:
            file.write(before + json.dumps(_task(item, classes, options)))
            before = ",\n"
        file.write("[]\n" if before == "[\n" else "\n]\n")


def _config(classes: Classes) -> bytes:
    """The labelling interface of the project."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name="image", value="$image", zoom="true")
    brushes = ElementTree.SubElement(view, "BrushLabels", name="mask", toName="image")
    choices = ElementTree.SubElement(
        view, "Choices", name="labels", toName="image", choice="multiple"
    )
    colours = palette(classes.num_labels)
    for label, name in enumerate(classes.names, 1):
        colour = f"#{colours[label].tobytes().hex()}"
        ElementTree.SubElement(brushes, "Label", value=name, background=colour)
        ElementTree.SubElement(choices, "Choice", value=name)
    content: bytes = ElementTree.tostring(view, encoding="utf-8")
    return content


def _task(item: Item, classes: Classes, options: Options) -> dict[str, Any]:
    path = f"{IMAGES}/{item.file}"
    if options.images == "none":
        path = os.path.abspath(item.source.sample.image).lstrip("/")
    height, width = item.size
    shared = {
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }
    results: list[dict[str, Any]] = []
    for label in sorted({*np.unique(item.mask).tolist()} - {0, IGNORE}):
        brush: dict[str, Any] = {"id": f"mask{label}", "from_name": "mask", "type": "brushlabels"}
        value = {
            "format": "rle",
            "rle": packed(item.mask == label),
            "brushlabels": [classes.names[label - 1]],
        }
        score = {"score": item.confidence[label]} if label in item.confidence else {}
        results.append({**shared, **brush, "value": value, **score})
    if item.shown:
        chosen = {"choices": [classes.names[index] for index in item.shown]}
        choice = {"id": "labels", "from_name": "labels", "type": "choices", "value": chosen}
        results.append({**shared, **choice})
    image = f"/data/local-files/?d={quote(os.fsencode(path))}"
    prediction = {"model_version": f"weaktr {item.source.maker}", "result": results}
    return {"data": {"image": image}, "predictions": [prediction]}


def packed(inside: np.ndarray) -> list[int]:
    """Pixels bool [H, W] as ``rle-pack`` has them: 255 inside, 0 outside, in four channels."""
    pixels = inside.ravel()
    borders = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    starts = np.r_[0, borders]
    lengths = np.diff(np.r_[starts, pixels.size]) * CHANNELS
    most = 1 << WIDTHS[-1]
    pieces = -(-lengths // most)  # of a run that is too long for one number
    values = np.repeat(pixels[starts] * 255, pieces)
    counts = np.full(values.size, most)
    counts[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * most
    head = [(pixels.size * CHANNELS, COUNT_BITS), (VALUE_BITS - 1, 5)]
    head += [(width - 1, 4) for width in WIDTHS]
    columns = [
        _bits(np.full(counts.size, 0b111), 3),  # a run of one value, with the last of the widths
        _bits(counts - 1, WIDTHS[-1]),
        _bits(values, VALUE_BITS),
    ]
    start = np.concatenate([_bits(np.array([number]), width)[0] for number, width in head])
    bits = np.concatenate((start, np.concatenate(columns, axis=1).ravel()))
    content: list[int] = np.packbits(bits).tolist()
    return content


def _bits(numbers: np.ndarray, width: int) -> np.ndarray:
    """uint8 [N, width] of N whole numbers, the highest bit first."""
    places = np.arange(width - 1, -1, -1)
    return ((numbers[:, None].astype(np.int64) >> places) & 1).astype(np.uint8)
