"""The result of a preparation: one manifest that says what is there and what is missing."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from weaktr.data.classes import Classes
from weaktr.data.manifest import Manifest
from weaktr.files import read_json, require_replaceable, write_bytes
from weaktr.messages import few
from weaktr.seals import BLANK, sealed

FORMAT = "weaktr-prepared-1"


@dataclass(frozen=True)
class Missing:
    """Something that is not there.

    Args:
        what: what is missing, with numbers and the first names.
        remedy: what to do about it.
        needed: False = everything published can be trained without it.
    """

    what: str
    remedy: str
    needed: bool = True


@dataclass(frozen=True)
class SplitCount:
    """How many images a split has.

    Args:
        name: the split.
        images: in its list.
        expected: as published.
        with_labels: of these, how many have image-level labels.
        with_mask: how many have a mask.
        manifest: its manifest, relative to the root.
    """

    name: str
    images: int
    expected: int
    with_labels: int
    with_mask: int
    manifest: str


@dataclass
class Prepared:
    """The result of a preparation; written as ``ROOT/manifest.json``.

    Args:
        data_set: ``voc12`` or ``coco14``.
        root: the data set's folder.
        classes: what the class indices mean.
        origins: where masks, labels and lists come from, in words.
        splits: one for each split that has a list.
        missing: what is not there.
        changed: whether this run wrote anything.
    """

    data_set: str
    root: Path
    classes: Classes
    origins: dict[str, str] = field(default_factory=dict)
    splits: list[SplitCount] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    changed: bool = False

    @property
    def complete(self) -> bool:
        """Whether nothing that is needed is missing."""
        return not any(missing.needed for missing in self.missing)

    def add_split(self, manifest: Manifest, expected: int, remedy: str) -> Manifest:
        """Count a split, note what it misses, and write its manifest.

        Args:
            manifest: the split; masks that are not on the disk are taken out of it.
            expected: number of images as published.
            remedy: what to do where images are missing.

        Returns:
            The manifest as written.
        """
        samples = tuple(
            sample if sample.mask is None or is_whole(sample.mask) else replace(sample, mask=None)
            for sample in manifest.samples
        )
        manifest = replace(manifest, samples=samples)
        split, file = manifest.split, f"manifests/{manifest.split}.json"
        if len(samples) != expected:
            what = f"{split}: {len(samples)} images in its list, expected {expected}"
            self.missing.append(Missing(what, "compare the list with the published one"))
        absent = [sample.name for sample in samples if not is_whole(sample.image)]
        if absent:
            self.missing.append(Missing(f"{split}: {len(absent)} images ({few(absent)})", remedy))
        unknown = [sample.name for sample in samples if sample.labels is None]
        if unknown:
            what = f"{split}: {len(unknown)} images ({few(unknown)}) without labels"
            self.missing.append(
                Missing(what, "unpack the annotations, or give --cls-labels cls_labels.npy")
            )
        self.splits.append(
            SplitCount(
                split,
                len(samples),
                expected,
                len(samples) - len(unknown),
                sum(sample.mask is not None for sample in samples),
                file,
            )
        )
        path = self.root / file
        self.changed |= _write_if_changed(path, manifest.to_json(path.parent))
        return manifest

    def write(self) -> Path:
        """Write ``manifest.json`` unless it says the same already; returns its path."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "seal": BLANK,
            "data_set": self.data_set,
            "complete": self.complete,
            "classes": {"names": self.classes.names, "ids": self.classes.ids},
            "origins": self.origins,
            "splits": [asdict(split) for split in self.splits],
            "missing": [asdict(missing) for missing in self.missing],
        }
        path = self.root / "manifest.json"
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        self.changed |= _write_if_changed(path, sealed(text.encode()))
        return path


def is_whole(path: Path) -> bool:
    """Whether a file is there and not empty (a power cut can leave empty ones)."""
    try:
        return path.stat().st_size > 0
    except (FileNotFoundError, NotADirectoryError):
        return False


def _write_if_changed(path: Path, content: bytes) -> bool:
    """Write a file unless it has this content already; whether it was written."""
    if path.is_file() and path.read_bytes() == content:
        return False
    if not (path.is_file() and _is_same(path, content)):  # older versions did not seal them
        require_replaceable(path)
    write_bytes(path, content)
    return True


def _is_same(path: Path, content: bytes) -> bool:
    """Whether a JSON file says the same as `content`, but for seals."""
    try:
        before, now = read_json(path), json.loads(content)
    except ValueError:  # damaged
        return False
    return isinstance(before, dict) and before | {"seal": ""} == now | {"seal": ""}
