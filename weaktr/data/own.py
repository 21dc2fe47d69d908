"""A folder of somebody's photographs as it is: what lies in it, and what it says they show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from PIL import Image

from weaktr.contents import Contents
from weaktr.data.classes import Classes
from weaktr.data.io import open_image, orientation
from weaktr.data.label_files import Row
from weaktr.data.layout import IMAGE_SUFFIXES, OTHER_SUFFIXES, first_file, require_folder
from weaktr.data.listing import beside_in_words, files_but_results, photographs_beside
from weaktr.data.manifest import name_fault
from weaktr.data.names import class_list
from weaktr.data.parallel import ordered_map
from weaktr.data.problems import DataError
from weaktr.data.tags import FIRST, OWN, Tags, labelme, read_tags, tags_below
from weaktr.data.tags.places import Matched, matched
from weaktr.messages import counted, few
from weaktr.progress import track

#: Fewer photographs, in all and of a class, are too few to expect much; more take long.
FEW, FEW_OF_CLASS, MANY = 20, 5, 20_000
#: What tools put behind the name of a photograph for its mask, or one of its masks.
_MASK_ENDING = re.compile(
    r"[ ._-](masks?|seg|segmentation|gt|labels?)([ _-]?[0-9]+)?$", re.IGNORECASE
)


@dataclass(frozen=True)
class Header:
    """What the header of a photograph says: its format, sides in pixels, whether EXIF turns it."""

    format: str
    size: tuple[int, int]
    is_turned: bool


@dataclass(frozen=True)
class OwnPhotographs:
    """A folder of photographs with image-level labels.

    Args:
        root: the folder.
        images: in which the photographs lie: `root` or ``root/images``.
        photographs: path below `images` -> file.
        beside: photographs that lie beside `images`.
        masks: images in ``root/masks`` that count as true masks though none is called like a
            photograph.
        others: photographs of formats that are not read.
        left_out: photographs that cannot be used, and why.
        tags: the labels as they are written.
        found: whose labels they are.
        classes: in class order.
        held_out: the photographs of the user's own val.csv; None = there is none.
        in_both: those of them that the user's train.csv has as well.
    """

    root: Path
    images: Path
    photographs: dict[str, Path]
    beside: list[Path]
    masks: list[Path]
    others: list[Path]
    left_out: list[str]
    tags: Tags
    found: Matched
    classes: Classes
    held_out: frozenset[str] | None
    in_both: frozenset[str] = frozenset()

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Path of each photograph with known labels -> its class names."""
        return self.found.labels

    @property
    def is_ready(self) -> bool:
        """Whether the source ``folder`` reads the label files as they are."""
        path, found = self.tags.path, self.found
        return (
            self.tags.form == OWN
            and path.parent == self.root
            and path.stem in ("train", "labels")
            and not (found.missing or found.unclear or found.disputed or found.otherwise)
            and not self.in_both
        )

    def headers(self) -> dict[str, Header]:
        """The headers of the photographs with known labels; of those that can be opened."""
        paths = [self.photographs[name] for name in self.labels]
        read = track(ordered_map(_header, paths), "looking at headers", len(paths), is_minor=True)
        pairs = zip(self.labels, read, strict=True)
        return {name: header for name, header in pairs if header is not None}

    def copies(self) -> list[list[str]]:
        """Groups of photographs with known labels and of one content; of those that can be read."""
        of_size: dict[int, list[str]] = {}
        for name in self.labels:
            with suppress(OSError):  # the check of the data names it, here and below
                of_size.setdefault(self.photographs[name].stat().st_size, []).append(name)
        contents = Contents()
        same: dict[str, list[str]] = {}
        for name in (name for names in of_size.values() if len(names) > 1 for name in names):
            with suppress(OSError):
                same.setdefault(contents.digest(self.photographs[name]), []).append(name)
        return [sorted(names) for names in same.values() if len(names) > 1]


def look_at(
    root: Path, labels: Path | None, classes: Path | None, own: Collection[Path] = ()
) -> OwnPhotographs:
    """Look at a folder of photographs and find their labels.

    Args:
        root: the folder.
        labels: the label file, or a folder of LabelMe's; None = it is looked for.
        classes: a text file with a class name a line; None = ``root/classes.txt``, else all that a
            photograph shows, those that the labels declare in that order, then the others by name.
        own: files in `root` that weaktr wrote, so that they are not the labels unless `labels`
            says so.

    Raises:
        ValueError: no photographs, no labels or several, labels of none of the photographs, or
            names that are no classes; says what to do.
        DataError: a label file is wrong; names the place.
    """
    root = require_folder(root, "PHOTOS")
    images = root / "images" if (root / "images").is_dir() else root
    below = sorted(files_but_results(images))
    masks, unlike = _masks(below, root)
    photographs, others, left_out = _photographs(below, images, masks)
    if not photographs:
        told = f", but {few(others)}: convert these to JPEG or PNG" if others else ""
        raise ValueError(f"{root}: expected photographs below {images}, found none{told}")
    if labels is not None and labels.parent.resolve() == root.resolve():
        labels = root / labels.name
    if labels is None:
        tags = tags_below(root, images, photographs, own)
    else:
        tags = _instead_of_others(read_tags(labels, images), root, own)
    tags = _seen_from_beside(tags, images, photographs)
    rows, rows_of_val = tags.rows, None
    is_own = tags.path in own
    beside = [root / name for name in ("val.csv", "val.json")]
    val = first_file(file for file in beside if is_own or file not in own)
    if tags.path.stem == "train" and tags.path.parent == root and val is not None:
        of_val = read_tags(val)
        rows_of_val = of_val.rows
        rows = [*rows, *of_val.rows]
        tags = replace(tags, doubts=(*tags.doubts, *(f"{val.name}: {d}" for d in of_val.doubts)))
        if of_val.form != tags.form:
            tags = replace(tags, form=f"{tags.form}; {val.name}: {of_val.form}")
    found = matched(rows, list(photographs))
    if not found.labels:
        if reason := next(_left_out(found), None):
            raise ValueError(f"{tags.path}: {reason}")
        raise ValueError(
            f"{tags.path}: none of its {len(rows)} images is below {images}, such as "
            f"{rows[0].image!r:.200}; there are {few(sorted(photographs))}"
        )
    held_out = None if rows_of_val is None else _meant(rows_of_val, found, list(photographs))
    in_both = (held_out or frozenset()) & _meant(tags.rows, found, list(photographs))
    known = _classes(root, classes, tags, found)
    beside = photographs_beside(root, images)
    return OwnPhotographs(
        root, images, photographs, beside, unlike, others, left_out, tags, found, known, held_out,
        in_both,
    )  # fmt: skip


def _seen_from_beside(tags: Tags, images: Path, photographs: Collection[str]) -> Tags:
    """Tags whose paths start at the label file's own folder, where all its photographs lie."""
    folder, base = tags.path.absolute().parent, images.absolute()
    is_placed = tags.form == labelme.NAME or tags.path.is_dir()
    if is_placed or folder == base or not folder.is_relative_to(base):
        return tags
    before = folder.relative_to(base).as_posix()
    paths = [f"{before}/{row.image.strip().removeprefix('./')}" for row in tags.rows]
    if not all(path in photographs for path in paths):
        return tags
    pairs = zip(tags.rows, paths, strict=True)
    return replace(tags, rows=[replace(row, image=path) for row, path in pairs])


def _instead_of_others(tags: Tags, root: Path, own: Collection[Path]) -> Tags:
    """Labels of a file that was named, with a doubt where a folder has others, but those `own`."""
    files = (root / f"{name}{suffix}" for name in FIRST for suffix in (".csv", ".json"))
    passed = [file.name for file in files if file.is_file() and file not in {*own, tags.path}]
    if not passed:
        return tags
    note = f"--labels {tags.path.name} counts, not {few(passed)}"
    return replace(tags, doubts=(*tags.doubts, note))


def _meant(rows: list[Row], found: Matched, photographs: Sequence[str]) -> frozenset[str]:
    """The photographs of some of the rows of which `found` tells."""
    there = set(rows) - set(found.missing)
    return frozenset(matched(there, photographs).labels) & found.labels.keys()


def _masks(files: Sequence[Path], root: Path) -> tuple[set[Path], list[Path]]:
    """The files of a folder that count as true masks: all in ``masks``, unless it is a class's.

    Args:
        files: below `root`, or below ``root/images``, where there are none.
        root: the folder.

    Returns:
        Them; and the images among them where no photograph has the name of one.
    """
    inside = {file for file in files if file.is_relative_to(root / "masks")}
    images = sorted(file for file in inside if file.suffix.lower() in IMAGE_SUFFIXES)
    names = {file.relative_to(root / "masks").with_suffix("") for file in images}
    if any(file.relative_to(root).with_suffix("") in names for file in files):
        return inside, []
    if all(file.suffix.lower() == ".png" for file in images):
        return inside, images
    return set(), []


def _photographs(
    files: Iterable[Path], images: Path, masks: Collection[Path]
) -> tuple[dict[str, Path], list[Path], list[str]]:
    """Photographs among files below a folder, those of other formats, and why some cannot be used.

    True masks are none.
    """
    found: dict[str, Path] = {}
    others, left_out = [], []
    first: dict[str, str] = {}
    for file in files:
        name, suffix = file.relative_to(images).as_posix(), file.suffix.lower()
        if file in masks or file.is_dir():
            continue
        if suffix in OTHER_SUFFIXES:
            others.append(file)
        if suffix not in IMAGE_SUFFIXES:
            continue
        bare = PurePosixPath(name).with_suffix("").as_posix()
        earlier = first.setdefault(bare, name)
        if not _is_text(name):
            left_out.append(f"{name!a}: its name is not text in UTF-8: rename it")
        elif (fault := name_fault(bare)) is not None:
            left_out.append(f"{name}: {fault}")
        elif earlier != name:
            left_out.append(f"{name}: differs from {earlier} in the suffix alone: rename one")
        else:
            found[name] = file
    return found, others, left_out


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _classes(root: Path, given: Path | None, tags: Tags, found: Matched) -> Classes:
    """The classes, see `look_at`."""
    shown = {label for labels in found.labels.values() for label in labels}
    file = given or first_file([root / "classes.txt"])
    if file is None:
        declared = [name.strip() for name in tags.classes if name.strip() in shown]
        try:
            known = Classes((*declared, *sorted(shown - set(declared))))
        except ValueError as error:
            raise ValueError(f"{tags.path}: {error}") from error
    else:
        known = class_list(file)
        if unknown := sorted(shown - set(known.names)):
            raise ValueError(
                f"{file}: expected all classes of {tags.path}, {few(unknown)} are missing; add "
                "them, or correct the labels"
            )
    if not known.names:
        raise ValueError(f"{tags.path}: expected at least one class, no photograph has a label")
    return known


def _header(file: Path) -> Header | None:
    def read(image: Image.Image) -> Header:
        return Header(image.format or "?", image.size, orientation(image) != 1)

    try:
        return open_image(file, "", read)
    except DataError:  # the check of the data names it
        return None


def _left_out(found: Matched) -> Iterator[str]:
    """Why photographs have no labels though rows speak of them, a sentence each."""
    for row, meant in found.unclear[:1]:
        more = len(found.unclear)
        yield f"{more} listed images may be several, such as {row.image} ({few(meant)}): left out"
    for path, rows in found.disputed[:1]:
        among = f", among them {path}" if (more := len(found.disputed)) > 1 else f": {path}"
        are = counted(more, "photograph is", "photographs are")
        yield (
            f"{are} meant by several paths with different labels and left out{among} "
            f"({few([row.image for row in rows])})"
        )


def _like_masks(names: Collection[str]) -> dict[str, str]:
    """The photographs that are called like another with an ending for masks -> that other one.

    Args:
        names: paths of photographs.
    """
    of_bare = {PurePosixPath(name).with_suffix("").as_posix(): name for name in names}
    found = {}
    for bare, name in of_bare.items():
        ending = _MASK_ENDING.search(bare)
        if ending is not None and (photograph := of_bare.get(bare[: ending.start()])) is not None:
            found[name] = photograph
    return found


def _not_used(own: OwnPhotographs) -> Iterator[str]:
    """Which images in the folder are no photographs to train with, and why, a sentence each."""
    if unlisted := sorted(own.photographs.keys() - own.labels.keys()):
        has = counted(
            len(unlisted), "photograph has no labels and is", "photographs have no labels and are"
        )
        yield f"{has} not used: {few(unlisted)}"
    if own.beside:
        yield f"{beside_in_words(own.beside, own.root)} not used: move them into it"
    if own.masks:
        names = few([path.name for path in own.masks])
        yield (
            f"masks/ counts as true masks, though none of its {len(own.masks)} images ({names}) "
            "has the name of a photograph; if it is a class, call the folder otherwise"
        )
    if own.others:
        names = few([path.name for path in own.others])
        others = counted(len(own.others), "photograph is", "photographs are")
        yield f"{others} of other formats: convert {names} to JPEG or PNG"
    if own.left_out:
        left = counted(len(own.left_out), "photograph is", "photographs are")
        yield f"{left} left out: {few(own.left_out, between='; ')}"


def doubts(own: OwnPhotographs, held_out: Collection[str]) -> Iterator[str]:
    """What should be looked at before training, a sentence each; beside what `check` finds.

    Args:
        own: the photographs.
        held_out: those that are not trained on.
    """
    yield from own.tags.doubts
    found, labels = own.found, own.labels
    declared = [name.strip() for name in own.tags.classes]
    if unseen := [name for name in declared if name not in own.classes.index_of_name]:
        are = counted(len(unseen), "class is", "classes are")
        yield f"{are} in no photograph and left out: {few(unseen)}"
    if found.missing:
        missing = list(dict.fromkeys(row.image for row in found.missing))
        listed = counted(len(missing), "listed image is", "listed images are")
        yield f"{listed} not below {own.images}: {few(missing)}"
    yield from _left_out(found)
    if found.otherwise:
        written, path = found.otherwise[0]
        yield (
            f"{counted(len(found.otherwise), 'image was', 'images were')} found by the end of the "
            f"path, such as {path} for {written}"
        )
    if own.in_both:
        are = counted(len(own.in_both), "photograph is", "photographs are")
        yield (
            f"{are} in {own.tags.path.name} and in your val split ({few(sorted(own.in_both))}): "
            "held out, not trained on; leave them in one of the two"
        )
    yield from _not_used(own)
    if masks := _like_masks(labels):
        name, photograph = min(masks.items())
        place = PurePosixPath("masks", photograph).with_suffix(".png")
        are = counted(len(masks), "photograph is", "photographs are")
        yield (
            f"{are} called like another and then mask or the like ({few(sorted(masks))}); if these "
            f"are true masks, move each to where masks are looked for: {name} to {place}"
        )
    counts = Counter(label for names in labels.values() for label in names)
    if rare := [f"{n} ({counts[n]})" for n in own.classes.names if counts[n] < FEW_OF_CLASS]:
        have = counted(len(rare), "class has", "classes have")
        yield (
            f"{have} fewer than {FEW_OF_CLASS} photographs ({few(rare)}): expect poor masks of "
            "them; more photographs of them help most, or labels that put classes together"
        )
    if all(labels.values()):
        yield (
            "every photograph shows a class: add some that show none, with an empty cell in place "
            "of labels; they teach what the classes do not look like"
        )
    if len(labels) < FEW:
        are = counted(len(labels), "photograph is", "photographs are")
        yield f"{are} very few: 50 are a start, hundreds are better"
    if len(labels) > MANY:
        yield f"{len(labels):,} photographs: the recipe was made for at most {MANY:,}"
    apart = set(held_out)
    for group in own.copies():
        both = 0 < len(apart.intersection(group)) < len(group)
        where = ", held out and trained on: remove one" if both else ""
        differ = len({frozenset(labels[name]) for name in group}) > 1
        told = ", with other labels: correct one of them" if differ else ""
        yield f"{few(group)} are the same photograph{where}{told}"
