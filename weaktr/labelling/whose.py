"""Whose masks a folder of results holds: those of another command or of other photographs stay."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weaktr.data import Manifest
from weaktr.data.layout import ALL_SUFFIXES
from weaktr.data.listing import photographs_of
from weaktr.files import paths_below
from weaktr.outputs import read_inputs
from weaktr.shards.fetch import is_address
from weaktr.shards.inputs import base_of, is_pattern
from weaktr.shards.output import MASKS
from weaktr.tars import SUFFIX

#: Files by which two inputs are held against each other, and the bytes of each at either end.
LOOKED_AT, PIECE = 8, 1 << 20


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
    its place was moved; a copy is the same, and so is a manifest of the same files. Of addresses
    only the text is known.
    """
    if is_address(before) or is_address(now):
        places = {base_of(text).partition("://")[2] for text in (before, now)}
        return is_address(before) and is_address(now) and len(places) == 2
    try:
        old, new = _place_of(before), _place_of(now)
        if not old.exists() or not new.exists() or os.path.samefile(old, new):
            return False
        files = _files_in(old), _files_in(new)
    except (OSError, ValueError):  # of another user, or damaged: not known
        return False
    return bool(files[0]) and not _are_same(*files)


def _place_of(photographs: str) -> Path:
    """The folder or the manifest of an input on this machine."""
    if photographs.endswith((SUFFIX, "*")):
        return Path(base_of(photographs) or ".")
    folder = Path(photographs)
    return folder if folder.is_dir() and is_pattern(photographs) else photographs_of(folder)


def _files_in(place: Path) -> dict[str, Path]:
    """The photographs and tars of a folder or of a manifest, by their names without suffixes.

    Raises:
        OSError: it cannot be read.
        ValueError: a damaged manifest.
    """
    if place.is_file():
        return {sample.name: sample.image for sample in Manifest.load(place)}
    kinds = (*ALL_SUFFIXES, SUFFIX)
    files = (path for path in paths_below(place) if path.lower().endswith(kinds))
    return {os.path.splitext(os.path.relpath(path, place))[0]: Path(path) for path in files}


def _are_same(old: Mapping[str, Path], new: Mapping[str, Path]) -> bool:
    """Whether the files of equal names are the same ones or copies, and there are some.

    Those are a few that are looked at, spread over all.
    """
    shared = sorted(old.keys() & new.keys())
    looked_at = shared[:: -(-len(shared) // LOOKED_AT) or 1]
    return bool(shared) and all(_is_copy(old[name], new[name]) for name in looked_at)


def _is_copy(old: Path, new: Path) -> bool:
    """Whether two files are one, or have the same size and the same bytes at either end."""
    try:
        if os.path.samefile(old, new):
            return True
        with old.open("rb") as one, new.open("rb") as other:
            sizes = {os.fstat(file.fileno()).st_size for file in (one, other)}
            for start in (0, max(0, max(sizes) - PIECE)):
                if len({(file.seek(start), file.read(PIECE)) for file in (one, other)}) > 1:
                    return False
    except OSError:
        return False
    return len(sizes) == 1
