"""The one description of a data set that every stage reads: `Manifest`.

Written as JSON beside a run, so that a later step sees the same images in the same order.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NotRequired, cast, get_args

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from weaktr import tars
from weaktr.data.classes import MAX_CLASSES, Classes
from weaktr.data.problems import DataError, Problem
from weaktr.files import read_json, write_bytes
from weaktr.messages import brief
from weaktr.seals import BLANK, sealed

__all__ = ["Classes", "Manifest", "Sample"]

FORMAT = "weaktr-manifest-1"
#: The most bytes of a part of a sample's name: file systems take 255, suffixes included.
NAME_BYTES = 243
#: Paths that need no closer look.
_PLAIN_PATH = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)*")
Exif = Literal["ignore", "apply"]


@dataclass(frozen=True)
class Sample:
    """One image and what is known about it.

    Args:
        name: unique in its manifest; a relative path without suffix and without ``..``
            (``"2007_000032"``, ``"cats/0001"``). Results are stored under it.
        image: the photograph.
        labels: ascending 0-based class indices that the image shows; ``()`` = none of them,
            None = not known.
        mask: the true label of every pixel as a single-channel PNG, or None. Never read in
            training from image-level labels.
        source: where this sample was declared, ``"file:line"``.
        mask_ids: the pixel value of class index k in the file `mask`, for each of the C classes;
            None = ``k + 1``. COCO masks keep their 1..90 ids while 80 classes are used.
        exif: "apply" = the photograph is turned and mirrored as its EXIF asks viewers to, and
            `mask` is of the turned one; "ignore" = pixels as stored.
    """

    name: str
    image: Path
    labels: tuple[int, ...] | None
    mask: Path | None
    source: str
    mask_ids: tuple[int, ...] | None = None
    exif: Exif = "ignore"


@dataclass(frozen=True)
class Manifest:
    """A split of a data set: its classes and its samples, in order.

    Args:
        name: the data set (``"voc12"``, ``"coco14"``, ...).
        split: the part of it (``"train"``, ``"val"``, ...).
        classes: what the class indices of `Sample.labels` mean.
        samples: may be empty; `Sample.mask_ids` is the same in all of them.

    Raises:
        ValueError: a sample's name leads out of a folder; `mask_ids` differ, or are no 1..254.
    """

    name: str
    split: str
    classes: Classes
    samples: tuple[Sample, ...]

    def __post_init__(self) -> None:
        for sample in self.samples:
            if not is_inside(sample.name):
                message = f"name: expected a relative path without '..', got {brief(sample.name)}"
                raise DataError(Problem(str(sample.image), sample.source, message))
        mask_ids = self.mask_ids
        if any(sample.mask_ids != mask_ids for sample in self.samples):
            raise ValueError("samples: expected the same mask_ids in every sample, got several")
        if mask_ids is not None and len(mask_ids) != len(self.classes):
            raise ValueError(
                f"samples: expected mask_ids of {len(self.classes)} classes, got {len(mask_ids)}"
            )
        if mask_ids is not None and (
            len(set(mask_ids)) < len(mask_ids) or not all(1 <= i <= MAX_CLASSES for i in mask_ids)
        ):
            raise ValueError(
                f"samples: expected mask_ids from 1 to {MAX_CLASSES}, each once, got {mask_ids}"
            )

    def __len__(self) -> int:
        return len(self.samples)

    def __iter__(self) -> Iterator[Sample]:
        return iter(self.samples)

    @property
    def mask_ids(self) -> tuple[int, ...] | None:
        """`Sample.mask_ids` of all samples."""
        return self.samples[0].mask_ids if self.samples else None

    def lost_classes(self, samples: Iterable[Sample]) -> list[str]:
        """The names of the classes that its images show, and `samples`, some of them, do not."""
        lost = _shown(self.samples) - _shown(samples)
        return [self.classes.names[index] for index in sorted(lost)]

    def repeated_names(self) -> list[Problem]:
        """A fault for every sample whose name, or the place of whose mask, another one has."""
        first: dict[str, Sample] = {}
        faults = []
        for sample in self.samples:
            if (earlier := first.setdefault(sample.name, sample)) is not sample:
                message = f"name {brief(sample.name)} was already declared at {earlier.source}"
                kind = "name declared twice"
                faults.append(Problem(str(sample.image), sample.source, message, kind=kind))
        for name, message in without_a_place(first).items():
            faults.append(Problem(str(first[name].image), first[name].source, message))
        return faults

    def save(self, path: str | Path) -> None:
        """Write the manifest as JSON, whole or not at all.

        Files below the manifest's own folder are written relative to it, so that folder may be
        moved; others absolutely.

        Args:
            path: the JSON file; its folder is created if missing.
        """
        path = Path(os.path.abspath(path))
        write_bytes(path, self.to_json(path.parent))

    def to_json(self, folder: Path) -> bytes:
        """What `save` writes into a file of `folder`."""
        folder = Path(os.path.abspath(folder))
        content = {
            "format": FORMAT,
            "seal": BLANK,
            "name": self.name,
            "split": self.split,
            "classes": {"names": self.classes.names, "ids": self.classes.ids},
            "mask_ids": self.mask_ids,
            "samples": [_sample_to_json(sample, folder) for sample in self.samples],
        }
        try:
            return sealed(json.dumps(content, ensure_ascii=False, indent=1).encode())
        except UnicodeEncodeError:  # the name of a file that is not in UTF-8
            return sealed(json.dumps(content, indent=1).encode())

    @staticmethod
    def load(path: str | Path) -> Manifest:
        """Read what `save` wrote.

        Raises:
            DataError: missing, not JSON, not a manifest, or a name stands twice; a field is missing
                or of the wrong kind; labels are no ascending class indices.
        """
        path = Path(os.path.abspath(path))
        try:
            content = read_json(path)
        except ValueError as error:
            raise DataError(Problem(str(path), "", str(error).removeprefix(f"{path}: "))) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise DataError(Problem(str(path), "", f"expected a manifest of format {FORMAT!r}"))
        try:
            stored = _stored_manifest().validate_python(content, strict=True)
            mask_ids = None if stored["mask_ids"] is None else tuple(stored["mask_ids"])
            manifest = Manifest(
                name=stored["name"],
                split=stored["split"],
                classes=Classes(tuple(stored["classes"]["names"]), tuple(stored["classes"]["ids"])),
                samples=tuple(
                    _sample_from_json(entry, path.parent, mask_ids) for entry in stored["samples"]
                ),
            )
        except DataError:
            raise
        except ValidationError as error:
            faults = [
                f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}, got {fault['input']!r:.60}"
                for fault in error.errors(include_url=False)[:5]
            ]
            message = f"not a whole manifest: {'; '.join(faults)}"
            raise DataError(Problem(str(path), "", message)) from error
        except ValueError as error:
            raise DataError(Problem(str(path), "", str(error))) from error
        if wrong := [*_label_faults(manifest, path), *manifest.repeated_names()]:
            raise DataError(wrong)
        return manifest

    def fingerprint(self) -> str:
        """A short text that changes when the data set does.

        Covers classes, names, labels, absolute paths and the sizes in bytes of images and masks;
        not the order of the samples and not the files' contents.

        Returns:
            32 hexadecimal digits.
        """
        digest = hashlib.sha256()
        head = [self.classes.names, self.classes.ids, self.mask_ids]
        digest.update(json.dumps(head).encode())
        for sample in sorted(self.samples, key=lambda sample: sample.name):
            row = [sample.name, sample.labels, _stamp(sample.image), _stamp(sample.mask)]
            row += [sample.exif] if sample.exif != "ignore" else []
            digest.update(json.dumps(row).encode())
        return digest.hexdigest()[:32]


def _shown(samples: Iterable[Sample]) -> set[int]:
    """The classes that samples show, as far as that is known."""
    return {label for sample in samples for label in sample.labels or ()}


def without_a_place(names: Collection[str]) -> dict[str, str]:
    """Samples in folders that are called like files of others, ``a.png/b`` beside ``a`` -> what is
    wrong: the mask of one of the two could not be written."""
    faults = {}
    for name in names:
        for folder in PurePosixPath(name).parents if "/" in name else ():
            other = folder.with_suffix("").as_posix() if folder.name else ""
            if folder.suffix in (".png", ".npz") and other in names:
                faults[name] = f"is in a folder called like the mask of {brief(other)}: rename one"
    return faults


def is_inside(relative: str) -> bool:
    """Whether a relative path stays in its folder: not absolute, no ``..``, not empty."""
    if _PLAIN_PATH.fullmatch(relative):
        return True
    path = PurePosixPath(relative.replace("\\", "/"))
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts


def name_fault(name: str) -> str | None:
    """Why no mask can be stored under a sample's name; None = it can.

    A part of the name has at most `NAME_BYTES` bytes in the encoding of file names, so that there
    is room for suffixes.
    """
    if not is_inside(name):
        return f"expected a relative path without '..', got {brief(name)}"
    try:
        longest = max(len(os.fsencode(part)) for part in PurePosixPath(name).parts)
    except UnicodeEncodeError:
        return f"expected a name that a file can have, got {brief(name)}"
    if "\0" in name or longest > NAME_BYTES:
        return (
            f"expected at most {NAME_BYTES} bytes and none that is 0, got {longest}: {name!r:.60}"
        )
    return None


def _stamp(path: Path | None) -> tuple[str, int] | None:
    """Absolute path and size in bytes; size -1 = missing."""
    if path is None:
        return None
    absolute = os.path.abspath(path)
    try:
        return absolute, tars.status(absolute).st_size
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return absolute, -1


def _sample_to_json(sample: Sample, folder: Path) -> dict[str, Any]:
    exif = {} if sample.exif == "ignore" else {"exif": sample.exif}
    return exif | {
        "name": sample.name,
        "image": _relative(sample.image, folder),
        "labels": sample.labels,
        "mask": None if sample.mask is None else _relative(sample.mask, folder),
        "source": sample.source,
    }


def _sample_from_json(
    entry: _StoredSample, folder: Path, mask_ids: tuple[int, ...] | None
) -> Sample:
    labels, mask = entry["labels"], entry["mask"]
    return Sample(
        name=entry["name"],
        image=folder / entry["image"],
        labels=None if labels is None else tuple(labels),
        mask=None if mask is None else folder / mask,
        source=entry["source"],
        mask_ids=mask_ids,
        exif=require_exif(entry.get("exif", "ignore")),
    )


def _label_faults(manifest: Manifest, path: Path) -> list[Problem]:
    """A fault of the file `path` for every sample whose labels are not what `Sample.labels` are."""
    count, faults = len(manifest.classes), []
    for sample in manifest:
        labels = sample.labels or ()
        if list(labels) != sorted({*labels}) or not all(0 <= k < count for k in labels):
            message = (
                f"labels: expected indices from 0 to {count - 1}, ascending, each once; "
                f"got {list(labels[:9])!s:.60}"
            )
            faults.append(Problem(str(path), brief(sample.name), message))
    return faults


class _StoredSample(TypedDict):
    """What `Manifest.save` writes of a sample."""

    name: str
    image: str
    labels: list[int] | None
    mask: str | None
    source: str
    exif: NotRequired[str]


class _StoredClasses(TypedDict):
    names: list[str]
    ids: list[int]


class _StoredManifest(TypedDict):
    """What `Manifest.save` writes."""

    name: str
    split: str
    classes: _StoredClasses
    mask_ids: list[int] | None
    samples: list[_StoredSample]


@cache
def _stored_manifest() -> TypeAdapter[_StoredManifest]:
    return TypeAdapter(_StoredManifest)


def require_exif(value: str) -> Exif:
    """Raise `ValueError` unless `value` is one of `Sample.exif`."""
    if value not in get_args(Exif):
        raise ValueError(f"exif: expected one of {', '.join(get_args(Exif))}; got {value!r}")
    return cast(Exif, value)


def _relative(path: Path, folder: Path) -> str:
    absolute = Path(os.path.abspath(path))
    if absolute.is_relative_to(folder):
        return absolute.relative_to(folder).as_posix()
    return str(absolute)
