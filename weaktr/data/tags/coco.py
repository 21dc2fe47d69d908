"""COCO's instances JSON: the categories of a photograph's annotations are its labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weaktr.data.instances import read_instances
from weaktr.data.problems import DataError
from weaktr.data.tags.form import Form, Tags, row, unannotated

NAME = "COCO's instances JSON"


def fits(content: Any) -> bool:
    """Whether a JSON has COCO's three lists."""
    lists = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in lists)


def read(path: Path, _: Any) -> Tags:
    """The labels of an instances JSON; classes are its categories in the order of their ids.

    Raises:
        DataError: see `read_instances`; all faults at once.
    """
    content = read_instances(path, ids="json")
    if content.problems:
        raise DataError(content.problems)
    names = content.numbering.classes.names
    rows = [
        row(image.file_name, [names[k] for k in content.labels(image.id)], f"{path}:{image.where}")
        for image in content.images
    ]
    return Tags(path, NAME, rows, names, unannotated(rows))


COCO = Form(NAME, fits, read)
