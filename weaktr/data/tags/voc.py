"""Pascal VOC's XML, as LabelImg and others write it: a file for each photograph, with objects.

Source: the development kit of PASCAL VOC 2012, "Annotation" of the object detection task.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element

from weaktr.data.label_files import Row
from weaktr.data.tags.form import Single, fault, row

NAME = "Pascal VOC's XML files"


def fits(root: Element) -> bool:
    """Whether an XML is the annotation of a photograph."""
    parts = {part.tag for part in root}
    return root.tag == "annotation" and not parts.isdisjoint({"filename", "object"})


def read_one(path: Path, root: Element, images: Path | None = None) -> Row:
    """The row of an XML: the names of its objects, those of their parts left out.

    Args:
        path: of the XML.
        root: its content.
        images: the photographs' folder. The row's path is that below it where the photograph lies
            beside the XML; else the one that the XML says, folder and file name.

    Raises:
        DataError: an object has no name, or there is no file name.
    """
    file, folder = (root.findtext(key, "").strip() for key in ("filename", "folder"))
    labels = [part.findtext("name", "").strip() for part in root.findall("object")]
    if not file or not all(labels):
        raise fault(path, "", "expected the filename of a photograph, and objects with a name each")
    beside = path.absolute().parent / file
    if images is not None and beside.is_relative_to(images.absolute()) and beside.is_file():
        return row(beside.relative_to(images.absolute()).as_posix(), labels, str(path))
    return row(f"{folder}/{file}" if folder else file, labels, str(path))


VOC = Single(NAME, fits, read_one)
