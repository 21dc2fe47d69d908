"""Proposals: masks of segments of photographs without a class, from files of any tool.

A file holds a list of entries, each ``{"segmentation": {"size": [H, W], "counts": ...}, ...}`` with
COCO's run lengths, as pycocotools and SAM's automatic generator write them; or an object with that
list as ``"annotations"``, and ``"images"`` of COCO or one ``"image"``, which say whose they are. An
entry belongs to the image that its ``file_name``, ``image`` or ``image_id`` names, else to the one
that the file is named after.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from weaktr.data.layout import ALL_SUFFIXES, read_json
from weaktr.data.outlines import is_whole
from weaktr.data.problems import DataError, Problem
from weaktr.files import names_in

#: Bytes of all files that are read before the first image; more go into a file for each image.
MOST_BYTES = 2**28
#: The fields of an entry that name its image, the first of them counts.
NAMING = ("file_name", "image", "image_id")
#: The number that ends the name of an image of COCO.
_NUMBER = re.compile(r"(?:^|[_/])(\d{12})$")


class Entry(NamedTuple):
    """A proposal as it stands in its file; `weaktr.data.outlines` reads its outline."""

    file: Path
    row: int  #: its place in the list
    image: str | None  #: that it names, without suffix; None = it names none
    outline: Any

    def problem(self, message: str) -> Problem:
        """A fault of this entry."""
        return Problem(str(self.file), f"entry {self.row}", message)


@dataclass(frozen=True)
class Proposals:
    """The proposals of photographs.

    Args:
        path: the file, or the folder.
        listed: those of each image; None = they are in ``path/NAME.json`` and read when asked for.
        stamps: size and times of each file that has been read.
        names: of `listed`, by what follows their folders.
        dealt: of each photograph of a run, which names of `listed` mean it (`among`); None = the
            photographs are not known.
        unclear: names of `listed` that may mean several of these photographs, and so mean none.
    """

    path: Path
    listed: dict[str, list[Entry]] | None
    stamps: dict[Path, tuple[int, ...]]
    names: dict[str, list[str]]
    dealt: dict[str, list[str]] | None = None
    unclear: tuple[str, ...] = ()

    def among(self, photographs: Iterable[str]) -> Proposals:
        """The same proposals for a run that has these photographs, by name.

        An entry may then name its photograph with fewer folders, where it is the only one that
        ends so.
        """
        if self.listed is None:
            return self
        known = {*photographs}
        shorter: dict[str, list[str]] = {}
        for name in known:
            for short in {*_tails(name), *_number_of(name)}:
                shorter.setdefault(short, []).append(name)
        dealt: dict[str, list[str]] = {}
        unclear = []
        for named in self.listed:
            own = [name for name in (named, *_tails(named)) if name in known]
            meant = own[:1] or shorter.get(named, [])
            if len(meant) > 1:
                unclear.append(named)
            elif meant:
                dealt.setdefault(meant[0], []).append(named)
        return replace(self, dealt=dealt, unclear=tuple(unclear))

    def files(self, name: str) -> tuple[Path, ...]:
        """The files that the proposals of an image are in."""
        if self.listed is None:
            file = self.path / f"{name}.json"
            return (file,) if file.is_file() else ()
        return tuple(dict.fromkeys(entry.file for entry in self._named(name)))

    def of(self, name: str) -> list[Entry]:
        """The proposals of an image; none where it has none.

        Raises:
            DataError: its file is not of this form, names another image, or has changed since the
                others were read.
        """
        if self.listed is None:
            entries = [entry for file in self.files(name) for entry in read_entries(file)]
            for entry in entries:
                if entry.image is not None and not _are_same(entry.image, name):
                    message = f"expected an entry of {name!r:.60}, got one of {entry.image!r:.60}"
                    raise DataError(entry.problem(message))
            return entries
        for file in self.files(name):
            if self.stamps[file] != _stamp(file):
                raise DataError(Problem(str(file), "", "changed since it was read; start again"))
        return self._named(name)

    def _named(self, name: str) -> list[Entry]:
        assert self.listed is not None
        if self.dealt is None:
            alike = self.names.get(_last(name), ())
            near = [key for key in alike if key == name or name in _tails(key)]
            near += [key for key in _number_of(name) if key in self.listed]
        else:
            near = self.dealt.get(name, [])
        sure = [key for key in (name, *_number_of(name)) if key in near]
        chosen = sure[:1] or near
        return self.listed[chosen[0]] if len(chosen) == 1 else []


def read_proposals(path: Path) -> Proposals:
    """Read a file of proposals, or look at a folder of them.

    Args:
        path: a JSON file, or a folder of them at any depth: ``NAME.json`` for each image, or files
            whose entries name their images, which are all read.

    Raises:
        ValueError: it is not there, is too large to be read at once, or holds no JSON.
        DataError: a file is no JSON, or not of this form.
    """
    if not path.exists():
        raise ValueError(
            f"{path}: expected a JSON file of proposals, or a folder of them; there is none"
        )
    if path.is_dir():
        names, _ = names_in(path, ".json")
        files = [path / f"{name}.json" for name in names]
        first = read_entries(files[0])
        if all(entry.image is None or _are_same(entry.image, names[0]) for entry in first):
            return Proposals(path, None, {}, {})
    else:
        files = [path]
    stamps = {file: _stamp(file) for file in files}
    _require_room(path, sum(stamp[0] for stamp in stamps.values()))
    return _read_listed(path, tuple(stamps.items()))


@lru_cache(maxsize=2)  # a command asks several times: to check, and to work
def _read_listed(path: Path, stamps: tuple[tuple[Path, tuple[int, ...]], ...]) -> Proposals:
    listed: dict[str, list[Entry]] = {}
    for file, _ in stamps:
        own = file.relative_to(path).with_suffix("").as_posix() if file != path else file.stem
        for entry in read_entries(file):
            listed.setdefault(own if entry.image is None else entry.image, []).append(entry)
    names: dict[str, list[str]] = {}
    for name in listed:
        names.setdefault(_last(name), []).append(name)
    return Proposals(path, listed, dict(stamps), names)


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _require_room(path: Path, size: int) -> None:
    """Raise `ValueError` where JSON of so many bytes is too large to be read at once."""
    if size > MOST_BYTES:
        raise ValueError(
            f"{path}: expected at most {MOST_BYTES >> 20} MiB of proposals, got {size >> 20}; "
            "write them into a folder, as a file NAME.json for each photograph NAME"
        )


def _stamp(file: Path) -> tuple[int, ...]:
    state = os.stat(file)
    return state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


def read_entries(path: Path) -> list[Entry]:
    """The entries of one file; their outlines are not checked yet.

    Raises:
        ValueError: it is too large to be read at once.
        DataError: missing, no JSON, or entries of another form; names the file and each entry.
    """
    if path.is_file():
        _require_room(path, path.stat().st_size)
    content = read_json(path, finite=False)
    images: dict[Any, Any] = {}
    of_all = None
    if isinstance(content, dict):
        of_all, given = content.get("image"), content.get("images")
        for image in given if isinstance(given, list) else []:
            if isinstance(image, dict) and isinstance(image.get("id"), str | int):
                images[image["id"]] = image.get("file_name")
        content = content.get("annotations")
    if not isinstance(content, list):
        message = (
            'expected a list of proposals {"segmentation": {"size", "counts"}}, or an object with '
            'such a list as "annotations"'
        )
        raise DataError(Problem(str(path), "", message))
    entries, problems = [], []
    for row, given in enumerate(content):
        where = f"entry {row}"
        if not isinstance(given, dict) or not isinstance(given.get("segmentation"), dict):
            message = f"expected an object with a segmentation of run lengths, got {given!r:.60}"
            problems.append(Problem(str(path), where, message, kind="no proposal"))
            continue
        named = next((given[key] for key in NAMING if given.get(key) is not None), of_all)
        if isinstance(named, dict):  # of Segment Anything's own data
            named = named.get("file_name")
        if isinstance(named, str | int) and named in images:
            named = images[named]
        if is_whole(named):
            named = str(int(named))
        if named is not None and (not isinstance(named, str) or not named):
            message = f"expected the name or the number of its image, got {named!r:.60}"
            problems.append(Problem(str(path), where, message, kind="no name of an image"))
            continue
        image = None if named is None else _without_suffix(named)
        entries.append(Entry(path, row, image, given["segmentation"]))
    if problems:
        raise DataError(problems)
    return entries


def _without_suffix(file_name: str) -> str:
    """The name of an image from that of its file; a point in the name alone stays."""
    name, suffix = os.path.splitext(PurePosixPath(file_name.replace("\\", "/")).as_posix())
    return name if suffix.lower() in ALL_SUFFIXES else name + suffix


def _tails(name: str) -> list[str]:
    """A name with fewer folders: of a/b/c b/c and c."""
    parts = name.split("/")
    return ["/".join(parts[first:]) for first in range(1, len(parts))]


def _number_of(name: str) -> list[str]:
    """The number of an image of COCO, without zeros before it; nothing of others."""
    return [str(int(found[1]))] if (found := _NUMBER.search(name)) else []


def _are_same(named: str, name: str) -> bool:
    """Whether an entry means an image, which it may name with more folders, or with fewer."""
    return (
        named == name or named in _tails(name) or name in _tails(named) or named in _number_of(name)
    )
