"""Masks as files: 8-bit palette PNGs, and a folder of them with an index."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from weaktr.data.classes import palette
from weaktr.data.io import read_stored_labels
from weaktr.files import write_bytes

#: Pixels that are counted together.
PIECE = 2**20


def write_mask(path: Path, labels: np.ndarray, *, durable: bool = True) -> str:
    """Write labels as an 8-bit PNG in the VOC palette.

    Args:
        path: the PNG.
        labels: uint8 [H, W], 0 = background, k + 1 = class index k, 255 = ignore.
        durable: see `write_bytes`.

    Returns:
        SHA-256 of the file.

    Raises:
        ValueError: `labels` is not uint8 [H, W].
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels: expected uint8 [H, W], got {labels.dtype} {labels.shape}")
    picture = Image.fromarray(labels)
    picture.putpalette(palette().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue(), durable=durable)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


@dataclass(frozen=True)
class MaskEntry:
    """One line of index.jsonl.

    Args:
        name: of the sample.
        file: the mask, relative to the folder of the index; None = the image shows no class, and
            therefore has no mask.
        sha256: of that file.
        size: height and width in pixels.
        labels: the values that occur, ascending.
        working_size: height and width at which it was made, where that is not `size`.
        predicted: label -> probability, where no image-level labels were given.
        exif: see `Photograph`.
    """

    name: str
    file: str | None
    sha256: str | None
    size: tuple[int, int]
    labels: tuple[int, ...]
    working_size: tuple[int, int] | None = None
    predicted: dict[int, float] | None = None
    exif: str | None = None

    def line(self) -> str:
        """As JSON, without what is None."""
        row = {key: value for key, value in self.__dict__.items() if value is not None}
        try:
            (line := json.dumps(row, ensure_ascii=False)).encode()
        except UnicodeEncodeError:  # the name of a file that is not in UTF-8
            line = json.dumps(row)
        return line + "\n"


class MaskFolder:
    """A folder of masks with an index that survives a kill at any moment.

    A mask is valid once its line is in the index and its digest agrees. A line is written after
    the mask; a half-written last line is cut off when the folder is opened again.

    Args:
        folder: holds ``masks/`` and ``index.jsonl``.
        verify: check digests when opening (entries that disagree are dropped).

    Attributes:
        entries: name -> the entry of its mask.
        without: names of the images that show no class, so that they have no mask.
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self.folder = folder
        self.index = folder / "index.jsonl"
        lines = {entry.name: entry for entry in _read_index(self.index)}
        self.entries = {name: entry for name, entry in lines.items() if entry.file is not None}
        self.without = lines.keys() - self.entries
        if verify:
            self.entries = {n: e for n, e in self.entries.items() if self._is_whole(e)}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, name: str, labels: np.ndarray) -> None:
        """Write one mask (uint8 [H, W]) and its line."""
        self.record(self.write(name, labels))

    def write(self, name: str, labels: np.ndarray, **facts: Any) -> MaskEntry:
        """Write one mask (uint8 [H, W]) without its line; may be called in several threads.

        Args:
            name: of the sample.
            labels: the mask.
            facts: further fields of its `MaskEntry`.
        """
        file = f"masks/{name}.png"
        digest = write_mask(self.folder / file, labels, durable=False)
        height, width = labels.shape
        return MaskEntry(name, file, digest, (height, width), _occurring(labels), **facts)

    def record(self, entry: MaskEntry) -> None:
        """Add the line of a mask that was written, or of an image that has none."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.index, "a", encoding="utf-8") as index:
            index.write(entry.line())
        if entry.file is None:
            self.without.add(entry.name)
        else:
            self.entries[entry.name] = entry

    def read(self, name: str) -> np.ndarray:
        """The mask of sample `name`, uint8 [H, W].

        Raises:
            ValueError: there is none, or it cannot be read; names the index or the file.
        """
        if name not in self.entries:
            raise ValueError(f"{self.index}: no mask of {name!r}")
        return read_stored_labels(self.path(name))

    def path(self, name: str) -> Path:
        """Where the mask of sample `name` is."""
        file = self.entries[name].file
        assert file is not None
        return self.folder / file

    def flush(self) -> None:
        """Bring the index to the disk (call at the end)."""
        if self.index.exists():
            with open(self.index, "rb") as index:
                os.fsync(index.fileno())

    def _is_whole(self, entry: MaskEntry) -> bool:
        path = self.path(entry.name)
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256


class RefinedMasks:
    """Masks after refinement and, in a folder of their own, the same ones before it.

    Args:
        folder: of the masks; a mask already in it is kept if its digest agrees.
        refined: whether there is a refinement; without one each mask is stored once.
    """

    def __init__(self, folder: Path, *, refined: bool) -> None:
        self.masks = MaskFolder(folder, verify=True)
        self.before = MaskFolder(before_refinement(folder), verify=True) if refined else None

    def __contains__(self, name: str) -> bool:
        """Whether there is nothing left to do for an image."""
        is_there = name in self.masks and (self.before is None or name in self.before)
        return is_there or name in self.masks.without

    def __len__(self) -> int:
        return len(self.masks)

    def without(self, name: str) -> bool:
        """Whether an image is known to show no class."""
        return name in self.masks.without

    @property
    def entries(self) -> Collection[MaskEntry]:
        """The masks after refinement."""
        return self.masks.entries.values()

    def write(
        self, name: str, mask_of: Callable[[str], np.ndarray], **facts: Any
    ) -> list[MaskEntry]:
        """Write one image's masks without their lines; may be called in several threads.

        Args:
            name: of the sample.
            mask_of: gives the masks before ("plain") and after refinement ("refined"), uint8
                [H, W]; asked only for those that are stored.
            facts: further fields of their `MaskEntry`.
        """
        before = [] if self.before is None else [self.before.write(name, mask_of("plain"), **facts)]
        return [*before, self.masks.write(name, mask_of("refined"), **facts)]

    def record(self, entries: Sequence[MaskEntry]) -> None:
        """Add an image's lines: of its masks in the order of `write`, or that it has none."""
        *before, last = entries
        if self.before is not None:
            for entry in before:
                self.before.record(entry)
        self.masks.record(last)

    def flush(self) -> None:
        """Bring both indices to the disk (call at the end)."""
        for folder in (self.before, self.masks):
            if folder is not None:
                folder.flush()


def _occurring(labels: np.ndarray) -> tuple[int, ...]:
    """The values in uint8 [H, W], ascending; in pieces, since NumPy counts in 64 bits."""
    values, count = labels.ravel(), np.zeros(256, np.int64)
    for first in range(0, len(values), PIECE):
        count += np.bincount(values[first : first + PIECE], minlength=256)
    return tuple(np.flatnonzero(count).tolist())


def _read_index(path: Path) -> list[MaskEntry]:
    """The whole lines of an index; cuts off a half-written last one."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    entries = []
    for line in content[:whole].splitlines():  # of bytes: at line feeds alone
        row = {"file": None, "sha256": None} | json.loads(line)
        for key in ("size", "labels", "working_size"):
            if key in row:
                row[key] = tuple(row[key])
        if "predicted" in row:  # JSON's keys are strings
            row["predicted"] = {int(label): share for label, share in row["predicted"].items()}
        entries.append(MaskEntry(**row))
    return entries


def before_refinement(folder: Path) -> Path:
    """The folder of the masks before refinement (``before_crf`` in older results)."""
    former = folder / "before_crf"
    return former if former.is_dir() else folder / "before_refinement"
