"""Which class each number in masks and in true masks means, by the names noted with the masks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from weaktr.data import COCO80, COCO90, VOC, Classes
from weaktr.data.check import plain_name
from weaktr.messages import few

log = logging.getLogger("weaktr")

#: The numberings of true masks that have a name; those of coco80 are COCO's ids 1..90.
KNOWN = {"voc12": VOC, "coco14": COCO90, "coco80": COCO80}


def is_coco80(classes: Classes) -> bool:
    """Whether these are COCO's 80 classes, in any order."""
    return set(_plain(classes.names)) == set(_plain(COCO80.names))


def require_told(noted: Classes, masks: Path) -> None:
    """Refuse to guess what numbers true masks of COCO's 80 classes have.

    Raises:
        ValueError: the masks are of these classes, of which there are two numberings.
    """
    if is_coco80(noted):
        raise ValueError(
            f"{masks}: has COCO's 80 classes, and true masks of them hold either COCO's ids 1..90 "
            f"(say --classes coco80) or the masks' own labels 1..80 (say --num-labels "
            f"{noted.num_labels})"
        )


def require_count(noted: Classes, num_labels: int, masks: Path) -> None:
    """Refuse another number of labels than the masks have.

    Raises:
        ValueError: it is another.
    """
    if num_labels != noted.num_labels:
        raise ValueError(
            f"--num-labels {num_labels}: {masks} has {noted.num_labels} labels, background and "
            f"{few(noted.names)}; give that number, or none"
        )


def is_numbered_as(names: Sequence[str], known: Sequence[str]) -> bool:
    """Whether these are the classes of a known numbering in its order, most by the same names."""
    same = sum(a == b for a, b in zip(_plain(names), _plain(known), strict=False))
    return _is_renamed(names, known) and same > len(known) / 2


def by_names(noted: Classes, option: str, masks: Path) -> Classes:
    """The classes of masks, each with its number in true masks of a known numbering.

    Others of that numbering come after them: masks do not show them, true masks may.

    Args:
        noted: the classes of the masks, in their order.
        option: of `KNOWN`, the numbering of the true masks.
        masks: for messages.

    Raises:
        ValueError: the numbering lacks classes of the masks.
    """
    known = KNOWN[option]
    if is_numbered_as(noted.names, known.names):
        _tell_new_names(noted.names, known.names, option)
        return known
    number = dict(zip(_plain(known.names), known.ids, strict=True))
    lacking = [name for name in noted.names if plain_name(name) not in number]
    if lacking:
        raise ValueError(
            f"--classes {option}: lacks {few(lacking)}, classes of {masks}; give a list with "
            "these names, or none where the true masks have the masks' own numbers"
        )
    ids = tuple(number[plain] for plain in _plain(noted.names))
    if ids != known.ids:
        log.info(
            "classes: the numbers in true masks are those of %s; in %s they are those of %s",
            option, masks, few(noted.names),
        )  # fmt: skip
    own = set(ids)
    others = {id: name for name, id in zip(known.names, known.ids, strict=True) if id not in own}
    if others:
        log.warning(
            "--classes %s: masks cannot show %s, which count where true masks show them",
            option, few(list(others.values())),
        )  # fmt: skip
    return Classes((*noted.names, *others.values()), (*ids, *others))


def require_same(noted: Classes, listed: Classes, option: str, masks: Path) -> None:
    """Refuse a list whose names would be given to the scores of other classes.

    Args:
        noted: the classes of the masks, in their order.
        listed: of the list.
        option: the list's file, for messages.
        masks: likewise.

    Raises:
        ValueError: it has another number of classes, or those of the masks in another order.
    """
    theirs = f"theirs is {few(noted.names)}, and they are known without --classes"
    if len(listed) != len(noted):
        raise ValueError(
            f"--classes {option}: has {len(listed)} classes, {masks} has {len(noted)}; {theirs}"
        )
    if not _is_renamed(noted.names, listed.names):
        raise ValueError(
            f"--classes {option}: has the classes of {masks} in another order; {theirs}"
        )
    _tell_new_names(noted.names, listed.names, option)


def _is_renamed(noted: Sequence[str], names: Sequence[str]) -> bool:
    """Whether two lists have the same classes in the same order, some by other names."""
    pairs = list(zip(_plain(noted), _plain(names), strict=False))
    others = {name for own, other in pairs if own != other for name in (own, other)}
    return len(noted) == len(names) and len(others) == 2 * sum(a != b for a, b in pairs)


def _tell_new_names(noted: Sequence[str], names: Sequence[str], option: str) -> None:
    """Warn of classes that a list calls otherwise."""
    pairs = zip(noted, names, strict=True)
    new = [f"{a} as {b}" for a, b in pairs if plain_name(a) != plain_name(b)]
    if new:
        log.warning("--classes %s: calls classes of the masks otherwise: %s", option, few(new))


def _plain(names: Sequence[str]) -> list[str]:
    return [plain_name(name) for name in names]
