"""Folder names as classes: ``cat/1.jpg`` shows a cat."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from weaktr.data.tags.form import Tags, row

#: Folders of photographs that show none of the classes.
NONE = {"background", "none"}
#: What splits are called, which are no classes.
SPLITS = {"train", "training", "val", "valid", "validation", "test"}


def read(folder: Path, photographs: Iterable[str]) -> Tags | None:
    """The labels that the first folder of each path says.

    Args:
        folder: in which the photographs are.
        photographs: paths below it, their parts parted by /.

    Returns:
        The tags; None where fewer than two folders have photographs.

    Raises:
        ValueError: the folders are called as splits are.
    """
    inside = {path: PurePosixPath(path).parts[0] for path in photographs if "/" in path}
    names = sorted(set(inside.values()))
    if len(names) < 2:
        return None
    if all(name.lower() in SPLITS for name in names):
        raise ValueError(
            f"{folder}: its folders {', '.join(names)} are called as splits are, not as classes; "
            f"name one of them (weaktr init {folder / names[0]}), or write a train.csv and val.csv"
        )
    rows = [
        row(path, [] if name.lower() in NONE else [name], str(folder / path))
        for path, name in inside.items()
    ]
    doubt = "each photograph has the one class that its folder is called; write a CSV if some show "
    return Tags(folder, "names of folders", rows, doubts=(f"{doubt}several",))
