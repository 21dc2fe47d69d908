"""COCO's instances JSON: the categories of a photograph's annotations are its labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weaktr.data.instances import Numbering, read_instances
from weaktr.data.problems import DataError
from weaktr.data.tags.form import Form, Tags, row, unannotated
from weaktr.messages import brief, few

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
    content = read_instances(path, ids="json", labels_alone=True)
    if content.problems:
        raise DataError(content.problems)
    names = content.numbering.classes.names
    rows = [
        row(image.file_name, [names[k] for k in content.labels(image.id)], f"{path}:{image.where}")
        for image in content.images
    ]
    doubts = (*_of_one_name(content.numbering), *unannotated(rows))
    return Tags(path, NAME, rows, names, doubts)


def _of_one_name(numbering: Numbering) -> Iterator[str]:
    """A sentence for each class of several categories."""
    for index, name in enumerate(numbering.classes.names):
        ids = [brief(id_) for id_, own in numbering.index_of_category.items() if own == index]
        if len(ids) > 1:
            yield f"the categories {few(ids)} are called {name} and count as one class"


COCO = Form(NAME, fits, read)
