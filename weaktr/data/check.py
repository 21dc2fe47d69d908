"""Find everything that is wrong with a data set before a run finds it."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from weaktr import tars
from weaktr.data.classes import COCO90, COCO_UNUSED, IGNORE, NUMBERED, Classes, palette
from weaktr.data.io import (
    ACROSS,
    check_is_8_bit,
    check_is_undamaged,
    open_image,
    orientation,
    orientation_entry,
    outside_message,
    read_stored_labels,
    size_message,
    to_labels,
)
from weaktr.data.manifest import Exif, Manifest, Sample, name_fault
from weaktr.data.names import HEADINGS
from weaktr.data.parallel import ordered_map, usable_cores
from weaktr.data.problems import DataError, Problem
from weaktr.data.tags.names import NONE
from weaktr.messages import brief, counted, few

__all__ = ["Problem", "check", "near_names"]

#: VOC colour -> label.
_LABEL_OF_COLOUR = {tuple(colour): label for label, colour in enumerate(palette().tolist())}
#: How many zeros at the end of a file are no chance; of a JPEG, whose end is marked, few.
_ZEROS, _ZEROS_OF_JPEG = 512, 16
_END_OF_JPEG = b"\xff\xd9"
#: A text that is more likely a list of names than one name.
_LIST = re.compile(r"[,;|\t]|^\s*[\[({].*[\])}]\s*$")


def check(
    manifest: Manifest,
    *,
    others: Sequence[Manifest] = (),
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    problems: list[Problem] | None = None,
) -> list[Problem]:
    """Read every image and mask of a manifest and list all faults.

    Errors: an image or mask that is missing, truncated or corrupt; a label outside the class
    list; a mask of another size than its image; mask values outside the classes; a name twice, or
    one that no mask can have; an image under two names with different labels; an image of another
    split; other classes than another split.
    Warnings: images without any label; a mask class that the image's labels do not have, a mask
    with none of them, or with the colours of other labels; labels or masks for only a part of the
    images; a class that no image, one image or every image shows; class names that may be meant as
    one, as background or none, as several, as a heading or as a label; names that differ in case
    alone; an image under two names; EXIF rotation; further pictures in a file; zeros where a file
    should have pixels.

    Args:
        manifest: the data set.
        others: other splits of it. Those with a name that begins with "train" may share images
            with each other, all others may not.
        workers: threads that decode; None = the number of CPU cores, at most 8.
        progress: called with (samples checked, samples in all) after each sample.
        problems: a list to add the faults to, such as `Findings`, which stays small.

    Returns:
        The faults in the order of the manifest, those of the whole set last; or `problems`.

    Raises:
        ValueError: `workers` < 1.
    """
    if workers is None:
        workers = min(8, usable_cores())
    if workers < 1:
        raise ValueError(f"workers: expected >= 1, got {workers}")
    found: list[Problem] = [] if problems is None else problems
    faults = ordered_map(lambda s: _check_sample(s, manifest.classes), manifest.samples, workers)
    for number, of_sample in enumerate(faults, start=1):
        found.extend(of_sample)
        if progress is not None:
            progress(number, len(manifest))
    if len(manifest) == 0:
        found.append(Problem(manifest.name, f"split {manifest.split}", "holds no images"))
        return found
    found.extend(_check_names(manifest))
    for other in others:
        found.extend(_check_other_split(manifest, other))
    for message in (*_check_counts(manifest), *_check_class_names(manifest.classes)):
        where = f"split {manifest.split}"
        found.append(Problem(manifest.name, where, message, "warning"))
    return found


def _check_sample(sample: Sample, classes: Classes) -> list[Problem]:
    problems: list[Problem] = []
    photograph = None
    try:
        photograph = open_image(sample.image, sample.source, lambda image: _opened(image, sample))
        problems += _check_orientation(sample, photograph)
        if photograph.has_more:
            message = "the file holds several pictures (pages), of which the first alone is used"
            problems.append(_warning(sample, message))
        if photograph.zeros:
            message = (
                f"the file ends in {photograph.zeros} zeros, as a broken copy or a full disk "
                "leaves them, so that a part of the photograph may be blank: copy it anew"
            )
            problems.append(_warning(sample, message, "zeros at the end"))
    except DataError as error:
        problems += error.problems
    if (fault := name_fault(sample.name)) is not None:
        problems.append(_error(sample, f"name: {fault}"))
    elif not sample.name.isprintable():
        message = f"the name has characters that are not to be seen: {sample.name!r:.300}"
        problems.append(_warning(sample, message))
    if sample.labels is not None and not sample.labels:
        message = "has no label: it shows none of the classes, or was forgotten"
        problems.append(_warning(sample, message))
    if outside := [label for label in sample.labels or () if not 0 <= label < len(classes)]:
        last = len(classes) - 1
        message = f"labels outside the class list: expected 0..{last}, got {outside[:10]}"
        problems.append(_error(sample, message))
    if sample.mask is not None:
        problems += _check_mask(sample, classes, photograph)
    return problems


class _Photograph(NamedTuple):
    """What is to be known of a photograph that can be decoded."""

    stored: tuple[int, int]  #: height and width as stored
    how: int  #: see `weaktr.data.io.orientation`
    entry: object  #: the orientation as it stands in EXIF, None = none
    has_more: bool  #: whether the file has other pictures behind this one
    zeros: int  #: see `_zeros_at_end`

    def size(self, exif: Exif) -> tuple[int, int]:
        """Height and width as it is used."""
        is_across = exif == "apply" and self.how in ACROSS
        return self.stored[::-1] if is_across else self.stored


def _opened(image: Image.Image, sample: Sample) -> _Photograph:
    check_is_8_bit(image, sample.image, sample.source)
    check_is_undamaged(image, sample.image, sample.source)
    pixels = image.convert("RGB")
    stored = (pixels.height, pixels.width)
    has_more = image.format != "MPO" and getattr(image, "is_animated", False)  # MPO: a preview
    zeros = _zeros_at_end(image, sample.image)
    return _Photograph(stored, orientation(image), orientation_entry(image), has_more, zeros)


def _zeros_at_end(image: Image.Image, path: Path) -> int:
    """How many zero bytes the file of an open image ends in where a whole one ends in none.

    Decoders make pixels of them without a word. Rows of black pixels may end in zeros, and cameras
    fill up a JPEG behind its end; PNGs have checksums.
    """
    if image.format in ("PNG", "BMP") or image.info.get("compression") == "raw":
        return 0
    content = tars.read_bytes(path)
    written = content.rstrip(b"\0")
    zeros = len(content) - len(written)
    is_jpeg = image.format in ("JPEG", "MPO")
    is_filled_up = is_jpeg and written.endswith(_END_OF_JPEG)
    return zeros if zeros >= (_ZEROS_OF_JPEG if is_jpeg else _ZEROS) and not is_filled_up else 0


def _check_orientation(sample: Sample, photograph: _Photograph) -> list[Problem]:
    """What the orientation in EXIF means for a photograph."""
    entry = photograph.entry
    if entry is None or (type(entry) is int and entry in (0, 1)):  # 0: not known
        return []
    if photograph.how != 1 and sample.exif == "apply":
        return []
    if photograph.how != 1:
        message = (
            "EXIF asks viewers to turn the image; it is used as stored, unturned (exif=apply turns "
            "it)"
        )
        if sample.mask is not None:
            message += "; its mask has to lie on the image as it is used"
    else:
        message = (
            f"EXIF has an orientation that means nothing: expected a whole number from 1 to 8, got "
            f"{entry!r:.60}; the image is used as stored (exif=apply would turn it by a number)"
        )
    return [_warning(sample, message, "EXIF")]


def _check_mask(sample: Sample, classes: Classes, photograph: _Photograph | None) -> list[Problem]:
    assert sample.mask is not None
    try:
        stored = read_stored_labels(sample.mask, sample.source)
    except DataError as error:
        return list(error.problems)
    problems = []
    size = None if photograph is None else photograph.size(sample.exif)
    if photograph is not None and size is not None and stored.shape != size:
        message = size_message("mask", stored.shape, size)
        other: Exif = "apply" if sample.exif == "ignore" else "ignore"
        if photograph.how in ACROSS and stored.shape == photograph.size(other):
            message += f"; with exif={other} they agree"
        problems.append(_of_mask(sample, message, "error"))
    labels, outside = to_labels(stored, classes.num_labels, sample.mask_ids)
    if outside:
        message = outside_message(outside, classes.num_labels, sample.mask_ids)
        problems.append(_of_mask(sample, message, "error"))
    present = np.unique(labels).tolist()
    if (told := _colours_of_others(sample, present)) is not None:
        problems.append(_of_mask(sample, told, "warning", "colours of other labels"))
    if present == [IGNORE]:
        message = f"mask holds only {IGNORE}, which is not counted, so there is nothing to score"
        problems.append(_of_mask(sample, message, "warning"))
    elif sample.labels is not None:
        problems += _compare_labels(sample, present, classes)
    return problems


def _colours_of_others(sample: Sample, present: Sequence[int]) -> str | None:
    """A message where a mask's palette has the VOC colours, but of other labels.

    Programs that shorten a palette renumber the pixels: person, 15, becomes 1 and keeps its colour.
    """
    if sample.mask is None or sample.mask_ids is not None:
        return None
    colours = open_image(sample.mask, sample.source, lambda mask: mask.getpalette("RGB") or [])
    own = {n: tuple(colours[3 * n : 3 * n + 3]) for n in present if 3 * n < len(colours)}
    meant = {number: _LABEL_OF_COLOUR.get(colour) for number, colour in own.items()}
    others = [number for number, label in meant.items() if label != number]
    if not others or None in meant.values():
        return None
    number = others[0]
    return (
        f"the pixels {number} have the VOC colour of label {meant[number]}: the number counts, not "
        "the colour; make the mask again if the colour is meant"
    )


def _compare_labels(sample: Sample, present: Sequence[int], classes: Classes) -> list[Problem]:
    """Where a mask holds other classes than the image-level labels say."""
    drawn = {label - 1 for label in present if label not in (0, IGNORE)}
    told = set(sample.labels or ())
    if extra := sorted(drawn - told):
        names = few([classes.names[index] for index in extra])
        message = f"mask shows {names}, which the image's labels do not have"
        return [_of_mask(sample, message, "warning", "mask shows other classes")]
    if told and not drawn:
        message = f"mask shows none of the image's labels, its values are {few(present)}"
        if IGNORE in present:
            message += f" ({NUMBERED})"
        return [_of_mask(sample, message, "warning", "mask shows no class")]
    return []


def _check_names(manifest: Manifest) -> Iterator[Problem]:
    """Names that stand twice, or that differ in case alone; images under two names."""
    yield from manifest.repeated_names()
    first: dict[str, Sample] = {}
    of_image: dict[Path, Sample] = {}
    for sample in manifest:
        same = of_image.setdefault(sample.image, sample)
        if same.name != sample.name:
            message = f"is the image of {brief(same.name)} too, declared at {same.source}"
            differ = same.labels != sample.labels
            message += ", with other labels: correct one of them" if differ else ""
            level: Literal["error", "warning"] = "error" if differ else "warning"
            yield Problem(str(sample.image), sample.source, message, level, "image under two names")
        earlier = first.setdefault(sample.name.casefold(), sample)
        if earlier.name != sample.name:
            message = (
                f"the names {earlier.name!r} and {sample.name!r} differ in case alone: where file "
                "systems ignore it, one mask would replace the other"
            )
            yield _warning(sample, message, "names that differ in case alone")


def _check_other_split(manifest: Manifest, other: Manifest) -> Iterator[Problem]:
    """Where two splits of a data set do not go together."""
    if manifest.classes != other.classes:
        message = (
            f"other classes than those of split {other.split}: {few(manifest.classes.names)}; "
            f"there {few(other.classes.names)}"
        )
        yield Problem(manifest.name, f"split {manifest.split}", message)
    if manifest.split.startswith("train") and other.split.startswith("train"):
        return
    there = {sample.image: sample for sample in other}
    for sample in manifest:
        if sample.image in there:
            source = there[sample.image].source
            message = f"also in split {other.split}: declared at {source}"
            yield _error(sample, message)


def _check_counts(manifest: Manifest) -> Iterator[str]:
    """What only the number of images with a label or a mask shows."""
    total, names = len(manifest), manifest.classes.names
    labelled = [sample.labels for sample in manifest if sample.labels is not None]
    if 0 < len(labelled) < total:
        yield f"only {len(labelled)} of {total} images have image-level labels"
    masks = sum(sample.mask is not None for sample in manifest)
    if 0 < masks < total:
        yield f"only {masks} of {total} images have a mask; scores cover just these"
    if not labelled:
        return
    counts = Counter(label for labels in labelled for label in set(labels))
    never = COCO_UNUSED if manifest.classes == COCO90 else ()
    seen = {name: counts[index] for index, name in enumerate(names) if name not in never}
    if unseen := [name for name, count in seen.items() if count == 0]:
        yield f"{counted(len(unseen), 'class has', 'classes have')} no image: {few(unseen)}"
    if single := [name for name, count in seen.items() if count == 1]:
        have = counted(len(single), "class has", "classes have")
        yield f"{have} only one image: {few(single)}"
    if always := [name for name, count in seen.items() if count == len(labelled) > 1]:
        are = counted(len(always), "class is", "classes are")
        yield f"{are} in every image, so that nothing shows what they are not: {few(always)}"


def _check_class_names(classes: Classes) -> Iterator[str]:
    """Class names that may be meant otherwise."""
    names = classes.names
    for first, second in near_names(names):
        told = f"two classes that may be meant as one: {first!r} and {second!r}"
        if first.casefold() != second.casefold() and _normal(first) == _normal(second):
            told += f"; their characters differ, {first!a} and {second!a}: keep one"
        yield told
    for name in names:
        if name.strip().lower() in NONE:
            yield (
                f"a class called {name!r}: label 0 is the background already, and is in no list of "
                "classes; an image that shows no class has no label, such as an empty cell"
            )
    if lists := [name for name in names if _LIST.search(name)]:
        yield (
            f"class names that may be meant as several: {few(lists, between=' / ')}: part the "
            "labels of an image by ; or | in a CSV, and make each a text of the list in a JSON"
        )
    if headings := [name for name in names if name.strip().casefold() in HEADINGS]:
        yield (
            f"class names that may be meant as headings of columns: {few(headings)}: the header is "
            "image,labels before names of classes, image,<class>,<class> before 0 and 1"
        )
    numbers = [n for k, n in enumerate(names, start=1) if n.isdecimal() and n.lstrip("0") != str(k)]
    if numbers and classes.ids == tuple(range(1, len(names) + 1)):
        place = names.index(numbers[0]) + 1
        yield (
            f"class names that may be meant as labels of pixels: {few(numbers)}: the place in the "
            f"list of classes counts, so that class {numbers[0]!r} is label {place} in masks"
        )


def _normal(name: str) -> str:
    """A name without what only looks different or cannot be seen: NFKC of Unicode, no case."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())
    return "".join(letter for letter in text if unicodedata.category(letter) != "Cf")


def near_names(names: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of class names that are likely two spellings of one.

    They differ in case, in blanks and marks between words, in a plural s, or, from five
    letters on, in one letter. Names with different digits are different.

    Args:
        names: at most `MAX_CLASSES`, since each is compared with each.
    """
    plain = [(name, plain_name(name)) for name in names]
    return [
        (first, second)
        for (first, a), (second, b) in combinations(plain, 2)
        if abs(len(a) - len(b)) <= 1 and _is_near(a, b)
    ]


def plain_name(name: str) -> str:
    """A class name without case, blanks and marks between words: the same of two spellings."""
    return "".join(filter(_counts, _normal(name)))


def _counts(letter: str) -> bool:
    """Whether a character makes a name another one: blanks, hyphens, dots and the like do not."""
    return unicodedata.category(letter)[0] in "LMNS" or letter in "#*%&@!?"


def _is_near(a: str, b: str) -> bool:
    """Whether two words are the same, but for a plural s or, in long ones, one letter."""
    if b in (a, f"{a}s") or a == f"{b}s":
        return True
    start = next(
        (k for k, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    short, long = sorted((a[start:], b[start:]), key=len)
    if min(len(a), len(b)) < 5 or any(map(str.isdigit, (short[:1], long[:1]))):
        return False
    is_swapped = short[:2] == long[:2][::-1] and short[2:] == long[2:]
    return is_swapped or long[1:] in (short, short[1:])


def _error(sample: Sample, message: str) -> Problem:
    return Problem(str(sample.image), sample.source, message)


def _warning(sample: Sample, message: str, kind: str = "") -> Problem:
    return Problem(str(sample.image), sample.source, message, "warning", kind)


def _of_mask(
    sample: Sample, message: str, level: Literal["error", "warning"], kind: str = ""
) -> Problem:
    return Problem(str(sample.mask), sample.source, message, level, kind)
