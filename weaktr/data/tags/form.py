"""What a form of labels gives: the photographs that it speaks of, each with its class names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weaktr.data.label_files import Row
from weaktr.data.problems import DataError, Problem
from weaktr.messages import counted, few


@dataclass(frozen=True)
class Tags:
    """Image-level labels of photographs, as a file or a folder says them.

    Args:
        path: of the file or folder.
        form: of the labels, in words.
        rows: paths as they are written; one photograph may have several rows, which add up.
        classes: the names that are declared, in class order; () = only those of the rows.
        doubts: what should be looked at, a sentence each.
    """

    path: Path
    form: str
    rows: list[Row]
    classes: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Form:
    """A form of label files.

    Args:
        name: in words.
        fits: whether the content of a file is of this form.
        read: path and content -> tags; raises `DataError` with the place of what is wrong.
    """

    name: str
    fits: Callable[[Any], bool]
    read: Callable[[Path, Any], Tags]


@dataclass(frozen=True)
class Single:
    """A form with a file for each photograph.

    Args:
        name: in words.
        fits: whether the content of a file is of this form.
        read: path, content and the photographs' folder (None = not known) -> row; raises
            `DataError` with what is wrong.
    """

    name: str
    fits: Callable[[Any], bool]
    read: Callable[[Path, Any, Path | None], Row]


def row(image: str, labels: Iterable[str], source: str) -> Row:
    """A row with each label once, without blanks around it."""
    return Row(
        image, tuple(dict.fromkeys(filter(None, (label.strip() for label in labels)))), source
    )


def unannotated(rows: Iterable[Row]) -> tuple[str, ...]:
    """What to tell of rows without labels in forms that do not part photographs that show no class
    from those that nobody has looked at.
    """
    names = [one.image for one in rows if not one.labels]
    if not names:
        return ()
    have = counted(len(names), "photograph has", "photographs have")
    told = "taken to show no class; leave out those that nobody has looked at"
    return (f"{have} no annotations ({few(names)}), {told}",)


def fault(path: Path, where: str, message: str) -> DataError:
    """The error for a place in a label file."""
    return DataError(Problem(str(path), where, message))
