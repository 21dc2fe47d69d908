"""COCO's instances JSON: read, checked, and its category ids turned into class indices."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from weaktr.data.classes import COCO80, COCO90, Classes
from weaktr.data.layout import read_json
from weaktr.data.manifest import is_inside, name_fault
from weaktr.data.outlines import is_whole
from weaktr.data.problems import DataError, Problem
from weaktr.messages import CONTROL, brief, few

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


@dataclass(frozen=True, slots=True)
class CocoImage:
    """An entry of ``"images"``; its size is checked where it is needed, see `outlines`.

    Args:
        row: its place in the list.
        id: what annotations call it.
        file_name: a path below the image folder.
        height, width: as in the JSON; None where they are missing.
    """

    row: int
    id: int | str
    file_name: str
    height: Any
    width: Any

    @property
    def where(self) -> str:
        """Its place, for a `Problem`."""
        return f"images[{self.row}]"


@dataclass(frozen=True, slots=True)
class Annotation:
    """An entry of ``"annotations"``; what drawing needs is checked where it is drawn.

    Args:
        row: its place in the list.
        id: its number, for messages.
        image_id: an image.
        category_id: a category.
        iscrowd: as in the JSON; 0 where it is missing.
        segmentation: its outline as in the JSON; None where there is none.
    """

    row: int
    id: Any
    image_id: int | str
    category_id: int
    iscrowd: Any
    segmentation: Any

    @property
    def where(self) -> str:
        """Its place, for a `Problem`."""
        return f"annotations[{self.row}]"

    @property
    def name(self) -> str:
        """What people look for in the JSON."""
        return f"annotation {self.id!r:.40} of image {self.image_id!r:.40}"


@dataclass
class Instances:
    """The content of an instances JSON, checked; wrong entries are left out and named.

    Args:
        path: the JSON file.
        numbering: its classes.
        images: the images.
        annotations: the annotations of each image id.
        problems: faults met while reading it.
        incomplete: the ids of the images of which an annotation was or may have been left out.
        foreign: whether it has categories that its numbering does not know.
        refused: the ids of the images that were left out.
    """

    path: Path
    numbering: Numbering
    images: list[CocoImage]
    annotations: dict[int | str, list[Annotation]]
    problems: list[Problem] = field(default_factory=list)
    incomplete: set[int | str] = field(default_factory=set)
    foreign: bool = False
    refused: set[int | str] = field(default_factory=set)

    def labels(self, image_id: int | str) -> tuple[int, ...]:
        """Ascending class indices of an image; groups of objects (crowds) count as well."""
        index_of = self.numbering.index_of_category
        categories = {entry.category_id for entry in self.annotations.get(image_id, ())}
        return tuple(sorted({index_of[category] for category in categories}))

    def is_outlined(self, image: CocoImage) -> bool:
        """Whether every object of an image has an outline, and is known."""
        rows = self.annotations[image.id]
        return image.id not in self.incomplete and all(row.segmentation is not None for row in rows)

    def numbered(self, ids: Literal[90, 80]) -> Instances:
        """The same with the classes of another numbering; masks hold COCO ids."""
        numbering = numbering_of([], ids, 90)
        result = replace(self, numbering=numbering, annotations={}, incomplete={*self.incomplete})
        result.problems = [*self.problems]
        for image_id, entries in self.annotations.items():
            known = [e for e in entries if e.category_id in numbering.index_of_category]
            result.annotations[image_id] = known
            for entry in entries:
                if entry.category_id not in numbering.index_of_category:
                    result.leave_out(entry, _outside(entry.category_id))
        return result

    def leave_out(self, entry: Annotation, why: str) -> None:
        """Note that an annotation is left out."""
        message, kind = f"{why} ({entry.name})", "category outside the class list"
        self.problems.append(Problem(str(self.path), entry.where, message, kind=kind))
        self.incomplete.add(entry.image_id)


def read_instances(
    path: Path,
    *,
    ids: Ids = 90,
    mask_ids: Literal[90, 80] = 90,
    labels_alone: bool = False,
) -> Instances:
    """Read and check an instances JSON.

    Args:
        path: of the file.
        ids, mask_ids: see `coco14`.
        labels_alone: file names are compared with those of photographs, and nothing is opened or
            stored by them, so that they may lead anywhere; and with ids "json", categories of one
            name are one class.

    Raises:
        ValueError: `ids` is none of these.
        DataError: missing, not JSON, not of COCO's form, or its categories are not whole. Other
            wrong entries are among the `problems`.
    """
    if ids not in (90, 80, "json"):
        raise ValueError(f"ids: expected 90, 80 or 'json', got {ids!r}")
    try:
        content = read_json(path, finite=False)
    except DataError as error:
        message = f"expected COCO's instances JSON: {error.problems[0].message}"
        raise DataError(Problem(str(path), "", message)) from error
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in lists):
        message = "expected COCO's instances JSON, an object with the lists " + ", ".join(lists)
        raise DataError(Problem(str(path), "", f"{message}; got {_form_of(content)}"))
    categories = _categories(path, content["categories"])
    try:
        numbering = numbering_of(categories, ids, mask_ids, by_name=labels_alone)
    except ValueError as error:
        raise DataError(Problem(str(path), "categories", str(error))) from error
    result = Instances(path, numbering, [], {})
    if ids != "json":
        result.problems += _foreign_categories(path, categories)
        result.foreign = bool(result.problems)
    first: dict[tuple[str, int | str], CocoImage] = {}
    for row, entry in enumerate(content["images"]):
        _add_image(result, row, entry, first, is_anywhere=labels_alone)
    alike: dict[str, list[int | str]] = {}
    for image in result.images:
        alike.setdefault(_as_text(image.id), []).append(image.id)
    for row, entry in enumerate(content["annotations"]):
        _add_annotation(result, row, entry, alike)
    return result


def _form_of(content: Any) -> str:
    """What a JSON holds instead of COCO's lists, in words."""
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    return ", ".join(f"{k!r:.40}: {type(v).__name__}" for k, v in [*content.items()][:5]) or "{}"


def _add_image(
    result: Instances,
    row: int,
    entry: Any,
    first: dict[tuple[str, int | str], CocoImage],
    *,
    is_anywhere: bool,
) -> None:
    """Add an entry of ``"images"``, or a problem.

    `first`: the images by ("id", id) and by ("name", file name without suffix).
    `is_anywhere`: whether its file name may lead out of the image folder.
    """
    given = entry if isinstance(entry, dict) else {}
    identity, name = given.get("id"), given.get("file_name")
    image = CocoImage(row, identity, name, given.get("height"), given.get("width"))  # type: ignore[arg-type]
    if not _is_id(identity) or not isinstance(name, str):
        message = f"expected an object with id and file_name, got {entry!r:.60}"
    elif not is_anywhere and not is_inside(name):
        message = f"file_name leads out of the image folder: {brief(name)}"
    elif CONTROL.search(name):
        message = f"expected a file_name without control characters, got {name!r:.60}"
    elif not is_anywhere and (fault := name_fault(os.path.splitext(name)[0])) is not None:
        message = f"file_name: {fault}"
    else:
        keys = ("id", image.id), ("name", os.path.splitext(PurePosixPath(name).as_posix())[0])
        twice = next((key for key in keys if key in first), None)
        if twice is None:
            first |= dict.fromkeys(keys, image)
            result.images.append(image)
            result.annotations[image.id] = []
            return
        said = {"id": "is also that of", "name": f"was already declared at {result.path}:"}
        message = f"{twice[0]} {twice[1]!r:.60} {said[twice[0]]} {first[twice].where}"
        result.incomplete.add(first[twice].id)  # whose objects are they?
    problem = Problem(str(result.path), image.where, message, kind="wrong entry of an image")
    result.problems.append(problem)
    if _is_id(identity):
        result.refused.add(image.id)


def _as_text(identity: Any) -> str:
    """An id without what writers of JSON may write differently: ``25``, ``"025"`` and ``25.0``."""
    return str(identity).strip().removesuffix(".0").lstrip("0")


def _add_annotation(
    result: Instances, row: int, entry: Any, alike: dict[str, list[int | str]]
) -> None:
    """Add an entry of ``"annotations"``, or a problem; neither for an image that was left out.

    `alike`: the ids of the images by `_as_text`. An image that may be meant is incomplete.
    """
    if not isinstance(entry, dict):
        message = f"expected an object, got {entry!r:.60}"
        kind = "wrong entry of an annotation"
        result.problems.append(Problem(str(result.path), f"annotations[{row}]", message, kind=kind))
        return
    annotation = Annotation(
        row,
        entry.get("id"),
        entry.get("image_id"),  # type: ignore[arg-type]
        entry.get("category_id"),  # type: ignore[arg-type]
        entry.get("iscrowd", 0),
        None if entry.get("segmentation") in (None, []) else entry["segmentation"],
    )
    is_of_image = _is_id(annotation.image_id) and annotation.image_id in result.annotations
    if not is_of_image and _is_id(annotation.image_id) and annotation.image_id in result.refused:
        return
    if not is_of_image:
        is_one = isinstance(annotation.image_id, str | int | float)
        meant = alike.get(_as_text(annotation.image_id), []) if is_one else []
        result.incomplete.update(meant)
        hint = f", {few([brief(identity) for identity in meant])} is one" if meant else ""
        message = f"image_id {annotation.image_id!r:.60} is no image{hint} ({annotation.name})"
        kind = "annotation of no image"
        result.problems.append(Problem(str(result.path), annotation.where, message, kind=kind))
    elif not is_whole(annotation.category_id):
        result.leave_out(annotation, f"category_id {annotation.category_id!r:.60} is no number")
    elif annotation.category_id not in result.numbering.index_of_category:
        result.leave_out(annotation, _outside(annotation.category_id))
    else:
        result.annotations[annotation.image_id].append(annotation)


def _outside(category_id: int) -> str:
    return f"category_id {category_id!r:.60} is outside the class list"


def _is_id(value: object) -> bool:
    return isinstance(value, str) or is_whole(value)


def _categories(path: Path, entries: list[Any]) -> list[tuple[int, str]]:
    """(id, name) of the categories; all labels depend on them, so that each has to be right."""
    categories: dict[int, str] = {}
    problems = []
    for row, entry in enumerate(entries):
        given = entry if isinstance(entry, dict) else {}
        identity, name = given.get("id"), given.get("name")
        if not is_whole(identity) or not isinstance(name, str) or not name.strip():
            message = f"expected an object with id, a whole number, and name; got {entry!r:.60}"
        elif CONTROL.search(name):
            message = f"expected a name without control characters, got {name!r:.60}"
        elif identity in categories:
            message = f"id {brief(identity)} stands twice"
        else:
            categories[int(identity)] = name
            continue
        problems.append(Problem(str(path), f"categories[{row}]", message))
    if problems:
        raise DataError(problems)
    return [*categories.items()]


def numbering_of(
    categories: list[tuple[int, str]], ids: Ids, mask_ids: int, *, by_name: bool = False
) -> Numbering:
    """How the ids of `categories` (id, name) become class indices; options as in `coco14`.

    Args:
        categories: id and name of each.
        ids, mask_ids: see `coco14`.
        by_name: with ids "json", categories of one name are one class, the place of which the first
            id says.

    Raises:
        ValueError: the categories are no classes.
    """
    if ids == "json":
        alike: dict[str, list[tuple[int, str]]] = {}
        for number, name in sorted(categories):
            alike.setdefault(name.strip(), []).append((number, name))
        for name, group in alike.items():
            if len(group) > 1 and not by_name:
                raise ValueError(
                    f"the ids {few([brief(number) for number, _ in group])} are called "
                    f"{brief(name)}: call them otherwise, or remove those that no annotation has"
                )
        classes = Classes(tuple(group[0][1] for group in alike.values()))
        index_of = {number: k for k, group in enumerate(alike.values()) for number, _ in group}
        return Numbering(classes, index_of, None)
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
            f"id {brief(number)} is {brief(name)}, which COCO does not have there: use ids='json' "
            "for data with categories of its own",
        )
        for number, name in foreign
    ]
