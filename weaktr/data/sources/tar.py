"""Photographs in tar shards: the splits of a data set, and the classes that all have in common.

How a shard holds them is in `weaktr.data.tar_shard`.
"""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast, get_args

from weaktr import tars
from weaktr.data.classes import Classes
from weaktr.data.layout import collect_or_raise, first_file, require_folder
from weaktr.data.manifest import Exif, Manifest, Sample, require_exif
from weaktr.data.names import class_list
from weaktr.data.problems import DataError, Problem
from weaktr.data.splits import family
from weaktr.data.tar_shard import (
    Entry,
    LabelRows,
    Labels,
    Shard,
    is_index,
    read_rows,
    read_shard,
    with_classes,
    words_of,
)
from weaktr.messages import brief, counted, few

log = logging.getLogger("weaktr")

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
        labels: "auto", "inside", "beside" or "none", see `read_shard`; or the path of one
            CSV or JSON for all shards, whose images are keys or file names, with ``SHARD/`` before
            them where a key is in several shards. None = "auto".
        masks: results of sharded labelling, see `with_classes`.
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
    archives = shards_of(root, split, faults)
    _warn_of_other_splits(split, archives)
    shards = [read_shard(archive, where) for archive in archives]
    faults += [fault for shard in shards for fault in shard.problems]
    if table is not None:
        faults += _ambiguous(Path(str(labels)), shards)
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
        of_others = (archive for name in others for archive in shards_of(root, name, []))
        all_shards = [*shards, *(read_shard(archive, where) for archive in of_others)]
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


def _warn_of_other_splits(split: str, archives: Sequence[Path]) -> None:
    """Say which shards may be another split's: ``train-val-0.tar`` beside ``train-0.tar``."""
    start = f"{split}-"
    names = [path.name for path in archives if path.name.startswith(start)]
    others = [name for name in names if not name.removeprefix(start)[0].isdecimal()]
    if 0 < len(others) < len(names):
        log.warning(
            "%s: shards of split %s are %s, too; if they are another split's, call them otherwise",
            archives[0].parent, split, few(others),
        )  # fmt: skip


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
            if isinstance(word, str) and not is_index(entry, word):
                found.add(word)
                continue
            message = (
                f"expected names of classes, got the index {brief(word)}: write the names of all "
                f"classes into {root / 'classes.txt'}, one a line, or give them as classes"
            )
            raise DataError(Problem(str(entry.image), entry.source, message))
    _warn_of_blanks(root, shards)
    try:
        return Classes((*listed, *sorted(found - listed.keys())))
    except ValueError as error:
        raise DataError(Problem(str(root), "", str(error))) from error


def _warn_of_blanks(root: Path, shards: Sequence[Shard]) -> None:
    """Say which texts of ``.cls`` were parted at blanks, since no list names the classes."""
    inside = (entry for shard in shards for entry in shard.entries if entry.is_inside)
    texts = ((str(word), entry) for entry in inside for word in entry.words or ())
    parted = [(text, entry) for text, entry in texts if len(text.split()) > 1]
    if parted:
        text, entry = parted[0]
        log.warning(
            "%s: %s is read as the classes %s, and %s parted at blanks in all; if classes have "
            "blanks in their names, write the names of all into %s, one a line",
            entry.source, brief(text), few(text.split()),
            counted(len(parted), "text is", "texts are"), root / "classes.txt",
        )  # fmt: skip


def _ambiguous(file: Path, shards: Sequence[Shard]) -> Iterator[Problem]:
    """A fault for each row that is of photographs in several shards."""
    first: dict[str, Entry] = {}
    for shard in shards:
        for entry in shard.entries:
            earlier = first.setdefault(entry.key, entry)
            if earlier is not entry and entry.source and entry.source == earlier.source:
                message = f"{brief(entry.key)} is in several shards: write SHARD/{entry.key}"
                yield Problem(str(file), entry.source, message, kind="key in several shards")
