"""COCO's instances JSON: read, checked, and its category ids turned into class indices."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from weaktr.data.classes import COCO80, COCO90, Classes
from weaktr.data.layout import read_text
from weaktr.data.problems import DataError, Problem

Ids = Literal[90, 80, "json"]


@dataclass(frozen=True)
class Numbering:
    """How COCO category ids become class indices.

    Args:
        classes: the classes, in class-index order.
        index_of_category: class index of each category id.
        mask_ids: see `Sample.mask_ids`.
    """

    classes: Classes
    index_of_category: dict[int, int]
    mask_ids: tuple[int, ...] | None


@dataclass
class Instances:
    """The content of an instances JSON, checked.

    Args:
        path: the JSON file.
        numbering: its classes.
        images: the entries of ``"images"``.
        annotations: the entries of ``"annotations"`` of each image id.
        problems: faults met while reading it.
    """

    path: Path
    numbering: Numbering
    images: list[dict[str, Any]]
    annotations: dict[Any, list[dict[str, Any]]]
    problems: list[Problem] = field(default_factory=list)

    def labels(self, image_id: object) -> tuple[int, ...]:
        """Ascending class indices of an image; groups of objects (crowds) count as well."""
        index_of = self.numbering.index_of_category
        categories = {entry["category_id"] for entry in self.annotations.get(image_id, ())}
        return tuple(sorted(index_of[category] for category in categories))


def read_instances(path: Path, *, ids: Ids = 90, mask_ids: Literal[90, 80] = 90) -> Instances:
    """Read and check an instances JSON; see `coco14` for `ids` and `mask_ids`.

    Raises:
        DataError: missing, not JSON, or not of COCO's form.
    """
    try:
        content = json.loads(read_text(path))
        categories = [(int(entry["id"]), str(entry["name"])) for entry in content["categories"]]
        images = [{"id": e["id"], "file_name": e["file_name"], **e} for e in content["images"]]
        rows = [(e["image_id"], e["category_id"], e) for e in content["annotations"]]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        message = f"expected COCO's instances JSON, got: {type(error).__name__} {error}"
        raise DataError(Problem(str(path), "", message)) from error
    numbering = numbering_of(categories, ids, mask_ids)
    result = Instances(path, numbering, images, {entry["id"]: [] for entry in images})
    if ids != "json":
        result.problems += _foreign_categories(path, categories)
    for row, (image_id, category, entry) in enumerate(rows):
        where = f"annotations[{row}]"
        if image_id not in result.annotations:
            result.problems.append(Problem(str(path), where, f"image_id {image_id!r} is no image"))
        elif category not in numbering.index_of_category:
            message = f"category_id {category!r} is outside the class list"
            result.problems.append(Problem(str(path), where, message))
        else:
            result.annotations[image_id].append(entry)
    return result


def numbering_of(categories: list[tuple[int, str]], ids: Ids, mask_ids: int) -> Numbering:
    """How the ids of `categories` (id, name) become class indices; options as in `coco14`."""
    if ids == "json":
        ordered = sorted(categories)
        classes = Classes(tuple(name for _, name in ordered))
        return Numbering(classes, {number: k for k, (number, _) in enumerate(ordered)}, None)
    if ids == 80:
        return Numbering(COCO80, COCO80.index_of_id, COCO80.ids if mask_ids == 90 else None)
    return Numbering(COCO90, COCO90.index_of_id, None)


def _foreign_categories(path: Path, categories: list[tuple[int, str]]) -> list[Problem]:
    """Categories that are not COCO's, which a COCO numbering would silently rename."""
    foreign = [
        (number, name)
        for number, name in categories
        if number not in COCO90.index_of_id or COCO90.names[number - 1] != name
    ]
    return [
        Problem(
            str(path),
            "categories",
            f"id {number} is {name!r}, which COCO does not have there: use ids='json' for data "
            "with categories of its own",
        )
        for number, name in foreign
    ]
