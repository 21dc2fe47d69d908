"""The photographs of one tar shard, in the layout of WebDataset: the files of a sample share a key.

A key is a path in the tar up to the first dot of the file's name:

* ``KEY.jpg`` (or .jpeg, .png, .webp, ...): the photograph;
* ``KEY.cls``: its classes, names or 0-based indices, or ``KEY.json`` with a list "labels" of them,
  indices as numbers;
* ``KEY.mask.png`` or ``KEY.seg.png``: its true mask.

Labels may stand beside a shard too, in ``SHARD.csv`` or ``SHARD.json`` (`weaktr.data.label_files`),
by name alone.
Here: tar -> `read_shard` -> its photographs, with classes as they are written -> `with_classes` ->
samples. None of the photographs is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from weaktr import tars
from weaktr.data.classes import Classes
from weaktr.data.label_files import read_label_file
from weaktr.data.layout import IMAGE_SUFFIXES
from weaktr.data.manifest import Exif, Sample, name_fault
from weaktr.data.names import hints
from weaktr.data.problems import DataError, Problem
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
_NO_INDEX = "; write its name: texts are indices in KEY.cls alone"
_BETWEEN_NAMES = re.compile(r"[,;\r\n\t]")


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


def read_shard(archive: Path, labels: Labels | LabelRows = "auto") -> Shard:
    """The photographs of a shard, with their classes as they are written.

    Args:
        archive: the tar, without compression.
        labels: where to look for the classes; or the rows of a label file for all shards.

    Returns:
        Paths lead into the tar (`weaktr.tars`), and faults name files in the same way. A photograph
        with a fault has the labels that could be read, or is left out.

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
    labels: Labels | LabelRows,
    files: Mapping[str, _Files],
) -> None:
    """Give the photographs their classes; those without, where others have some, are a fault."""
    where = ""
    if isinstance(labels, LabelRows):
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


class ShardSamples(NamedTuple):
    """What `with_classes` makes."""

    samples: list[Sample]  #: in the order of the tar
    problems: list[Problem]
    labels: Found  #: where the labels stand


def with_classes(
    shard: Shard,
    classes: Classes | None,
    *,
    masks: Path | None = None,
    prefix: str | None = None,
    exif: Exif = "ignore",
) -> ShardSamples:
    """The samples of a shard that was read.

    Args:
        shard: what was read.
        classes: what labels may say. None = samples have no labels.
        masks: results of sharded labelling: its ``masks/SHARD.tar`` holds ``KEY.png``, in place of
            the masks in the shard; a photograph without mask there has none.
        prefix: what names begin with, before the key. None = the shard's name and "/".
        exif: see `Sample`.
    """
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
        if index is None and is_index(entry, word):
            index = int(word)
        if index is not None and 0 <= index < len(classes):
            indices.add(index)
            continue
        if index is None:
            told = _NO_INDEX if _is_number(word) else hint(str(word))
            message = f"label {brief(word)} is none of the {len(classes)} classes{told}"
            kind = "unknown label"
        else:
            message = f"class indices: expected 0 to {len(classes) - 1}, got {brief(index)}"
            kind = "class index outside"
        faults.append(Problem(str(entry.image), entry.source, message, kind=kind))
    return tuple(sorted(indices))


def is_index(entry: Entry, word: Word) -> bool:
    """Whether a class of a photograph is written as its number: as a text only in a ``.cls``."""
    return isinstance(word, int) or (entry.is_inside and _is_number(word))


def _is_number(word: Word) -> bool:
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
