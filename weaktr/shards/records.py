"""What a folder of results says of itself: which shards there are, and which of them are whole."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeGuard

import pyarrow as pa

from weaktr.contents import CONTENTS, Contents, digest_of
from weaktr.data.manifest import is_inside
from weaktr.data.mask_index import MaskEntry
from weaktr.data.masks import MaskFolder
from weaktr.files import read_json_object
from weaktr.messages import brief, few
from weaktr.outputs import INPUTS, read_inputs
from weaktr.shards.rows import Row, read_table, table_of

#: The form of a record.
FORMAT = "weaktr-shard-1"
#: Folders and suffixes of the files of a shard.
FOLDER, TABLE, RECORD = "index", ".parquet", ".json"


@dataclass(frozen=True)
class ShardList:
    """Of which shards the results of a folder are.

    Args:
        output: how masks are stored.
        shards: names, in order.
    """

    output: Literal["png", "tar"]
    shards: tuple[str, ...]


@dataclass(frozen=True)
class Record:
    """What ``OUT/index/SHARD.json`` says of a whole shard.

    Args:
        out: the folder of results.
        shard: its name.
        outputs: "masks", "index", ... -> its file or folder, relative to `out`; bytes, digests.
        statistics: see `weaktr.shards.statistics.statistics_of`.
        seconds: that it took; None = not noted.
        data: of what it was made.
        worker: by which process.
        turned: how many photographs with masks EXIF turns, see `MaskReport.turned`; None = not
            noted, by an older version.
    """

    out: Path
    shard: str
    outputs: Mapping[str, Mapping[str, Any]]
    statistics: Mapping[str, Any]
    seconds: float | None = None
    data: Any = None
    worker: Any = None
    turned: Mapping[str, int] | None = None

    @property
    def file(self) -> Path:
        """The record itself."""
        return record_file(self.out, self.shard)

    @property
    def table(self) -> Path:
        """The Parquet file of its rows."""
        return table_file(self.out, self.shard)

    @property
    def digest(self) -> str:
        """SHA-256 of `table`."""
        return str(self.outputs["index"]["sha256"])

    @property
    def masks(self) -> Path:
        """The tar, or the folder, with its masks."""
        return self.out / place_of(self.outputs["masks"])

    def mask(self, name: str) -> Path:
        """Where the mask of a photograph is; in a tar if `masks` is one."""
        return self.masks / f"{name}.png"


@dataclass(frozen=True)
class Results:
    """A folder of results, by shards or with an ``index.jsonl``.

    Args:
        out: the folder.
        made_from: fingerprint of its inputs.
        classes: names of the classes; None = not known.
        layout: its shards; None = it has an ``index.jsonl`` instead.
        records: of the whole shards, in order.
    """

    out: Path
    made_from: str
    classes: tuple[str, ...] | None
    layout: ShardList | None
    records: tuple[Record, ...] = ()

    @property
    def missing(self) -> list[str]:
        """The shards that are not whole."""
        whole = {record.shard for record in self.records}
        return [] if self.layout is None else [s for s in self.layout.shards if s not in whole]

    @cached_property
    def masks(self) -> MaskFolder:
        """Of a folder with an ``index.jsonl``: its masks as they are now.

        Those that have not changed since they were last looked at are not read.
        """
        own, run = (f / CONTENTS for f in (self.out, Path(os.path.abspath(self.out)).parent))
        contents = Contents(run if run.is_file() and not own.is_file() else own)
        num_labels = None if self.classes is None else len(self.classes) + 1
        masks = MaskFolder(self.out, verify=True, contents=contents, num_labels=num_labels)
        with suppress(OSError):  # a folder that may only be read
            contents.save()
        return masks

    def state(self) -> str:
        """A digest of all rows, without reading those of shards."""
        if self.layout is None:
            content = (self.out / "index.jsonl").read_bytes()
            now = [(self.made_from, hashlib.sha256(content).hexdigest())]
            if self.masks.edited or self.masks.gone:
                now.append(("masks", self.masks.digest()))
            return digest_of(now)
        shards = ((record.shard, record.digest) for record in self.records)
        return digest_of([(self.made_from, ""), *shards])

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The rows, a shard at a time.

        Args:
            columns: of `weaktr.shards.rows.SCHEMA`; None = all.

        Raises:
            ValueError: a file is damaged; names it.
        """
        if self.layout is None:
            table = table_of(rows_of_masks(self.masks))
            yield table if columns is None else table.select(list(columns))
        for record in self.records:
            try:
                yield read_table(record.table, columns)
            except ValueError as error:
                raise ValueError(f"{error}; {again(record.file)}") from error
            except FileNotFoundError as error:
                message = f"{record.table}: is missing; {again(record.file)}"
                raise ValueError(message) from error


def read_results(out: Path) -> Results:
    """What is in a folder of results, by its records alone.

    Raises:
        ValueError: it is no such folder, or ``inputs.json`` or a record is damaged; names the file,
            and says what to do.
        OSError: something cannot be read.
    """
    results = read_layout(out)
    shards = () if results.layout is None else results.layout.shards
    records = (read_record(out, shard, results.made_from) for shard in shards)
    return replace(results, records=tuple(record for record in records if record is not None))


def read_layout(out: Path) -> Results:
    """What `read_results` gives, without the records.

    Raises:
        ValueError: it is no such folder, or ``inputs.json`` is damaged.
        OSError: it cannot be read.
    """
    facts = read_inputs(out)
    if facts is None:
        raise ValueError(f"{out}: expected --out of weaktr label, {INPUTS} is missing")
    file, about, layout = out / INPUTS, facts.get("about"), facts.get("layout")
    classes = about.get("classes") if isinstance(about, dict) else None
    if classes is None:  # of a stage in a run, for each split
        of_splits = facts.get("classes")
        classes = of_splits[0] if isinstance(of_splits, list) and of_splits else None
    names = None
    if classes is not None:
        if not _are_texts(classes):
            raise ValueError(f"{file}: classes: expected a list of names, got {brief(classes)}")
        names = tuple(classes)
    if layout is None:
        if not (out / "index.jsonl").is_file():
            raise ValueError(f"{out}: expected masks of weaktr label, found none yet")
        return Results(out, facts["made_from"], names, None)
    return Results(out, facts["made_from"], names, _layout(file, layout))


def read_records(out: Path) -> list[Record]:
    """The whole shards of a folder of results, in order; errors as of `read_results`.

    Raises:
        ValueError: also where its masks were not made by shards.
    """
    results = read_results(out)
    if results.layout is None:
        raise ValueError(f"{out}: expected results by shards, there is one index.jsonl for all")
    return list(results.records)


def read_record(out: Path, shard: str, made_from: str) -> Record | None:
    """The record of a shard; None = there is none, so the shard is not whole.

    Args:
        out: the folder of results.
        shard: its name.
        made_from: the fingerprint that it must have.

    Raises:
        ValueError: it is damaged, or belongs to other results; says what to do.
    """
    path = record_file(out, shard)
    if not path.exists():
        return None
    try:
        return _checked(out, shard, made_from, read_json_object(path))
    except ValueError as error:
        if not path.exists():  # another process makes the shard again
            return None
        reason = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {reason}; {again(path)}") from error


def record_file(out: Path, shard: str) -> Path:
    """Where the record of a shard is, or will be."""
    return out / FOLDER / f"{shard}{RECORD}"


def table_file(out: Path, shard: str) -> Path:
    """Where the rows of a shard are, or will be."""
    return out / FOLDER / f"{shard}{TABLE}"


def again(record: Path) -> str:
    """What to do about a damaged shard."""
    return f"remove {record} and start weaktr label again, which then makes this shard again"


def place_of(output: Mapping[str, Any]) -> str:
    """The file or folder of an output in a record, relative to the folder of results."""
    return str(output["file"] if "file" in output else output["folder"])


def rows_of_masks(masks: MaskFolder) -> Iterator[Row]:
    """Rows of a folder with an ``index.jsonl``, all of a shard without a name.

    Args:
        masks: if verified, those that somebody has changed have rows as they are now, and those
            that cannot be used a row that says why.
    """
    for entry in [*masks.entries.values(), *masks.without.values()]:
        row = _row_of(entry)
        if entry.name in masks.unusable:
            row = replace(row, labels=None, areas=None, confidence=None, agreement=None)
        if entry.name in masks.edited:
            row = replace(row, status="edited", error=masks.unusable.get(entry.name))
        path = masks.path(entry.name)
        is_there = entry.file is not None and path.is_file()
        yield replace(row, mask_bytes=path.stat().st_size if is_there else None)


def _row_of(entry: MaskEntry) -> Row:
    """The row of an entry, as the mask was written."""
    working = entry.working_size or (None, None)
    return Row(
        entry.name, "", entry.name, "no class" if entry.file is None else "labelled",
        digest=entry.inputs[0] if entry.inputs else None,
        height=entry.size[0], width=entry.size[1],
        working_height=working[0], working_width=working[1],
        exif=entry.exif, given=entry.given, predicted=entry.predicted, labels=entry.labels,
        areas=entry.areas, confidence=entry.confidence, agreement=entry.agreement,
        mask_digest=entry.sha256, inputs=entry.inputs,
    )  # fmt: skip


def _layout(file: Path, layout: Any) -> ShardList:
    facts: dict[str, Any] = layout if isinstance(layout, dict) else {}
    output, shards = facts.get("output"), facts.get("shards")
    if not _are_texts(shards) or not all(map(is_inside, shards)):
        raise ValueError(f"{file}: layout: expected shards with names, got {brief(shards)}")
    if output not in ("png", "tar"):
        raise ValueError(f"{file}: layout: expected the output png or tar, got {brief(output)}")
    if twice := [shard for shard, count in Counter(shards).items() if count > 1]:
        raise ValueError(f"{file}: layout: expected each shard once, got {few(twice)} twice")
    return ShardList(output, tuple(shards))


def _are_texts(values: Any) -> TypeGuard[list[str]]:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _checked(out: Path, shard: str, made_from: str, content: Mapping[str, Any]) -> Record:
    """A record, of what its file holds; ValueError says what is wrong with it."""
    for key, wanted in (("format", FORMAT), ("made_from", made_from), ("shard", shard)):
        if content.get(key) != wanted:
            other = "belongs to other results: " if key == "made_from" else ""
            raise ValueError(f"{other}{key}: expected {wanted!r}, got {brief(content.get(key))}")
    outputs, statistics, seconds = (content.get(k) for k in ("outputs", "statistics", "seconds"))
    turned = content.get("turned")
    if not isinstance(statistics, dict) or not isinstance(seconds, int | float | None):
        raise ValueError("damaged: expected statistics and seconds")
    if not isinstance(outputs, dict) or not {"masks", "index"} <= outputs.keys():
        raise ValueError(f"damaged: expected outputs masks and index, got {brief(outputs)}")
    for name, output in outputs.items():
        place = output.get("file", output.get("folder")) if isinstance(output, dict) else None
        if not isinstance(place, str) or not is_inside(place):
            raise ValueError(f"damaged: outputs: {name}: expected a file or folder here")
    if not isinstance(outputs["index"].get("sha256"), str):
        raise ValueError("damaged: outputs: index: expected its sha256")
    if turned is not None and not (
        isinstance(turned, dict) and all(type(count) is int for count in turned.values())
    ):
        raise ValueError(f"damaged: turned: expected whole numbers, got {brief(turned)}")
    data, worker = content.get("data"), content.get("worker")
    return Record(out, shard, outputs, statistics, seconds, data, worker, turned)
