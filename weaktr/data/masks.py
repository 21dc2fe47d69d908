"""Masks as files: 8-bit palette PNGs, and a folder of them with an index.

FOLDER/index.jsonl            see `weaktr.data.mask_index`
FOLDER/masks/NAME.png
FOLDER/before_refinement/     a folder like this one, of the masks before refinement
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from weaktr.contents import Contents, digest_of
from weaktr.data.classes import palette
from weaktr.data.io import (
    outside_message,
    read_stored_labels,
    size_message,
    to_labels,
)
from weaktr.data.mask_index import (
    INDEX,
    MaskEntry,
    file_of,
    join_journals,
    journal_of,
    journals,
    read_index,
    read_shards,
)
from weaktr.data.parallel import ordered_map
from weaktr.data.pngs import is_whole_png
from weaktr.data.shard_tables import whole_shards
from weaktr.files import is_clutter, keep_lines, write_bytes
from weaktr.seals import BLANK, is_sealed, sealed_png, was_sealed

#: Of a file at the place of a mask that a person has put there, by `Mask.save` or otherwise.
NOT_OURS = "no command of weaktr's wrote it: move it away"
#: Pixels that are counted together.
PIECE = 2**20


def write_mask(path: Path, labels: np.ndarray, *, durable: bool = True, blank: str = BLANK) -> str:
    """Write labels as an 8-bit PNG in the VOC palette.

    Args:
        path: the PNG.
        labels: uint8 [H, W], 0 = background, k + 1 = class index k, 255 = ignore.
        durable: see `write_bytes`.
        blank: see `sealed_png`.

    Returns:
        SHA-256 of the file.

    Raises:
        ValueError: `labels` is not uint8 [H, W].
    """
    content = png_of(labels, blank)
    write_bytes(path, content, durable=durable)
    return hashlib.sha256(content).hexdigest()


def png_of(labels: np.ndarray, blank: str = BLANK) -> bytes:
    """Labels uint8 [H, W] as the PNG that `write_mask` writes."""
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels: expected uint8 [H, W], got {labels.dtype} {labels.shape}")
    picture = Image.fromarray(labels)
    picture.putpalette(palette().tobytes())
    return png_bytes(picture, blank)


def png_bytes(picture: Image.Image, blank: str = BLANK) -> bytes:
    """A picture as a sealed PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return sealed_png(buffer.getvalue(), blank)


class MaskFolder:
    """A folder of masks with an index that survives a kill at any moment.

    A mask is valid once its line is in the index and its digest agrees. A line is written after
    the mask; a half-written last line counts as none.

    Masks that were made a shard at a time (``index/SHARD.parquet``) can be read, and not added to:
    those of shards that are whole, under the names that they have below ``masks/``.

    Args:
        folder: holds ``masks/`` and ``index.jsonl``. Nothing is written before `record`.
        verify: whether entries of masks that are not there as they were written are dropped.
        contents: what is known of files already.
        num_labels: L, which a mask that somebody has changed may hold; None = not known.
        process: which of several that fill the folder at once this is. All but number 0 add their
            lines to a journal of their own, ``index.N.jsonl``, until `join_journals`.

    Attributes:
        entries: name -> the entry of its mask.
        without: name -> the entry of an image that shows no class, so that it has no mask.
        edited: names of the masks that somebody has changed; their entries stay, with new digests.
        unusable: those of them that are no masks, or cannot be read -> why.
        gone: names of the masks that are not there any more, or were cut off.

    Raises:
        ValueError: the index is damaged; names its line.
    """

    def __init__(
        self,
        folder: Path,
        *,
        verify: bool = False,
        contents: Contents | None = None,
        num_labels: int | None = None,
        process: int = 0,
    ) -> None:
        self.folder = folder
        self.index = folder / INDEX
        self._is_sharded = not os.path.lexists(self.index) and bool(whole_shards(folder))
        if self._is_sharded:
            self.index = folder / "index"
        read = read_shards if self._is_sharded else read_index
        lines = {entry.name: entry for entry in read(self.index)}
        self._journal = self.index
        if not self._is_sharded:
            own = {entry.name: entry for path in journals(folder) for entry in read_index(path)}
            lines |= own
            self._journal = journal_of(folder, process)
        self.entries = {name: entry for name, entry in lines.items() if entry.file is not None}
        self.without = {name: entry for name, entry in lines.items() if entry.file is None}
        self.edited: set[str] = set()
        self.unusable: dict[str, str] = {}
        self.gone: list[str] = []
        self._listed = self.entries.keys()
        self._is_whole = False
        if verify:
            self._verify(contents or Contents(), num_labels)

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
        digest = write_mask(self.folder / file_of(name), labels, durable=False)
        size = (labels.shape[0], labels.shape[1])
        areas = areas_of(labels)
        return MaskEntry(name, file_of(name), digest, size, tuple(areas), areas=areas, **facts)

    def record(self, entry: MaskEntry) -> None:
        """Add the line of a mask that was written, or of an image that has none.

        A mask that such an image had before is removed, unless somebody has changed it.

        Raises:
            ValueError: the masks were made a shard at a time.
        """
        if self._is_sharded:
            raise ValueError(
                f"{self.folder}: its masks were made a shard at a time, and none can be added "
                "singly; choose another --out"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self._is_whole:
            keep_lines(self._journal)
            self._is_whole = True
        with open(self._journal, "a", encoding="utf-8") as journal:
            journal.write(entry.line())
        if entry.file is None and self._is_ours(entry.name):
            self.path(entry.name).unlink()
        self.take(entry)

    def take(self, entry: MaskEntry) -> None:
        """Know of an entry whose line is written."""
        here, there = self.entries, self.without
        if entry.file is None:
            here, there = there, here
        there.pop(entry.name, None)
        here[entry.name] = entry
        self.edited.discard(entry.name)

    def read(self, name: str) -> np.ndarray:
        """The mask of sample `name`, uint8 [H, W].

        Raises:
            ValueError: there is none, or it cannot be read; names the index or the file.
        """
        if name not in self.entries:
            raise ValueError(f"{self.index}: no mask of {name!r}")
        return read_stored_labels(self.path(name))

    def is_usable(self, name: str) -> bool:
        """Whether there is a mask of sample `name`, and it can be used."""
        return name in self.entries and name not in self.unusable

    def path(self, name: str) -> Path:
        """Where the mask of sample `name` is."""
        return self.folder / file_of(name)

    def flush(self) -> None:
        """Bring the index, or this process's journal, to the disk (call at the end)."""
        if self._journal.is_file():
            with open(self._journal, "rb") as journal:
                os.fsync(journal.fileno())

    def digest(self) -> str:
        """One digest of all masks, and of the images that have none."""
        entries = [*self.entries.values(), *self.without.values()]
        return digest_of(sorted((entry.name, entry.sha256 or "") for entry in entries))

    def others(self) -> Iterator[Path]:
        """Files and links in ``masks/`` that no index lists and no command of weaktr's wrote."""
        yield from files_of_others(self.folder / "masks", self._listed)

    def is_of_others(self, name: str) -> bool:
        """Whether there is something at a mask's place that no command of weaktr's wrote."""
        path = self.path(name)
        return os.path.lexists(path) and not (self._is_ours(name) or was_cut_off(path))

    def _is_ours(self, name: str) -> bool:
        """Whether the mask of sample `name` is there as it was written."""
        path, before = self.path(name), self.entries.get(name)
        if not path.is_file():
            return False
        if is_sealed(path):
            return True
        if before is None or name in self.edited:
            return False
        return before.sha256 == Contents().digest(path)  # older versions did not seal masks

    def _verify(self, contents: Contents, num_labels: int | None) -> None:
        def check(entry: MaskEntry) -> MaskEntry | None:
            path, digest = self.path(entry.name), ""
            try:
                digest = contents.digest(path)
                if digest == entry.sha256:
                    return entry
                labels = read_changed_mask(path, entry.size, num_labels)
            except FileNotFoundError:
                return None
            except (OSError, ValueError) as error:
                if was_cut_off(path):
                    return None
                self.unusable[entry.name] = str(error)
                return replace(entry, sha256=digest)
            areas = areas_of(labels)
            return replace(
                entry, sha256=digest, labels=tuple(areas), areas=areas, confidence=None,
                agreement=None,
            )  # fmt: skip

        before, self.entries = self.entries, {}
        for name, entry in zip(before, ordered_map(check, before.values()), strict=True):
            if entry is None:
                self.gone.append(name)
            else:
                self.entries[entry.name] = entry
                if entry is not before[entry.name]:
                    self.edited.add(entry.name)


def read_changed_mask(path: Path, size: tuple[int, int], num_labels: int | None) -> np.ndarray:
    """A mask that somebody has changed, uint8 [H, W].

    Args:
        path: the mask.
        size: (H, W) of its photograph.
        num_labels: L; None = not known.

    Raises:
        ValueError: it is no mask of that photograph; names the file.
        OSError: it cannot be read.
    """
    labels = read_stored_labels(path)
    if labels.shape != size:
        raise ValueError(f"{path}: {size_message('mask', labels.shape, size)}")
    if num_labels is None:
        if labels.max(initial=0) > 255:
            raise ValueError(f"{path}: expected labels up to 255, got {labels.max()}")
    elif outside := to_labels(labels, num_labels, None)[1]:
        raise ValueError(f"{path}: {outside_message(outside, num_labels, None)}")
    return labels.astype(np.uint8)


def was_cut_off(path: Path) -> bool:
    """Whether a PNG is one that weaktr wrote, and that was cut off since."""
    try:
        return was_sealed(path) and not is_whole_png(path)
    except OSError:
        return False


class RefinedMasks:
    """Masks after refinement and, in a folder of their own, the same ones before it.

    Args:
        folder: of the masks; a mask already in it is kept if its digest agrees.
        refined: whether there is a refinement; without one each mask is stored once.
        contents: what is known of files already.
        num_labels, process: see `MaskFolder`.

    Raises:
        ValueError: an index is damaged; or there are files among the masks that are not weaktr's.
    """

    def __init__(
        self,
        folder: Path,
        *,
        refined: bool,
        contents: Contents,
        num_labels: int | None = None,
        process: int = 0,
    ) -> None:
        known: dict[str, Any] = {
            "contents": contents,
            "num_labels": num_labels,
            "process": process,
        }
        self.masks = MaskFolder(folder, verify=True, **known)
        self.before = (
            MaskFolder(before_refinement(folder), verify=True, **known) if refined else None
        )
        for masks in self._folders():
            for path in masks.others():
                raise ValueError(
                    f"{path}: is not in {masks.index}, and {NOT_OURS}, or choose another --out"
                )

    def done(self, name: str) -> MaskEntry | None:
        """The entry of an image that has all its masks, or is known to show no class; else None."""
        is_whole = self.before is None or name in self.before or name in self.masks.edited
        if name in self.masks and is_whole:
            return self.masks.entries[name]
        return self.masks.without.get(name)

    def entry(self, name: str) -> MaskEntry | None:
        """The entry of an image in one of the indices, the last one first; None = there is none."""
        for masks in reversed(self._folders()):
            for entries in (masks.entries, masks.without):
                if name in entries:
                    return entries[name]
        return None

    @property
    def names(self) -> Collection[str]:
        """Of all images that have a mask, or are known to show no class."""
        return self.masks.entries.keys() | self.masks.without.keys()

    def is_edited(self, name: str) -> bool:
        """Whether somebody has changed a mask of an image."""
        return any(name in masks.edited for masks in self._folders())

    def unusable(self, name: str) -> str | None:
        """Why a mask that somebody has changed is no mask any more; None = it is one."""
        found = (masks.unusable.get(name) for masks in self._folders())
        return next(filter(None, found), None)

    def in_the_way(self, name: str) -> Path | None:
        """A file of the user's where a mask of an image is to be written; None = there is none."""
        found = (masks.path(name) for masks in self._folders() if masks.is_of_others(name))
        return next(found, None)

    def write(
        self,
        name: str,
        mask_of: Callable[[str], np.ndarray],
        confidence: dict[int, float] | None = None,
        agreement: dict[int, float] | None = None,
        **facts: Any,
    ) -> list[MaskEntry]:
        """Write one image's masks without their lines; may be called in several threads.

        Args:
            name: of the sample.
            mask_of: gives the masks before ("plain") and after refinement ("refined"), uint8
                [H, W]; asked only for those that are stored.
            confidence, agreement: of the mask after refinement.
            facts: further fields of their `MaskEntry`.
        """
        before = [] if self.before is None else [self.before.write(name, mask_of("plain"), **facts)]
        facts |= {"confidence": confidence, "agreement": agreement}
        refined = self.masks.write(name, mask_of("refined"), **facts)
        return [*before, refined]

    def record(self, entries: Sequence[MaskEntry]) -> None:
        """Add an image's lines: of its masks in the order of `write`, or that it has none."""
        folders = self._folders()
        if entries[-1].file is None:
            entries = [entries[-1]] * len(folders)
        for masks, entry in zip(folders, entries, strict=True):
            masks.record(entry)

    def join(self) -> None:
        """Take the lines of other processes, which have ended their work, into the indices."""
        for masks in self._folders():
            for entry in join_journals(masks.folder):
                masks.take(entry)

    def flush(self) -> None:
        """Bring both indices to the disk (call at the end)."""
        for masks in self._folders():
            masks.flush()

    def _folders(self) -> list[MaskFolder]:
        return [self.masks] if self.before is None else [self.before, self.masks]


def areas_of(labels: np.ndarray) -> dict[int, float]:
    """The values in uint8 [H, W], ascending, and the share of the pixels that each has.

    Counted in pieces, since NumPy counts in 64 bits.
    """
    values, count = labels.ravel(), np.zeros(256, np.int64)
    for first in range(0, len(values), PIECE):
        count += np.bincount(values[first : first + PIECE], minlength=256)
    shares = count / max(1, len(values))
    return {label: round(float(shares[label]), 6) for label in np.flatnonzero(count).tolist()}


def files_of_others(folder: Path, names: Container[str]) -> Iterator[Path]:
    """Files and links in a folder of results that are not of `names` and not weaktr's.

    Args:
        folder: searched at any depth; hidden files in it are passed over.
        names: of the samples whose files are known.
    """
    if folder.is_symlink():
        yield folder
        return
    for place, folders, files in os.walk(folder):
        for name in sorted(files + [name for name in folders if (Path(place) / name).is_symlink()]):
            path = Path(place) / name
            relative = path.relative_to(folder)
            known = relative.with_suffix("").as_posix() in names
            if not is_clutter(relative) and (path.is_symlink() or not (known or is_sealed(path))):
                yield path


def before_refinement(folder: Path) -> Path:
    """The folder of the masks before refinement (``before_crf`` in older results)."""
    former = folder / "before_crf"
    return former if former.is_dir() else folder / "before_refinement"
