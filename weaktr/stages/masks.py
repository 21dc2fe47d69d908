"""Photographs -> masks in a folder: what `label` and `predict` share around their models."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from weaktr.data import Problem, Sample
from weaktr.data.masks import MaskEntry, MaskFolder, RefinedMasks
from weaktr.files import require_replaceable
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
from weaktr.inference.timeline import GPU, TRACE_MARK, Timeline
from weaktr.messages import few
from weaktr.progress import Meter
from weaktr.stages.store import MaskStore

log = logging.getLogger("weaktr")

PARTS = (READERS, MODEL, WRITERS)
#: The steps of a batch, as `weaktr.inference` names them.
STEPS = ("CAMs", "windows", "threshold", "refinement")


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
        older: number of masks in the folder of images that are no longer among those given
            (`count_older`).
        notes: what the refiners have to report of the masks made now.
    """

    masks: int = 0
    images_of: Counter[int] = field(default_factory=Counter)
    unlabelled: list[str] = field(default_factory=list)
    left_out: list[Problem] = field(default_factory=list)
    reduced: int = 0
    turned: Counter[str] = field(default_factory=Counter)
    older: int = 0
    notes: list[str] = field(default_factory=list)

    def count(self, masks: RefinedMasks, samples: Sequence[Sample]) -> None:
        """Count what is in the folder of these samples now, earlier runs included."""
        done = [entry for s in samples if (entry := masks.done(s.name)) is not None]
        entries = [entry for entry in done if entry.file is not None]
        self.masks = len(entries)
        self.unlabelled = [e.name for e in done if e.file is None and e.inputs is not None]
        self.images_of.update(label for entry in entries for label in entry.labels)
        self.turned.update(entry.exif for entry in entries if entry.exif is not None)
        self.reduced = sum(entry.working_size is not None for entry in entries)

    def count_older(self, masks: RefinedMasks, samples: Sequence[Sample]) -> None:
        """Count the masks of images that are not among all that were given."""
        given = {sample.name for sample in samples}
        self.older = sum(name not in given for name in masks.masks.entries)

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
                "%d images show no class and were left out (%s); unlabelled=background (of label) "
                "keeps them",
                len(self.unlabelled), few(self.unlabelled),
            )  # fmt: skip
        if self.older:
            log.warning(
                "%d masks there are of images that are no longer among those given", self.older
            )
        for note in self.notes:
            log.warning("%s", note)
        for problem in self.left_out:
            log.warning("left out: %s", problem)


def unusable_in_words(masks: MaskFolder, samples: Iterable[Sample]) -> str | None:
    """How many masks somebody has made something that cannot be used, and why; None = none."""
    names = [sample.name for sample in samples if sample.name in masks.unusable]
    if not names:
        return None
    return (
        f"{len(names)} masks that were changed by hand cannot be used and are left out "
        f"({few(names)}): {masks.unusable[names[0]]}; correct or delete them"
    )


def make_masks(
    title: str,
    samples: Sequence[Sample],
    store: MaskStore,
    *,
    read: Callable[[Sample], Read],
    fits: Callable[[Sequence[Read], Read], bool],
    compute: Callable[[Sequence[Read], Timeline], Sequence[LabelMaps]],
    device: torch.device,
    queue_mb: int,
    profile: Path | None = None,
) -> MaskReport:
    """Write a mask for every image that is not done yet.

    Args:
        title: of the work, for the progress.
        samples: the images.
        store: where the masks go.
        read, fits: see `weaktr.inference.pipeline.Parts`.
        compute: likewise; also gets the timeline, for its steps.
        device: of the model.
        queue_mb: see `LabelConfig`.
        profile: a file for a trace of what each part did when (`Timeline.write_trace`).

    Returns:
        What was made and what was left out.

    Raises:
        PipelineError: see `run_pipeline`.
    """

    def record(sample: Sample, written: list[MaskEntry] | Problem) -> None:
        if isinstance(written, Problem):
            report.left_out.append(written)
        else:
            store.masks.record(written)
        timeline.settle()
        meter.advance(note=note())

    def note() -> str:
        bad = f"{len(report.left_out)} left out, " if report.left_out else ""
        return bad + waits_in_words(timeline)

    if profile is not None:
        require_replaceable(profile, TRACE_MARK)
        Timeline().write_trace(profile)  # a place that cannot be written is said now
    report = MaskReport()
    todo: list[Sample] = []
    for one in store.todo(samples):
        if isinstance(one, Problem):
            report.left_out.append(one)
        else:
            todo.append(one)
    timeline = Timeline(keep_spans=profile is not None)
    try:
        with Meter(title, len(samples), done=len(samples) - len(todo)) as meter:
            run_pipeline(
                todo,
                Parts(
                    lambda sample: store.reading(sample, read),
                    fits,
                    lambda batch: compute(batch, timeline),
                    store.write,
                    record,
                ),
                limits_for(device, queue_mb),
                timeline,
            )
    finally:
        store.close()
        timeline.settle()
        if profile is not None:
            try:
                timeline.write_trace(profile)
                log.info("trace for chrome://tracing or ui.perfetto.dev: %s", profile)
            except OSError as error:  # must not hide the error of the run, nor end a finished one
                log.warning("no trace: %s", error)
    if todo:
        log.info("%s; %s", waits_in_words(timeline), bottleneck_in_words(timeline))
    report.count(store.masks, samples)
    return report


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
