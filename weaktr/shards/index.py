"""All shards together: one index and one file of statistics, beside those of each shard."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from weaktr.data.shard_tables import stored_text
from weaktr.files import is_outside_input, read_json, require_replaceable, whole_file, write_json
from weaktr.messages import brief, counted, few, one_line
from weaktr.shards.columns import texts_of
from weaktr.shards.records import Record, Results, again
from weaktr.shards.rows import GROUP, SCHEMA, WRITTEN, parsed_table
from weaktr.shards.statistics import COLUMNS, added, statistics_of

INDEX, STATS = "index.parquet", "stats.json"
#: By which both files are known as weaktr's.
MARK, STATS_FORMAT = b"weaktr-index-1", "weaktr-stats-1"
#: Where the index says of what it was made.
KEY = b"weaktr"


def join(results: Results) -> dict[str, Any]:
    """Write ``index.parquet`` and ``stats.json``, unless they are there and of these shards.

    Rows stand in the order of the shards. They are read a shard at a time, so memory does not grow
    with them. Of several processes that do so at once, each writes the same.

    Args:
        results: by shards or with an ``index.jsonl``.

    Returns:
        What ``stats.json`` holds: format, made_from, state, shards, seconds, statistics.

    Raises:
        ValueError: shards are missing, says how many and which; a file is damaged, or has a
            photograph twice; files of that name are there that weaktr did not write.
        OSError: something cannot be read or written.
    """
    out = results.out
    if missing := results.missing:
        total = len(results.records) + len(missing)
        raise ValueError(missing_in_words(out, missing, total))
    index, state = out / INDEX, results.state()
    stats = _current_stats(out, state)
    if stats is not None and is_current(index, state):
        return stats
    require_replaceable(index, MARK)
    require_replaceable(out / STATS)
    statistics: list[dict[str, Any]] = []
    with whole_file(index) as temporary, pq.ParquetWriter(
        temporary, _schema(state), **WRITTEN
    ) as writer:  # fmt: skip
        for table in _grouped(_tables(results)):
            statistics.append(statistics_of(table.select(list(COLUMNS))))
            writer.write_table(table.unify_dictionaries(), row_group_size=GROUP)
    stats = stats_of(results, statistics, state)
    write_json(out / STATS, stats, seal=True)
    return stats


def stats_of(results: Results, statistics: list[dict[str, Any]], state: str) -> dict[str, Any]:
    """The content of ``stats.json``, of the statistics of parts."""
    seconds = [record.seconds for record in results.records if record.seconds is not None]
    return {
        "format": STATS_FORMAT,
        "made_from": results.made_from,
        "state": state,
        "shards": len(results.records),
        "seconds": round(sum(seconds), 3) if seconds else None,
        "statistics": added(statistics),
    }


def missing_in_words(out: Path, missing: Sequence[str], total: int) -> str:
    """Which of `total` shards are missing, and what to do."""
    return (
        f"{out}: {len(missing):,} of {counted(total, 'shard is', 'shards are')} not whole: "
        f"{few(missing)}; start weaktr label again, which makes those alone"
    )


def is_current(index: Path, state: str) -> bool:
    """Whether there is an index, and of the rows that have this state."""
    try:
        schema = pq.read_schema(index)
        stored = json.loads((schema.metadata or {})[KEY])["state"]
        return bool(stored == state) and schema.equals(SCHEMA)
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException):
        return False


def batches_of(results: Results, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """The rows of a folder, some columns alone: of the index where it is current, else of shards.

    Raises:
        ValueError: a file is damaged; names it.
    """
    index = results.out / INDEX
    if not results.missing and is_current(index, results.state()):
        try:
            with pq.ParquetFile(index, page_checksum_verification=True) as file:
                for batch in file.iter_batches(GROUP, columns=columns):
                    if set(batch.schema.names) != set(columns):
                        raise ValueError(f"expected the columns {', '.join(columns)}")
                    yield batch
        except (pa.ArrowException, OSError, ValueError) as error:
            if is_outside_input(error):
                raise
            message = f"damaged ({one_line(str(error)):.200}): remove it, it is then written again"
            raise ValueError(f"{index}: {message}") from error
        return
    for table in results.tables(columns):
        yield from table.to_batches()


def read_checked(record: Record) -> pa.Table:
    """The rows of a shard, if they are those of its record.

    Raises:
        ValueError: they are not; the file is missing or damaged; rows are of another shard, or a
            photograph has two.
        OSError: it cannot be read.
    """
    advice = again(record.file)
    try:
        content = record.table.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{record.table}: is missing; {advice}") from error
    if hashlib.sha256(content).hexdigest() != record.digest:
        raise ValueError(f"{record.table}: is not as its record says; {advice}")
    table = parsed_table(io.BytesIO(content), record.table)
    shards = texts_of(table["shard"]).unique().to_pylist()
    own = stored_text(record.shard)
    if shards not in ([], [own]):
        other = next(shard for shard in shards if shard != own)
        raise ValueError(f"{record.table}: has rows of the shard {brief(other)}; {advice}")
    if twice := repeated_names(table):
        raise ValueError(
            f"{record.table}: has {counted(len(twice), 'photograph', 'photographs')} of the shard "
            f"{record.shard} more than once: {few(twice)}; {advice}"
        )
    return table


def repeated_names(table: pa.Table) -> list[str]:
    """The names that more than one row has."""
    counts = pc.value_counts(table["name"])
    more = counts.filter(pc.greater(counts.field("counts"), 1))
    return more.field("values").to_pylist()


def _tables(results: Results) -> Iterator[pa.Table]:
    if results.layout is None:
        yield from results.tables()
    for record in results.records:
        yield read_checked(record)


def _grouped(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in tables of about `GROUP` rows."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(map(len, waiting)) >= GROUP:
            yield pa.concat_tables(waiting)
            waiting = []
    if waiting:
        yield pa.concat_tables(waiting)


def _schema(state: str) -> pa.Schema:
    return SCHEMA.with_metadata({KEY: json.dumps({"format": MARK.decode(), "state": state})})


def _current_stats(out: Path, state: str) -> dict[str, Any] | None:
    """What is in ``stats.json``, if it is of the rows that have this state."""
    try:
        stats = read_json(out / STATS)
        if stats["format"] != STATS_FORMAT or stats["state"] != state:
            return None
        added([stats["statistics"]])
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return {key: value for key, value in stats.items() if key != "seal"}
