"""Masks of another tool as a refinement: they are taken where image-level labels and ours allow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.config import LabelConfig, PredictConfig, TeacherConfig
from weaktr.data.classes import IGNORE, MAX_CLASSES
from weaktr.data.io import read_labels, size_message
from weaktr.data.photographs import enlarged
from weaktr.data.problems import DataError, Problem
from weaktr.files import names_in
from weaktr.messages import few
from weaktr.ops.upload import upload
from weaktr.recipes import make
from weaktr.refine.maps import Maps
from weaktr.refine.proposals import exchanged

#: Photographs with the lowest agreement that the log names.
NAMED = 5
#: Photographs whose agreement waits on the device until all are copied together.
WAITING = 256


@dataclass
class Tally:
    """The agreement of all photographs so far, in numbers that take no more room with each."""

    least_agreement: float
    is_empty: bool = True
    excluded: int = 0  #: classes of teachers that image-level labels exclude
    regions: int = 0
    taken: int = 0
    total: float = 0.0  #: sum of the regions' agreement
    lowest: list[tuple[float, str]] = field(default_factory=list)  #: `NAMED` of them at most
    #: by name, float32 [K] on the device and `excluded` of the last photographs, not counted yet
    waiting: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def begin(self, names: Iterable[str | None]) -> None:
        """Make room before a batch. Names of the one before are known, for it may come again."""
        if len(self.waiting) >= WAITING and self.waiting.keys().isdisjoint(names):
            self.count()

    def add(self, name: str, agreement: Tensor, excluded: int) -> None:
        """Note a photograph; again with other labels, as of other thresholds, it does not count."""
        self.waiting.setdefault(name, (agreement, excluded))

    def count(self) -> None:
        """Count those that are waiting; the host waits for the device."""
        if not self.waiting:
            return
        found = [agreement for agreement, _ in self.waiting.values()]
        values = torch.cat(found).cpu().split([len(agreement) for agreement in found])
        for name, own in zip(self.waiting, values, strict=True):
            known = own[~own.isnan()].tolist()
            self.regions += len(known)
            self.taken += sum(one >= self.least_agreement for one in known)
            self.total += sum(known)
            self.lowest = sorted([*self.lowest, *((one, name) for one in known)])[:NAMED]
        self.excluded += sum(excluded for _, excluded in self.waiting.values())
        self.is_empty = False
        self.waiting.clear()


@dataclass(frozen=True)
class TeacherRefiner:
    """Labels of each image, replaced by those of its teacher class by class.

    A class that the image does not show by its image-level labels is never taken. One whose
    agreement (`agreements`) is at least `least_agreement` has the teacher's region, any other one
    keeps ours. Pixels that the teacher ignores, or gives to a class that is not taken, keep our
    label; those that are its background become background, but where a class keeps our region.

    The scores of a pixel whose label changes are those of both labels exchanged.

    Args:
        settings: of the rule.
        folder: of the teacher's masks.
        photographs: of the run, by name; a mask of one of them is not that of another.
    """

    settings: TeacherConfig
    folder: Path
    photographs: frozenset[str] = frozenset()
    #: names of the images for which there is no mask
    without: set[str] = field(default_factory=set, compare=False)
    #: of those for which there is one
    tally: Tally = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tally", Tally(self.settings.least_agreement))

    def __call__(
        self,
        images: Sequence[Tensor],
        maps: Sequence[Maps],
        *,
        num_threads: int | None = None,
        confidence: bool = False,
    ) -> list[Maps]:
        """See `weaktr.refine.maps.Refiner`.

        Raises:
            DataError: a mask that cannot be read, or is not of its photograph's size; names it.
            ValueError: maps without the name or the size of their photograph.
        """
        self.tally.begin(own.name for own in maps)
        return [self._taught(own) for own in maps]

    def among(self, photographs: Sequence[str]) -> TeacherRefiner:
        """See `weaktr.refine.maps.Refiner`."""
        return replace(self, photographs=frozenset(photographs))

    def files(self, name: str) -> tuple[Path, ...]:
        """The files that an image's result depends on."""
        below = name.removeprefix("images/")  # of a list beside images/
        names = (name,) if below == name or below in self.photographs else (name, below)
        files = (self.folder / f"{one}.png" for one in names)
        return tuple(file for file in files if file.is_file())[:1]

    def paths(self) -> tuple[Path, ...]:
        """Where all masks are."""
        return (self.folder,)

    def notes(self) -> list[str]:
        """What should be known of the images so far."""
        notes = []
        if self.without:
            names = few(sorted(self.without))
            notes.append(f"{len(self.without)} images have no teacher ({names}): their labels stay")
        tally = self.tally
        tally.count()
        if tally.is_empty:
            return notes
        mean = f", mean agreement {tally.total / tally.regions:.2f}" if tally.regions else ""
        worst = few([f"{name} {one:.2f}" for one, name in tally.lowest], NAMED)
        notes.append(
            f"teacher: {tally.taken} of {tally.regions} regions taken{mean} (lowest: "
            f"{worst or 'none'}); {tally.excluded} others are of classes that their images do not "
            "show"
        )
        return notes

    def _taught(self, maps: Maps) -> Maps:
        if maps.name is None or maps.size is None:
            raise ValueError("maps: expected the name and the size of the photograph, got none")
        files = self.files(maps.name)
        if not files:
            self.without.add(maps.name)
            return maps
        teacher = read_teacher(files[0], maps.size)
        own = maps.file_labels or tuple(range(maps.num_labels))
        occurring = {*np.unique(teacher).tolist()}
        place = np.full(256, maps.num_labels, np.uint8)
        place[list(own)] = np.arange(maps.num_labels)
        place[IGNORE] = maps.num_labels
        height, width = maps.labels.shape
        nearest = torch.from_numpy(place[enlarged(teacher, (height, width))])
        theirs = upload(nearest, maps.labels.device)
        agreement = agreements(theirs, maps.labels, maps.num_labels)
        if maps.has_background:
            agreement[0] = torch.nan
        self.tally.add(maps.name, agreement, len(occurring - {*own, 0, IGNORE}))
        labels = self._combined(theirs, maps, agreement)
        scores = None if maps.scores is None else exchanged(maps.scores, maps.labels, labels)
        return maps._replace(labels=labels, scores=scores, agreement=agreement)

    def _combined(self, theirs: Tensor, maps: Maps, agreement: Tensor) -> Tensor:
        """uint8 [h, w]: the teacher's labels (K = none that may be taken) and ours."""
        is_taken = F.pad(agreement >= self.settings.least_agreement, (0, 1))  # and K is not
        labels = maps.labels
        if maps.has_background:
            is_cleared = (theirs == 0) & is_taken[labels.long()]
            labels = labels.masked_fill(is_cleared, 0)
        return torch.where(is_taken[theirs.long()], theirs, labels)


def agreements(theirs: Tensor, ours: Tensor, num_labels: int) -> Tensor:
    """How much of the smaller of two regions of a label lies in the other one.

        agreement(c) = |T_c ∩ O_c| / min(|T_c|, |O_c|), and 0 where only one of them is empty

    T_c are the teacher's pixels of label c and O_c ours. CAMs find a part of an object, or more
    than it, so that their intersection over union with good masks is low, too. The host does not
    wait.

    Args:
        theirs: uint8 [h, w], 0..K-1; K = none of these labels.
        ours: uint8 [h, w], 0..K-1.
        num_labels: K.

    Returns:
        float32 [K] on their device; NaN of a label that neither has.
    """
    pairs = theirs.flatten().long() * num_labels + ours.flatten().long()
    counts = torch.zeros((num_labels + 1) * num_labels, device=ours.device, dtype=torch.float64)
    counts.scatter_add_(0, pairs, torch.ones_like(pairs, dtype=torch.float64))
    table = counts.view(num_labels + 1, num_labels)
    of_teacher, of_ours = table[:-1].sum(1), table.sum(0)
    shares = table[:-1].diagonal() / torch.minimum(of_teacher, of_ours).clamp_min(1)
    return shares.masked_fill(of_teacher + of_ours == 0, torch.nan).float()


def read_teacher(path: Path, size: tuple[int, int]) -> np.ndarray:
    """A teacher's mask, uint8 [H, W], of a photograph of this size.

    Raises:
        DataError: it cannot be read, or has another size.
    """
    mask = read_labels(path, MAX_CLASSES + 1)
    if mask.shape != size:
        hint = "; is it of the photograph as EXIF turns it? see --exif"
        is_turned = mask.shape == size[::-1]
        message = size_message("the teacher's mask", mask.shape, size) + hint * is_turned
        raise DataError(Problem(str(path), "", message))
    return mask


def teacher_refiner(settings: Any, stage_settings: LabelConfig | PredictConfig) -> TeacherRefiner:
    """The masks of a folder as teacher.

    Args:
        settings: fields of `TeacherConfig`; `folder` must be among them.
        stage_settings: not used.

    Raises:
        ValueError: no folder, or none with PNGs; an unknown field, or a value out of range.
    """
    chosen = make(TeacherConfig, {} if settings is None else settings, "teacher")
    if chosen.folder is None:
        raise ValueError(
            "teacher: expected {folder: PATH} with a NAME.png for each photograph; got none"
        )
    folder = Path(chosen.folder)
    if not folder.is_dir():
        raise ValueError(f"teacher: expected a folder of masks, {folder} is not one")
    names_in(folder, ".png")
    return TeacherRefiner(chosen, folder)
