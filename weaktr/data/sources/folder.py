"""Photographs of your own: a folder of images and a CSV or JSON that says what they show.

The forms of label files are those of `weaktr.data.label_files`.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, lru_cache
from pathlib import Path, PurePosixPath

from weaktr.data.classes import Classes
from weaktr.data.label_files import LabelFile, Row, read_label_file
from weaktr.data.layout import (
    ALL_SUFFIXES,
    IMAGE_SUFFIXES,
    OTHER_SUFFIXES,
    collect_or_raise,
    first_file,
    first_folder,
    require_folder,
)
from weaktr.data.listing import (
    BESIDE,
    beside_in_words,
    files_but_results,
    in_order,
    path_below,
    paths_but_results,
    photographs_beside,
    photographs_of,
)
from weaktr.data.manifest import Exif, Manifest, Sample, is_inside, require_exif
from weaktr.data.names import HEADINGS, class_list, hints
from weaktr.data.problems import DataError, Problem
from weaktr.data.splits import family, label_file
from weaktr.files import files_below
from weaktr.messages import brief, few
from weaktr.tars import IS_PACKED, PACKED

log = logging.getLogger("weaktr")
#: Paths of images, with a suffix, that need no closer look.
_PLAIN_IMAGE = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*(?<=[\w-])\.\w+")

#: The kind of problem of an image that no label file speaks of.
NOT_LISTED = "image that is not listed"
#: What is wrong with a file among the masks.
NO_MASK = "not read: masks are PNGs, one an image; other formats lose or change labels"
#: The kind of problem of a photograph of a format that is not looked for.
PASSED_OVER = "photograph of another format"


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
            the label file, sorted. The files of other splits (see `family`) in `root` count as
            well, columns in the order of the splits, so that all splits have the same classes in
            the same order.
        images: where the image paths of the label file start. None = ``root/images``, and `root`
            itself for paths that are not there. A path that is no file as it is written is read
            without blanks around it, then with / for \\, then, if it has no suffix, as the one
            image that only lacks it.
        masks: folder of true masks (for evaluation only): ``<image path without suffix>.png`` (or
            ``.PNG``), pixel 0 = background, ``k + 1`` = class index k, 255 = ignore. None =
            ``root/masks``. Of a path that starts above `images` the part below it counts too.
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
        advice = (
            "photographs without labels get masks from weaktr predict with a trained model "
            "(data.source: images in a recipe), and from nothing else"
        )
        if label_file(root) is not None:
            advice = "split 'train' is there, which can be named in place of it"
        raise ValueError(
            f"labels_file: expected {split}.csv, {split}.json, labels.csv or labels.json in "
            f"{root}, found none; {advice}"
        )
    if path.stem == "labels" and split not in ("train", "labels") and not labels_file:
        told = f"{path}: there is no {split}.csv, so split {split} has all images of it"
        _say_once(told, logging.INFO)
    faults: list[Problem] = [] if problems is None else problems
    own = read_label_file(path, faults)
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
    hint = hints(known.names)
    mask_files = in_order(files_below(mask_root, follow=True))
    capital = {_name_below(f, mask_root): f for f in mask_files if f.suffix.lower() == ".png"}
    has_masks = mask_root.is_dir()
    samples = []
    for name, row, image in _unrepeated(own.rows, [image_root, root], path, faults):
        mask = None
        for own_name in _mask_names(name, image, image_root) if has_masks else ():
            exact = first_file([mask_root / f"{own_name}.png"])
            mask = mask or exact or capital.get(own_name)
        labels = _indices(row, known, path, faults, hint)
        samples.append(Sample(name, image, labels, mask, row.source, exif=exif))
    images_used = {sample.image for sample in samples}
    unread = _unread_masks([file for file in mask_files if file not in images_used], samples)
    if problems is not None:
        images_below = image_root if image_root.is_dir() else root
        problems.extend(_not_listed(splits, samples, root, images_below, mask_root))
        problems.extend(Problem(str(file), "", NO_MASK, "warning") for file in unread)
    elif unread:
        _say_once(f"{mask_root}: {_by_suffix(unread)} are {NO_MASK}")
    return collect_or_raise(Manifest("folder", split, known, tuple(samples)), faults, problems)


def _mask_names(name: str, image: Path, images: Path) -> Iterator[str]:
    """The names of a photograph's mask without suffix: its own, and the path below `images`."""
    yield name
    if image.is_relative_to(images) and (other := _name_below(image, images)) != name:
        yield other


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
        root: searched at every depth for jpg, jpeg, png, bmp, webp, tif, tiff. Of the root of a
            data set, its folder of photographs is searched (`photographs_of`), and photographs
            beside ``images`` are left out with a warning. Left out are hidden
            files and folders, what systems put beside data (`weaktr.files.is_clutter`), results of
            weaktr, and true masks; with a warning, photographs of other formats.
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
    given, exif = require_folder(root), require_exif(exif)
    root = photographs_of(given)
    if beside := photographs_beside(given, root):
        message = f"{beside_in_words(beside, given)} left out: move them into it"
        if problems is None:
            log.warning("%s: %s", given, message)
        else:
            problems.append(Problem(str(given), "", message, "warning", BESIDE))
    below = _without_masks(in_order(files_but_results(root)), root)
    closed = [path for path in below if os.path.isdir(path)]
    files = [file for file in below if file.suffix.lower() in IMAGE_SUFFIXES and file not in closed]
    others = [file for file in below if file.suffix.lower() in OTHER_SUFFIXES]
    advice = "of a format that is not looked for: convert to JPEG or PNG"
    if not files and not closed:
        packed = [file.name for file in below if file.name.endswith(PACKED)]
        told = f", but {_by_suffix(others)} {advice}" if others else ""
        told += f", but {few(packed)}: {IS_PACKED}" if packed else ""
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


def _without_masks(files: Sequence[Path], root: Path) -> list[Path]:
    """The files below `root` without those in ``masks`` that are called like a photograph."""
    masks = root / "masks"
    names = {_name_below(file, root) for file in files if file.suffix.lower() in IMAGE_SUFFIXES}
    true = {
        file for file in files if file.is_relative_to(masks) and _name_below(file, masks) in names
    }
    if true:
        log.info("%s: left out: %d masks, which are called like the photographs", masks, len(true))
    return [file for file in files if file not in true]


def _splits(root: Path, own: LabelFile) -> list[LabelFile]:
    """`own` and the label files of the other splits in `root`, whose faults are ignored."""
    stems = family(own.path.stem)
    files = [root / f"{stem}{suffix}" for stem in stems for suffix in (".csv", ".json")]
    found = [
        own if file == own.path else read_label_file(file, []) for file in files if file.is_file()
    ]
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
    Two names of one file, of which one is found in each of `roots`, have the same labels.
    """
    likely = first_folder(roots) or roots[-1]
    there = [root for root in roots if root.is_dir()]
    first: dict[str, Row] = {}
    of_file: dict[Path, Row] = {}
    images, other_spelling = {}, []
    listing = cache(_paths_of_stems)
    for row in rows:
        bare = row.image.strip()
        if not is_inside(bare):
            message = f"expected an image path below the image folder, got {bare!r:.300}"
            faults.append(Problem(str(path), row.source, message, kind="path outside"))
            continue
        spellings = dict.fromkeys((row.image, bare, bare.replace("\\", "/")))
        places = ((spelling, root) for spelling in spellings for root in there)
        place = next(
            ((own, root / own) for own, root in places if os.path.isfile(os.path.join(root, own))),
            None,
        )
        meant = [] if place else _without_suffix(bare, roots, listing)
        if len(meant) > 1:
            message = f"{bare!r:.300} may be {few([path for path, _ in meant])}: write the suffix"
            faults.append(Problem(str(path), row.source, message, kind="path without suffix"))
            continue
        written, image = place or (meant[0] if meant else (bare, likely / bare))
        if written not in (row.image, bare):
            other_spelling.append((bare, written))
        name, found = _name(written), Row(written, row.labels, row.source)
        earlier, same = first.get(name), of_file.setdefault(image, found)
        if earlier is None and set(same.labels) == set(found.labels):
            first[name], images[name] = found, image
            continue
        other = earlier or same
        message = f"{brief(written)} was already declared as {brief(other.image)} at {other.source}"
        if earlier is None:
            message += ", with other labels: correct one of them"
        elif written != other.image:
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
    for file in in_order(files_below(root, follow=True)):
        if file.suffix.lower() in IMAGE_SUFFIXES:
            path = path_below(file, root)
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
def _say_once(told: str, level: int = logging.WARNING) -> None:
    """Log what splits of a data set, or those who read one again, have in common."""
    log.log(level, "%s", told)


def _not_listed(
    splits: Sequence[LabelFile], samples: Sequence[Sample], root: Path, images: Path, masks: Path
) -> Iterator[Problem]:
    """A warning for each image below `images`, and each mask, that no label file speaks of; one for
    those beside them below `root`."""
    files = ", ".join(split.path.name for split in splits)
    listed = {sample.name for sample in samples}
    cells = {row.image for split in splits for row in split.rows}
    written = {path.replace("\\", "/") for cell in cells for path in (cell, cell.strip())}
    above = f"{path_below(images, root)}/" if images.is_relative_to(root) else ""
    for path in written:
        listed |= {path, _name(path), path.removeprefix(above), _name(path).removeprefix(above)}
    own = {sample.image for sample in samples}

    def is_listed_image(path: str) -> bool:
        return path.lower().endswith(ALL_SUFFIXES) and _name_below(path, images) in listed

    def is_meant_beside(file: Path) -> bool:
        """Whether a path written in a label file, with or without suffix, is of this image below
        `root`, and of none below `images`, which count first."""
        path = path_below(file, root)
        return not written.isdisjoint((path, _name(path))) and not os.path.isfile(images / path)

    below = paths_but_results(images)
    for file in in_order(Path(path) for path in below if not is_listed_image(path)):
        if file in own:
            continue
        if file.is_dir():
            yield Problem(str(file), "", "the folder cannot be listed", is_outside=True)
            continue
        if file.suffix.lower() in ALL_SUFFIXES and not file.is_relative_to(masks):
            message = f"no line of {files} lists this image"
            yield Problem(str(file), "", message, "warning", NOT_LISTED)
    others = [
        file for file in photographs_beside(root, images)
        if not (file in own or file.is_relative_to(masks) or is_meant_beside(file))
    ]  # fmt: skip
    if others:
        message = f"{beside_in_words(others, root)} in no line of {files}"
        yield Problem(str(root), "", message, "warning", BESIDE)
    for file in in_order(files_below(masks, follow=True)):
        is_mask = file.suffix.lower() == ".png"
        if is_mask and _name_below(file, masks) not in listed:
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


def _name(image: str) -> str:
    """The sample's name: the image path without suffix."""
    if _PLAIN_IMAGE.fullmatch(image):
        return image[: image.rindex(".")]
    return PurePosixPath(image).with_suffix("").as_posix()


def _name_below(file: Path | str, folder: Path) -> str:
    """`_name` of a file's path from a folder on."""
    return _name(path_below(file, folder))
