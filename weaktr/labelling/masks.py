"""Photographs -> masks in a folder: what `label` and `predict` share around their models."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Generic

import torch

from weaktr import processes
from weaktr.contents import Contents
from weaktr.data import IGNORE, Problem, Sample
from weaktr.data.mask_index import MaskEntry
from weaktr.data.masks import MaskFolder, RefinedMasks
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
from weaktr.labelling.store import MaskStore
from weaktr.messages import counted, few
from weaktr.progress import Meter
from weaktr.refine import Refiner, notes_of

log = logging.getLogger("weaktr")

PARTS = (READERS, MODEL, WRITERS)
#: The steps of a batch, as `weaktr.inference` names them.
STEPS = ("CAMs", "windows", "threshold", "refinement")


@dataclass
class MaskReport:
    """What was made and what was left out.

    Args:
        masks: number of masks that are now in the folder.
        images_of: label -> number of masks that show it (`MaskEntry.shown`).
        background: names of images whose masks show no class, though the image may have one.
        unlabelled: names of images without a class, which got no mask.
        left_out: images that could not be read, or do not fit the memory.
        reduced: number of images that were worked on at a smaller size.
        turned: numbers of images whose EXIF asks viewers to turn them: "applied", "ignored".
        older: number of masks in the folder of images that are not among those given
            (`count_older`).
        folder: of the masks; None = `count_older` was not called.
        notes: what the refiners have to report of the masks made now.
    """

    masks: int = 0
    images_of: Counter[int] = field(default_factory=Counter)
    background: list[str] = field(default_factory=list)
    unlabelled: list[str] = field(default_factory=list)
    left_out: list[Problem] = field(default_factory=list)
    reduced: int = 0
    turned: Counter[str] = field(default_factory=Counter)
    older: int = 0
    folder: Path | None = None
    notes: list[str] = field(default_factory=list)

    def count(self, masks: RefinedMasks, samples: Sequence[Sample]) -> None:
        """Count what is in the folder of these samples now, earlier runs included."""
        done = [entry for s in samples if (entry := masks.done(s.name)) is not None]
        entries = [entry for entry in done if entry.file is not None]
        self.masks = len(entries)
        self.unlabelled = [e.name for e in done if e.file is None and e.inputs is not None]
        self.images_of.update(label for entry in entries for label in entry.shown)
        self.background = [e.name for e in entries if e.given != () and not e.shown - {0, IGNORE}]
        self.turned.update(entry.exif for entry in entries if entry.exif is not None)
        self.reduced = sum(entry.working_size is not None for entry in entries)

    def count_older(self, masks: RefinedMasks, samples: Sequence[Sample]) -> None:
        """Count the masks of images that are not among all that were given."""
        given = {sample.name for sample in samples}
        self.older = sum(name not in given for name in masks.masks.entries)
        self.folder = masks.masks.folder

    def log(self, title: str, max_side: int | None, group: str = "") -> None:
        """Log the report.

        Args:
            title: of the masks.
            max_side: see `LabelConfig`.
            group: in which a recipe has the settings, such as ``label.``; "" = of a command.
        """
        log.info("%s: %d masks", title, self.masks)
        if self.reduced:
            log.info(
                "%s above max_side=%d: worked on at that size, masks enlarged",
                counted(self.reduced, "image is", "images are"), max_side,
            )  # fmt: skip
        log_turned(self.turned)
        if self.unlabelled:
            log.warning(
                "%s no mask (%s); --set %sunlabelled=background%s gives one",
                counted(
                    len(self.unlabelled),
                    "photograph shows no class and gets",
                    "photographs show no class and get",
                ),
                few(self.unlabelled), group, "" if group else " (with another --out)",
            )  # fmt: skip
        if self.background:
            log.warning(
                "%s background alone (%s)",
                counted(len(self.background), "mask shows", "masks show"), few(self.background),
            )  # fmt: skip
        if self.older:
            log.warning(
                "%s of images that are not among those given now; they stay, in %s",
                counted(self.older, "mask there is", "masks there are"), self.folder,
            )  # fmt: skip
        for note in self.notes:
            log.warning("%s", note)
        for problem in self.left_out:
            log.warning("left out: %s", problem)


def log_turned(turned: Mapping[str, int]) -> None:
    """Log how many images EXIF turns, see `MaskReport.turned`."""
    if count := turned.get("applied"):
        told = counted(count, "image was", "images were")
        log.info("%s turned as EXIF says, masks likewise", told)
    if count := turned.get("ignored"):
        log.warning(
            "%s turned by viewers (EXIF), masks are not: they are of the pixels as stored; "
            "--exif apply (data.options.exif in a recipe) turns both",
            counted(count, "image is", "images are"),
        )  # fmt: skip


def is_of(contents: Contents, entry: MaskEntry, image: Path) -> bool:
    """Whether a mask is of a photograph as it is now.

    One that cannot be read counts as such, since who reads it says why; as does a mask for which an
    older version did not note the photograph.
    """
    if not entry.inputs:
        return True
    try:
        return contents.digest(image) == entry.inputs[0]
    except (OSError, ValueError):
        return True


def unusable_in_words(masks: MaskFolder, samples: Iterable[Sample]) -> str | None:
    """How many masks somebody has made something that cannot be used, and why; None = none."""
    names = [sample.name for sample in samples if sample.name in masks.unusable]
    if not names:
        return None
    wrong = counted(len(names), "mask that was", "masks that were")
    return (
        f"{wrong} changed by hand cannot be used, so left out ({few(names)}): "
        f"{masks.unusable[names[0]]}; correct or delete them"
    )


@dataclass(frozen=True)
class MaskMaker(Generic[Read]):
    """How the masks of photographs are made, wherever they are stored.

    Args:
        title: of the work, for the progress.
        read, fits: see `weaktr.inference.pipeline.Parts`.
        compute: likewise; also gets the timeline, for its steps.
        device: of the model.
        queue_mb: see `LabelConfig`.
        refiners: that `compute` applies.
    """

    title: str
    read: Callable[[Sample], Read]
    fits: Callable[[Sequence[Read], Read], bool]
    compute: Callable[[Sequence[Read], Timeline], Sequence[LabelMaps]]
    device: torch.device
    queue_mb: int
    refiners: Sequence[Refiner] = ()


def make_masks(
    maker: MaskMaker[Read],
    samples: Sequence[Sample],
    store: MaskStore,
    *,
    profile: Path | None = None,
) -> MaskReport:
    """Write a mask for every image that is not done yet.

    Of several processes each takes its part of the images; what the first returns is of all.

    Args:
        maker: of the masks.
        samples: the images.
        store: where the masks go.
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
        return bad + busy_in_words(timeline)

    if profile is not None:
        require_replaceable(profile, TRACE_MARK)
        Timeline().write_trace(profile)  # a place that cannot be written is said now
    report = MaskReport()
    todo: list[Sample] = []
    own = processes.part(samples)
    for one in store.todo(own):
        if isinstance(one, Problem):
            report.left_out.append(one)
        else:
            todo.append(one)
    timeline = Timeline(keep_spans=profile is not None)
    try:
        title = maker.title if processes.count() == 1 else f"{maker.title}, first process"
        with Meter(title, len(own), done=len(own) - len(todo)) as meter:
            run_pipeline(
                todo,
                Parts(
                    lambda sample: store.reading(sample, maker.read),
                    maker.fits,
                    lambda batch: maker.compute(batch, timeline),
                    store.write,
                    record,
                ),
                limits_for(maker.device, maker.queue_mb),
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
        log.info("%s: %s", maker.title, busy_in_words(timeline))
    store.join()
    report.left_out = problems_of_all(report.left_out)
    report.count(store.masks, samples)
    report.notes += notes_of(maker.refiners)
    return report


def problems_of_all(own: Sequence[Problem]) -> list[Problem]:
    """The problems that the processes have found, those of the first process first."""
    every = processes.of_each([asdict(problem) for problem in own])
    return [Problem(**fields) for found in every for fields in found]


def busy_in_words(timeline: Timeline) -> str:
    """For which share of the time each part worked, and of the model, at what.

    The part that worked nearly always is the one that the others waited for.
    """
    steps = timeline.work(GPU) or {
        name: sum(timeline.work(name).values()) for name in STEPS if timeline.work(name)
    }
    total = sum(steps.values())
    shares = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in steps.items() if total)
    parts = [f"{part} {timeline.busy(part):.0%}" for part in PARTS]
    if shares:
        parts[PARTS.index(MODEL)] += f" ({shares})"
    if timeline.work(GPU):
        parts.append(f"GPU at most {timeline.busy(GPU):.0%}")
    return f"busy: {', '.join(parts)}"
