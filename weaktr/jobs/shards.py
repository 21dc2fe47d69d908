"""A model and many photographs -> masks, a shard at a time; by one process of any number.

What ``weaktr label`` and ``weaktr predict`` do with tar archives, and wherever several processes
share the work.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from weaktr import data
from weaktr.config import LabelConfig, PredictConfig
from weaktr.contents import Contents
from weaktr.data import Sample
from weaktr.inference.cams import CamSource
from weaktr.inference.labels import uses_features
from weaktr.inference.patch_cams import cams_of
from weaktr.inference.predictions import Predictor
from weaktr.inference.threshold import CHOICE, choose_by_features, read_choice, write_choice
from weaktr.jobs.folder import (
    Loaded,
    Task,
    beside_masks,
    load_model,
    manifest_of,
    photographs,
    require_settings,
)
from weaktr.labelling.shard import MaxBad, ShardMaker
from weaktr.labelling.shard_report import ShardsReport
from weaktr.labelling.store import EXTRAS
from weaktr.labelling.whose import require_same_work
from weaktr.labelling.worker import make_shards
from weaktr.models import Segmenter
from weaktr.outputs import begin_shared, fingerprint, read_inputs, require_apart
from weaktr.recipes import identity
from weaktr.refine import Refiner, among, choose_refiners, files_of, paths_of
from weaktr.shards.inputs import (
    SHARD_SIZE,
    ListShards,
    Shards,
    TarShards,
    is_pattern,
    require_tars_alone,
    resolved,
    shard_count,
)
from weaktr.shards.output import MASKS, Form, Layout
from weaktr.shards.ranks import Rank
from weaktr.stages.label import emitted, label_maker
from weaktr.stages.predict import prediction_maker
from weaktr.stages.threshold import require_way

log = logging.getLogger("weaktr")


@dataclass(frozen=True)
class ShardTask:
    """Which masks to make, shard by shard; all of it can be sent to another process.

    Args:
        command: "label" or "predict".
        task: what and where, see `Task`.
        photographs: the folder of `task`, or tars (`find_archives`).
        labels: file with the image-level labels; of tars also "inside", "beside", "none" or "auto"
            (`TarShards`).
        names: file with the names of the only photographs that count; None = all. Not of tars.
        output: "tar" = an archive a shard; "png" = loose files; None = as the photographs are.
        shard_size: photographs of a shard, where they are not in tars; None = `SHARD_SIZE`, or as
            at the first start.
        max_bad, retry_failed: see `ShardMaker`.
    """

    command: Literal["label", "predict"]
    task: Task
    photographs: str
    labels: str = "auto"
    names: Path | None = None
    output: Form | None = None
    shard_size: int | None = None
    max_bad: MaxBad = field(default_factory=MaxBad)
    retry_failed: bool = False


@dataclass(frozen=True)
class ShardJob:
    """A task made ready: a model in memory, and the shards."""

    maker: ShardMaker[Any]
    shards: Shards
    label_names: tuple[str, ...]


def ready_job(task: ShardTask) -> ShardJob:
    """Load the model, look for the shards, and mark the folder of results as theirs.

    Raises:
        ValueError: something does not fit; nothing has been written.
    """
    if task.task.source.is_dir():
        raise ValueError(f"{task.task.source}: expected a checkpoint for shards, got a folder")
    if task.command == "label":
        task = replace(task, task=replace(task.task, emit=beside_masks(task.task.emit)))
    loaded = load_model(task.task)
    if isinstance(loaded.model, Segmenter):
        return _prediction_job(task, loaded)
    if task.command == "predict":
        raise ValueError(f"{task.task.source}: expected a stage-2 checkpoint, got stage 1")
    return _label_job(task, loaded)


def _label_job(task: ShardTask, loaded: Loaded) -> ShardJob:
    """By CAMs of the image-level labels, or of the classes that the model predicts."""
    settings, own = loaded.settings_of(task.task, LabelConfig)
    refiners = choose_refiners(settings)
    assert not isinstance(loaded.model, Segmenter)
    source = cams_of(
        loaded.model,
        settings,
        settings.predict_above,
        with_features=uses_features(settings, refiners),
        with_views="confidence" in own.emit and settings.confidence == "stability",
    )
    require_way(settings, source)
    kinds = emitted(settings, own.emit)
    frame = _begin(replace(task, task=own), loaded, settings, refiners, kinds)
    threshold = _threshold(source, settings, frame.shards, own.out)
    is_chosen = not isinstance(settings.threshold, float) and read_choice(own.out) is not None
    chosen = [own.out / CHOICE] if is_chosen else []
    keep = settings.unlabelled == "background"
    own_maker = ShardMaker(
        label_maker(source, settings, threshold, frame.refiners, own.emit),
        frame.layout,
        frame.made_from,
        {**frame.facts, "threshold": threshold},
        files=lambda sample: (sample.image, *files_of(frame.refiners, sample.name), *chosen),
        shows_a_class=lambda sample: keep or source.shows_a_class(sample),
        keep_unlabelled=keep,
        num_labels=source.num_labels,
        max_bad=task.max_bad,
        retry_failed=task.retry_failed,
    )
    return ShardJob(own_maker, frame.shards, _label_names(loaded, source.num_labels))


def _prediction_job(task: ShardTask, loaded: Loaded) -> ShardJob:
    """By predictions; to label, among the image-level labels where there are any."""
    settings, own = loaded.settings_of(task.task, PredictConfig)
    if task.command == "label" and own.emit:
        asked = ",".join(own.emit)
        raise ValueError(f"--emit {asked}: expected mask alone for a stage-2 checkpoint")
    assert isinstance(loaded.model, Segmenter)
    refiners = require_settings(loaded.model, settings)
    predictor = Predictor(loaded.model, settings, given_classes=task.command == "label")
    frame = _begin(replace(task, task=own), loaded, settings, refiners, list(own.emit))
    predictor.refiners = [*frame.refiners]
    own_maker = ShardMaker(
        prediction_maker(predictor, own.emit),
        frame.layout,
        frame.made_from,
        frame.facts,
        files=lambda sample: (sample.image, *files_of(frame.refiners, sample.name)),
        shows_a_class=lambda sample: True,
        keep_unlabelled=True,
        num_labels=loaded.model.num_labels,
        takes_labels=task.command == "label",
        max_bad=task.max_bad,
        retry_failed=task.retry_failed,
    )
    return ShardJob(own_maker, frame.shards, _label_names(loaded, loaded.model.num_labels))


class _Frame(NamedTuple):
    """What a job has whatever its model is."""

    shards: Shards
    layout: Layout
    made_from: str
    facts: dict[str, Any]  #: that all rows have
    refiners: Sequence[Refiner]  #: which know the photographs, where these are in a list


def _begin(
    task: ShardTask,
    loaded: Loaded,
    settings: LabelConfig | PredictConfig,
    refiners: Sequence[Refiner],
    kinds: Collection[str],
) -> _Frame:
    """Look for the shards, and mark the folder of results as theirs."""
    own, classes = task.task, loaded.classes
    shards = _shards_of(task, loaded)
    if isinstance(shards, TarShards) and task.output == "png":
        _require_apart_folders(shards.names)
    form = task.output or ("tar" if isinstance(shards, TarShards) else "png")
    given = [Path(task.labels)] if _is_file(task.labels) else []
    images = [own.images] if own.images.is_dir() and own.dataset is None else []
    if isinstance(shards, TarShards):
        images = [shards.folder] if shards.folder is not None and shards.is_deep else []
        given += [shards.folder] if shards.folder is not None else []
    require_apart(own.out, [loaded.file, *given], [*images, *paths_of(refiners)])
    depends_on: dict[str, Any] = identity(settings)
    if own.exif_unless_listed == "apply":
        depends_on["exif"] = "apply"
    weights = Contents().digest(loaded.file)
    facts: dict[str, Any] = {
        "weights": weights,
        "settings": depends_on,
        "results": {"output": form, "beside": sorted(kinds), "labels": shards.labels},
    }
    about = {
        "command": task.command,
        "photographs": resolved(task.photographs),
        "classes": None if classes is None else list(classes),
        "exif": own.exif_unless_listed,
    }
    require_same_work(own.out, about)
    made_from = fingerprint("shards", facts)
    layout = {"output": form, "shards": shards.names}
    begin_shared(own.out, made_from, **facts, source=str(own.source), about=about, layout=layout)
    wanted = {MASKS: (MASKS, ".png")} | {kind: EXTRAS[kind] for kind in kinds}
    row_facts = {"weights": weights, "settings": fingerprint(depends_on)}
    if isinstance(shards, ListShards):
        refiners = among(refiners, shards.photographs)
    kept = Layout(own.out, form, wanted, shards.nested)
    return _Frame(shards, kept, made_from, row_facts, refiners)


def _require_apart_folders(shards: Collection[str]) -> None:
    """Refuse loose masks of a tar ``a`` and of a tar ``a/b``, which a key ``b/c`` would share."""
    names = set(shards)
    for name in shards:
        for above in PurePosixPath(name).parents:
            if str(above) in names:
                raise ValueError(
                    f"--output png: masks of {above}.tar and {name}.tar would lie in one folder; "
                    "expected --output tar, or other names"
                )


def _label_names(loaded: Loaded, num_labels: int | None) -> tuple[str, ...]:
    return ("background", *(loaded.classes or map(str, range(1, num_labels or 1))))


def _threshold(source: CamSource, settings: LabelConfig, shards: Shards, out: Path) -> float:
    """The threshold: as given, or chosen by the first shard that shows a class.

    Processes that choose at the same time keep what the first of them has written.

    Raises:
        ValueError: none shows one, and some cannot be read now.
    """
    if isinstance(settings.threshold, float):
        return settings.threshold
    choice, fault = read_choice(out), ""
    if choice is None:
        for name in shards.names:
            with ExitStack() as stack:
                try:
                    given = shards.read(name, stack, None)
                except (OSError, ValueError) as error:  # it is left out, and the log says why
                    fault = fault or str(error)
                    continue
                samples = [sample for sample in given.samples if source.shows_a_class(sample)]
                if samples:
                    chosen = choose_by_features(source, samples, settings.queue_mb)
                    write_choice(chosen, out, once=True)
                    choice = read_choice(out) or chosen
                    break
    if choice is None:
        if fault:
            raise ValueError(
                "threshold: expected a shard that shows a class, by which it is chosen, found none "
                f"that can be read: {fault}; mend it, or give a number as threshold"
            )
        return 1.0
    log.info("threshold %s; chosen of %d images", choice.in_words(), len(choice.images))
    return choice.threshold


def _shards_of(task: ShardTask, loaded: Loaded) -> Shards:
    """The shards that a task speaks of."""
    own = task.task
    if own.dataset is None and is_pattern(task.photographs):
        for option, value in {"--names": task.names, "--shard-size": task.shard_size}.items():
            if value is not None:
                raise ValueError(f"{option}: of no effect on photographs in tars")
        if os.path.isdir(task.photographs):
            require_tars_alone(Path(task.photographs))
        labels = "none" if task.command == "predict" else task.labels
        return TarShards(task.photographs, labels, loaded.classes, own.exif_unless_listed)
    samples = _samples(task, loaded)
    stored = read_inputs(own.out) if own.out.is_dir() else None
    before = (stored or {}).get("layout")
    count = shard_count(len(samples), task.shard_size or SHARD_SIZE)
    if isinstance(before, Mapping) and isinstance(before.get("shards"), list):
        first = len(before["shards"])
        if task.shard_size is not None and first != count:
            log.info("--shard-size: %d shards, as at the first start in %s", first, own.out)
        count = first
    return ListShards(samples, max(1, count), own.images)


def _samples(task: ShardTask, loaded: Loaded) -> tuple[Sample, ...]:
    own = task.task
    if task.command == "predict":
        listed_in = manifest_of(own)
        samples = (listed_in or data.unlabelled(own.images, exif=own.exif_unless_listed)).samples
        samples = tuple(replace(sample, labels=None) for sample in samples)  # which do not matter
        return data.only(samples, data.read_names(task.names)) if task.names else samples
    labels = Path(task.labels) if _is_file(task.labels) else None
    if labels is None and task.labels != "auto":
        raise ValueError(f"--labels {task.labels}: of photographs in tars; expected a CSV or JSON")
    return photographs(own, labels, loaded.classes)


def _is_file(labels: str) -> bool:
    return labels not in ("auto", "inside", "beside", "none")


def run_here(task: ShardTask, rank: Rank) -> tuple[ShardsReport, ShardJob]:
    """Make the masks of this process' shards.

    Args:
        task: of all processes.
        rank: which of them this is.

    Raises:
        ValueError: something does not fit.
        PipelineError: see `make_shards`.
    """
    job = ready_job(task)
    names = rank.part(job.shards.names)
    if rank.count > 1:
        log.info(
            "process %d of 0..%d (%s): %d of %d shards", rank.index, rank.count - 1, rank.origin,
            len(names), len(job.shards.names),
        )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="weaktr-") as scratch:
        return make_shards(job.maker, job.shards, names, Path(scratch)), job
