"""Lists of names: of samples, such as VOC's ``ImageSets/Segmentation/val.txt``, and of classes."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path, PurePosixPath

from weaktr.data.classes import Classes
from weaktr.data.layout import IMAGE_SUFFIXES, read_lines
from weaktr.data.manifest import Sample
from weaktr.data.problems import DataError, Problem
from weaktr.messages import brief, few

log = logging.getLogger("weaktr")

#: Headings of columns that are more likely than classes of these names.
HEADINGS = {
    *("image", "images", "filename", "label", "labels", "tag", "tags"),
    *("class", "classes", "category", "categories"),
}
#: Unknown labels for which the nearest class is looked for, which takes milliseconds.
HINTS = 200


def read_names(path: Path) -> list[str]:
    """The lines of a list, as they stand in it; `known_names` says which images they mean.

    Raises:
        DataError: missing, no line, a line twice, or one that leads out of a folder.
    """
    number_of: dict[str, int] = {}
    for number, line in read_lines(path):
        source = f"{path}:{number}"
        if ".." in PurePosixPath(line.replace("\\", "/")).parts:
            raise DataError(
                Problem(str(path), source, f"expected a name without '..', got {brief(line)}")
            )
        if line in number_of:
            message = f"{brief(line)} stands in line {number_of[line]} too"
            raise DataError(Problem(str(path), source, message))
        number_of[line] = number
    if not number_of:
        raise DataError(Problem(str(path), "", "expected a name a line, found none"))
    return list(number_of)


def readings(line: str) -> Iterator[str]:
    """The names that a line of a list may mean, the line itself first.

    Others come from a line with the path of an image, which may hold blanks, or with those of an
    image and its mask (as in the lists of psa, ``/JPEGImages/2007_000032.jpg
    /SegmentationClassAug/2007_000032.png``): the image's path without suffix, then without its
    first folder, and so on. Backslashes part folders.
    """
    yield line
    whole, path = line.replace("\\", "/"), _path(line)
    if path != whole:  # of a pair, or it is one image with a blank in its name
        yield str(PurePosixPath(whole).with_suffix(""))
    if not _is_image(path):
        yield path
        return
    parts = [part for part in PurePosixPath(path).with_suffix("").parts if part != "/"]
    for first in range(len(parts)):
        yield "/".join(parts[first:])


def _path(line: str) -> str:
    """The path in a line, its folders parted by /: of a pair of images that of the first."""
    words = line.split()
    is_pair = len(words) == 2 and all(map(_is_image, words))
    return (words[0] if is_pair else line).replace("\\", "/")


def known_names(lines: Sequence[str], known: Container[str]) -> list[str]:
    """The name that each line means: the first of its `readings` that is known.

    A line that means none stays as it is. The log says once if lines are not the names themselves,
    and warns where not all have the same folders before the name: one may be in another folder.

    Raises:
        ValueError: two lines mean the same.
    """
    line_of: dict[str, str] = {}
    for line in lines:
        name = next((reading for reading in readings(line) if reading in known), line)
        if name in line_of:
            raise ValueError(
                f"names: {brief(line_of[name])} and {brief(line)} both mean {brief(name)}"
            )
        line_of[name] = line
    looser = [(line, name) for name, line in line_of.items() if line != name]
    if looser:
        line, name = looser[0]
        log.info("names: %d lines are paths, such as %r, read as %r", len(looser), line, name)
    of_start = {
        _before(line, name): (line, name) for name, line in line_of.items() if name in known
    }
    if len(of_start) > 1:
        told = [f"{brief(line)} as {brief(name)}" for line, name in of_start.values()]
        log.warning("names: the folders left out before names differ: read were %s", few(told, 3))
    return list(line_of)


def _before(line: str, name: str) -> str:
    """The folders in a line before the name that is read in it."""
    stem = PurePosixPath(_path(line)).with_suffix("").as_posix()
    return stem.removesuffix(name) if stem.endswith(f"/{name}") else ""


def class_list(path: Path) -> Classes:
    """The classes of a text file with a name a line.

    Raises:
        DataError: missing, no name, one twice, or too many.
    """
    names = tuple(line.strip() for _, line in read_lines(path))
    if not names:
        raise DataError(Problem(str(path), "", "expected a name a line, found none"))
    try:
        return Classes(names)
    except ValueError as error:
        raise DataError(Problem(str(path), "", str(error))) from error


def _is_image(path: str) -> bool:
    return path.lower().endswith(IMAGE_SUFFIXES)


def only(samples: Sequence[Sample], names: Sequence[str]) -> tuple[Sample, ...]:
    """The samples of these names (see `known_names`), in the order of `names`.

    Raises:
        ValueError: names that no sample has, or two that mean the same.
    """
    known = {sample.name: sample for sample in samples}
    names = known_names(names, known)
    if missing := [name for name in names if name not in known]:
        raise ValueError(f"names: {len(missing)} of {len(names)} have no image: {few(missing)}")
    return tuple(known[name] for name in names)


def hints(names: Sequence[str]) -> Callable[[str], str]:
    """A function that says which of `names` a label may stand for; for the first few labels."""
    asked: dict[str, str] = {}

    def hint(label: str) -> str:
        if label not in asked and len(asked) < HINTS:
            close = difflib.get_close_matches(label[:100], names, n=1)
            asked[label] = f"; did you mean {close[0]!r}?" if close else ""
        return asked.get(label, "")

    return hint
