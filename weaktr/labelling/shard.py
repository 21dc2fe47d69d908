"""One shard of photographs -> its masks.

Every engine runs `make_shard`: one process here, several by torchrun or Slurm, actors of Ray.
"""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic

import numpy as np

from weaktr import tars
from weaktr.contents import Contents, digest_of
from weaktr.data import Problem, Sample
from weaktr.data.manifest import name_fault
from weaktr.data.mask_index import read_as
from weaktr.data.masks import NOT_OURS, areas_of, png_of, read_changed_mask, was_cut_off
from weaktr.data.parallel import ordered_map
from weaktr.data.shard_tables import named_text
from weaktr.files import write_bytes
from weaktr.inference.pipeline import Parts, PipelineError, Read, limits_for, run_pipeline
from weaktr.inference.results import LabelMaps
from weaktr.inference.timeline import Timeline
from weaktr.labelling.masks import MaskMaker, busy_in_words
from weaktr.labelling.shard_report import Progress
from weaktr.labelling.store import (
    EDITED_BEFORE,
    EDITED_UNREAD,
    extra_bytes,
    facts_of,
    read_with_inputs,
)
from weaktr.refine import Refiner, files_of, paths_of
from weaktr.shards.inputs import ShardInput, Shards, status_or_empty
from weaktr.shards.output import (
    MASKS,
    Earlier,
    Files,
    Layout,
    ShardWriter,
    is_begun,
    is_of_others,
    read_earlier,
    read_record,
    whole_record,
)
from weaktr.shards.rows import Row, read_table

log = logging.getLogger("weaktr")


@dataclass(frozen=True)
class MaxBad:
    """How many photographs may be unusable.

    Args:
        count: at most so many of a process; None = any number.
        share: at most this share of a shard; None = any share.
    """

    count: int | None = None
    share: float | None = None


class TooManyBad(ValueError):
    """More photographs are unusable than `MaxBad` allows."""


@dataclass(frozen=True)
class ShardMaker(Generic[Read]):
    """What makes the masks of any shard of a run.

    Args:
        maker: of masks.
        layout: where they go.
        made_from: fingerprint of all that masks depend on, photographs apart.
        facts: fields that all rows have: weights, settings, threshold.
        files: of a sample: from which its files are made, the photograph first.
        shows_a_class: whether an image may show a class; others get no mask.
        keep_unlabelled: whether an image in which no class was found gets a mask.
        num_labels: L, which a mask that somebody has changed may hold.
        takes_labels: whether masks depend on image-level labels.
        max_bad: bounds unusable photographs.
        retry_failed: whether whole shards with such photographs are gone through again.
    """

    maker: MaskMaker[Read]
    layout: Layout
    made_from: str
    facts: Mapping[str, Any]
    files: Callable[[Sample], tuple[Path, ...]]
    shows_a_class: Callable[[Sample], bool]
    keep_unlabelled: bool
    num_labels: int | None
    takes_labels: bool = True
    max_bad: MaxBad = field(default_factory=MaxBad)
    retry_failed: bool = False

    def done_record(self, shards: Shards, name: str) -> dict[str, Any] | None:
        """The record of a shard that is whole, of the photographs that there are now; else None.

        A shard of which the photographs cannot be asked for has none: who reads it says why.
        """
        record = whole_record(self.layout, name, self.made_from)
        if record is None or record.get("unread"):
            return None
        if self.retry_failed and record.get("statistics", {}).get("status", {}).get("failed"):
            return None
        try:
            is_same = record.get("data") == shards.data_of(name) and self._is_of_now(name, record)
        except (OSError, ValueError):
            return None
        return record if is_same else None

    def read_beside(self, names: Iterable[str]) -> str | None:
        """What tells that the files which refiners read for photographs are the same still.

        Args:
            names: of the photographs.

        Returns:
            A digest of the status of the files; None = the refiners read none.
        """
        refiners = self.maker.refiners
        if not paths_of(refiners):
            return None
        return digest_of(tuple(status_or_empty(path)) for path in _files_beside(refiners, names))

    def _is_of_now(self, name: str, record: Mapping[str, Any]) -> bool:
        """Whether a whole shard is of the threshold and the refiners' files that there are now.

        Older versions noted neither: the threshold is in the rows, and files count as the same if
        they are older than the record.
        """
        if "threshold" in record:
            if record["threshold"] != self.facts.get("threshold"):
                return False
            if not paths_of(self.maker.refiners):
                return True
        columns = ["name", "status", "threshold"]
        rows = read_table(self.layout.table(name), columns).to_pylist()
        labelled = {row["threshold"] for row in rows if row["status"] == "labelled"}
        if not labelled <= {None, self.facts.get("threshold")}:
            return False
        names = [named_text(row["name"]) for row in rows]
        if "read_beside" in record:
            return bool(record["read_beside"] == self.read_beside(names))
        written = self.layout.record(name).stat().st_mtime_ns
        files = _files_beside(self.maker.refiners, names)
        return all(tars.status(path).st_ctime_ns <= written for path in files)


def _files_beside(refiners: Sequence[Refiner], names: Iterable[str]) -> list[Path]:
    """The files that refiners read for photographs, each once, in the order of the names."""
    return list(dict.fromkeys(p for name in sorted(names) for p in files_of(refiners, name)))


def make_shard(own: ShardMaker[Read], given: ShardInput, progress: Progress) -> None:
    """Make the masks of one shard and make it whole; goes on where others have stopped.

    Args:
        own: makes them.
        given: the photographs.
        progress: of the process.

    Raises:
        TooManyBad, PipelineError: see `make_shards`.
        OSError: something cannot be written.
    """
    before = read_record(own.layout, given.name)
    try:
        _make_shard(own, given, progress)
    except FileNotFoundError:  # what this process had begun
        record = read_record(own.layout, given.name)
        if record in (None, before) or record.get("data") != given.data:
            raise
        log.info("shard %s: another process has finished it meanwhile", given.name)


def _make_shard(own: ShardMaker[Read], given: ShardInput, progress: Progress) -> None:
    started = time.monotonic()
    layout, contents = own.layout, Contents()
    for kind in layout.kinds if layout.form == "png" else ():
        layout.folder(kind, given.name).mkdir(parents=True, exist_ok=True)
    earlier = read_earlier(layout, given.name, own.made_from)
    shard = _Shard(own, given, earlier, contents)
    ready = dict(zip(
        (sample.name for sample in given.samples),
        ordered_map(shard.ready, given.samples), strict=True,
    ))  # fmt: skip
    todo = [sample for sample in given.samples if ready[sample.name] is None]
    progress.begin(len(given.samples), len(given.samples) - len(todo))
    rows = _Rows(own, given, shard, ready, progress)
    timeline = Timeline()

    def record(sample: Sample, written: tuple[Row, Files] | Problem) -> None:
        rows.record(sample, written)
        timeline.settle()
        progress.advance(busy_in_words(timeline))

    parts = Parts(shard.read, own.maker.fits, lambda batch: own.maker.compute(batch, timeline),
                  lambda result: shard.write(result, rows.writer), record)  # fmt: skip
    try:
        try:
            run_pipeline(todo, parts, limits_for(own.maker.device, own.maker.queue_mb), timeline)
        except PipelineError as error:
            if isinstance(error.__cause__, TooManyBad):
                raise error.__cause__ from None
            raise
        rows.finish(time.monotonic() - started)
    finally:
        rows.writer.close()


class _Rows(Generic[Read]):
    """Hands the rows of one shard to its writer, in the order of the photographs.

    Args:
        own, given, progress: see `make_shard`.
        shard: the steps of its photographs.
        ready: sample name -> the row where nothing is to be computed.
    """

    def __init__(
        self,
        own: ShardMaker[Read],
        given: ShardInput,
        shard: _Shard[Read],
        ready: Mapping[str, Row | None],
        progress: Progress,
    ) -> None:
        self.own, self.given, self.shard, self.progress = own, given, shard, progress
        self.writer = ShardWriter(own.layout, given.name, own.made_from)
        self._ready, self._waiting = ready, iter(given.samples)
        self._bad = self._unread = 0

    def record(self, sample: Sample, written: tuple[Row, Files] | Problem) -> None:
        """Add what was computed of a photograph, after those before it that are ready.

        Raises:
            TooManyBad: see `MaxBad`.
        """
        self._add_ready(sample)
        if isinstance(written, Problem):
            self._fail(self.shard.failed(sample.name, written), written)
        else:
            self.writer.add(*written)

    def finish(self, seconds: float) -> None:
        """Add the rest and make the shard whole.

        Args:
            seconds: that it took.

        Raises:
            TooManyBad: see `MaxBad`.
            OSError: see `ShardWriter.finish`.
        """
        self._add_ready(None)
        for name, fault in sorted(self.given.faults.items()):
            self._fail(self.shard.failed(name, fault), fault)
        self.writer.finish(
            self.given.data,
            unread=self._unread,
            threshold=self.own.facts.get("threshold"),
            read_beside=self.shard.read_beside,
            seconds=round(seconds, 2),
            images_per_second=round(len(self.given.samples) / max(seconds, 1e-9), 2),
            worker={"host": socket.gethostname(), "process": os.getpid()},
        )

    def _add_ready(self, end: Sample | None) -> None:
        """Add photographs up to one that is not ready."""
        for sample in self._waiting:
            if sample is end:
                return
            row = self._ready[sample.name]
            assert row is not None
            if row.status == "failed":
                message = row.error or ""
                is_outside = message == EDITED_UNREAD
                problem = Problem(str(sample.image), sample.source, message, is_outside=is_outside)
                self._fail(row, problem)
            else:
                self.writer.add(row, self.shard.files_of(row))

    def _fail(self, row: Row, problem: Problem) -> None:
        """Add a photograph that cannot be used, and see whether there are too many."""
        self.writer.add(row, {})
        self._bad += 1
        self._unread += problem.is_outside
        self.progress.report.left_out += 1
        log.warning("left out: %s", problem)
        most, total = self.own.max_bad, len(self.given.samples) + len(self.given.faults)
        bad_before = self.progress.report.status["failed"]
        if most.count is not None and bad_before + self._bad > most.count:
            told = f"more than {most.count} photographs"
        elif most.share is not None and self._bad > most.share * total:
            told = f"more than {most.share:.2%} of the {total} photographs"
        else:
            return
        raise TooManyBad(
            f"shard {self.given.name}: {told} cannot be used, the last one: {problem}; mend them "
            "or raise --max-bad and start again: what is made stays"
        )


class _Shard(Generic[Read]):
    """The steps of one shard's photographs."""

    def __init__(
        self, own: ShardMaker[Read], given: ShardInput, earlier: Earlier, contents: Contents
    ) -> None:
        self.own, self.given, self.earlier, self.contents = own, given, earlier, contents
        self.layout, self.kinds = own.layout, list(own.layout.kinds)
        self._inputs: dict[str, tuple[str, ...]] = {}
        names = [*(sample.name for sample in given.samples), *given.faults]
        self.read_beside = own.read_beside(names)

    def ready(self, sample: Sample) -> Row | None:
        """The row of a photograph for which nothing is to be computed; None = something is."""
        before = self.earlier.rows.get(sample.name)
        if (fault := name_fault(sample.name)) is not None:
            return self.failed(sample.name, Problem("", "", fault))
        if self.layout.form == "png":
            place = self._loose(MASKS, sample.name)
            if is_of_others(place) or self._was_put_there(sample.name, place):
                return self._edited(sample, before, place)
        if not self.own.shows_a_class(sample):
            self._remove_loose(sample.name)
            return self._row(sample.name, "no class", given=sample.labels)
        if before is None or before.status in ("edited", "failed"):
            return None
        if not self._is_current(sample, before, self._digests(sample)):
            return None
        return None if self.earlier.files_of(before, self.kinds) is None else before

    def files_of(self, row: Row) -> Files:
        """The files of a row that is ready, to be appended to the tars."""
        if row.status == "edited":
            return {}
        files = self.earlier.files_of(row, self.kinds)
        if files is None:
            raise OSError(f"{row.name}: its mask is not there any more; start again")
        return files

    def read(self, sample: Sample) -> Read:
        """See `Parts`; remembers of which content the photograph was."""
        value, inputs = read_with_inputs(sample, self.own.maker.read, lambda: self._digests(sample))
        self._inputs[sample.name] = inputs
        return value

    def write(self, result: LabelMaps, writer: ShardWriter) -> tuple[Row, Files] | Problem:
        """See `Parts`: the row and the files of a photograph; loose files are written here."""
        if (problem := result.problem()) is not None:
            return problem
        name = result.sample.name
        facts = facts_of(result)
        size = facts.pop("working_size", (None, None))
        facts |= {"working_height": size[0], "working_width": size[1]}
        inputs = self._inputs.pop(name)
        facts |= {"given": result.sample.labels, "inputs": inputs, "digest": inputs[0]}
        height, width = result.photograph.size
        facts |= {"height": height, "width": width}
        if result.classes == () and not self.own.keep_unlabelled:
            self._remove_loose(name)
            return self._row(name, "no class", **facts), {}
        mask = result.mask()
        files = {MASKS: png_of(mask)}
        extras = [kind for kind in self.kinds if kind != MASKS]
        files |= {kind: extra_bytes(kind, result, inputs[0]) for kind in extras}
        facts |= _facts_of_mask(mask, files[MASKS])
        facts |= {"confidence": result.confidence(), "agreement": result.agreement()}
        places = {kind: self._loose(kind, name) for kind in files if self.layout.form == "png"}
        for place in filter(is_of_others, places.values()):
            message = f"{place}: {NOT_OURS} to have the mask made"
            return Problem(str(result.sample.image), result.sample.source, message)
        if places:
            writer.begin(name, files[MASKS])
        for kind, place in places.items():
            write_bytes(place, files[kind], durable=False)
        return self._row(name, "labelled", **facts), files

    def failed(self, name: str, problem: Problem) -> Row:
        """The row of a photograph that cannot be used."""
        return self._row(name, "failed", error=problem.message)

    def _was_put_there(self, name: str, place: Path) -> bool:
        """Whether a mask with a seal is none that was made for its photograph, but a copy."""
        if not place.is_file():
            return False
        content = place.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if was_cut_off(place) or self.earlier.has_made(name, digest):
            return False
        return not is_begun(self.layout, self.given.name, name, digest)  # by another process

    def _edited(self, sample: Sample, before: Row | None, place: Path) -> Row:
        """The row of a photograph at whose mask's place there is something of the user's."""
        if before is None or (before.mask_digest is None and before.status != "failed"):
            message = f"{place}: {NOT_OURS} to have the mask made"
            return self.failed(sample.name, Problem(str(place), "", message))
        own: dict[str, Any] = {"confidence": None, "agreement": None}
        digests, fault = self._digests(sample), ""
        try:
            size = (before.height or 0, before.width or 0)
            labels = read_changed_mask(place, size, self.own.num_labels)
        except (OSError, ValueError) as error:
            fault = f"its mask, which was changed by hand, cannot be used: {error}"
        if not fault and not self._is_current(sample, before, digests):
            fault = EDITED_UNREAD if digests is None else EDITED_BEFORE
        if fault:  # what it was made from stays known, for the time when it is mended
            own |= dict.fromkeys(("labels", "areas", "mask_digest", "mask_bytes"))
            return replace(before, status="failed", error=fault, **own)
        facts = _facts_of_mask(labels, place.read_bytes())
        return replace(before, status="edited", error=None, **own, **facts)

    def _row(self, name: str, status: Any, **facts: Any) -> Row:
        image = self.given.images.get(name, name)
        return Row(name, self.given.name, image, status, **{**self.own.facts, **facts})

    def _loose(self, kind: str, name: str) -> Path:
        return self.layout.file(kind, self.given.name, name)

    def _remove_loose(self, name: str) -> None:
        """Remove the files that a photograph has from earlier labels."""
        for kind in self.kinds if self.layout.form == "png" else ():
            place = self._loose(kind, name)
            if place.is_file() and not is_of_others(place):
                place.unlink(missing_ok=True)

    def _digests(self, sample: Sample) -> tuple[str, ...] | None:
        try:
            return tuple(self.contents.digest(path) for path in self.own.files(sample))
        except (OSError, ValueError):
            return None

    def _is_current(self, sample: Sample, row: Row, inputs: tuple[str, ...] | None) -> bool:
        """Whether a row is of the files (by their digests) and the labels that a sample has now."""
        is_same_way = read_as(row.exif) in (None, sample.exif)
        is_of_labels = row.given == sample.labels or not self.own.takes_labels
        return is_same_way and is_of_labels and row.inputs == inputs


def _facts_of_mask(labels: np.ndarray, content: bytes) -> dict[str, Any]:
    areas = areas_of(labels)
    return {
        "labels": tuple(areas),
        "areas": areas,
        "mask_digest": hashlib.sha256(content).hexdigest(),
        "mask_bytes": len(content),
    }
