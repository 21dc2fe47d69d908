"""Find everything that is wrong with a data set before a run finds it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from weaktr.data.classes import COCO90, COCO_UNUSED, IGNORE, Classes
from weaktr.data.io import (
    is_turned,
    outside_message,
    read_rgb,
    read_stored_labels,
    size_message,
    to_labels,
)
from weaktr.data.manifest import Manifest, Sample
from weaktr.data.parallel import usable_cores
from weaktr.data.problems import DataError, Problem

__all__ = ["Problem", "check"]


def check(
    manifest: Manifest,
    *,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Problem]:
    """Read every image and mask of a manifest and list all faults.

    Errors: an image or mask that is missing, truncated or corrupt; a label outside the class
    list; a mask of another size than its image; mask values outside the classes; a name twice.
    Warnings: images without any label; a mask class that the image's labels do not have; labels
    or masks for only a part of the images; a class that no image has; EXIF rotation.

    Args:
        manifest: the data set.
        workers: threads that decode; None = the number of CPU cores, at most 8.
        progress: called with (samples checked, samples in all) after each sample.

    Returns:
        The faults in the order of the manifest, those of the whole set last.

    Raises:
        ValueError: `workers` < 1.
    """
    if workers is None:
        workers = min(8, usable_cores())
    if workers < 1:
        raise ValueError(f"workers: expected >= 1, got {workers}")
    problems: list[Problem] = []
    with ThreadPoolExecutor(workers) as pool:
        faults = pool.map(lambda sample: _check_sample(sample, manifest.classes), manifest.samples)
        for number, of_sample in enumerate(faults, start=1):
            problems += of_sample
            if progress is not None:
                progress(number, len(manifest))
    return problems + _check_whole_set(manifest)


def _check_sample(sample: Sample, classes: Classes) -> list[Problem]:
    problems: list[Problem] = []
    size = None
    try:
        size = read_rgb(sample.image, sample.source, sample.exif).shape[:2]
        if sample.exif == "ignore" and is_turned(sample.image, sample.source):
            message = (
                "EXIF asks viewers to turn the image; it is used as stored, unturned "
                "(exif=apply turns it)"
            )
            problems.append(_warning(sample, message))
    except DataError as error:
        problems += error.problems
    if sample.labels is not None and not sample.labels:
        message = "has no label: it shows none of the classes, or was forgotten"
        problems.append(_warning(sample, message))
    if outside := [label for label in sample.labels or () if not 0 <= label < len(classes)]:
        message = f"labels outside the class list: expected 0..{len(classes) - 1}, got {outside}"
        problems.append(Problem(str(sample.image), sample.source, message))
    if sample.mask is not None:
        problems += _check_mask(sample, classes, size)
    return problems


def _check_mask(sample: Sample, classes: Classes, size: tuple[int, ...] | None) -> list[Problem]:
    assert sample.mask is not None
    try:
        stored = read_stored_labels(sample.mask, sample.source)
    except DataError as error:
        return list(error.problems)
    problems = []
    if size is not None and stored.shape != size:
        message = size_message("mask", stored.shape, (size[0], size[1]))
        problems.append(Problem(str(sample.mask), sample.source, message))
    labels, outside = to_labels(stored, classes.num_labels, sample.mask_ids)
    if outside:
        message = outside_message(outside, classes.num_labels, sample.mask_ids)
        problems.append(Problem(str(sample.mask), sample.source, message))
    if sample.labels is not None:
        drawn = {int(label) - 1 for label in np.unique(labels) if label not in (0, IGNORE)}
        if extra := sorted(drawn - set(sample.labels)):
            names = ", ".join(classes.names[index] for index in extra)
            message = f"mask shows {names}, which the image's labels do not have"
            problems.append(Problem(str(sample.mask), sample.source, message, "warning"))
    return problems


def _check_whole_set(manifest: Manifest) -> list[Problem]:
    """Faults that only show over all samples."""
    where, total = f"split {manifest.split}", len(manifest)
    if total == 0:
        return [Problem(manifest.name, where, "holds no images")]
    problems = []
    first: dict[str, Sample] = {}
    for sample in manifest:
        earlier = first.setdefault(sample.name, sample)
        if earlier is not sample:
            message = f"name {sample.name!r} was already declared at {earlier.source}"
            problems.append(Problem(str(sample.image), sample.source, message))
    messages = []
    labelled = [sample.labels for sample in manifest if sample.labels is not None]
    if 0 < len(labelled) < total:
        messages.append(f"only {len(labelled)} of {total} images have image-level labels")
    masks = sum(sample.mask is not None for sample in manifest)
    if 0 < masks < total:
        messages.append(f"only {masks} of {total} images have a mask; scores cover just these")
    counts = Counter(label for labels in labelled for label in labels)
    never = COCO_UNUSED if manifest.classes == COCO90 else ()
    unseen = [
        name
        for index, name in enumerate(manifest.classes.names)
        if not counts[index] and name not in never
    ]
    if labelled and unseen:
        messages.append(f"{len(unseen)} classes have no image: {', '.join(unseen)}")
    return problems + [Problem(manifest.name, where, text, "warning") for text in messages]


def _warning(sample: Sample, message: str) -> Problem:
    return Problem(str(sample.image), sample.source, message, "warning")
