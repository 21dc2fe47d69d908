"""Photographs of your own: a folder of images and a CSV or JSON that says what they show.

Label files:

* CSV ``image,labels`` with a header, its columns separated by commas, semicolons or tabs; several
  labels are separated by ``;`` or ``|``::

      image,labels
      cats/001.jpg,cat;sofa

* CSV with a column of 0 and 1 for each class: ``image,cat,dog``;
* JSON ``{"cats/001.jpg": ["cat", "sofa"]}``.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from weaktr.data.classes import Classes
from weaktr.data.layout import (
    ALL_SUFFIXES,
    IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    collect_or_raise,
    first_file,
    first_folder,
    flag,
    read_text,
    require_folder,
)
from weaktr.data.manifest import Exif, Manifest, Sample, is_inside, require_exif
from weaktr.data.names import HEADINGS, class_list
from weaktr.data.problems import DataError, Problem
from weaktr.files import files_below
from weaktr.messages import brief, few

log = logging.getLogger("weaktr")

_SEPARATOR = re.compile("[;|]")
#: Unknown labels for which the nearest class is looked for, which takes milliseconds.
HINTS = 200
#: The kind of problem of an image that no label file speaks of.
NOT_LISTED = "image that is not listed"
#: What is wrong with a file among the masks.
NO_MASK = "not read: masks are PNGs, one an image; other formats lose or change labels"
#: The kind of problem of a photograph of a format that is not looked for.
PASSED_OVER = "photograph of another format"
#: The first cell of a CSV and what parts it from the next.
_FIRST_CELL = re.compile(r'\s*"?image"?[ ]*([,;\t])')


@dataclass(frozen=True)
class Row:
    """One image of a label file: its path as written, its class names, its file and line."""

    image: str
    labels: tuple[str, ...]
    source: str


@dataclass(frozen=True)
class LabelFile:
    """A label file.

    Args:
        path: of the file.
        rows: its images.
        columns: the class names of its header, where it has a column for each; else ().
    """

    path: Path
    rows: list[Row]
    columns: tuple[str, ...] = ()


def folder(
    root: str | Path,
    labels_file: str | Path | None = None,
    *,
    split: str = "train",
    classes: Sequence[str] | str | Path | None = None,
    images: str | Path | None = None,
    masks: str | Path | None = None,
    exif: Exif = "ignore",
    problems: list[Problem] | None = None,
) -> Manifest:
    """Own images with image-level labels.

    Args:
        root: the data set's folder.
        labels_file: the CSV or JSON. None = ``<split>.csv``, ``<split>.json``, ``labels.csv`` or
            ``labels.json`` in `root`.
        split: name of the part that the file describes.
        classes: class names in class-index order, or the path of a text file with one a line.
            None = ``classes.txt`` in `root`, else the columns of a 0/1 CSV, else all names of
            the label file, sorted. The files of other splits (``train``, ``val``, ``test``) in
            `root` count as well, columns in the order of the splits, so that all splits have the
            same classes in the same order.
        images: where the image paths of the label file start. None = ``root/images``, and `root`
            itself for paths that are not there. A path that is no file as it is written is read
            without blanks around it, then with / for \\, then, if it has no suffix, as the one
            image that only lacks it.
        masks: folder of true masks (for evaluation only): ``<image path without suffix>.png`` (or
            ``.PNG``), pixel 0 = background, ``k + 1`` = class index k, 255 = ignore. None =
            ``root/masks``.
        exif: "apply" = turn photographs as their EXIF asks viewers to, see `Sample`.
        problems: None = faults are errors; a list collects them instead.

    Returns:
        The manifest; names of samples are image paths without suffix. Images without a mask file
        have None.

    Raises:
        ValueError: no label file, or an unknown `exif`.
        DataError: with file and line (JSON: key) of each unknown class, repeated or missing
            image and malformed row, all at once.
    """
    root, exif = require_folder(root), require_exif(exif)
    path = Path(labels_file) if labels_file else label_file(root, split)
    if path is None:
        raise ValueError(
            f"labels_file: expected {split}.csv, {split}.json, labels.csv or labels.json in "
            f"{root}, found none; for images without labels use unlabelled()"
        )
    if path.stem == "labels" and split != "train" and not labels_file:
        log.info("%s: there is no %s.csv, so split %s has all images of it", path, split, split)
    faults: list[Problem] = [] if problems is None else problems
    own = _read(path, faults)
    splits = [own] if labels_file else _splits(root, own)
    known = _classes(classes, root, splits)
    if len(own.columns) == 1 and own.columns[0].casefold() in HEADINGS:
        log.warning(
            "%s: read as a column of 0 and 1 for one class, which is called %r; if 0 and 1 stand "
            "for two classes, write their names in a column called labels",
            path, own.columns[0],
        )  # fmt: skip
    image_root = Path(images) if images else root / "images"
    mask_root = Path(masks) if masks else root / "masks"
    if masks and not mask_root.is_dir():
        log.warning("masks: there is no folder %s, so no image has a mask", mask_root)
    hint = _hints(known.names)
    mask_files = sorted(files_below(mask_root))
    capital = {_name(_below(f, mask_root)): f for f in mask_files if f.suffix.lower() == ".png"}
    samples = []
    for name, row, image in _unrepeated(own.rows, [image_root, root], path, faults):
        mask = first_file([mask_root / f"{name}.png"]) or capital.get(name)
        labels = _indices(row, known, path, faults, hint)
        samples.append(Sample(name, image, labels, mask, row.source, exif=exif))
    unread = _unread_masks(mask_files, samples)
    if problems is not None:
        images_below = image_root if image_root.is_dir() else root
        problems.extend(_not_listed(splits, samples, images_below, mask_root))
        problems.extend(Problem(str(file), "", NO_MASK, "warning") for file in unread)
    elif unread:
        _say_once(f"{mask_root}: {_by_suffix(unread)} are {NO_MASK}")
    return collect_or_raise(Manifest("folder", split, known, tuple(samples)), faults, problems)


def label_file(root: str | Path, split: str = "train") -> Path | None:
    """The file that says what the images of a folder show, see `folder`; None = there is none.

    Raises:
        ValueError: there are a CSV and a JSON of one name.
    """
    for stem in (split, "labels"):
        files = [Path(root) / f"{stem}{suffix}" for suffix in (".csv", ".json")]
        found = [file for file in files if os.path.isfile(file)]
        if len(found) > 1:
            raise ValueError(
                f"{found[0]}: expected one label file, there is {found[1].name} as well"
            )
        if found:
            return found[0]
    return None


def unlabelled(
    root: str | Path,
    classes: Sequence[str] = (),
    *,
    split: str = "all",
    exif: Exif = "ignore",
    problems: list[Problem] | None = None,
) -> Manifest:
    """All images below a folder, without labels: for prediction.

    Args:
        root: searched at every depth for jpg, jpeg, png, bmp, webp, tif, tiff; hidden files and
            folders, and what systems put beside data, are left out (`weaktr.files.is_clutter`).
            Photographs of other formats are left out with a warning.
        classes: names of the model's classes, if the manifest is to carry them.
        split: name of the part.
        exif: see `folder`.
        problems: None = faults are errors; a list collects them instead.

    Returns:
        A manifest with labels and masks None, sorted by path. A link to a file that is not there
        is among them: who reads it says so. So is a folder that cannot be listed, as one image
        with the name ``FOLDER/*``.

    Raises:
        ValueError: no such folder, no image in it, or an unknown `exif`.
        OSError: `root` itself cannot be listed.
        DataError: two images differ only in suffix, so their results would have the same name.
    """
    root, exif = require_folder(root), require_exif(exif)
    below = sorted(files_below(root))
    closed = [path for path in below if path.is_dir()]
    files = [file for file in below if file.suffix.lower() in IMAGE_SUFFIXES and file not in closed]
    others = [file for file in below if file.suffix.lower() in OTHER_SUFFIXES]
    advice = "of a format that is not looked for: convert to JPEG or PNG"
    if not files and not closed:
        told = f", but {_by_suffix(others)} {advice}" if others else ""
        raise ValueError(f"root: expected images below {root}, found none{told}")
    if problems is not None:
        problems.extend(Problem(str(f), "", advice, "warning", PASSED_OVER) for f in others)
    elif others:
        log.warning("%s: left out: %s %s", root, _by_suffix(others), advice)
    rows = [Row(file.relative_to(root).as_posix(), (), str(root)) for file in files]
    faults: list[Problem] = [] if problems is None else problems
    samples = tuple(
        Sample(name, image, None, None, row.source, exif=exif)
        for name, row, image in _unrepeated(rows, [root], root, faults)
    )
    samples += tuple(
        Sample(f"{path.relative_to(root).as_posix()}/*", path, None, None, str(root), exif=exif)
        for path in closed
    )
    manifest = Manifest("images", split, Classes(tuple(classes)), samples)
    faults += manifest.repeated_names()
    if faults and problems is None:
        raise DataError(faults)
    return manifest


def _read(path: Path, faults: list[Problem]) -> LabelFile:
    """The content of a label file.

    Raises:
        ValueError: another suffix.
        DataError: not of one of the forms, or without any image.
    """
    if path.suffix.lower() == ".csv":
        content = _read_csv(path, faults)
    elif path.suffix.lower() == ".json":
        content = LabelFile(path, _read_json(path, faults))
    else:
        raise ValueError(f"labels_file: expected a .csv or .json, got {str(path)!r}")
    if not content.rows and not faults:
        raise DataError(Problem(str(path), "", "expected at least one image, found none"))
    return content


def _read_csv(path: Path, faults: list[Problem]) -> LabelFile:
    text = read_text(path, line_ends=True)
    first = _FIRST_CELL.match(text)
    delimiter = first[1] if first else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        lines = [(f"{path}:{reader.line_num}", cells) for cells in reader]
    except csv.Error as error:
        where = f"{path}:{reader.line_num}"
        raise DataError(Problem(str(path), where, f"expected CSV, got: {error}")) from error
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    if header[:1] != ["image"] or len(header) < 2 or ("labels" in header and len(header) != 2):
        message = f"expected the header image,labels or image,<class>,<class>,..., got {header[:9]}"
        raise DataError(Problem(str(path), f"{path}:1", message))
    if not all(header):
        message = f"expected a name for every column, got none for column {header.index('') + 1}"
        raise DataError(Problem(str(path), f"{path}:1", message))
    columns = () if header[1] == "labels" else tuple(header[1:])
    if len(set(columns)) != len(columns):
        raise DataError(Problem(str(path), f"{path}:1", f"a class stands twice in {header[:9]}"))
    _require_flags(path, columns, lines[1:])
    rows = []
    for source, cells in lines[1:]:
        values = [cell.strip() for cell in cells]
        if not any(values):
            continue
        if values == header:
            faults.append(Problem(str(path), source, "the header stands here a second time"))
        elif len(values) != len(header):
            message = f"expected {len(header)} columns, got {len(values)}"
            if not columns and len(values) > 2:
                message += "; part several labels by ; or |" + (
                    "" if delimiter == "," else f" in quotes, since {delimiter!r} parts the columns"
                )
            faults.append(Problem(str(path), source, message, kind="number of columns"))
        elif not columns:
            labels = (label.strip() for label in _SEPARATOR.split(values[1]))
            rows.append(Row(cells[0], tuple(filter(None, labels)), source))
        else:
            if wrong := [value for value in values[1:] if flag(value) is None]:
                message = f"expected 0 or 1 in the class columns, got {wrong[0]!r:.60}"
                faults.append(Problem(str(path), source, message, kind="no 0 or 1"))
            pairs = zip(columns, values[1:], strict=True)
            shown = tuple(name for name, value in pairs if flag(value))
            rows.append(Row(cells[0], shown, source))
    return LabelFile(path, rows, columns)


def _require_flags(
    path: Path, columns: Sequence[str], lines: Sequence[tuple[str, list[str]]]
) -> None:
    """Raise `DataError` where the one column is called as headings are and holds other than 0 or 1.

    A column ``label`` of 0 and 1 is one class of that name; other numbers, and names, are not.
    """
    if len(columns) != 1 or columns[0].casefold() not in HEADINGS:
        return
    for source, cells in lines:
        value = cells[1] if len(cells) == 2 else ""
        if flag(value) is None:
            message = (
                f"expected the header image,labels before names of classes, got image,{columns[0]} "
                f"and then {value.strip()!r:.60}: call the column labels"
            )
            if value.strip().isdecimal():
                message += " and write names in place of numbers"
            raise DataError(Problem(str(path), source, message))


def _read_json(path: Path, faults: list[Problem]) -> list[Row]:
    pairs: list[tuple[str, Any]] = []

    def outermost(items: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = items  # called last for the outermost object; keeps keys that occur twice
        return dict(items)

    try:
        content = json.loads(read_text(path), object_pairs_hook=outermost)
    except json.JSONDecodeError as error:
        raise DataError(Problem(str(path), f"{path}:{error.lineno}", error.msg)) from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; too deep
        raise DataError(Problem(str(path), "", f"expected JSON, got: {error}")) from error
    if not isinstance(content, dict):
        message = f'expected {{"image": ["label", ...]}}, got a {type(content).__name__}'
        raise DataError(Problem(str(path), "", message))
    rows = []
    for image, labels in pairs:
        source = f"{path}[{json.dumps(image, ensure_ascii=False)}]"
        if not isinstance(labels, list) or not all(
            isinstance(label, str) and label.strip() for label in labels
        ):
            message = f"expected a list of class names, got {labels!r:.60}"
            faults.append(Problem(str(path), source, message, kind="no list of class names"))
        else:
            rows.append(Row(image, tuple(label.strip() for label in labels), source))
    return rows


def _splits(root: Path, own: LabelFile) -> list[LabelFile]:
    """`own` and the label files of the other splits in `root`, whose faults are ignored."""
    stems = ("train", "val", "test")
    files = [root / f"{stem}{suffix}" for stem in stems for suffix in (".csv", ".json")]
    found = [own if file == own.path else _read(file, []) for file in files if file.is_file()]
    return found if own in found else [own, *found]


def _classes(
    given: Sequence[str] | str | Path | None, root: Path, splits: Sequence[LabelFile]
) -> Classes:
    """The classes, see `folder`."""
    if given is None:
        file = first_file([root / "classes.txt"])
    elif isinstance(given, str | Path):
        file = Path(given)
    else:
        return Classes(tuple(name.strip() if isinstance(name, str) else name for name in given))
    if file is not None:
        return class_list(file)
    columns = dict.fromkeys(name for split in splits for name in split.columns)
    named = {label for split in splits for row in split.rows for label in row.labels}
    try:
        return Classes((*columns, *sorted(named - columns.keys())))
    except ValueError as error:
        paths = " and ".join(str(split.path) for split in splits)
        raise DataError(Problem(paths, "", str(error))) from error


def _unrepeated(
    rows: Iterable[Row], roots: Sequence[Path], path: Path, faults: list[Problem]
) -> list[tuple[str, Row, Path]]:
    """Name, row and image file of the rows whose image stays in its folder and whose name is new.

    The paths of the rows are as their files are called (see `folder`); `roots`: where they start.
    """
    likely = first_folder(roots) or roots[-1]
    first: dict[str, Row] = {}
    images, other_spelling = {}, []
    listing = cache(_paths_of_stems)
    for row in rows:
        bare = row.image.strip()
        if not is_inside(bare):
            message = f"expected an image path below the image folder, got {bare!r:.300}"
            faults.append(Problem(str(path), row.source, message, kind="path outside"))
            continue
        spellings = dict.fromkeys((row.image, bare, bare.replace("\\", "/")))
        places = ((spelling, root / spelling) for spelling in spellings for root in roots)
        place = next((place for place in places if os.path.isfile(place[1])), None)
        meant = [] if place else _without_suffix(bare, roots, listing)
        if len(meant) > 1:
            message = f"{bare!r:.300} may be {few([path for path, _ in meant])}: write the suffix"
            faults.append(Problem(str(path), row.source, message, kind="path without suffix"))
            continue
        written, image = place or (meant[0] if meant else (bare, likely / bare))
        if written not in (row.image, bare):
            other_spelling.append((bare, written))
        name, found = _name(written), Row(written, row.labels, row.source)
        earlier = first.setdefault(name, found)
        if earlier is found:
            images[name] = image
            continue
        message = (
            f"{brief(written)} was already declared as {brief(earlier.image)} at {earlier.source}"
        )
        if written != earlier.image:
            message += "; paths must differ before the suffix"
        faults.append(Problem(str(path), row.source, message, kind="image declared twice"))
    if other_spelling:
        log.info(
            "%s: %d paths are spelled otherwise than their files, such as %r for %r",
            path, len(other_spelling), *other_spelling[0],
        )  # fmt: skip
    return [(name, row, images[name]) for name, row in first.items()]


def _paths_of_stems(root: Path) -> dict[str, list[str]]:
    """The images below a folder: path without suffix -> paths."""
    found: dict[str, list[str]] = {}
    for file in sorted(files_below(root)):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            path = _below(file, root)
            found.setdefault(_name(path), []).append(path)
    return found


def _without_suffix(
    path: str, roots: Sequence[Path], listing: Callable[[Path], dict[str, list[str]]]
) -> list[tuple[str, Path]]:
    """The images that a path without suffix may mean, of the first folder that has some.

    Args:
        path: as it is written.
        roots: where it may start.
        listing: see `_paths_of_stems`.
    """
    if path.lower().endswith(ALL_SUFFIXES):
        return []
    name = PurePosixPath(path.replace("\\", "/")).as_posix()
    meant = ([(own, root / own) for own in listing(root).get(name, ())] for root in roots)
    return next(filter(None, meant), [])


def _unread_masks(files: Sequence[Path], samples: Sequence[Sample]) -> list[Path]:
    """The images in the folder of masks that are no PNG, or that another PNG stands before."""
    used = {sample.mask for sample in samples if sample.mask is not None}
    names = {mask.with_suffix("") for mask in used}
    return [
        file
        for file in files
        if file not in used
        and file.suffix.lower() in ALL_SUFFIXES
        and (file.suffix.lower() != ".png" or file.with_suffix("") in names)
    ]


def _by_suffix(files: Sequence[Path]) -> str:
    """How many files there are of each suffix: ``5 files (3 .heic, 2 .gif)``."""
    counts = Counter(file.suffix.lower() for file in files)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common())
    return f"{len(files)} files ({kinds})"


@lru_cache
def _say_once(told: str) -> None:
    """Log a warning that splits of a data set have in common."""
    log.warning("%s", told)


def _not_listed(
    splits: Sequence[LabelFile], samples: Sequence[Sample], images: Path, masks: Path
) -> Iterator[Problem]:
    """A warning for each image below a folder, and each mask, that no label file speaks of."""
    files = ", ".join(split.path.name for split in splits)
    listed = {sample.name for sample in samples}
    for row in (row for split in splits for row in split.rows):
        path = row.image.strip().replace("\\", "/")
        listed |= {path, _name(path)}
    own = {sample.image for sample in samples}
    for file in sorted(files_below(images)):
        if file.is_dir():
            yield Problem(str(file), "", "the folder cannot be listed", is_outside=True)
            continue
        name = _name(_below(file, images))
        is_image = file.suffix.lower() in ALL_SUFFIXES and not file.is_relative_to(masks)
        if is_image and file not in own and name not in listed:
            message = f"no line of {files} lists this image"
            yield Problem(str(file), "", message, "warning", NOT_LISTED)
    for file in sorted(files_below(masks)):
        is_mask = file.suffix.lower() == ".png"
        if is_mask and _name(_below(file, masks)) not in listed:
            message = f"no line of {files} lists the image of this mask"
            yield Problem(str(file), "", message, "warning", "mask without its image")


def _indices(
    row: Row, classes: Classes, path: Path, faults: list[Problem], hint: Callable[[str], str]
) -> tuple[int, ...]:
    """Ascending class indices of a row's labels; each unknown label is a fault."""
    indices = set()
    for label in row.labels:
        if label in classes.index_of_name:
            indices.add(classes.index_of_name[label])
            continue
        message = f"label {label!r:.100} of {row.image} is none of the {len(classes)} classes"
        faults.append(Problem(str(path), row.source, message + hint(label), kind="unknown label"))
    return tuple(sorted(indices))


def _hints(names: Sequence[str]) -> Callable[[str], str]:
    """A function that says which of `names` a label may stand for; for the first few labels."""
    asked: dict[str, str] = {}

    def hint(label: str) -> str:
        if label not in asked and len(asked) < HINTS:
            close = difflib.get_close_matches(label[:100], names, n=1)
            asked[label] = f"; did you mean {close[0]!r}?" if close else ""
        return asked.get(label, "")

    return hint


def _below(file: Path, folder: Path) -> str:
    """The path of a file from a folder on, its parts parted by /."""
    return file.relative_to(folder).as_posix()


def _name(image: str) -> str:
    """The sample's name: the image path without suffix."""
    return PurePosixPath(image).with_suffix("").as_posix()
