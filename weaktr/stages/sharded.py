"""A model and many photographs -> masks, a shard at a time; by one process of any number.

What ``weaktr label`` and ``weaktr predict`` do with tar archives, and wherever several processes
share the work.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from weaktr import data
from weaktr.config import LabelConfig, PredictConfig
from weaktr.contents import Contents
from weaktr.data import Sample
from weaktr.inference.labels import uses_features
from weaktr.inference.patch_cams import cams_of
from weaktr.inference.predictions import Predictor
from weaktr.models import Segmenter
from weaktr.outputs import begin_shared, fingerprint, read_inputs, require_apart
from weaktr.recipes import identity
from weaktr.refine import choose_refiners, files_of, paths_of
from weaktr.shards.inputs import (
    SHARD_SIZE,
    ListShards,
    Shards,
    TarShards,
    is_pattern,
    shard_count,
)
from weaktr.shards.output import MASKS, Form, Layout
from weaktr.shards.ranks import Rank
from weaktr.stages.folders import (
    Loaded,
    Task,
    beside_masks,
    load_model,
    photographs,
    require_settings,
)
from weaktr.stages.label import emitted, label_maker
from weaktr.stages.masks import MaskMaker
from weaktr.stages.predict import prediction_maker
from weaktr.stages.shard import MaxBad, ShardMaker
from weaktr.stages.shard_report import ShardsReport
from weaktr.stages.shards import make_shards
from weaktr.stages.store import EXTRAS

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
    if task.command == "label":
        own = task.task
        if own.source.is_dir():
            raise ValueError(
                f"{own.source}: expected a checkpoint for shards, got a folder of CAMs"
            )
        task = replace(task, task=replace(own, emit=beside_masks(own.emit)))
    loaded = load_model(task.task)
    if task.command == "predict" or isinstance(loaded.model, Segmenter):
        return _prediction_job(task, loaded)
    settings, own = task.task.chosen(LabelConfig, partial(loaded.carried, LabelConfig))
    task = replace(task, task=own)
    if not isinstance(settings.threshold, float):
        raise ValueError(
            f"threshold: expected a number for shards, got {settings.threshold!r}: label some of "
            "the photographs without shards, and take the threshold that threshold.json says"
        )
    refiners = choose_refiners(settings)
    assert not isinstance(loaded.model, Segmenter)
    source = cams_of(
        loaded.model,
        settings,
        settings.predict_above,
        with_features=uses_features(settings, refiners),
        with_views="confidence" in own.emit and settings.confidence == "stability",
    )
    keep = settings.unlabelled == "background"
    return _job(
        task,
        loaded,
        settings,
        label_maker(source, settings, settings.threshold, refiners, own.emit),
        kinds=emitted(settings, own.emit),
        shows_a_class=lambda sample: keep or source.shows_a_class(sample),
        keep_unlabelled=keep,
        threshold=settings.threshold,
        num_labels=source.num_labels,
    )


def _prediction_job(task: ShardTask, loaded: Loaded) -> ShardJob:
    settings, own = task.task.chosen(PredictConfig, partial(loaded.carried, PredictConfig))
    if not isinstance(loaded.model, Segmenter):
        raise ValueError(f"{task.task.source}: expected a stage-2 checkpoint, got stage 1")
    if task.command == "label" and own.emit:
        raise ValueError(
            f"--emit {','.join(own.emit)}: expected mask alone for a stage-2 checkpoint"
        )
    require_settings(loaded.model, settings)
    predictor = Predictor(loaded.model, settings, given_classes=task.command == "label")
    return _job(
        replace(task, task=own),
        loaded,
        settings,
        prediction_maker(predictor, own.emit),
        kinds=list(own.emit),
        shows_a_class=lambda sample: True,
        keep_unlabelled=True,
        threshold=None,
        num_labels=loaded.model.num_labels,
    )


def _job(
    task: ShardTask,
    loaded: Loaded,
    settings: LabelConfig | PredictConfig,
    maker: MaskMaker[Any],
    *,
    kinds: Collection[str],
    shows_a_class: Any,
    keep_unlabelled: bool,
    threshold: float | None,
    num_labels: int | None,
) -> ShardJob:
    own, classes = task.task, loaded.classes
    shards = _shards_of(task, loaded)
    form = task.output or ("tar" if isinstance(shards, TarShards) else "png")
    given = [Path(task.labels)] if _is_file(task.labels) else []
    images = [own.images]
    if isinstance(shards, TarShards):
        images = [shards.folder] if shards.folder is not None and shards.is_deep else []
        given += [shards.folder] if shards.folder is not None else []
    require_apart(own.out, [loaded.file, *given], [*images, *paths_of(maker.refiners)])
    depends_on: dict[str, Any] = identity(settings)
    if own.exif != "ignore":
        depends_on["exif"] = own.exif
    weights = Contents().digest(loaded.file)
    facts: dict[str, Any] = {
        "weights": weights,
        "settings": depends_on,
        "results": {"output": form, "beside": sorted(kinds), "labels": shards.labels},
    }
    made_from = fingerprint("shards", facts)
    about = {
        "command": task.command,
        "photographs": task.photographs,
        "classes": None if classes is None else list(classes),
        "exif": own.exif,
    }
    layout = {"output": form, "shards": list(shards.names)}
    begin_shared(own.out, made_from, **facts, source=str(own.source), about=about, layout=layout)
    refiners = maker.refiners
    wanted = {MASKS: (MASKS, ".png")} | {kind: EXTRAS[kind] for kind in kinds}
    row_facts = {"weights": weights, "settings": fingerprint(depends_on), "threshold": threshold}
    return ShardJob(
        ShardMaker(
            maker,
            Layout(own.out, form, wanted, nested=shards.nested),
            made_from,
            row_facts,
            files=lambda sample: (sample.image, *files_of(refiners, sample.name)),
            shows_a_class=shows_a_class,
            keep_unlabelled=keep_unlabelled,
            num_labels=num_labels,
            max_bad=task.max_bad,
            retry_failed=task.retry_failed,
        ),
        shards,
        ("background", *(classes or map(str, range(1, num_labels or 1)))),
    )


def _shards_of(task: ShardTask, loaded: Loaded) -> Shards:
    """The shards that a task speaks of."""
    own = task.task
    if is_pattern(task.photographs):
        for option, value in {"--names": task.names, "--shard-size": task.shard_size}.items():
            if value is not None:
                raise ValueError(f"{option}: of no effect on photographs in tars")
        labels = "none" if task.command == "predict" else task.labels
        return TarShards(task.photographs, labels, loaded.classes, own.exif or "ignore")
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
        samples = data.unlabelled(own.images, exif=own.exif or "ignore").samples
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
