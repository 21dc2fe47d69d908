"""Which shards there are, and their photographs: tar archives, or parts of a list of photographs."""

from __future__ import annotations

import glob
import os
import re
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from weaktr.contents import digest_of
from weaktr.data import Problem, Sample
from weaktr.messages import counted, few
from weaktr.shards.fetch import asked, fetched, is_address, marks_of
from weaktr.tars import SUFFIX, status

#: Photographs of a list that make a shard, unless somebody says otherwise.
SHARD_SIZE = 1000
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
_WILD = re.compile(r"[*?\[{]")


@dataclass(frozen=True)
class ShardInput:
    """The photographs of a shard.

    Args:
        name: of the shard.
        samples: the photographs, in order; names are unique in the shard.
        faults: of further ones that cannot be used: name -> what is wrong.
        data: what tells that they are the same still, as JSON values.
        images: sample name -> what its photograph is called, for the index.
    """

    name: str
    samples: Sequence[Sample]
    faults: dict[str, Problem]
    data: dict[str, Any]
    images: dict[str, str]


class Shards(Protocol):
    """The shards of a run, by name."""

    names: Sequence[str]
    nested: bool  #: whether names of photographs are unique in their shard alone

    def data_of(self, name: str) -> dict[str, Any]:
        """See `ShardInput.data`; photographs are not read."""
        ...

    def read(self, name: str, stack: ExitStack, scratch: Path | None) -> ShardInput:
        """The photographs of a shard.

        Args:
            name: of the shard.
            stack: removes at its end what was fetched.
            scratch: folder for what is fetched; None = the system's for temporary files.

        Raises:
            ValueError: it is damaged; names it.
            OSError: it cannot be read.
        """
        ...


class ListShards:
    """A list of photographs, dealt to shards by their names.

    So a photograph stays in its shard when others come or go.

    Args:
        samples: the photographs; names are unique.
        count: of the shards.
        root: photographs below it are called by their relative paths in the index.
    """

    nested = False

    def __init__(self, samples: Sequence[Sample], count: int, root: Path) -> None:
        digits = max(5, len(str(count - 1)))
        self.names = [f"{number:0{digits}d}" for number in range(count)]
        self.root = Path(os.path.abspath(root))
        self._samples: dict[str, list[Sample]] = {name: [] for name in self.names}
        for sample in samples:
            number = zlib.crc32(os.fsencode(sample.name)) % count
            self._samples[self.names[number]].append(sample)

    def data_of(self, name: str) -> dict[str, Any]:
        """See `Shards`: of names, labels, and the status of the files."""
        own = self._samples[name]
        return {"photographs": len(own), "digest": digest_of(map(_facts_of, own))}

    def read(self, name: str, stack: ExitStack, scratch: Path | None) -> ShardInput:
        """See `Shards`."""
        own = self._samples[name]
        images = {sample.name: self._called(sample.image) for sample in own}
        return ShardInput(name, own, {}, self.data_of(name), images)

    def _called(self, image: Path) -> str:
        absolute = Path(os.path.abspath(image))
        inside = absolute.is_relative_to(self.root)
        return absolute.relative_to(self.root).as_posix() if inside else str(absolute)


def _facts_of(sample: Sample) -> tuple[object, ...]:
    try:
        facts: tuple[object, ...] = status(sample.image)
    except (OSError, ValueError):
        facts = ("missing",)
    return sample.name, sample.labels, sample.exif, *facts


def shard_count(photographs: int, size: int) -> int:
    """How many shards a list of photographs makes, of about `size` each."""
    return max(1, -(-photographs // size))


def find_archives(pattern: str) -> dict[str, str]:
    """The tars that a pattern means.

    Args:
        pattern: a tar; a folder, in which tars are looked for at any depth; or a pattern with
            ``*``, ``?``, ``[]`` and ranges such as ``{000..127}``. Of this machine, or an address.

    Returns:
        Name -> path or address, in the order of the names: the path below the folder, or below the
        part of the pattern that has no wild cards, without ``.tar``.

    Raises:
        ValueError: there is none, or two have one name.
        OSError: the place cannot be asked.
    """
    ranges = list(_expanded(pattern))
    paths = [path for one in ranges for path in _matching(one)]
    if not paths:
        raise ValueError(f"{pattern}: expected tar archives, found none")
    base = _base(pattern)
    archives: dict[str, str] = {}
    for path in paths:
        relative = path[len(base) :] if path.startswith(base) else path
        name = relative.strip("/").removesuffix(SUFFIX)
        if name in archives and archives[name] != path:
            raise ValueError(f"{pattern}: {archives[name]} and {path} have one name: {name}")
        if not name or ".." in name.split("/"):
            raise ValueError(f"{pattern}: expected a path without '..', got {path}")
        archives[name] = path
    return dict(sorted(archives.items(), key=lambda item: _natural(item[0])))


def _expanded(pattern: str) -> list[str]:
    """The patterns that one with ranges ``{000..127}`` means."""
    found = _BRACES.search(pattern)
    if found is None:
        return [pattern]
    first, last = found.groups()
    if int(last) - int(first) >= 10**7:
        raise ValueError(f"{pattern}: expected at most 10 million shards")
    width = len(first) if first.startswith("0") else 0
    numbers = (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [one for number in numbers for one in _expanded(f"{head}{number}{tail}")]


def _matching(pattern: str) -> list[str]:
    """The tars of one pattern."""
    if is_address(pattern):
        protocol = pattern.rpartition("://")[0]
        wild = _WILD.search(pattern) is not None
        if not wild and pattern.endswith(SUFFIX):
            return [pattern]
        look = pattern if wild else f"{pattern.rstrip('/')}/**"
        found = asked(look, lambda place, path: place.glob(path))
        return [f"{protocol}://{path.lstrip('/')}" if "://" not in path else path
                for path in sorted(found) if path.endswith(SUFFIX)]  # fmt: skip
    if os.path.isdir(pattern):
        below = (Path(top, name) for top, _, names in os.walk(pattern) for name in names)
        return sorted(str(path) for path in below if _is_archive(path, Path(pattern)))
    if os.path.exists(pattern) or not _WILD.search(pattern):
        return [pattern]
    return sorted(path for path in glob.glob(pattern, recursive=True) if path.endswith(SUFFIX))


def _is_archive(path: Path, root: Path) -> bool:
    relative = path.relative_to(root)
    return path.suffix == SUFFIX and not any(part.startswith(".") for part in relative.parts)


def _base(pattern: str) -> str:
    """The folder of a pattern that has no wild cards."""
    found = _WILD.search(pattern)
    if found is None and not pattern.endswith(SUFFIX):
        return pattern.rstrip("/") + "/"
    head = pattern[: found.start()] if found else pattern
    return head[: head.rfind("/") + 1]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """By which names with numbers sort as people count."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), part) if part.isdigit() else (0, 0, part) for part in parts if part]
