"""Image-level labels as labelling tools and people leave them: a file of this folder a form.

    table.py         CSV with commas, semicolons or tabs; weaktr's own CSV and JSON
    names.py         names of folders
    coco.py          COCO's instances JSON
    label_studio.py  JSON, JSON-MIN and CSV of Label Studio
    cvat.py          CVAT for images
    labelme.py       LabelMe
    voc.py           Pascal VOC's XML

Which form a file has is known by its content; which photographs it means, by `places`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weaktr.data.label_files import Row
from weaktr.data.layout import read_json, read_text, read_xml
from weaktr.data.listing import beside_in_words, photographs_beside
from weaktr.data.problems import DataError
from weaktr.data.tags import coco, cvat, label_studio, labelme, names, table, voc
from weaktr.data.tags.form import Form, Single, Tags, fault, unannotated
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
#: Suffix -> the form that has a file for each photograph.
SINGLES: dict[str, Single] = {".json": labelme.LABELME, ".xml": voc.VOC}
_SINGLE_NAMES = "; ".join(single.name for single in SINGLES.values())
#: Names of label files in their order: where there is one of them, it counts before others.
FIRST = ("train", "labels")


def read_tags(path: Path, images: Path | None = None) -> Tags:
    """The labels of a file, or of a folder with a file of `SINGLES` for each photograph.

    Args:
        path: of the file or folder.
        images: the photographs' folder, see `labelme.read_one` and `voc.read_one`.

    Raises:
        ValueError: no such file, or of none of the forms.
        DataError: it is of a form, but something in it is wrong; names the place.
    """
    if path.is_dir():
        files = (file for file in files_below(path) if file.suffix.lower() in SINGLES)
        return _single_files(path, sorted(files), images)
    content, suffix = _content(path), path.suffix.lower()
    if suffix in SINGLES and SINGLES[suffix].fits(content):
        return _single_files(path, [path], images)
    for form in FORMS[suffix]:
        if form.fits(content):
            return form.read(path, content)
    known = "; ".join(dict.fromkeys(form.name for forms in FORMS.values() for form in forms))
    raise fault(path, "", f"expected labels of one of the forms: {known}; {_SINGLE_NAMES}")


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
    of_others = set(own)
    files = [file for file in files_below(root) if file not in of_others and _may_hold_tags(file)]
    beside = [file for file in files if len(file.relative_to(root).parts) <= 2]
    single = dict.fromkeys(sorted(file for file in files if _is_single(file)))
    wanted = sorted(file for file in beside if file not in single)
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
        return _single_files(root, single, images)
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


def _is_single(file: Path) -> bool:
    suffix = file.suffix.lower()
    try:
        return suffix in SINGLES and SINGLES[suffix].fits(_content(file))
    except (DataError, OSError):
        return False


def _single_files(path: Path, files: Iterable[Path], images: Path | None) -> Tags:
    """The labels of files of one photograph each; those of other forms are passed over.

    Raises:
        DataError: there are none, or of two forms; or one is wrong.
    """
    rows: dict[str, list[Row]] = {}
    for file in files:
        single, content = SINGLES[file.suffix.lower()], _content(file)
        if single.fits(content):
            rows.setdefault(single.name, []).append(single.read(file, content, images))
    if len(rows) != 1:
        found = f"{' and '.join(rows)}: move one kind elsewhere" if rows else "none"
        raise fault(path, "", f"expected files of one form ({_SINGLE_NAMES}), found {found}")
    ((name, own),) = rows.items()
    return Tags(path, name, own, doubts=unannotated(own) if name == voc.NAME else ())
