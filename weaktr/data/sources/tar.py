"""Photographs in tar shards, in the layout of WebDataset: the files of a sample share a key.

A key is a path in the tar up to the first dot of the file's name:

* ``KEY.jpg`` (or .jpeg, .png, .webp, ...): the photograph;
* ``KEY.cls``: its classes, names or 0-based indices, or ``KEY.json`` with a list "labels" of them;
* ``KEY.mask.png`` or ``KEY.seg.png``: its true mask.

Labels may stand beside a shard too, in ``SHARD.csv`` or ``SHARD.json`` (`weaktr.data.label_files`).
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast, get_args

from weaktr import tars
from weaktr.data.classes import Classes
from weaktr.data.label_files import read_label_file
from weaktr.data.layout import IMAGE_SUFFIXES, collect_or_raise, first_file, require_folder
from weaktr.data.manifest import Exif, Manifest, Sample, name_fault, require_exif
from weaktr.data.names import class_list
from weaktr.data.problems import DataError, Problem
from weaktr.data.sources.folder import family, hints
from weaktr.files import is_clutter, is_outside_input, parse_json, refusal
from weaktr.messages import CONTROL, brief, few

#: Where the labels of a shard stand: in its tar; in a file beside it; nowhere. "auto" = in the file
#: beside it, else in its tar, else nowhere.
Labels = Literal["auto", "inside", "beside", "none"]
#: Where they were found; "given" = by the caller.
Found = Literal["inside", "beside", "none", "given"]
#: A class as it is written: name or 0-based index.
Word = str | int

#: Extensions of photographs, of true masks, and of files with labels.
PHOTOGRAPHS = tuple(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES)
MASKS = ("mask.png", "seg.png")
LABELS = ("cls", "json")

_EXPECTED = "expected KEY.jpg, KEY.png or the like"
#: A file's path: key and extension.
_FILE = re.compile(r"((?:.*/)?[^./][^./]*)\.([^/]*)", re.DOTALL)
#: Keys that need no closer look.
_PLAIN = re.compile(r"[A-Za-z0-9_-]{1,200}")
_BETWEEN_NAMES = re.compile(r"[,;\r\n\t]")


#: What a split's shards may be called, in the order in which they are looked for.
_PLACES = ("{split}-*.tar", "{split}/*.tar")
_REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def tar(
    root: str | Path,
    *,
    split: str = "train",
    classes: Sequence[str] | str | Path | None = None,
    labels: str | Path | None = None,
    masks: str | Path | None = None,
    exif: Exif = "ignore",
    problems: list[Problem] | None = None,
) -> Manifest:
    """Photographs in tar shards.

    Args:
        root: the data set's folder. Its shards are ``SPLIT-*.tar``, else ``SPLIT/*.tar``, else, of
            split "all", ``*.tar``; they count in natural order (2 before 10).
        split: the part of the data set.
        classes: class names in class-index order, or the path of a text file with one a line. None
            = ``classes.txt`` in `root`, else the columns of 0/1 CSVs, else all names in the labels,
            sorted; the shards of the other splits (`family`) count as well, so that all splits have
            the same classes. Names with blanks in them have to be given if they stand in ``.cls``.
        labels: "auto", "inside", "beside" or "none", see `samples_of_shard`; or the path of one
            CSV or JSON for all shards, whose images are keys or file names, with ``SHARD/`` before
            them where a key is in several shards. None = "auto".
        masks: results of sharded labelling, see `samples_of_shard`.
        exif: see `Sample`.
        problems: None = faults are errors; a list collects them instead.

    Returns:
        The manifest; samples are called ``SHARD/KEY``.

    Raises:
        ValueError: no shards; `root` is not on a disk; an unknown `exif`.
        DataError: with shard and file of each fault (see `read_shard`), all at once.
    """
    if _REMOTE.match(str(root)):
        raise ValueError(
            f"root: expected a folder, got {str(root)!r}: training reads shards at random; copy "
            "them to a disk first"
        )
    root, exif = require_folder(root), require_exif(exif)
    faults: list[Problem] = [] if problems is None else problems
    where: Labels | LabelRows = "auto"
    table = None
    if labels in get_args(Labels):
        where = cast(Labels, labels)
    elif labels is not None:
        where = table = read_rows(Path(labels), faults)
    shards = [read_shard(archive, where) for archive in shards_of(root, split, faults)]
    faults += [fault for shard in shards for fault in shard.problems]
    if table is not None:
        faults += _ambiguous(Path(str(labels)), table, shards)
    with_labels = [shard for shard in shards if shard.labels != "none"]
    if with_labels:
        faults += [
            Problem(str(s.archive), "", f"has no labels, {with_labels[0].archive.name} has some")
            for s in shards
            if s.labels == "none" and s.entries
        ]
    known = _given_classes(classes, root)
    if known is None:
        others = (name for name in family(split) if name != split and has_shards(root, name))
        archives = (archive for name in others for archive in shards_of(root, name, []))
        all_shards = [*shards, *(read_shard(archive, where) for archive in archives)]
        known = _named_classes(root, all_shards, () if table is None else table.columns)
    samples: list[Sample] = []
    for shard in shards:
        shard.problems = []
        made = with_classes(shard, known, masks=None if masks is None else Path(masks), exif=exif)
        samples += made.samples
        faults += made.problems
    return collect_or_raise(Manifest("tar", split, known, tuple(samples)), faults, problems)


def shards_of(root: Path, split: str, faults: list[Problem]) -> list[Path]:
    """The shards of a split in natural order; `faults` gets those with compression.

    Raises:
        ValueError: there are none.
    """
    for place in _places(split):
        found = [path for path in root.glob(place) if not path.name.startswith(".")]
        bare = place.removesuffix(tars.SUFFIX)
        packed = [path for suffix in tars.PACKED for path in root.glob(bare + suffix)]
        faults += [Problem(str(path), "", tars.IS_PACKED) for path in sorted(packed)]
        if found or packed:
            return sorted(found, key=_natural)
    others = sorted(path.name for path in root.glob("*.tar"))
    told = f"; there are {few(others)}, all of which split 'all' takes" if others else ""
    raise ValueError(
        f"root: expected the shards {split}-*.tar or {split}/*.tar in {root}, found none{told}"
    )


def has_shards(root: Path, split: str) -> bool:
    """Whether there are shards of a split."""
    return any(any(root.glob(place)) for place in _places(split))


def _places(split: str) -> list[str]:
    """What the shards of a split may be called."""
    places = [place.format(split=glob.escape(split)) for place in _PLACES]
    return [*places, "*.tar"] if split == "all" else places


def _natural(path: Path) -> list[tuple[int, str]]:
    """A key by which 2 comes before 10."""
    parts = re.findall(r"(\d+)|(\D+)", path.name)
    return [(int(digits or -1), text) for digits, text in parts]


def _given_classes(given: Sequence[str] | str | Path | None, root: Path) -> Classes | None:
    """The classes that are given, or listed in `root`; None = neither."""
    if given is not None and not isinstance(given, str | Path):
        return Classes(tuple(given))
    file = first_file([root / "classes.txt"]) if given is None else Path(given)
    return None if file is None else class_list(file)


def _named_classes(root: Path, shards: Sequence[Shard], columns: Sequence[str]) -> Classes:
    """The classes that occur in labels, those in `columns` first.

    Raises:
        DataError: some labels are indices, or there are too many.
    """
    listed = dict.fromkeys([*columns, *(name for shard in shards for name in shard.columns)])
    found: set[str] = set()
    for entry in (entry for shard in shards for entry in shard.entries):
        for word in words_of(entry):
            if isinstance(word, str) and not (entry.is_inside and is_index(word)):
                found.add(word)
                continue
            message = (
                f"expected names of classes, got the index {brief(word)}: write the names of all "
                f"classes into {root / 'classes.txt'}, one a line, or give them as classes"
            )
            raise DataError(Problem(str(entry.image), entry.source, message))
    try:
        return Classes((*listed, *sorted(found - listed.keys())))
    except ValueError as error:
        raise DataError(Problem(str(root), "", str(error))) from error


def _ambiguous(file: Path, table: LabelRows, shards: Sequence[Shard]) -> Iterator[Problem]:
    """A fault for each row that is of photographs in several shards."""
    first: dict[str, Entry] = {}
    for shard in shards:
        for entry in shard.entries:
            earlier = first.setdefault(entry.key, entry)
            if earlier is not entry and entry.source and entry.source == earlier.source:
                message = f"{brief(entry.key)} is in several shards: write SHARD/{entry.key}"
                yield Problem(str(file), entry.source, message, kind="key in several shards")


class ShardSamples(NamedTuple):
    """What `samples_of_shard` finds."""

    samples: list[Sample]  #: in the order of the tar
    problems: list[Problem]
    labels: Found  #: where the labels stand


def samples_of_shard(
    archive: Path,
    classes: Classes | None,
    *,
    labels: Labels | Mapping[str, tuple[int, ...]] = "auto",
    masks: Path | None = None,
    prefix: str | None = None,
    exif: Exif = "ignore",
) -> ShardSamples:
    """The photographs of one tar in the layout of WebDataset; none of them is read.

    Args:
        archive: the tar, without compression.
        classes: what labels may say. None = labels are not looked for.
        labels: where to look for them; or the class indices of each key.
        masks: results of sharded labelling: its ``masks/SHARD.tar`` holds ``KEY.png``, in place of
            the masks in `archive`; a photograph without mask there has none.
        prefix: what names begin with, before the key. None = the shard's name and "/".
        exif: see `Sample`.

    Returns:
        Paths of the samples lead into tars (`weaktr.tars`). Faults name files in the same way; a
        photograph with a fault has the labels that could be read, or is left out.

    Raises:
        ValueError: an unknown `labels`.
    """
    shard = read_shard(archive, "none" if classes is None else labels)
    return with_classes(shard, classes, masks=masks, prefix=prefix, exif=exif)


# ---- a shard before its classes are known -------------------------------------------------------


@dataclass
class Entry:
    """A photograph of a shard.

    Args:
        key: of its files.
        image: path that leads into the tar.
        mask: likewise; None = it has none there.
        words: its classes as they are written, None = not known.
        source: where `words` stand; "" = nowhere.
        is_inside: whether they stand in a ``.cls``, where a word may be several, with blanks
            between them.
    """

    key: str
    image: Path
    mask: Path | None
    words: Sequence[Word] | None = None
    source: str = ""
    is_inside: bool = False


@dataclass
class Shard:
    """The photographs of a tar, and what is wrong with it.

    Args:
        archive: the tar.
        entries: the photographs in its order.
        problems: faults.
        labels: where the labels stand.
        columns: the classes of a label file with a column for each, else ().
    """

    archive: Path
    entries: list[Entry] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    labels: Found = "none"
    columns: tuple[str, ...] = ()

    def fault(self, member: str, message: str, kind: str = "") -> None:
        """Note what is wrong with a file in the tar."""
        self.problems.append(Problem(f"{self.archive}/{member}", "", message, kind=kind))


@dataclass
class LabelRows:
    """The rows of a label file, by what stands in the column of images."""

    rows: dict[str, tuple[Sequence[Word], str]] = field(default_factory=dict)  #: words, source
    columns: tuple[str, ...] = ()
    used: set[str] = field(default_factory=set)  #: rows of photographs that were found


def read_shard(
    archive: Path, labels: Labels | Mapping[str, Sequence[Word]] | LabelRows = "auto"
) -> Shard:
    """The photographs of a shard, with their classes as they are written; see `samples_of_shard`.

    Raises:
        ValueError: an unknown `labels`.
    """
    if isinstance(labels, str) and labels not in get_args(Labels):
        expected = ", ".join(get_args(Labels))
        raise ValueError(f"labels: expected one of {expected}; got {brief(labels)}")
    shard = Shard(archive)
    try:
        files = _by_key(shard, tars.members_of(archive))
        for key, own in files.items():
            _add_photograph(shard, key, own)
        if not files and not shard.problems:
            shard.problems.append(Problem(str(archive), "", f"holds no photographs: {_EXPECTED}"))
        _add_labels(shard, labels, files)
    except DataError as error:
        shard.problems.extend(error.problems)
    except FileNotFoundError:
        shard.problems.append(Problem(str(archive), "", "file is missing"))
    except (OSError, ValueError) as error:
        is_outside = is_outside_input(error)
        message = refusal(error) if is_outside_input(error) else str(error)
        message = message.removeprefix(f"{archive}: ")
        shard.problems.append(Problem(str(archive), "", message, is_outside=is_outside))
    return shard


#: The files of one key, by their extensions.
_Files = dict[str, tars.Member]


def _by_key(shard: Shard, members: Sequence[tars.Member]) -> dict[str, _Files]:
    """The files of a shard by their keys; what has none is passed over."""
    groups: dict[str, _Files] = {}
    refused: set[str] = set()
    apart: set[str] = set()
    last = ""
    for member in members:
        match = _FILE.fullmatch(member.name)
        if match is None or _is_clutter(match[1]):
            continue
        key, extension = match[1], match[2].lower()
        if key not in groups and key not in refused:
            if (fault := _key_fault(key)) is None:
                groups[key] = {}
            else:
                refused.add(key)
                shard.fault(member.name, f"name: {fault}", "name of a file in a shard")
        elif key != last and key in groups and key not in apart:
            apart.add(key)
            message = (
                f"stands apart from the other files of {brief(key)}: expected the files of a key "
                "one after the other, as all readers of WebDataset do; write the tar again in the "
                "order of the names"
            )
            shard.fault(member.name, message)
        last = key
        if key in refused:
            continue
        if extension in groups[key]:
            shard.fault(member.name, "stands in the tar twice", "file that stands twice")
        groups[key][extension] = member
    return groups


def _is_clutter(key: str) -> bool:
    """Whether systems and programs have put a file beside the data."""
    if "/" not in key and "$" not in key:
        return False
    return is_clutter("/".join(part for part in key.split("/") if part not in ("", "..")))


def _key_fault(key: str) -> str | None:
    """Why a key cannot be a name of results; None = it can."""
    if _PLAIN.fullmatch(key):
        return None
    if "\\" in key or CONTROL.search(key):
        return f"expected one without \\ and without control characters, got {brief(key)}"
    return name_fault(key)


def _add_photograph(shard: Shard, key: str, files: _Files) -> None:
    """Add the photograph and the mask of a key, or a fault where there are none or several."""
    photographs = [files[kind].name for kind in files if kind in PHOTOGRAPHS]
    masks = [files[kind].name for kind in MASKS if kind in files]
    if not photographs:
        names = [member.name for member in files.values()]
        message = (
            f"no photograph has the key {brief(key)}: {_EXPECTED}, got {few(names)}; a key ends "
            "before the first dot of a file's name"
        )
        shard.fault(names[0], message, "key without photograph")
        return
    if len(photographs) > 1:
        message = (
            f"two photographs have the key {brief(key)}: {few(photographs)}; a true mask is called "
            "KEY.mask.png"
        )
        shard.fault(photographs[1], message, "two photographs of one key")
    if len(masks) > 1:
        shard.fault(masks[1], f"two masks have the key {brief(key)}", "two masks of one key")
    mask = shard.archive / masks[0] if masks else None
    shard.entries.append(Entry(key, shard.archive / photographs[0], mask))


# ---- labels -------------------------------------------------------------------------------------


def _add_labels(
    shard: Shard,
    labels: Labels | Mapping[str, Sequence[Word]] | LabelRows,
    files: Mapping[str, _Files],
) -> None:
    """Give the photographs their classes; those without, where others have some, are a fault."""
    where = ""
    if isinstance(labels, Mapping):
        shard.labels, where = "given", "labels"
        for entry in shard.entries:
            entry.words = labels.get(entry.key)
    elif isinstance(labels, LabelRows):
        shard.labels, where = "given", "the label file"
        _from_rows(shard, labels)
    elif labels in ("auto", "beside") and (beside := _beside(shard.archive)):
        shard.labels, where = "beside", beside[0].name
        _from_file(shard, beside)
    elif labels in ("auto", "inside"):
        _from_tar(shard, files)
        is_found = any(entry.words is not None for entry in shard.entries)
        shard.labels = "inside" if is_found else "none"
        where = "KEY.cls, or KEY.json with labels"
    elif labels == "beside":
        where = f"{shard.archive.stem}.csv or .json"
    without = [entry for entry in shard.entries if entry.words is None]
    if not without or labels == "none" or (labels == "auto" and shard.labels == "none"):
        return
    message = f"has no labels in {where}; a photograph of none of the classes has empty ones"
    if len(without) == len(shard.entries):
        message = f"no photograph has labels: expected {where}"
        shard.problems.append(Problem(str(shard.archive), "", message))
        return
    for entry in without:
        problem = Problem(str(entry.image), "", message, kind="photograph without labels")
        shard.problems.append(problem)


def _beside(archive: Path) -> list[Path]:
    """The label files beside a shard."""
    files = [archive.with_suffix(suffix) for suffix in (".csv", ".json")]
    return [file for file in files if file.is_file()]


def _from_file(shard: Shard, files: Sequence[Path]) -> None:
    """Take the classes from the file beside a shard; all its rows must be of the shard."""
    if len(files) > 1:
        message = f"expected one label file, there is {files[1].name} as well"
        shard.problems.append(Problem(str(files[0]), "", message))
    table = read_rows(files[0], shard.problems)
    shard.columns = table.columns
    _from_rows(shard, table)
    for name, (_, source) in table.rows.items():
        if name not in table.used:
            message = f"{shard.archive.name} holds no photograph {brief(name)}"
            problem = Problem(str(files[0]), source, message, kind="labels without photograph")
            shard.problems.append(problem)


def read_rows(file: Path, faults: list[Problem]) -> LabelRows:
    """A label file (`weaktr.data.label_files`); `faults` gets what is wrong with rows.

    Raises:
        ValueError: neither .csv nor .json.
        DataError: not of one of the forms.
    """
    content = read_label_file(file, faults)
    table = LabelRows(columns=content.columns)
    for row in content.rows:
        name = row.image.strip()
        if name in table.rows:
            message = f"{brief(name)} was already declared at {table.rows[name][1]}"
            faults.append(Problem(str(file), row.source, message, kind="image declared twice"))
        table.rows[name] = row.labels, row.source
    return table


def _from_rows(shard: Shard, table: LabelRows) -> None:
    """Take the classes from rows of keys or file names, which the shard's name may stand before."""
    for entry in shard.entries:
        file = entry.image.relative_to(shard.archive).as_posix()
        stem = shard.archive.stem
        for name in (f"{stem}/{entry.key}", f"{stem}/{file}", entry.key, file):
            if name in table.rows:
                entry.words, entry.source = table.rows[name]
                table.used.add(name)
                break


def _from_tar(shard: Shard, files: Mapping[str, _Files]) -> None:
    """Take the classes from the files in the shard."""
    entries = [
        (entry, kind) for entry in shard.entries for kind in LABELS if kind in files[entry.key]
    ]
    members = [files[entry.key][kind] for entry, kind in entries]
    contents = tars.contents_of(shard.archive, members)
    for (entry, kind), member, content in zip(entries, members, contents, strict=True):
        source = f"{shard.archive}/{member.name}"
        try:
            words = _words_of_text(content) if kind == "cls" else _words_of_json(content, source)
        except ValueError as error:
            message = str(error).removeprefix(f"{source}: ")
            shard.fault(member.name, message, "labels that cannot be read")
            words = []
        if words is None:
            continue
        if entry.words is not None:
            message = f"labels stand in {entry.source} as well: remove one of them"
            shard.fault(member.name, message, "labels that stand twice")
            continue
        entry.words, entry.source, entry.is_inside = words, source, kind == "cls"


def _words_of_text(content: bytes) -> list[str]:
    """The classes in a ``.cls``; Python's way to write a list is taken too.

    Raises:
        ValueError: it is no text.
    """
    try:
        text = content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"expected names or indices of classes as text, got: {error}") from error
    if text[:1] in ("[", "(") and text[-1:] in ("]", ")"):
        parts = [part.strip().strip("'\"") for part in text[1:-1].split(",")]
    else:
        parts = [part.strip() for part in _BETWEEN_NAMES.split(text)]
    return [part for part in parts if part]


def _words_of_json(content: bytes, source: str) -> list[Word] | None:
    """The classes in a ``.json``; None = it says something else.

    Raises:
        ValueError: it is no JSON, or its "labels" are no list of names or indices.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"expected JSON, got: {error}") from error
    tree = parse_json(text, source, finite=False)
    words: Any = tree.get("labels") if isinstance(tree, dict) else None
    if words is None:
        return None
    if not isinstance(words, list) or not all(type(word) in (str, int) for word in words):
        got = few([brief(word) for word in words]) if isinstance(words, list) else brief(words)
        raise ValueError(
            f"labels: expected a list of names or 0-based indices of classes, got {got}"
        )
    return words


# ---- samples ------------------------------------------------------------------------------------


def with_classes(
    shard: Shard,
    classes: Classes | None,
    *,
    masks: Path | None = None,
    prefix: str | None = None,
    exif: Exif = "ignore",
) -> ShardSamples:
    """The samples of a shard that was read; arguments as in `samples_of_shard`."""
    problems = list(shard.problems)
    prefix = f"{shard.archive.stem}/" if prefix is None else prefix
    hint = hints(() if classes is None else classes.names)
    others = None if masks is None else _masks_made(shard.archive, masks, problems)
    samples = []
    for entry in shard.entries:
        labels = None
        if classes is not None and entry.words is not None:
            labels = _indices(entry, classes, hint, problems)
        mask = entry.mask if others is None else others.get(entry.key)
        source = entry.source or str(shard.archive)
        samples.append(Sample(prefix + entry.key, entry.image, labels, mask, source, exif=exif))
    return ShardSamples(samples, problems, shard.labels)


def words_of(entry: Entry, names: Container[str] = ()) -> list[Word]:
    """The classes of a photograph, one by one, as they are written.

    Args:
        entry: the photograph.
        names: of the classes, which may have blanks in them.
    """
    words: list[Word] = []
    for word in entry.words or ():
        is_one = not entry.is_inside or word in names or not isinstance(word, str)
        words += [word] if is_one else str(word).split()
    return words


def _indices(
    entry: Entry, classes: Classes, hint: Callable[[str], str], faults: list[Problem]
) -> tuple[int, ...]:
    """Ascending class indices of a photograph; each that is unknown is a fault."""
    indices = set()
    for word in words_of(entry, classes.index_of_name):
        index: int | None = None
        if isinstance(word, str):
            index = classes.index_of_name.get(word)
        if index is None and is_index(word):
            index = int(word)
        if index is not None and 0 <= index < len(classes):
            indices.add(index)
            continue
        if index is None:
            message = f"label {brief(word)} is none of the {len(classes)} classes{hint(str(word))}"
            kind = "unknown label"
        else:
            message = f"class indices: expected 0 to {len(classes) - 1}, got {brief(index)}"
            kind = "class index outside"
        faults.append(Problem(str(entry.image), entry.source, message, kind=kind))
    return tuple(sorted(indices))


def is_index(word: Word) -> bool:
    """Whether a class is written as its number."""
    return isinstance(word, int) or (word.removeprefix("-").isdecimal() and len(word) < 20)


def _masks_made(archive: Path, folder: Path, faults: list[Problem]) -> dict[str, Path]:
    """Key -> mask in ``FOLDER/masks/SHARD.tar``."""
    own = folder / "masks" / archive.name
    try:
        members = tars.members_of(own)
    except FileNotFoundError:
        message = f"file is missing, which holds the masks of {archive}"
        faults.append(Problem(str(own), "", message, kind="masks of a shard are missing"))
        return {}
    except (OSError, ValueError) as error:
        faults.append(Problem(str(own), "", str(error).removeprefix(f"{own}: ")))
        return {}
    names = [member.name for member in members if member.name.endswith(".png")]
    return {name.removesuffix(".png"): own / name for name in names if name_fault(name) is None}
