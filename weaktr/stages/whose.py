"""Whose masks a folder of results holds: those of another command or of other photographs stay."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weaktr.data.layout import ALL_SUFFIXES
from weaktr.data.sources.folder import photographs_of
from weaktr.files import paths_below
from weaktr.outputs import read_inputs
from weaktr.shards.fetch import is_address
from weaktr.shards.inputs import base_of, is_pattern
from weaktr.shards.output import MASKS
from weaktr.tars import SUFFIX

#: Files by which two folders are held against each other.
LOOKED_AT = 8


def require_same_work(out: Path, about: Mapping[str, Any]) -> None:
    """Refuse a folder with masks of another command, or of other photographs.

    What an older version of weaktr did not note is taken to be the same.

    Args:
        out: the folder of results.
        about: the "command" that is to fill it, and its "photographs": a folder, a manifest, tars
            as `weaktr.shards.inputs.find_archives` takes them.

    Raises:
        ValueError: it holds such masks; or see `read_inputs`.
    """
    stored = read_inputs(out) if (out / MASKS).is_dir() else None
    before = None if stored is None else stored.get("about")
    if not isinstance(before, Mapping):
        return
    command, photographs = before.get("command"), before.get("photographs")
    if command not in (None, about["command"]):
        raise ValueError(
            f"{out}: holds masks of weaktr {command}, which weaktr {about['command']} would "
            "replace; choose another --out"
        )
    if isinstance(photographs, str) and are_others(photographs, about["photographs"]):
        raise ValueError(
            f"{out}: holds masks of other photographs ({photographs} there, "
            f"{about['photographs']} now); choose another --out"
        )


def are_others(before: str, now: str) -> bool:
    """Whether two inputs, see `require_same_work`, are of different photographs.

    Tars count by the folder below which they lie, since more of them may come. What is gone from
    its place was moved, and a copy is the same. Of addresses only the text is known.
    """
    if is_address(before) or is_address(now):
        places = {base_of(text).partition("://")[2] for text in (before, now)}
        return is_address(before) and is_address(now) and len(places) == 2
    old, new = _place_of(before), _place_of(now)
    if not old.exists() or not new.exists() or os.path.samefile(old, new):
        return False
    is_emptied = old.is_dir() and not os.listdir(old)
    return not (is_emptied or _are_copies(old, new))


def _place_of(photographs: str) -> Path:
    """The folder or the manifest of an input on this machine."""
    if photographs.endswith((SUFFIX, "*")):
        return Path(base_of(photographs) or ".")
    folder = Path(photographs)
    return folder if folder.is_dir() and is_pattern(photographs) else photographs_of(folder)


def _are_copies(old: Path, new: Path) -> bool:
    """Whether two manifests are equal, or the photographs and tars that two folders share.

    Those are a few that are read, spread over all.
    """
    if old.is_file() and new.is_file():
        return filecmp.cmp(old, new, shallow=False)
    if not (old.is_dir() and new.is_dir()):
        return False
    shared = sorted(_files_in(old) & _files_in(new))
    looked_at = shared[:: -(-len(shared) // LOOKED_AT) or 1]
    return bool(shared) and all(
        filecmp.cmp(old / name, new / name, shallow=False) for name in looked_at
    )


def _files_in(folder: Path) -> set[str]:
    """Photographs and tars, by their paths below a folder."""
    names = (os.path.relpath(path, folder) for path in paths_below(folder))
    return {name for name in names if name.lower().endswith((*ALL_SUFFIXES, SUFFIX))}
