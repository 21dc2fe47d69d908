"""Helpers of the sources: find files on disk, read lists, collect or raise faults."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from weaktr import files, tars
from weaktr.data.manifest import Manifest
from weaktr.data.problems import DataError, Problem

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
#: Photographs of formats that are not looked for.
OTHER_SUFFIXES = (
    *(".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".gif", ".jfif", ".jpe", ".tga"),
    *(".ppm", ".pgm", ".pnm", ".psd", ".exr", ".hdr", ".raw", ".dng", ".cr2", ".cr3", ".crw"),
    *(".nef", ".nrw", ".arw", ".sr2", ".srf", ".orf", ".rw2", ".raf", ".pef", ".srw", ".3fr"),
)
ALL_SUFFIXES = (*IMAGE_SUFFIXES, *OTHER_SUFFIXES)


def require_folder(root: str | Path, name: str = "root") -> Path:
    """`root` as a path.

    Args:
        root: the folder.
        name: what it is called where it is given.

    Raises:
        ValueError: there is no such folder.
    """
    folder = Path(root)
    if not folder.is_dir():
        what = "a file" if folder.is_file() else "nothing of that name"
        raise ValueError(f"{name}: expected a folder, got {str(root)!r}, where there is {what}")
    return folder


def first_folder(candidates: Iterable[Path]) -> Path | None:
    """The first of `candidates` that is a folder, or None."""
    return next((folder for folder in candidates if os.path.isdir(folder)), None)


def first_file(candidates: Iterable[Path]) -> Path | None:
    """The first of `candidates` that is a file, or None."""
    return next((file for file in candidates if os.path.isfile(file)), None)


def read_text(path: Path, *, line_ends: bool = False) -> str:
    """`weaktr.files.read_text` of a list or label file, with faults as `DataError`."""
    with _faults_of(path):
        return files.read_text(path, line_ends=line_ends)


def read_json(path: Path, *, finite: bool = True) -> Any:
    """`weaktr.files.read_json`, with faults as `DataError`."""
    with _faults_of(path):
        return files.read_json(path, finite=finite)


def read_xml(path: Path) -> ElementTree.Element:
    """The root of an XML file. Entities are not fetched from elsewhere, nor multiplied without end.

    Raises:
        ValueError: it cannot be read, or is no XML; says what to do, not which file.
    """
    try:
        return ElementTree.parse(path).getroot()
    except Exception as error:  # of any kind, from bytes that anybody wrote
        remedy = "; save it as UTF-8" if "encoding" in str(error) else ""
        raise ValueError(f"expected XML, got: {error}{remedy}") from error


@contextmanager
def _faults_of(path: Path) -> Iterator[None]:
    """Raise errors in reading a file, which name it, as a `DataError` of that file."""
    try:
        yield
    except FileNotFoundError as error:
        raise DataError(Problem(str(path), "", "file is missing")) from error
    except ValueError as error:
        message = str(error).removeprefix(f"{path}: ")
        raise DataError(Problem(str(path), "", message)) from error


def read_lines(path: Path) -> list[tuple[int, str]]:
    """(line number from 1, text without blanks around it) of every line that is not blank.

    Line feeds and carriage returns end a line; other characters that do so elsewhere, such as
    U+2028, may be part of a name.
    """
    numbered = enumerate(read_text(path).split("\n"), start=1)
    return [(number, line.strip(" \t")) for number, line in numbered if line.strip()]


def flag(text: str) -> bool | None:
    """Whether a text says yes or no (an empty one says no); None = neither."""
    word = text.strip().lower()
    if word in ("1", "1.0", "true", "yes"):
        return True
    return False if word in ("", "0", "0.0", "false", "no") else None


def collect_or_raise(
    manifest: Manifest, faults: list[Problem], problems: list[Problem] | None
) -> Manifest:
    """Collect the faults of a data set in a list, or raise them; the last step of every source.

    Args:
        manifest: the data set, as far as it could be read.
        faults: met while reading it.
        problems: None = any fault, or any missing file, is an error; a list = the faults are added
            to it, unless it is `faults`, and the manifest is returned (missing files are then left
            to `weaktr.data.check`).

    Returns:
        `manifest`.

    Raises:
        DataError: `problems` is None and there are faults; names all of them.
    """
    if problems is not None:
        if faults is not problems:
            problems.extend(faults)
        return manifest
    if everything := [*faults, *manifest.repeated_names(), *missing_files(manifest)]:
        raise DataError(everything)
    return manifest


def missing_files(manifest: Manifest) -> list[Problem]:
    """A problem for every image or mask of a manifest that is not there."""
    return [
        Problem(str(path), sample.source, "file is missing")
        for sample in manifest
        for path in (sample.image, sample.mask)
        if path is not None and not tars.is_file(path)
    ]
