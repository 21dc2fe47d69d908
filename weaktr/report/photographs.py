"""What is known of each photograph's mask without truth: areas, confidence, whether it agrees with
the image-level labels and whether it is suspicious by itself; and which photographs show it best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from weaktr.data import Sample, read_mask
from weaktr.data.classes import IGNORE
from weaktr.data.io import require_same_size
from weaktr.data.mask_index import LEAST_SHARE
from weaktr.data.masks import areas_of
from weaktr.data.parallel import ordered_map
from weaktr.evaluation.iou import ConfusionSum, NothingDecided, NothingToScore, scores
from weaktr.evaluation.overview import spread
from weaktr.jobs.masked import Masked

#: A label with a smaller share of the pixels counts as not shown by the mask.
LEAST_AREA = LEAST_SHARE
#: A mask with a smaller share of background, of the decided pixels, is suspicious: a rule of thumb.
LEAST_BACKGROUND = 0.1
#: How many photographs show the worst, the typical and the best of a class.
STRIP = 6


@dataclass(frozen=True)
class Photo:
    """A photograph and its mask. Labels are those of masks: k + 1 = class index k.

    Args:
        maker: of the mask, see `Masked`.
        sample: the photograph.
        mask: its file.
        size: height and width in pixels.
        areas: label -> share of the pixels, background and undecided pixels included.
        confidence_of: label -> mean score of its pixels; empty = not known.
        is_edited: whether somebody has changed the mask.
        iou: mean IoU with the true mask in percent; None = there is none.
    """

    maker: str
    sample: Sample
    mask: Path
    size: tuple[int, int]
    areas: Mapping[int, float]
    confidence_of: Mapping[int, float]
    is_edited: bool
    iou: float | None = None

    @property
    def given(self) -> frozenset[int] | None:
        """The image-level labels; None = not known."""
        indices = self.sample.labels
        return None if indices is None else frozenset(index + 1 for index in indices)

    @property
    def shown(self) -> frozenset[int]:
        """The classes that the mask shows, on at least `LEAST_AREA` of the pixels."""
        classes = self.areas.keys() - {0, IGNORE}
        return frozenset(label for label in classes if self.areas[label] >= LEAST_AREA)

    @property
    def missing(self) -> frozenset[int]:
        """Image-level labels that the mask does not show."""
        return (self.given or frozenset()) - self.shown

    @property
    def extra(self) -> frozenset[int]:
        """Classes of the mask that the photograph does not have by its image-level labels."""
        return frozenset() if self.given is None else self.shown - self.given

    @property
    def background(self) -> float | None:
        """The background's share of the decided pixels; None = all are undecided."""
        decided = 1 - self.areas.get(IGNORE, 0)
        return self.areas.get(0, 0) / decided if decided > 0 else None

    @property
    def doubt(self) -> str | None:
        """Why the mask is suspicious, whatever the labels say; None = it is not.

        "full": it has hardly any background, and nobody has changed it. "empty": it shows nothing,
        and it is not known whether the photograph does.
        """
        if not self.shown:
            return "empty" if self.given is None else None
        is_full = self.background is not None and self.background < LEAST_BACKGROUND
        return "full" if is_full and not self.is_edited else None

    @property
    def confidence(self) -> float | None:
        """Mean over the pixels of all classes, or of the background where there is none else."""
        known = {label: self.areas.get(label, 0) for label in self.confidence_of}
        weights = {label: area for label, area in known.items() if label} or known
        total = sum(weights.values())
        if not total:
            return None
        return sum(self.confidence_of[label] * area for label, area in weights.items()) / total

    def rank(self, label: int | None = None) -> tuple[int, bool, float]:
        """The place in an order that begins with the worst.

        What disagrees or is suspicious counts first; of as many, what is suspicious as a whole
        comes before single labels; then the least confident. Where the confidence is not known,
        somebody has changed the mask, or an older version made it: it counts as 1.

        Args:
            label: of which the mask is looked at; None = of all.
        """
        if label is None:
            wrong, sure = len(self.missing) + len(self.extra), self.confidence
        else:
            wrong, sure = int(label in self.missing | self.extra), self.confidence_of.get(label)
        is_whole = self.doubt is not None
        return -wrong - is_whole, not is_whole, 1.0 if sure is None else sure


def photos_of(masked: Masked) -> list[Photo]:
    """The photographs of a folder with usable masks, in the manifest's order.

    Masks are read where the index has no areas of them, or where there are true masks.
    """
    masks, num_labels, truth = masked.masks, masked.manifest.classes.num_labels, _truth_of(masked)

    def photo(sample: Sample) -> Photo:
        entry = masks.entries[sample.name]
        areas, true = entry.areas, truth.get(sample.name)
        labels = masks.read(sample.name) if areas is None or true is not None else None
        if areas is None and labels is not None:
            areas = areas_of(labels.astype(np.uint8))
        iou = None if true is None or labels is None else _iou(labels, true, num_labels)
        is_edited = sample.name in masks.edited
        known = entry.confidence or {}
        return Photo(
            masked.maker, sample, masks.path(sample.name), entry.size, areas or {}, known,
            is_edited, iou,
        )  # fmt: skip

    return list(ordered_map(photo, masked.samples))


def _truth_of(masked: Masked) -> dict[str, Sample]:
    """Name -> the sample with a true mask, of a run."""
    if masked.run is None:
        return {}
    manifest = masked.run.score if masked.maker == "label" else masked.run.val
    return {sample.name: sample for sample in manifest if sample.mask is not None}


def _iou(labels: np.ndarray, sample: Sample, num_labels: int) -> float | None:
    """Mean IoU of a mask in percent; None where it cannot be compared with the true one."""
    total = ConfusionSum(num_labels)
    try:
        true = read_mask(sample, num_labels)
        require_same_size(labels, true.shape, sample.image, sample.source)
        total.add(labels.astype(np.uint8), true)
        return scores(total).miou
    except NothingDecided:
        return 0.0
    except (ValueError, NothingToScore):
        return None


@dataclass(frozen=True)
class ClassRow:
    """A class in all photographs of a folder.

    Args:
        label: of the class.
        given: photographs that have it by their image-level labels.
        shown: masks that show it.
        found: both.
        unknown: masks that show it of photographs whose labels are not known.
        area: mean share of the pixels in the masks that show it; None = none does.
        confidence: mean over its pixels; None = not known.
    """

    label: int
    given: int
    shown: int
    found: int
    unknown: int
    area: float | None
    confidence: float | None


def class_rows(photos: Sequence[Photo], num_labels: int) -> list[ClassRow]:
    """A row for each class that a photograph has or a mask shows."""
    rows = []
    for label in range(1, num_labels):
        shown = [photo for photo in photos if label in photo.shown]
        given = [photo for photo in photos if label in (photo.given or ())]
        if not shown and not given:
            continue
        sure = [photo for photo in shown if label in photo.confidence_of]
        weight = sum(photo.areas[label] for photo in sure)
        total = sum(photo.areas[label] * photo.confidence_of[label] for photo in sure)
        rows.append(
            ClassRow(
                label,
                given=len(given),
                shown=len(shown),
                found=sum(label in (photo.given or ()) for photo in shown),
                unknown=sum(photo.given is None for photo in shown),
                area=sum(p.areas[label] for p in shown) / len(shown) if shown else None,
                confidence=total / weight if weight else None,
            )
        )
    return rows


def strips(photos: Sequence[Photo], label: int) -> dict[str, list[Photo]]:
    """The worst, typical and best photographs of a class, `STRIP` of each and none twice."""
    own = [photo for photo in photos if label in photo.shown | photo.missing]
    own.sort(key=lambda photo: photo.rank(label))
    count = min(STRIP, -(-len(own) // 3))
    worst, rest = own[:count], own[count:]
    best, between = rest[::-1][:count], rest[: max(0, len(rest) - count)]
    first = max(0, (len(between) - count) // 2)
    return {"worst": worst, "typical": between[first : first + count], "best": best}


def in_turn(all_strips: Sequence[Mapping[str, Sequence[Photo]]]) -> Iterator[Photo]:
    """The photographs of all classes' strips: the first of each strip, the second of each, ..."""
    columns = [strip for of_class in all_strips for strip in of_class.values()]
    for row in zip_longest(*columns):
        yield from (photo for photo in row if photo is not None)


def chosen(photos: Sequence[Photo], first: Iterator[Photo], most: int) -> list[Photo]:
    """At most `most` photographs: up to a half those of `first`, else an even sample.

    Returns:
        In the order of `photos`.
    """
    if len(photos) <= most:
        return list(photos)
    kept: dict[int, None] = {}
    for photo in first:
        if len(kept) >= most // 2:
            break
        kept[id(photo)] = None
    others = [photo for photo in photos if id(photo) not in kept]
    kept |= {id(photo): None for photo in spread(others, most - len(kept))}
    return [photo for photo in photos if id(photo) in kept]
