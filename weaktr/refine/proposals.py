"""Snapping to mask proposals as a refinement: segments of any tool take the class in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weaktr.config import LabelConfig, PredictConfig, ProposalsConfig
from weaktr.data.outlines import area, paint, runs_of
from weaktr.data.problems import DataError
from weaktr.data.proposals import Entry, Proposals, read_proposals
from weaktr.messages import few
from weaktr.ops.upload import upload
from weaktr.recipes import make
from weaktr.refine.maps import Maps


@dataclass(frozen=True)
class ProposalsRefiner:
    """Labels of each image, snapped to its proposals; outside them they stay.

    A proposal takes the class that most of its pixels have, where more than `majority` of them have
    it, or where it covers at least `cover` of all pixels of that class (and `least` of its own have
    it). Proposals are drawn from the largest to the smallest, so that a smaller one wins where they
    overlap: parts and objects lie on what they are before or within, and a score, which the tools
    define differently or not at all, says nothing of that.

    The scores of a pixel whose label changes are those of both labels exchanged.

    Args:
        settings: of the rule.
        proposals: of the photographs, by name.
    """

    settings: ProposalsConfig
    proposals: Proposals
    #: names of the images that had no proposals
    without: set[str] = field(default_factory=set, compare=False)

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
            DataError: proposals that are not of their photograph's size, or no run lengths; names
                the file and the entry.
            ValueError: maps without the name or the size of their photograph.
        """
        chosen = [index for index, own in enumerate(maps) if own.num_labels > 1]
        results = list(maps)
        for index, labels in zip(chosen, _on_host([maps[i].labels for i in chosen]), strict=True):
            results[index] = self._snapped(maps[index], labels)
        return results

    def among(self, photographs: Sequence[str]) -> ProposalsRefiner:
        """See `weaktr.refine.maps.Refiner`."""
        return replace(self, proposals=self.proposals.among(photographs))

    def files(self, name: str) -> tuple[Path, ...]:
        """The files that an image's result depends on."""
        return self.proposals.files(name)

    def paths(self) -> tuple[Path, ...]:
        """Where all proposals are."""
        return (self.proposals.path,)

    def notes(self) -> list[str]:
        """What should be known of the images so far."""
        if not self.without:
            return []
        names, unclear = few(sorted(self.without)), self.proposals.unclear
        notes = [f"{len(self.without)} images have no proposals ({names}): their labels stay"]
        if unclear:
            notes.append(
                f"proposals of {few(unclear)} may be of several photographs, so are of none: name "
                "photographs with their folders"
            )
        return notes

    def _snapped(self, maps: Maps, before: np.ndarray) -> Maps:
        """The maps of an image with the labels `before` uint8 [h, w], as they are on the host."""
        if maps.name is None or maps.size is None:
            raise ValueError("maps: expected the name and the size of the photograph, got none")
        entries = self.proposals.of(maps.name)
        if not entries:
            self.without.add(maps.name)
            return maps
        inside = _Inside(maps.size, before.shape)
        totals = np.bincount(before.ravel(), minlength=maps.num_labels)
        first = 1 if maps.has_background else 0
        chosen = []
        for entry in entries:
            runs = checked_runs(entry, maps.size)
            counts = np.bincount(before[inside(runs)], minlength=maps.num_labels)
            label = taken_label(counts, totals, self.settings, first)
            if label is not None:
                chosen.append((area(runs), runs, label))
        after = before.copy()
        for _, runs, label in sorted(chosen, key=lambda one: -one[0]):
            after[inside(runs)] = label
        labels = upload(torch.from_numpy(after), maps.labels.device)
        scores = None if maps.scores is None else exchanged(maps.scores, maps.labels, labels)
        return maps._replace(labels=labels, scores=scores)


def _on_host(labels: Sequence[Tensor]) -> list[np.ndarray]:
    """Label maps of one device in one copy, for which the host waits once."""
    if not labels:
        return []
    flat = torch.cat([one.flatten() for one in labels]).cpu()
    parts = flat.split([one.numel() for one in labels])
    return [part.view(one.shape).numpy() for part, one in zip(parts, labels, strict=True)]


class _Inside:
    """Which pixels at the working size are inside run lengths at the size of the file."""

    def __init__(self, size: tuple[int, int], working_size: tuple[int, ...]) -> None:
        self._columns = np.zeros(size[::-1], np.uint8)
        rows, columns = (
            ((np.arange(small) + 0.5) * large / small).astype(np.int64)
            for small, large in zip(working_size, size, strict=True)
        )
        self._places = np.ix_(columns, rows)
        self._is_same = tuple(working_size) == size

    def __call__(self, runs: np.ndarray) -> np.ndarray:
        """bool [h, w]: each pixel as the nearest of the file."""
        paint(self._columns, runs, 1)
        sampled = self._columns if self._is_same else self._columns[self._places]
        pixels: np.ndarray = sampled.T.astype(bool)
        paint(self._columns, runs, 0)
        return pixels


def checked_runs(entry: Entry, size: tuple[int, int]) -> np.ndarray:
    """The run lengths of a proposal of a photograph of this size, see `weaktr.data.outlines`.

    Raises:
        DataError: not such run lengths; names the file and the entry.
    """
    try:
        return runs_of(entry.outline, size)
    except ValueError as error:
        turned = entry.outline.get("size") == [*reversed(size)] and size[0] != size[1]
        hint = "; are they of the photograph as EXIF turns it? see data.options.exif" * turned
        raise DataError(entry.problem(f"{error}{hint}")) from error


def taken_label(
    counts: np.ndarray, totals: np.ndarray, settings: ProposalsConfig, first: int = 1
) -> int | None:
    """The label that a proposal takes, or None.

    Args:
        counts: int64 [K], how many of its pixels have each label.
        totals: int64 [K], how many of all pixels of the image do.
        settings: of the rule.
        first: the first label of a class: 1 after a background, else 0.
    """
    inside = int(counts.sum())
    if not inside or len(counts) <= first:
        return None
    best = first + int(counts[first:].argmax())
    share = counts[best] / inside
    if share > settings.majority:
        return best
    if counts[best] and share >= settings.least and counts[best] >= settings.cover * totals[best]:
        return best
    if settings.background and first and counts[0] / inside > settings.majority:
        return 0
    return None


def exchanged(scores: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """Scores [K, H, W] in which each pixel's former label and its new one have changed places."""
    old, new = before[None].long(), after[None].long()
    result = scores.scatter(0, new, scores.gather(0, old))
    return result.scatter_(0, old, scores.gather(0, new))


def proposals_refiner(
    settings: Any, stage_settings: LabelConfig | PredictConfig
) -> ProposalsRefiner:
    """Snapping to the proposals of a file or folder.

    Args:
        settings: fields of `ProposalsConfig`; `file` must be among them.
        stage_settings: not used.

    Raises:
        ValueError: no file, an unknown field, or a value out of range; see also `read_proposals`.
    """
    chosen = make(ProposalsConfig, {} if settings is None else settings, "proposals")
    if chosen.file is None:
        raise ValueError(
            "proposals: expected {file: PATH} with a JSON file of run lengths, or a folder of a "
            "NAME.json for each photograph; got none"
        )
    return ProposalsRefiner(chosen, read_proposals(Path(chosen.file)))
