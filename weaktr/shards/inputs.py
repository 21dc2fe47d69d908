"""Which shards there are, and their photographs: tar archives, or parts of a list."""

from __future__ import annotations

import glob
import logging
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, get_args

from weaktr.contents import Contents, digest_of
from weaktr.data import Classes, DataError, Problem, Sample
from weaktr.data.layout import ALL_SUFFIXES, IMAGE_SUFFIXES
from weaktr.data.listing import but_results, paths_but_results, photographs_of
from weaktr.data.manifest import Exif, without_a_place
from weaktr.data.tar_shard import LabelRows, Labels, read_rows, read_shard, with_classes
from weaktr.files import paths_below
from weaktr.messages import counted, few
from weaktr.shards.fetch import asked, fetch_beside, fetched, is_address, marks_of
from weaktr.tars import IS_PACKED, PACKED, SUFFIX, forget, status

log = logging.getLogger("weaktr")

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

    names: list[str]
    nested: bool  #: whether names of photographs are unique in their shard alone
    labels: str  #: where the image-level labels stand

    def data_of(self, name: str) -> dict[str, Any]:
        """See `ShardInput.data`; photographs are not read."""
        ...

    def rows_without_photograph(self, photographs: Iterable[tuple[str, str]]) -> list[str]:
        """Rows of a file of labels that none of these tars has a photograph for.

        Left out are rows of tars that lie beside these.

        Args:
            photographs: shard and name of every one.
        """
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
    labels = "list"

    def __init__(self, samples: Sequence[Sample], count: int, root: Path) -> None:
        digits = max(5, len(str(count - 1)))
        self.names = [f"{number:0{digits}d}" for number in range(count)]
        self.root = Path(os.path.abspath(root))
        self._samples: dict[str, list[Sample]] = {name: [] for name in self.names}
        for sample in samples:
            number = zlib.crc32(os.fsencode(sample.name)) % count
            self._samples[self.names[number]].append(sample)

    @property
    def photographs(self) -> list[str]:
        """The names of all photographs."""
        return [sample.name for own in self._samples.values() for sample in own]

    def data_of(self, name: str) -> dict[str, Any]:
        """See `Shards`: of names, labels, and the status of the files."""
        own = self._samples[name]
        return {"photographs": len(own), "digest": digest_of(map(_facts_of, own))}

    def rows_without_photograph(self, photographs: Iterable[tuple[str, str]]) -> list[str]:
        """See `Shards`: none, who reads the list has told them."""
        return []

    def read(self, name: str, stack: ExitStack, scratch: Path | None) -> ShardInput:
        """See `Shards`."""
        own = self._samples[name]
        images = {sample.name: self._called(sample.image) for sample in own}
        return ShardInput(name, own, {}, self.data_of(name), images)

    def _called(self, image: Path) -> str:
        absolute = Path(os.path.abspath(image))
        inside = absolute.is_relative_to(self.root)
        return absolute.relative_to(self.root).as_posix() if inside else str(absolute)


class TarShards:
    """Tar archives in the layout of WebDataset (`weaktr.data.tar_shard`), of any place.

    Args:
        pattern: see `find_archives`.
        labels: where the image-level labels stand: "inside" the tars, "beside" them, nowhere
            ("none"), in a file for all tars, by its path; "auto" = as in the first tar.
        classes: their names; None = not known.
        exif: see `Sample`.

    Attributes:
        labels: as above, but "auto" decided, by the first tar that can be used.
        folder: below which they are, on this machine; None = elsewhere.
        is_deep: whether tars are looked for at any depth below it.

    Raises:
        ValueError: see `find_archives`; or labels without classes.
        DataError: the file of labels cannot be used, or no tar, where they have to be looked at.
        OSError: likewise, of another place.
    """

    nested = True

    def __init__(
        self, pattern: str, labels: str, classes: Sequence[str] | None, exif: Exif
    ) -> None:
        self._archives = find_archives(pattern)
        self.folder = None if is_address(pattern) else Path(base_of(pattern) or ".")
        self.is_deep = "**" in pattern or os.path.isdir(pattern)
        self.names = list(self._archives)
        self._classes = None if classes is None else Classes(tuple(classes))
        self._exif: Exif = exif
        self._rows: LabelRows | None = None
        self._file_digest: str | None = None  # of the file of labels, which may be large
        self.labels = labels
        if labels not in get_args(Labels):
            faults: list[Problem] = []
            self._rows, self.labels = read_rows(Path(labels), faults), "file"
            self._file_digest = Contents().digest(Path(labels))
            if faults:
                raise DataError(faults)
        self._found_none = False
        if labels == "auto":
            self.labels = self._labels_found()
            self._found_none = self.labels == "none"
        if self._found_none:
            log.warning("%s: no labels in the tars, so the model predicts what each shows", pattern)
        if self.labels != "none" and self._classes is None:
            raise ValueError("labels: this checkpoint does not name its classes")

    def _labels_found(self) -> str:
        """Where the labels of the first tar stand that can be used."""
        faults: list[Problem] = []
        for name in self.names:
            with ExitStack() as stack:
                try:
                    shard = read_shard(self._local(name, stack, None))
                except FileNotFoundError as error:
                    faults.append(Problem(self._archives[name], "", str(error)))
                    continue
            if shard.entries:
                return shard.labels
            faults += shard.problems
        raise DataError(faults)

    def data_of(self, name: str) -> dict[str, Any]:
        """See `Shards`: of the status of the tar, and of a file of labels."""
        archive = self._archives[name]
        marks = marks_of(archive) if is_address(archive) else status_or_empty(Path(archive))
        return {"archive": marks, **self._labels_data(archive)}

    def rows_without_photograph(self, photographs: Iterable[tuple[str, str]]) -> list[str]:
        """See `Shards`."""
        if self._rows is None:
            return []
        keys = {one for shard, key in photographs for one in (key, f"{Path(shard).name}/{key}")}
        rows = [row for row in self._rows.rows if _key_of(row) not in keys]
        others = self._beside({row.partition("/")[0] for row in rows if "/" in row})
        return [row for row in rows if row.partition("/")[0] not in others]

    def _beside(self, names: Iterable[str]) -> set[str]:
        """Those of some names that tars have which lie beside these, but are none of them."""
        own = {Path(name).name for name in self.names}
        folders = {Path(file).parent for file in self._archives.values() if not is_address(file)}
        return {
            name
            for name in names
            if name not in own
            and any(os.path.isfile(folder / f"{name}{SUFFIX}") for folder in folders)
        }

    def read(self, name: str, stack: ExitStack, scratch: Path | None) -> ShardInput:
        """See `Shards`."""
        data = self.data_of(name)
        archive = self._local(name, stack, scratch)
        if self._found_none:
            self._require_no_labels(name, archive)
        mode: Any = self.labels if self._rows is None else self._rows
        shard = read_shard(archive, mode)
        found = with_classes(shard, self._classes, prefix="", exif=self._exif)
        errors = [problem for problem in found.problems if problem.level == "error"]
        faults = {_key_in(archive, problem): problem for problem in reversed(errors)}
        if "" in faults:
            raise DataError([p for p in errors if _key_in(archive, p) == ""])
        samples = [sample for sample in found.samples if sample.name not in faults]
        image_of = {sample.name: sample.image for sample in samples}
        for own, message in without_a_place(image_of).items():
            faults[own] = Problem(str(image_of[own]), "", message)
        samples = [sample for sample in samples if sample.name not in faults]
        images = {s.name: s.image.relative_to(archive).as_posix() for s in samples}
        return ShardInput(name, samples, faults, data, images)

    def _require_no_labels(self, name: str, archive: Path) -> None:
        """Refuse a tar with labels where none were found in the first, which would be passed over.

        Raises:
            ValueError: it has some.
        """
        found = read_shard(archive).labels
        if found != "none":
            raise ValueError(
                f"{self._archives[name]}: has labels, {found} it, and the first tar has none: "
                f"--labels {found} (with another --out) takes them, and expects them of all tars; "
                "--labels none lets the model predict what each photograph shows"
            )

    def _local(self, name: str, stack: ExitStack, scratch: Path | None) -> Path:
        """A tar on this machine; what stands beside one of another place comes with it."""
        archive = self._archives[name]
        if not is_address(archive):
            stack.callback(forget, Path(archive))
            return Path(archive)
        local = stack.enter_context(fetched(archive, scratch))
        stack.callback(forget, local)
        if self.labels in ("auto", "beside") or self._found_none:
            fetch_beside(archive, local, required=self.labels == "beside")
        return local

    def _labels_data(self, archive: str) -> dict[str, Any]:
        """What tells that the labels beside a tar are the same still."""
        if self._file_digest is not None:
            return {"labels": self._file_digest}
        if self.labels != "beside":
            return {}
        files = [f"{archive.removesuffix(SUFFIX)}{suffix}" for suffix in (".csv", ".json")]
        if not is_address(archive):
            return {"labels": [status_or_empty(Path(file)) for file in files]}
        marks = []
        for file in files:
            with suppress(FileNotFoundError):
                marks.append(marks_of(file))
        return {"labels": marks}


def status_or_empty(path: Path) -> list[int]:
    """What tells that a file is the same still; empty = it cannot be looked at."""
    try:
        return [*status(path)]
    except OSError:
        return []


def _key_in(archive: Path, problem: Problem) -> str:
    """The key of the file that a problem names; "" = it is not in the archive."""
    inside = problem.file.removeprefix(f"{archive}/")
    return "" if inside == problem.file else _key_of(inside)


def _key_of(path: str) -> str:
    """The key of a file in a tar."""
    folder, _, file = path.rpartition("/")
    key = file.partition(".")[0]
    return f"{folder}/{key}" if folder else key


def _facts_of(sample: Sample) -> tuple[object, ...]:
    try:
        facts: tuple[object, ...] = status(sample.image)
    except (OSError, ValueError):
        facts = ("missing",)
    return sample.name, sample.labels, sample.exif, *facts


def shard_count(photographs: int, size: int) -> int:
    """How many shards a list of photographs makes, of about `size` each."""
    return max(1, -(-photographs // size))


def absolute(images: str) -> str:
    """The name of an input (`find_archives`) that means the same in every folder."""
    return images if is_address(images) else os.path.abspath(images)


def resolved(images: str) -> str:
    """The name of an input, links followed: of tars up to their names or the first wild card."""
    if is_address(images):
        return images
    if os.path.exists(images) and not images.endswith(SUFFIX):
        return os.path.realpath(images)
    base = base_of(images)
    return os.path.join(os.path.realpath(base), images[len(base) :])


def is_pattern(images: str) -> bool:
    """Whether the name of an input means tar archives (`find_archives`)."""
    if is_address(images) or images.endswith(SUFFIX):
        return True
    if os.path.isdir(images):
        return any(name.endswith(SUFFIX) for name in os.listdir(images)) or _holds_tars(images)
    return not os.path.exists(images) and _WILD.search(images) is not None


def _holds_tars(folder: str) -> bool:
    """Whether there are tars at some depth of a folder, and no photographs."""
    found = False
    for path in paths_but_results(Path(folder)):
        if path.lower().endswith(ALL_SUFFIXES):
            return False
        found = found or path.endswith(SUFFIX)
    return found


def require_tars_alone(folder: Path) -> None:
    """Refuse a folder of tars in which photographs lie loose, which would be passed over.

    Those that lie deeper are told.

    Raises:
        ValueError: there are some where those of a folder lie (`photographs_of`).
    """
    paths = map(Path, but_results(paths_below(folder), folder))
    found = [path for path in paths if path.suffix.lower() in IMAGE_SUFFIXES]
    names = sorted(path.relative_to(folder).as_posix() for path in found)
    places = {folder, photographs_of(folder)}
    loose = [name for name in names if (folder / name).parent in places]
    if names and not loose:
        photographs = counted(len(names), "photograph", "photographs")
        log.warning("without a mask, beside the tars: %s (%s)", photographs, few(names))
    if loose:
        archives = sorted(path.name for path in folder.glob(f"*{SUFFIX}"))
        raise ValueError(
            f"{folder}: expected tars or photographs, got both ({few(archives)}; {few(loose)}): "
            f"name the tars ('{folder}/*{SUFFIX}'), or move them away to have the photographs"
        )


def find_archives(pattern: str) -> dict[str, str]:
    """The tars that a pattern means.

    Args:
        pattern: a tar; a folder, in which tars are looked for at any depth; or a pattern with
            ``*``, ``?``, ``[]`` and ranges such as ``{000..127}``. Of this machine, or an address.
            Tars at any depth, by a folder or ``**``, are none of weaktr's results.

    Returns:
        Name -> path or address, in the order of the names: the path below the folder, or below the
        part of the pattern that has no wild cards, without ``.tar``.

    Raises:
        ValueError: there is none, two have one name, or one is compressed.
        OSError: the place cannot be asked.
    """
    ranges = list(_expanded(pattern))
    paths = [path for one in ranges for path in _matching(one)]
    if packed := [path for path in paths if path.endswith(PACKED)]:
        raise ValueError(f"{few(packed)}: {IS_PACKED}")
    if not paths:
        raise ValueError(f"{pattern}: expected tar archives, found none")
    bases = _spellings(base_of(pattern))
    archives: dict[str, str] = {}
    for path in paths:
        base = next((base for base in bases if path.startswith(base)), "")
        relative = path[len(base) :]
        name = relative.strip("/").removesuffix(SUFFIX)
        if name in archives and archives[name] != path:
            raise ValueError(f"{pattern}: {archives[name]} and {path} have one name: {name}")
        if not name or ".." in name.split("/"):
            raise ValueError(f"{pattern}: expected a path without '..', got {path}")
        archives[name] = path
    return dict(sorted(archives.items(), key=lambda item: _natural(item[0])))


def _spellings(base: str) -> list[str]:
    """A folder as it was given, and as its file system spells it in what it finds there."""
    if not is_address(base):
        return [base]
    spelt = asked(base, lambda place, path: str(place.unstrip_protocol(path)))
    return [base, f"{spelt.rstrip('/')}/"]


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
    """The tars of one pattern, compressed ones among them."""
    if is_address(pattern):
        wild = _WILD.search(pattern) is not None
        if not wild and pattern.endswith(SUFFIX):
            return [pattern]
        look = pattern if wild else f"{pattern.rstrip('/')}/**"
        found = asked(look, lambda place, path: list(map(place.unstrip_protocol, place.glob(path))))
        return sorted(address for address in found if address.endswith((SUFFIX, *PACKED)))
    if os.path.isdir(pattern):
        below = (Path(top, name) for top, _, names in os.walk(pattern) for name in names)
        inside = (str(path) for path in below if _is_archive(path, Path(pattern)))
        return sorted(but_results(inside, Path(pattern)))
    if os.path.exists(pattern) or not _WILD.search(pattern):
        return [pattern]
    found = glob.glob(pattern, recursive=True)
    archives = [path for path in found if path.endswith((SUFFIX, *PACKED))]
    return sorted(but_results(archives, Path(base_of(pattern))) if "**" in pattern else archives)


def _is_archive(path: Path, root: Path) -> bool:
    relative = path.relative_to(root)
    is_hidden = any(part.startswith(".") for part in relative.parts)
    return path.name.endswith((SUFFIX, *PACKED)) and not is_hidden


def base_of(pattern: str) -> str:
    """The folder of a pattern that has no wild cards."""
    found = _WILD.search(pattern)
    if found is None and not pattern.endswith(SUFFIX):
        return pattern.rstrip("/") + "/"
    head = pattern[: found.start()] if found else pattern
    return head[: head.rfind("/") + 1]


def _natural(name: str) -> list[tuple[int, int, str]]:
    """By which names with numbers sort as people count."""
    parts = re.split(r"(\d+)", name)
    return [(1, int(part), part) if part.isdecimal() else (0, 0, part) for part in parts if part]
