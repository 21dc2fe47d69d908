"""Image-level labels as labelling tools and people leave them: a file of this folder a form.

    table.py         CSV with commas, semicolons or tabs; weaktr's own CSV and JSON
    names.py         names of folders
    coco.py          COCO's instances JSON
    label_studio.py  JSON, JSON-MIN and CSV of Label Studio
    cvat.py          CVAT for images
    labelme.py       LabelMe

Which form a file has is known by its content; which photographs it means, by `places`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weaktr.data.layout import read_json, read_text, read_xml
from weaktr.data.listing import beside_in_words, photographs_beside
from weaktr.data.problems import DataError
from weaktr.data.tags import coco, cvat, label_studio, labelme, names, table
from weaktr.data.tags.form import Form, Tags, fault
from weaktr.data.tags.table import OWN
from weaktr.files import files_below, is_clutter
from weaktr.messages import few

__all__ = ["FIRST", "FORMS", "OWN", "Tags", "read_tags", "tags_below"]

_TABLES = (label_studio.CSV, table.OWN_TABLE, table.TABLE)
#: Suffix -> the forms that a file may have, the more special ones first.
FORMS: dict[str, tuple[Form, ...]] = {
    ".csv": _TABLES,
    ".tsv": (label_studio.CSV, table.TABLE),
    ".json": (coco.COCO, label_studio.TASKS, label_studio.SMALL, table.OWN_JSON),
    ".xml": (cvat.CVAT,),
}
#: Names of label files in their order: where there is one of them, it counts before others.
FIRST = ("train", "labels")


def read_tags(path: Path, images: Path | None = None) -> Tags:
    """The labels of a file, or of a folder of LabelMe's files.

    Args:
        path: of the file or folder.
        images: the photographs' folder, see `labelme.read_one`.

    Raises:
        ValueError: no such file, or none of `FORMS`.
        DataError: it is of a form, but something in it is wrong; names the place.
    """
    if path.is_dir():
        return _labelme_files(path, sorted(path.rglob("*.json")), images)
    content = _content(path)
    if labelme.fits(content):
        return _labelme_files(path, [path], images)
    for form in FORMS[path.suffix.lower()]:
        if form.fits(content):
            return form.read(path, content)
    known = "; ".join(dict.fromkeys(form.name for forms in FORMS.values() for form in forms))
    raise fault(path, "", f"expected labels of one of the forms: {known}; {labelme.NAME}")


def tags_below(root: Path, images: Path, photographs: Iterable[str], own: Iterable[Path]) -> Tags:
    """The labels of a folder of photographs: of its label file, else by its folders' names.

    Args:
        root: label files lie in it, or in a folder of it.
        images: the photographs' folder, `root` or below it.
        photographs: paths below `images`.
        own: files that are none of the user's.

    Raises:
        ValueError: there are no labels, or several label files of which none counts first.
        DataError: see `read_tags`.
    """
    files = [file for file in files_below(root) if file not in set(own) and _may_hold_tags(file)]
    beside = [file for file in files if len(file.relative_to(root).parts) <= 2]
    single = [file for file in files if file.suffix.lower() == ".json" and _is_labelme(file)]
    wanted = sorted(file for file in beside if file not in set(single))
    told = []
    for name in FIRST:
        if first := [file for file in wanted if file.stem == name and file.parent == root]:
            counted = [*first, *(root / val for val in ("val.csv", "val.json") if name == "train")]
            wanted, told = first, [file for file in wanted if file not in counted]
            break
    groups: list[Path] = [*wanted, *([root] if single else [])]
    if len(groups) > 1:
        raise ValueError(
            f"{root}: expected one file of labels, found {few([*wanted, *single])}; say which: "
            f"--labels {groups[0]}"
        )
    if wanted:
        tags = read_tags(wanted[0], images)
        note = f"{wanted[0].name} counts before {few(told)}; --labels takes another"
        return tags if not told else Tags(**vars(tags) | {"doubts": (*tags.doubts, note)})
    if single:
        return _labelme_files(root, sorted(single), images)
    by_folders = names.read(images, photographs)
    if by_folders is None:
        outside = photographs_beside(root, images)
        also = f", and {beside_in_words(outside, root)} not looked at" if outside else ""
        raise ValueError(
            f"{root}: found no labels{also}; write {root / 'labels.csv'} (first line image,labels, "
            "then a.jpg,cat;dog), sort photographs into folders called as their classes, or give "
            "--labels FILE"
        )
    return by_folders


def _content(path: Path) -> Any:
    """The content of a label file: text, JSON, or the root of an XML."""
    suffix = path.suffix.lower()
    if suffix not in FORMS:
        raise ValueError(f"--labels: expected {', '.join(FORMS)} or a folder, got {str(path)!r}")
    if suffix == ".json":
        return read_json(path, finite=False)
    if suffix == ".xml":
        try:
            return read_xml(path)
        except ValueError as error:
            raise fault(path, "", str(error)) from error
    text = read_text(path, line_ends=True)
    if not text.strip():
        raise fault(path, "", "expected at least one image, found none")
    return text


def _may_hold_tags(file: Path) -> bool:
    """Whether a file is of a form by its suffix, and none of a programming project's."""
    return file.suffix.lower() in FORMS and not is_clutter(file.name)


def _is_labelme(file: Path) -> bool:
    try:
        return labelme.fits(read_json(file, finite=False))
    except (DataError, OSError):
        return False


def _labelme_files(path: Path, files: Iterable[Path], images: Path | None) -> Tags:
    """The labels of LabelMe's files; JSON files of other forms among them are passed over."""
    contents = ((file, read_json(file, finite=False)) for file in files)
    rows = [
        labelme.read_one(file, content, images)
        for file, content in contents
        if labelme.fits(content)
    ]
    if not rows:
        raise fault(path, "", f"expected {labelme.NAME}, found none")
    return Tags(path, labelme.NAME, rows)
