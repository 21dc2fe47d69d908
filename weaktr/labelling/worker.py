"""The shards of a process, one after the other: those that are not whole are made."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from weaktr.labelling.shard import ShardMaker, make_shard
from weaktr.labelling.shard_report import ELSEWHERE, MADE, WHOLE, Progress, ShardsReport
from weaktr.messages import counted
from weaktr.refine import notes_of
from weaktr.shards.fetch import one_ahead
from weaktr.shards.inputs import ShardInput, Shards
from weaktr.shards.output import alone_at, clear_whole, read_record

log = logging.getLogger("weaktr")


def make_shards(
    own: ShardMaker[Any], shards: Shards, names: Sequence[str], scratch: Path | None = None
) -> ShardsReport:
    """Make the masks of several shards, of those that are not whole.

    Args:
        own: makes them.
        shards: where the photographs are.
        names: of the shards to make.
        scratch: see `Shards.read`.

    Raises:
        TooManyBad: see `MaxBad`; what was made before stays.
        PipelineError: see `run_pipeline`.
    """
    report = ShardsReport()
    todo = []
    for name in names:
        if (record := own.done_record(shards, name)) is not None:
            report.add(WHOLE, record)
        else:
            todo.append(name)
    clear_whole(own.layout, set(names) - set(todo))
    if report.shards[WHOLE]:
        count = counted(report.shards[WHOLE], "shard is", "shards are")
        log.info("%s whole, %s to do", count, len(todo))
    done = sum(report.status.values())
    with Progress(own.maker.title, done, len(names), report) as progress:
        elsewhere = _make_each(own, shards, todo, scratch, progress)
        if elsewhere:  # whoever works on them may have ended meanwhile
            _make_each(own, shards, elsewhere, scratch, progress, is_last=True)
    if notes := notes_of(own.maker.refiners):
        report.notes[f"{socket.gethostname()} {os.getpid()}"] = notes
    return report


def _make_each(
    own: ShardMaker[Any],
    shards: Shards,
    names: Sequence[str],
    scratch: Path | None,
    progress: Progress,
    *,
    is_last: bool = False,
) -> list[str]:
    """Make shards; returns those that another process works on."""
    report, elsewhere = progress.report, []

    def read(name: str) -> tuple[ShardInput, ExitStack]:
        with ExitStack() as stack:
            return shards.read(name, stack, scratch), stack.pop_all()

    for name, wait in zip(names, one_ahead(read, names), strict=True):
        try:
            given, fetched = wait()
        except (OSError, ValueError) as error:
            report.broken[name] = str(error)
            log.error("shard %s is left out: %s", name, error)
            continue
        with fetched, alone_at(own.layout, name) as alone:
            if not alone:
                elsewhere.append(name)
                if is_last:
                    report.add(ELSEWHERE, None)
                    log.warning("shard %s: left to another process that works on it", name)
                continue
            if (
                record := own.done_record(shards, name)
            ) is not None:  # by another process meanwhile
                report.add(WHOLE, record)
                continue
            make_shard(own, given, progress)
            report.add(MADE, read_record(own.layout, name))
    return elsewhere
