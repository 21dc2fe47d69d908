"""``CVAT for images 1.1``: tags of photographs; boxes, polygons and masks count too.

Source: CVAT's documentation, "CVAT for image" of the annotation formats.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

from weaktr.data.tags.form import Form, Tags, fault, row, unannotated
from weaktr.messages import few

NAME = "CVAT for images"


def fits(root: Element) -> bool:
    """Whether an XML is an export of CVAT, of photographs or of a video."""
    return root.tag == "annotations" and root.find("meta") is not None


def read(path: Path, root: Element) -> Tags:
    """The labels of an export; classes in the order in which the project declares them.

    Raises:
        DataError: it is of a video, or a photograph has no name.
    """
    if root.find("track") is not None:
        message = "expected CVAT for images, got tracks of a video: export CVAT for images 1.1"
        raise fault(path, "", message)
    rows = []
    for number, image in enumerate(root.findall("image")):
        where, name = f"{path}: image {number}", image.get("name", "")
        if not name.strip():
            raise fault(path, where, "expected an image with a name, got none")
        rows.append(row(name, [part.get("label", "") for part in image], where))
    declared = root.findall("meta//labels/label/name")
    names = dict.fromkeys((name.text or "").strip() for name in declared)
    attributes = {part.get("name", "") for part in root.iterfind("image//attribute")}
    told = f"attributes are not read, labels alone: {few(sorted(attributes))}"
    doubts = (*unannotated(rows), *((told,) if attributes else ()))
    return Tags(path, NAME, rows, tuple(filter(None, names)), doubts)


CVAT = Form(NAME, fits, read)
