"""LabelMe: a JSON for each photograph, with flags and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weaktr.data.label_files import Row
from weaktr.data.tags.form import fault, row

NAME = "LabelMe's JSON files"


def fits(content: Any) -> bool:
    """Whether a JSON is one of LabelMe's."""
    return isinstance(content, dict) and {"shapes", "imagePath"} <= content.keys()


def read_one(path: Path, content: dict[str, Any]) -> Row:
    """The row of a JSON: flags that are true, and the labels of shapes.

    Raises:
        DataError: a flag, a shape or the path is not of the form.
    """
    flags, shapes, image = content.get("flags") or {}, content["shapes"], content["imagePath"]
    try:
        labels = [name for name, is_set in flags.items() if is_set is True]
        labels += [_text(shape["label"]) for shape in shapes]
        return row(_text(image), labels, str(path))
    except (KeyError, TypeError, AttributeError) as error:
        message = "expected flags, shapes with labels, and imagePath as LabelMe writes them"
        raise fault(path, "", message) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(type(value).__name__)
    return value
