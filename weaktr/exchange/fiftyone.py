"""FiftyOne: a folder that it imports as ``FiftyOneDataset``, with masks as PNGs.

Source: https://docs.voxel51.com/user_guide/import_datasets.html and its importer, which takes a
``metadata.json`` without a version with samples of plain JSON.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image

from weaktr.data import Classes
from weaktr.data.classes import IGNORE
from weaktr.exchange.items import IMAGES, Item, Options, Report
from weaktr.files import write_bytes

#: The fields of a sample: its mask and its image-level labels.
MASK, LABELS = "weaktr", "image_labels"


def write(
    items: Iterable[Item], classes: Classes, folder: Path, options: Options, report: Report
) -> None:
    """Write ``metadata.json``, ``samples.json`` and masks; see `weaktr.exchange.Format`."""
    samples = []
    for item in items:
        mask = f"fields/{MASK}/{item.name}.png"
        buffer = io.BytesIO()
        Image.fromarray(item.mask).save(buffer, format="PNG")  # grey: of a palette it takes colours
        write_bytes(folder / mask, buffer.getvalue(), durable=False)
        image = f"{IMAGES}/{item.file}"
        if options.images == "none":
            image = os.path.abspath(item.source.sample.image)
        sample: dict[str, Any] = {
            "filepath": image,
            "tags": [item.source.maker],
            MASK: {"_cls": "Segmentation", "mask_path": mask},
        }
        if item.shown is not None:
            found = [_classification(item, classes, index) for index in item.shown]
            sample[LABELS] = {"_cls": "Classifications", "classifications": found}
        samples.append(sample)
    targets = dict(enumerate(classes.label_names)) | {IGNORE: "ignore"}
    information = {"default_mask_targets": targets, "default_classes": list(classes.names)}
    metadata = {"media_type": "image", "info": information}
    (folder / "metadata.json").write_text(json.dumps(metadata))
    (folder / "samples.json").write_text(json.dumps({"samples": samples}))


def _classification(item: Item, classes: Classes, index: int) -> dict[str, Any]:
    known = item.confidence.get(index + 1)
    score = {} if known is None else {"confidence": known}
    return {"_cls": "Classification", "label": classes.names[index], **score}
