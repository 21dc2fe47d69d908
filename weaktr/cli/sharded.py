"""What ``weaktr label`` and ``weaktr predict`` do where the photographs come in shards."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from weaktr.cli.common import FAILED, refuse_idle

if TYPE_CHECKING:
    from weaktr.jobs.folder import Task
    from weaktr.jobs.shards import ShardJob
    from weaktr.labelling.shard import MaxBad
    from weaktr.labelling.shard_report import ShardsReport
    from weaktr.shards.records import Results

log = logging.getLogger("weaktr")


def is_sharded(arguments: argparse.Namespace) -> bool:
    """Whether photographs come in tars, or the work is shared, or an option speaks of shards.

    Raises:
        ValueError: ``--workers`` without Ray.
    """
    from weaktr.shards.inputs import is_pattern
    from weaktr.shards.ranks import rank_of

    chosen = arguments.shard_size, arguments.output, arguments.max_bad, arguments.shard
    why = "of --engine ray; here, torchrun starts several processes"
    refuse_idle(arguments.engine == "here", why, workers=arguments.workers)
    wanted = any(value is not None for value in chosen) or arguments.retry_failed
    wanted = wanted or arguments.engine != "here"
    shared = rank_of(arguments.shard, os.environ).count > 1
    in_tars = arguments.dataset is None and is_pattern(arguments.images)
    return wanted or shared or in_tars


def run_sharded(
    command: Literal["label", "predict"],
    task: Task,
    arguments: argparse.Namespace,
    *,
    labels: str = "auto",
    names: Path | None = None,
) -> int:
    """Make the masks of this process' shards; returns the exit code.

    Raises:
        ValueError: see `weaktr.jobs.shards.run_here`; or an option that shards do not have.
    """
    from weaktr.jobs.shards import ShardTask, run_here
    from weaktr.shards.ranks import rank_of

    if task.profile is not None:
        raise ValueError("--profile: expected work on a folder without shards")
    for option in ("shard_size", "workers"):
        value = getattr(arguments, option)
        if value is not None and value < 1:
            raise ValueError(f"--{option.replace('_', '-')}: expected at least 1, got {value}")
    shard_task = ShardTask(
        command,
        task,
        arguments.images,
        labels,
        names,
        arguments.output,
        arguments.shard_size,
        max_bad_of(arguments.max_bad),
        arguments.retry_failed,
    )
    rank = rank_of(arguments.shard, os.environ)
    if arguments.engine == "ray":
        from weaktr.jobs.on_ray import run_on_ray

        if rank.count > 1:
            raise ValueError(f"--engine ray: does all shards; expected no {rank.origin}")
        return show_shards(*run_on_ray(shard_task, arguments.workers))
    report, job = run_here(shard_task, rank)
    return show_shards(report, job)


def max_bad_of(text: str | None) -> MaxBad:
    """What ``--max-bad`` says.

    Raises:
        ValueError: neither a number nor a share in percent.
    """
    from weaktr.labelling.shard import MaxBad

    if text is None:
        return MaxBad()
    if re.fullmatch(r"\d{1,12}", text):
        return MaxBad(count=int(text))
    share = re.fullmatch(r"(\d{1,3}(\.\d{1,9})?)%", text)
    if share is None or float(share[1]) > 100:
        raise ValueError(f"--max-bad: expected a number such as 20, or 0.5%, got {text!r:.40}")
    return MaxBad(share=float(share[1]) / 100)


def show_shards(report: ShardsReport, job: ShardJob) -> int:
    """Say what became of the shards, and join their index where all are whole."""
    from weaktr.evaluation.overview import print_labels
    from weaktr.labelling.masks import log_turned
    from weaktr.messages import counted, few
    from weaktr.shards.index import join
    from weaktr.shards.records import read_results

    print_labels(report.images_of, job.label_names, report.masks)
    out = job.maker.layout.out
    log.info("%s", report.in_words())
    if report.broken:
        shards = counted(len(report.broken), "shard", "shards")
        log.error("%s cannot be used: %s", shards, few(list(report.broken)))
    results = read_results(out)
    for note in dict.fromkeys(note for notes in report.notes.values() for note in notes):
        log.warning("%s", note)
    if results.missing:
        log.info("not yet whole: %s", counted(len(results.missing), "shard", "shards"))
    else:
        one, many = ("mask", "masks")
        if job.maker.layout.form != "png":
            one, many = ("tar of masks", "tars of masks")
        if older := _older(results):
            log.warning(
                "%s of images that are not among those given now; they stay (weaktr index %s "
                "--verify names them)",
                counted(older, f"{one} there is", f"{many} there are"), out,
            )  # fmt: skip
        log_turned(_turned(results))
        if rows := job.shards.rows_without_photograph(_photographs(results)):
            log.warning(
                "--labels: %s of photographs that none of these tars holds (%s)",
                counted(len(rows), "row is", "rows are"), few(rows),
            )  # fmt: skip
        join(results)
        log.info("index of all shards: %s (see weaktr index %s)", out / "index.parquet", out)
    log.info("masks: %s", out / "masks")
    return 0 if report.is_complete else FAILED


def _turned(results: Results) -> Counter[str]:
    """How many photographs with masks EXIF turns, see `MaskReport.turned`."""
    from weaktr.shards.rows import read_table, rows_of, turned_in

    total = Counter[str]()
    for record in results.records:
        own = record.turned
        total.update(turned_in(rows_of(read_table(record.table))) if own is None else own)
    return total


def _photographs(results: Results) -> Iterator[tuple[str, str]]:
    """Shard and name of every photograph."""
    from weaktr.data.shard_tables import named_text

    for table in results.tables(["shard", "name"]):
        for row in table.to_pylist():
            yield named_text(row["shard"]), named_text(row["name"])


def _older(results: Results) -> int:
    """How many loose masks are of photographs, or tars of masks of shards, that no row names."""
    from weaktr.data.shard_tables import named_text
    from weaktr.files import files_below

    named = {record.masks for record in results.records}
    for record, table in zip(results.records, results.tables(["name"]), strict=True):
        named.update(record.mask(named_text(name)) for name in table["name"].to_pylist())
    masks = results.out / "masks"
    kinds = (".png", ".tar")
    return sum(path.suffix in kinds and path not in named for path in files_below(masks))
