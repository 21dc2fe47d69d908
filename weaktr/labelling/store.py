"""The files of a folder of masks: which images are done in it, and writing those of further ones.

An image is done if its files are there as they were written, and were made from the photograph
(and the stored CAMs, and what refiners read) and the image-level labels that it has now.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from weaktr import processes
from weaktr.contents import CONTENTS, Contents
from weaktr.data import DataError, Problem, Sample
from weaktr.data.mask_index import MaskEntry, join_journals
from weaktr.data.masks import NOT_OURS, RefinedMasks, before_refinement, files_of_others, png_bytes
from weaktr.data.parallel import ordered_map
from weaktr.data.photographs import enlarged
from weaktr.data.stored_maps import (
    CamOrigin,
    SoftLabels,
    is_damaged,
    npz_of_cams,
    npz_of_scores,
    npz_of_soft_labels,
)
from weaktr.files import write_bytes
from weaktr.inference.results import LabelMaps
from weaktr.messages import few
from weaktr.progress import track
from weaktr.seals import is_sealed

log = logging.getLogger("weaktr")
T = TypeVar("T")

#: What can be written beside the masks: name -> its folder and the suffix of its files.
EXTRAS = {
    "confidence": ("confidence", ".png"),
    "cam": ("cams", ".npz"),
    "scores": ("scores", ".npz"),
    "soft": ("soft", ".npz"),
}
#: Those of them that take long to read.
LARGE = ("cam", "scores")

#: What is said of an image that was changed after somebody had corrected its mask.
EDITED_BEFORE = (
    "its mask was changed by hand, and its photograph or its labels since: "
    "delete the mask to have it made again"
)
#: What is said of one whose mask somebody had corrected, and which cannot be read.
EDITED_UNREAD = "cannot be read now; its mask, which was changed by hand, stays as it is"


class MaskStore:
    """A folder of masks that is being filled.

    Args:
        folder: gets ``masks/``, ``index.jsonl``, with refiners ``before_refinement/``, and the
            folders of `emit`.
        files: of a sample: from which its files are made, the photograph first.
        refined: whether there are refiners.
        keep_unlabelled: whether images in which no class is possible get a mask, all background.
        emit: names of `EXTRAS`; others are ignored.
        contents: what is known of files already; None = what `folder` keeps.
        num_labels: see `MaskFolder`.

    Several processes (`weaktr.processes`) fill a folder together; each makes this at the same time.

    Raises:
        ValueError: an index is damaged, or there are files of others where masks are written.
    """

    def __init__(
        self,
        folder: Path,
        files: Callable[[Sample], tuple[Path, ...]],
        *,
        refined: bool,
        keep_unlabelled: bool = True,
        emit: Collection[str] = (),
        contents: Contents | None = None,
        num_labels: int | None = None,
    ) -> None:
        self.folder, self.files, self.keep_unlabelled = folder, files, keep_unlabelled
        self.contents = contents or Contents(folder / CONTENTS)
        if processes.is_first():  # of processes that were killed
            for place in (folder, before_refinement(folder)):
                join_journals(place)
        processes.wait_for_all()
        self.masks = RefinedMasks(
            folder,
            refined=refined,
            contents=self.contents,
            num_labels=num_labels,
            process=processes.index(),
        )
        self.extras = {name: EXTRAS[name] for name in emit if name in EXTRAS}
        for subfolder, _ in self.extras.values():
            for path in files_of_others(folder / subfolder, self.masks.names):
                raise ValueError(f"{path}: {NOT_OURS}, or choose another --out")
        self._read: dict[str, dict[str, Any]] = {}

    def todo(self, samples: Sequence[Sample]) -> Iterator[Sample | Problem]:
        """The samples that are not done; a problem for one that must not be done."""
        is_edited = self.masks.is_edited
        old = [s for s in samples if is_edited(s.name) or self._has_files(s.name)]
        changed, behind, unread = set(), dict[str, Problem](), list[str]()
        titled = track(
            ordered_map(self._is_current, old), "looking for what is done", len(old), is_minor=True
        )
        for sample, is_current in zip(old, titled, strict=True):
            name = sample.name
            if is_edited(name):
                if (why := self._not_taken(name, is_current)) is not None:
                    behind[name] = Problem(str(sample.image), sample.source, why)
            elif is_current is None:
                unread.append(name)
            elif not is_current:
                changed.add(name)
        for sample in old:
            if sample.name in changed:
                self._forget(sample.name)
        self._log_changes(changed, [n for s in old if is_edited(n := s.name) and n not in behind])
        done = {sample.name for sample in old} - changed - set(unread)
        for sample in samples:
            if sample.name in behind:
                yield behind[sample.name]
            elif sample.name not in done:
                yield sample

    def _log_changes(self, changed: Collection[str], edited: Sequence[str]) -> None:
        """Say which images are done again, and which masks stay as somebody has changed them."""
        if changed:
            log.info(
                "%d images have changed, or their labels (%s): their masks are made again",
                len(changed), few(sorted(changed)),
            )  # fmt: skip
        if edited:
            log.warning(
                "%d masks were changed by hand (%s): they stay as they are",
                len(edited), few(edited),
            )  # fmt: skip
        if lacking := [name for name in edited if self._lacks_extras(name)]:
            log.warning(
                "%d images whose masks were changed by hand (%s) have no %s, and get none",
                len(lacking), few(lacking), " or ".join(self.extras),
            )  # fmt: skip

    def _not_taken(self, name: str, is_current: bool | None) -> str | None:
        """Why a mask that was changed by hand cannot be taken as it is; None = it can."""
        if (why := self.masks.unusable(name)) is not None:
            return f"its mask cannot be used: {why}; or delete it to have it made again"
        if is_current is None:
            return EDITED_UNREAD
        if not is_current:
            return EDITED_BEFORE
        if self.masks.done(name) is None:
            return (
                "its mask before refinement was changed by hand, and the refined one is missing: "
                "move the former to the latter's place, or delete it to have both made again"
            )
        return None

    def drop(self, samples: Sequence[Sample]) -> Iterator[Problem]:
        """Note that images show no class; a mask that one has from earlier labels is removed.

        Yields:
            A problem for each whose mask somebody has changed; that stays.
        """
        for sample in samples:
            entry = self.masks.done(sample.name)
            if self.masks.is_edited(sample.name):
                yield Problem(str(sample.image), sample.source, EDITED_BEFORE)
            elif entry is not None and entry.file is not None:
                self._forget(sample.name)

    def reading(self, sample: Sample, read: Callable[[Sample], Any]) -> Any:
        """Read a sample, and remember of which content; in several threads.

        Raises:
            DataError: as `read`; or a file was changed meanwhile.
        """
        value, inputs = read_with_inputs(sample, read, lambda: self._digests(sample))
        self._read[sample.name] = {"given": sample.labels, "inputs": inputs}
        return value

    def write(self, result: LabelMaps) -> list[MaskEntry] | Problem:
        """Write the files of one image: none where it shows no class and such are skipped."""
        if (problem := result.problem()) is not None:
            return problem
        name = result.sample.name
        facts = facts_of(result) | self._read.pop(name)
        if result.classes == () and not self.keep_unlabelled:
            return [MaskEntry(name, None, None, result.photograph.size, (), **facts)]
        if (mask := self.masks.in_the_way(name)) is not None:
            message = f"{mask}: {NOT_OURS} to have the mask made"
            return Problem(str(result.sample.image), result.sample.source, message)
        for kind in self.extras:
            path = self._extra(kind, name)
            if path.exists() and not (is_sealed(path) or is_damaged(path)):
                message = f"{path} was changed by hand: move it away to have it made again"
                return Problem(str(result.sample.image), result.sample.source, message)
        for kind in self.extras:
            content = extra_bytes(kind, result, facts["inputs"][0])
            write_bytes(self._extra(kind, name), content, durable=False)
        of_refined = {"confidence": result.confidence(), "agreement": result.agreement()}
        return self.masks.write(name, result.mask, **of_refined, **facts)

    def _forget(self, name: str) -> None:
        """Note that an image has no mask, and remove what it has from earlier inputs."""
        entry = self.masks.entry(name)
        assert entry is not None  # it is in the index
        nothing = MaskEntry(
            name, None, None, entry.size, (), working_size=entry.working_size, exif=entry.exif
        )
        self.masks.record([nothing])
        for subfolder, suffix in EXTRAS.values():
            path = self.folder / subfolder / f"{name}{suffix}"
            if path.is_file() and is_sealed(path):
                path.unlink()

    def join(self) -> None:
        """Have one index for the masks of all processes, once each has closed its store."""
        processes.wait_for_all()
        if processes.is_first():
            self.masks.join()

    def close(self) -> None:
        """Bring the index, and what is known of the files, to the disk."""
        self.masks.flush()
        if processes.is_first():
            self.contents.save()

    def _digests(self, sample: Sample) -> tuple[str, ...] | None:
        """Of the sample's files; None where one cannot be read."""
        try:
            return tuple(self.contents.digest(path) for path in self.files(sample))
        except (OSError, ValueError):
            return None

    def _has_files(self, name: str) -> bool:
        entry = self.masks.done(name)
        if entry is None:
            return False
        return entry.file is None or not self._lacks_extras(name)

    def _lacks_extras(self, name: str) -> bool:
        """Whether a file of `extras` is missing, empty or cut off; large ones are not read."""
        files = {kind: self._extra(kind, name) for kind in self.extras}
        return not all(
            path.is_file() and path.stat().st_size
            and (zipfile.is_zipfile(path) if kind in LARGE else not is_damaged(path))
            for kind, path in files.items()
        )  # fmt: skip

    def _is_current(self, sample: Sample) -> bool | None:
        """Whether what is there was made from the files and labels of now.

        None where one of the files cannot be read now: it is tried again, and what is there stays.
        """
        entry = self.masks.entry(sample.name)
        assert entry is not None  # it is in the index
        digests = self._digests(sample)
        if digests is None:
            return None
        is_same_way = entry.read_as in (None, sample.exif)
        return is_same_way and entry.given == sample.labels and entry.inputs == digests

    def _extra(self, kind: str, name: str) -> Path:
        subfolder, suffix = self.extras[kind]
        return self.folder / subfolder / f"{name}{suffix}"


def soft_file(folder: Path, name: str) -> Path:
    """Where the soft labels of an image are in a folder of pseudo labels."""
    subfolder, suffix = EXTRAS["soft"]
    return folder / subfolder / f"{name}{suffix}"


def read_with_inputs(
    sample: Sample, read: Callable[[Sample], T], digests: Callable[[], tuple[str, ...] | None]
) -> tuple[T, tuple[str, ...]]:
    """Read a sample; also the digests of its files, which are the same before and after.

    Raises:
        DataError: as `read`; or a file was changed meanwhile.
    """
    before = digests()
    value = read(sample)  # says what is wrong where there are no digests
    if before is None or before != digests():
        message = "changed while it was read"
        raise DataError(Problem(str(sample.image), sample.source, message, is_outside=True))
    return value, before


def facts_of(result: LabelMaps) -> dict[str, Any]:
    """What an index says of an image besides its mask."""
    facts: dict[str, Any] = {"exif": result.photograph.exif}
    if result.photograph.is_reduced:
        height, width = result.photograph.pixels.shape[:2]
        facts["working_size"] = (height, width)
    if result.probabilities is not None and result.classes is not None:
        rounded = [round(share, 4) for share in result.probabilities]
        facts["predicted"] = dict(zip((k + 1 for k in result.classes), rounded, strict=True))
    return facts


def extra_bytes(kind: str, result: LabelMaps, digest: str) -> bytes:
    """The file of one kind of `EXTRAS` of an image.

    "confidence" is how likely each pixel's label is, as a grey PNG: 0 = 0, 255 = 1.

    Args:
        kind: its name.
        result: of the image.
        digest: SHA-256 of its photograph's file.
    """
    maps, classes, size = result.arrays(), result.classes or (), result.photograph.size
    match kind:
        case "cam":
            return npz_of_cams(maps["cam"], classes, CamOrigin(digest, result.sample.exif))
        case "scores":
            return npz_of_scores(maps["scores"])
        case "soft":
            labels = (0, *(index + 1 for index in classes))
            return npz_of_soft_labels(SoftLabels(maps["soft"], labels), size)
        case _:
            grey = np.round(255 * maps["confidence"].clip(0, 1)).astype(np.uint8)
            return png_bytes(Image.fromarray(enlarged(grey, size)))
