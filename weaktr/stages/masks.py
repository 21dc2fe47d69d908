"""Photographs -> masks in a folder: what `label` and `predict` share around their models."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from weaktr.data import Problem, Sample
from weaktr.data.masks import MaskEntry, RefinedMasks
from weaktr.data.photographs import enlarged
from weaktr.data.stored_maps import write_cams, write_scores
from weaktr.files import whole_file, write_bytes
from weaktr.inference.pipeline import (
    MODEL,
    READERS,
    WRITERS,
    Parts,
    Read,
    limits_for,
    run_pipeline,
)
from weaktr.inference.results import LabelMaps
from weaktr.inference.timeline import GPU, Timeline
from weaktr.progress import Meter

log = logging.getLogger("weaktr")

PARTS = (READERS, MODEL, WRITERS)
#: The steps of a batch, as `weaktr.inference` names them.
STEPS = ("CAMs", "windows", "threshold", "refinement")
#: What can be written beside the masks: name -> its folder and the suffix of its files.
EXTRAS = {
    "confidence": ("confidence", ".png"),
    "cam": ("cams", ".npz"),
    "scores": ("scores", ".npz"),
}


@dataclass
class MaskReport:
    """What was made and what was left out.

    Args:
        masks: number of masks that are now in the folder.
        images_of: label -> number of masks in which it occurs.
        unlabelled: names of images without a class, which got no mask.
        left_out: images that could not be read, or do not fit the memory.
        reduced: number of images that were worked on at a smaller size.
        turned: numbers of images whose EXIF asks viewers to turn them: "applied", "ignored".
    """

    masks: int = 0
    images_of: Counter[int] = field(default_factory=Counter)
    unlabelled: list[str] = field(default_factory=list)
    left_out: list[Problem] = field(default_factory=list)
    reduced: int = 0
    turned: Counter[str] = field(default_factory=Counter)

    def count(self, masks: RefinedMasks, samples: Sequence[Sample]) -> None:
        """Count what is in the folder now, earlier runs included."""
        self.masks = len(masks)
        self.unlabelled = [sample.name for sample in samples if masks.without(sample.name)]
        self.images_of.update(label for entry in masks.entries for label in entry.labels)
        self.turned.update(entry.exif for entry in masks.entries if entry.exif is not None)
        self.reduced = sum(entry.working_size is not None for entry in masks.entries)

    def log(self, title: str, max_side: int | None) -> None:
        """Log the report."""
        log.info("%s: %d masks", title, self.masks)
        if self.reduced:
            log.info(
                "%d images are above max_side=%d: worked on at that size, their masks enlarged",
                self.reduced, max_side,
            )  # fmt: skip
        if count := self.turned["applied"]:
            log.info("%d images were turned as their EXIF says, and so are their masks", count)
        if count := self.turned["ignored"]:
            log.warning(
                "%d images are turned by viewers (EXIF), their masks are not: these are of the "
                "pixels as stored; --exif apply (data.options.exif in a recipe) turns both", count,
            )  # fmt: skip
        if self.unlabelled:
            log.warning(
                "%d images show no class and were left out (%s, ...); unlabelled=background keeps "
                "them",
                len(self.unlabelled), ", ".join(self.unlabelled[:3]),
            )  # fmt: skip
        for problem in self.left_out:
            log.warning("left out: %s", problem)


def make_masks(
    title: str,
    samples: Sequence[Sample],
    folder: Path,
    *,
    read: Callable[[Sample], Read],
    fits: Callable[[Sequence[Read], Read], bool],
    compute: Callable[[Sequence[Read], Timeline], Sequence[LabelMaps]],
    device: torch.device,
    queue_mb: int,
    refined: bool,
    keep_unlabelled: bool = True,
    emit: Collection[str] = (),
    profile: Path | None = None,
) -> MaskReport:
    """Write a mask for every image that has none yet.

    Args:
        title: of the work, for the progress.
        samples: the images.
        folder: gets ``masks/``, ``index.jsonl``, with refiners ``before_refinement/``, and the
            folders of `emit`.
        read, fits: see `weaktr.inference.pipeline.Parts`.
        compute: likewise; also gets the timeline, for its steps.
        device: of the model.
        queue_mb: see `LabelConfig`.
        refined: whether there are refiners.
        keep_unlabelled: whether images in which no class is possible get a mask, all background.
        emit: names of `EXTRAS`; an image whose file is missing is made again.
        profile: a file for a trace of what each part did when (`Timeline.write_trace`).

    Returns:
        What was made and what was left out.

    Raises:
        PipelineError: see `run_pipeline`.
    """
    masks = RefinedMasks(folder, refined=refined)
    extras = {name: EXTRAS[name] for name in emit if name in EXTRAS}

    def extra_path(kind: str, name: str) -> Path:
        subfolder, suffix = extras[kind]
        return folder / subfolder / f"{name}{suffix}"

    def is_complete(name: str) -> bool:
        if masks.without(name):
            return True
        return name in masks and all(extra_path(kind, name).is_file() for kind in extras)

    def write(result: LabelMaps) -> list[MaskEntry] | Problem:
        """Write the files of one image: none where it shows no class and such are skipped."""
        if (problem := result.problem()) is not None:
            return problem
        maps, sample = result.arrays(), result.sample
        if result.classes == () and not keep_unlabelled:
            size = result.photograph.size
            return [MaskEntry(sample.name, None, None, size, (), **facts_of(result))]
        if "cam" in extras:
            write_cams(extra_path("cam", sample.name), maps["cam"], result.classes or ())
        if "scores" in extras:
            write_scores(extra_path("scores", sample.name), maps["scores"])
        if "confidence" in extras:
            write_confidence(extra_path("confidence", sample.name), result, maps["confidence"])
        return masks.write(sample.name, result.mask, **facts_of(result))

    def record(sample: Sample, written: list[MaskEntry] | Problem) -> None:
        if isinstance(written, Problem):
            report.left_out.append(written)
        else:
            masks.record(written)
        timeline.settle()
        meter.advance(note=note())

    def note() -> str:
        bad = f"{len(report.left_out)} left out, " if report.left_out else ""
        return bad + waits_in_words(timeline)

    if profile is not None:
        write_bytes(profile, b"[]", durable=False)  # a place that cannot be written is said now
    report = MaskReport()
    todo = [sample for sample in samples if not is_complete(sample.name)]
    timeline = Timeline(keep_spans=profile is not None)
    try:
        with Meter(title, len(samples), done=len(samples) - len(todo)) as meter:
            run_pipeline(
                todo,
                Parts(read, fits, lambda batch: compute(batch, timeline), write, record),
                limits_for(device, queue_mb),
                timeline,
            )
    finally:
        masks.flush()
        timeline.settle()
        if profile is not None:
            try:
                timeline.write_trace(profile)
                log.info("trace for chrome://tracing or ui.perfetto.dev: %s", profile)
            except OSError as error:  # must not hide the error of the run, nor end a finished one
                log.warning("no trace: %s", error)
    if todo:
        log.info("%s; %s", waits_in_words(timeline), bottleneck_in_words(timeline))
    report.count(masks, samples)
    return report


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


def write_confidence(path: Path, result: LabelMaps, confidence: np.ndarray) -> None:
    """Write how likely each pixel's label is, as a grey PNG: 0 = 0, 255 = 1."""
    grey = np.round(255 * confidence.clip(0, 1)).astype(np.uint8)
    with whole_file(path, durable=False) as temporary:
        Image.fromarray(enlarged(grey, result.photograph.size)).save(temporary, format="PNG")


def waits_in_words(timeline: Timeline) -> str:
    """The share of its time in which each part waited for the others."""
    shares = ", ".join(f"{part} {1 - timeline.busy(part):.0%}" for part in PARTS)
    busy = f"; GPU busy at most {timeline.busy(GPU):.0%}" if timeline.work(GPU) else ""
    return f"waiting: {shares}{busy}"


def bottleneck_in_words(timeline: Timeline) -> str:
    """Which part the others waited for; of the model, what its time went into."""
    slowest = max(PARTS, key=timeline.busy)
    steps = timeline.work(GPU) or {
        name: sum(timeline.work(name).values()) for name in STEPS if timeline.work(name)
    }
    total = sum(steps.values())
    if slowest != MODEL or not total:
        return f"the bottleneck: {slowest}"
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in steps.items())
    return f"the bottleneck: {slowest} ({shares})"
