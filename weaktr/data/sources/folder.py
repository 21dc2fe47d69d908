"""Photographs of your own: a folder of images and a CSV or JSON that says what they show.

Label files:

* CSV ``image,labels`` with a header; several labels are separated by ``;`` or ``|``::

      image,labels
      cats/001.jpg,cat;sofa

* CSV with a column of 0 and 1 for each class: ``image,cat,dog``;
* JSON ``{"cats/001.jpg": ["cat", "sofa"]}``.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from weaktr.data.classes import Classes
from weaktr.data.layout import (
    IMAGE_SUFFIXES,
    collect_or_raise,
    first_file,
    read_lines,
    read_text,
    require_folder,
)
from weaktr.data.manifest import Exif, Manifest, Sample, is_inside, require_exif
from weaktr.data.problems import DataError, Problem
from weaktr.files import files_below

_SEPARATOR = re.compile("[;|]")
_YES = {"1", "1.0", "true", "yes"}
_NO = {"", "0", "0.0", "false", "no"}


@dataclass(frozen=True)
class Row:
    """One image of a label file: its path as written, its class names, its file and line."""

    image: str
    labels: tuple[str, ...]
    source: str


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
            the label file, sorted. Names in the files of other splits (``train``, ``val``,
            ``test``) in `root` count as well, so that all splits have the same classes.
        images: where the image paths of the label file start. None = ``root/images``, and `root`
            itself for paths that are not there.
        masks: folder of true masks (for evaluation only): ``<image path without suffix>.png``,
            pixel 0 = background, ``k + 1`` = class index k, 255 = ignore. None = ``root/masks``.
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
    faults: list[Problem] = []
    rows, columns = _read(path, faults)
    others = [] if labels_file else _other_splits(root, path)
    known = _classes(classes, root, columns, [*rows, *others])
    image_root = Path(images) if images else root / "images"
    mask_root = Path(masks) if masks else root / "masks"
    samples = []
    for row in _unrepeated(rows, path, faults):
        name, relative = _name(row.image), row.image.replace("\\", "/")
        candidates = [image_root / relative, root / relative]
        image = first_file(candidates) or candidates[0 if image_root.is_dir() else 1]
        mask = first_file([mask_root / f"{name}.png"])
        labels = _indices(row, known, path, faults)
        samples.append(Sample(name, image, labels, mask, row.source, exif=exif))
    return collect_or_raise(Manifest("folder", split, known, tuple(samples)), faults, problems)


def label_file(root: str | Path, split: str = "train") -> Path | None:
    """The file that says what the images of a folder show, see `folder`; None = there is none."""
    return first_file(
        Path(root) / f"{stem}{suffix}" for stem in (split, "labels") for suffix in (".csv", ".json")
    )


def unlabelled(
    root: str | Path,
    classes: Sequence[str] = (),
    *,
    split: str = "all",
    exif: Exif = "ignore",
) -> Manifest:
    """All images below a folder, without labels: for prediction.

    Args:
        root: searched at every depth for jpg, jpeg, png, bmp, webp, tif, tiff; hidden files and
            folders, and what systems put beside data, are left out (`weaktr.files.is_clutter`).
        classes: names of the model's classes, if the manifest is to carry them.
        split: name of the part.
        exif: see `folder`.

    Returns:
        A manifest with labels and masks None, sorted by path. A link to a file that is not there
        is among them: who reads it says so.

    Raises:
        ValueError: no such folder, no image in it, or an unknown `exif`.
        DataError: two images differ only in suffix, so their results would have the same name.
    """
    root, exif = require_folder(root), require_exif(exif)
    files = sorted(file for file in files_below(root) if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"root: expected images below {root}, found none")
    rows = [Row(file.relative_to(root).as_posix(), (), str(root)) for file in files]
    faults: list[Problem] = []
    samples = tuple(
        Sample(_name(row.image), root / row.image, None, None, row.source, exif=exif)
        for row in _unrepeated(rows, root, faults)
    )
    if faults:
        raise DataError(faults)
    return Manifest("images", split, Classes(tuple(classes)), samples)


def _read(path: Path, faults: list[Problem]) -> tuple[list[Row], tuple[str, ...] | None]:
    """Rows of a label file, and the class names of its header where it has a column for each."""
    if path.suffix.lower() == ".csv":
        return _read_csv(path, faults)
    if path.suffix.lower() == ".json":
        return _read_json(path, faults), None
    raise ValueError(f"labels_file: expected a .csv or .json, got {str(path)!r}")


def _read_csv(path: Path, faults: list[Problem]) -> tuple[list[Row], tuple[str, ...] | None]:
    reader = csv.reader(read_text(path).splitlines(keepends=True), skipinitialspace=True)
    header = [cell.strip() for cell in next(reader, [])]
    if header[:1] != ["image"] or len(header) < 2 or ("labels" in header and len(header) != 2):
        message = f"expected the header image,labels or image,<class>,<class>,..., got {header}"
        raise DataError(Problem(str(path), f"{path}:1", message))
    columns = None if header[1] == "labels" else tuple(header[1:])
    if columns and len(set(columns)) != len(columns):
        raise DataError(Problem(str(path), f"{path}:1", f"a class stands twice in {header}"))
    rows = []
    for cells in reader:
        source = f"{path}:{reader.line_num}"
        values = [cell.strip() for cell in cells]
        if not any(values):
            continue
        if len(values) != len(header):
            message = f"expected {len(header)} columns, got {len(values)}"
            if columns is None and len(values) > 2:
                message += "; part several labels by ; or |"
            faults.append(Problem(str(path), source, message))
        elif columns is None:
            labels = (label.strip() for label in _SEPARATOR.split(values[1]))
            rows.append(Row(values[0], tuple(filter(None, labels)), source))
        else:
            if wrong := [value for value in values[1:] if value.lower() not in _YES | _NO]:
                message = f"expected 0 or 1 in the class columns, got {wrong[0]!r}"
                faults.append(Problem(str(path), source, message))
            pairs = zip(columns, values[1:], strict=True)
            shown = tuple(name for name, value in pairs if value.lower() in _YES)
            rows.append(Row(values[0], shown, source))
    return rows, columns


def _read_json(path: Path, faults: list[Problem]) -> list[Row]:
    pairs: list[tuple[str, Any]] = []

    def outermost(items: list[tuple[str, Any]]) -> dict[str, Any]:
        pairs[:] = items  # called last for the outermost object; keeps keys that occur twice
        return dict(items)

    try:
        content = json.loads(read_text(path), object_pairs_hook=outermost)
    except json.JSONDecodeError as error:
        raise DataError(Problem(str(path), f"{path}:{error.lineno}", error.msg)) from error
    if not isinstance(content, dict):
        message = f'expected {{"image": ["label", ...]}}, got a {type(content).__name__}'
        raise DataError(Problem(str(path), "", message))
    rows = []
    for image, labels in pairs:
        source = f"{path}[{json.dumps(image, ensure_ascii=False)}]"
        if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
            message = f"expected a list of class names, got {labels!r:.60}"
            faults.append(Problem(str(path), source, message))
        else:
            rows.append(Row(image, tuple(labels), source))
    return rows


def _other_splits(root: Path, path: Path) -> list[Row]:
    """The rows of the label files of the other splits beside `path`; their faults are ignored."""
    files = [
        root / f"{stem}{suffix}"
        for stem in ("train", "val", "test")
        for suffix in (".csv", ".json")
    ]
    return [row for file in files if file.is_file() and file != path for row in _read(file, [])[0]]


def _classes(
    given: Sequence[str] | str | Path | None,
    root: Path,
    columns: tuple[str, ...] | None,
    rows: list[Row],
) -> Classes:
    """The classes, see `folder`."""
    if given is None:
        file = first_file([root / "classes.txt"])
    elif isinstance(given, str | Path):
        file = Path(given)
    else:
        return Classes(tuple(given))
    if file is not None:
        return Classes(tuple(line for _, line in read_lines(file)))
    return Classes(columns or tuple(sorted({label for row in rows for label in row.labels})))


def _unrepeated(rows: list[Row], path: Path, faults: list[Problem]) -> list[Row]:
    """The rows whose image stays in its folder and whose name is new."""
    first: dict[str, Row] = {}
    for row in rows:
        if not is_inside(row.image):
            message = f"expected an image path below the image folder, got {row.image!r}"
            faults.append(Problem(str(path), row.source, message))
            continue
        earlier = first.setdefault(_name(row.image), row)
        if earlier is row:
            continue
        message = f"{row.image!r} was already declared as {earlier.image!r} at {earlier.source}"
        if row.image != earlier.image:
            message += "; paths must differ before the suffix"
        faults.append(Problem(str(path), row.source, message))
    return list(first.values())


def _indices(row: Row, classes: Classes, path: Path, faults: list[Problem]) -> tuple[int, ...]:
    """Ascending class indices of a row's labels; each unknown label is a fault."""
    indices = set()
    for label in row.labels:
        if label in classes.index_of_name:
            indices.add(classes.index_of_name[label])
            continue
        message = f"label {label!r} of {row.image} is none of the {len(classes)} classes"
        if close := difflib.get_close_matches(label, classes.names, n=1):
            message += f"; did you mean {close[0]!r}?"
        faults.append(Problem(str(path), row.source, message))
    return tuple(sorted(indices))


def _name(image: str) -> str:
    """The sample's name: the image path without suffix."""
    return PurePosixPath(image.replace("\\", "/")).with_suffix("").as_posix()
