"""LabelMe: a JSON for each photograph, with flags and shapes."""

from __future__ import annotations

from os.path import isfile, normpath
from pathlib import Path, PureWindowsPath
from typing import Any

from weaktr.data.label_files import Row
from weaktr.data.tags.form import Single, fault, row

NAME = "LabelMe's JSON files"


def fits(content: Any) -> bool:
    """Whether a JSON is one of LabelMe's."""
    return isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys()


def read_one(path: Path, content: dict[str, Any], images: Path | None = None) -> Row:
    """The row of a JSON: flags that are true, and the labels of shapes.

    Args:
        path: of the JSON; LabelMe writes where the photograph is seen from its folder.
        content: of the JSON.
        images: the photographs' folder. The row's path is that below it where the photograph is
            there, else the whole path; None = as it is written.

    Raises:
        DataError: a flag, a shape or the path is not of the form.
    """
    flags, shapes, image = content.get("flags") or {}, content["shapes"], content["imagePath"]
    try:
        labels = [name for name, is_set in flags.items() if _bool(is_set)]
        labels += [_text(shape["label"]) for shape in shapes]
        written = _text(image)
        return row(written if images is None else _place(path, written, images), labels, str(path))
    except (KeyError, TypeError, AttributeError) as error:
        message = (
            "expected flags, shapes with labels, and imagePath as LabelMe writes them, flags true "
            "or false"
        )
        raise fault(path, "", message) from error


def _place(path: Path, written: str, images: Path) -> str:
    """The path of a photograph below `images`, else the whole one, as seen from a JSON."""
    plain = written.strip().replace("\\", "/")
    if PureWindowsPath(plain).drive or plain.startswith("/"):
        return written
    for image in (written, plain):
        place = Path(normpath(path.absolute().parent / image))
        base = Path(normpath(images.absolute()))
        if place.is_relative_to(base) and isfile(place):
            return place.relative_to(base).as_posix()
    return place.as_posix()


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value


def _bool(value: Any) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise TypeError(type(value).__name__)
    return value


LABELME = Single(NAME, fits, read_one)
