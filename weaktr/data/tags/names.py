"""Folder names as classes: ``cat/1.jpg`` shows a cat."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from weaktr.data.tags.form import Tags, row

#: Folders of photographs that show none of the classes.
NONE = {"background", "none"}
#: What splits are called, but for numbers behind, as in ``val2017``; one alone may be a class.
SPLITS = {
    *("train", "training", "trainval", "val", "valid", "validate", "validation", "test", "testing"),
    *("dev", "eval", "evaluation", "holdout", "unlabeled", "unlabelled"),
}
_BETWEEN = re.compile(r"[\W\d_]+")


def read(folder: Path, photographs: Iterable[str]) -> Tags | None:
    """The labels that the first folder of each path says.

    Args:
        folder: in which the photographs are.
        photographs: paths below it, their parts parted by /.

    Returns:
        The tags; None where fewer than two folders have photographs.

    Raises:
        ValueError: several folders are called as splits are.
    """
    inside = {path: PurePosixPath(path).parts[0] for path in photographs if "/" in path}
    names = sorted(set(inside.values()))
    if len(names) < 2:
        return None
    splits = [name for name in names if _BETWEEN.sub("", name).casefold() in SPLITS]
    if len(splits) > 1:
        raise ValueError(
            f"{folder}: its folders {', '.join(splits)} are called as splits are, not as classes; "
            f"name one of them (weaktr init {folder / splits[0]}), or write a train.csv and val.csv"
        )
    rows = [
        row(path, [] if name.lower() in NONE else [name], str(folder / path))
        for path, name in inside.items()
    ]
    doubt = "each photograph has the one class that its folder is called; write a CSV if some show "
    return Tags(folder, "names of folders", rows, doubts=(f"{doubt}several",))
