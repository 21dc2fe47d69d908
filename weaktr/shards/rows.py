"""A row for each photograph, as Parquet: what became of it, and of what its mask was made."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from weaktr.data.mask_index import MaskEntry, entry_of
from weaktr.data.shard_tables import named_text, stored_text
from weaktr.files import is_outside_input, write_bytes
from weaktr.messages import one_line

#: What became of a photograph: it has a mask; it shows no class, so has none; it could not be read
#: or labelled; somebody has changed its mask, which stays.
Status = Literal["labelled", "no class", "failed", "edited"]
#: Rows that a Parquet file holds, and readers read, together.
GROUP = 100_000

#: How Parquet is written; check sums tell what compression does not.
WRITTEN: dict[str, Any] = {"compression": "zstd", "write_page_checksum": True}
#: Columns with names of files, which may not be UTF-8 (`stored_text`).
_NAMES = ("name", "shard", "image")
_SHARES = pa.map_(pa.int16(), pa.float64())
_NAME = pa.dictionary(pa.int32(), pa.string())
#: The columns of an index. Labels are the numbers in masks: 0 = background, k + 1 = class index k,
#: 255 = ignore.
SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),  # of the photograph, unique in its shard
        pa.field("shard", _NAME, nullable=False),
        pa.field("image", pa.string()),  # file name in the shard, or path
        pa.field("status", _NAME, nullable=False),
        pa.field("error", pa.string()),
        pa.field("digest", pa.string()),  # SHA-256 of the photograph
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("working_height", pa.int32()),  # at which it was labelled, where that differs
        pa.field("working_width", pa.int32()),
        pa.field("exif", pa.string()),
        pa.field("given", pa.list_(pa.int16())),  # class indices that were given
        pa.field("predicted", _SHARES),  # label -> probability, where none were given
        pa.field("labels", pa.list_(pa.int16())),  # that occur in the mask
        pa.field("areas", _SHARES),  # label -> share of the pixels
        pa.field("confidence", _SHARES),  # label -> mean score of its pixels
        pa.field("agreement", _SHARES),  # label -> agreement with a teacher's mask
        pa.field("threshold", pa.float64()),
        pa.field("mask_digest", pa.string()),  # SHA-256 of the PNG
        pa.field("mask_bytes", pa.int64()),
        pa.field("inputs", pa.list_(pa.string())),  # SHA-256 of all files that it was made from
        pa.field("weights", _NAME),  # SHA-256 of the checkpoint
        pa.field("settings", _NAME),  # fingerprint of the settings; spelt out in inputs.json
    ]
)


@dataclass(frozen=True)
class Row:
    """What became of one photograph; fields as in `SCHEMA`."""

    name: str
    shard: str
    image: str
    status: Status
    error: str | None = None
    digest: str | None = None
    height: int | None = None
    width: int | None = None
    working_height: int | None = None
    working_width: int | None = None
    exif: str | None = None
    given: tuple[int, ...] | None = None
    predicted: dict[int, float] | None = None
    labels: tuple[int, ...] | None = None
    areas: dict[int, float] | None = None
    confidence: dict[int, float] | None = None
    agreement: dict[int, float] | None = None
    threshold: float | None = None
    mask_digest: str | None = None
    mask_bytes: int | None = None
    inputs: tuple[str, ...] | None = None
    weights: str | None = None
    settings: str | None = None

    def known(self) -> dict[str, Any]:
        """The fields without those that are None; values of JSON, but that keys are numbers."""
        return {key: value for key, value in vars(self).items() if value is not None}

    def line(self) -> bytes:
        """As a line of JSON, without what is None."""
        return json.dumps(self.known()).encode() + b"\n"

    @staticmethod
    def of(values: Mapping[str, Any]) -> Row:
        """From a line of JSON, or a row of a table.

        Raises:
            AttributeError, TypeError, ValueError: something is missing, or of another kind.
        """
        row = dict(values)
        for key in ("given", "labels", "inputs"):
            if row.get(key) is not None:
                row[key] = tuple(row[key])
        for key in ("predicted", "areas", "confidence", "agreement"):
            if row.get(key) is not None:
                pairs = row[key].items() if isinstance(row[key], Mapping) else row[key]
                row[key] = {int(label): float(share) for label, share in pairs}
        return Row(**row)

    def entry(self) -> MaskEntry:
        """As the index of a folder of loose masks has it.

        Raises:
            TypeError, ValueError: a name or a label that such an index cannot hold.
        """
        return entry_of(vars(self))


def table_of(rows: Iterable[Row]) -> pa.Table:
    """A table of rows in their order."""
    return pa.Table.from_pylist([_plain(row) for row in rows], SCHEMA)


def write_table(path: Path, table: pa.Table) -> int:
    """Write a table as Parquet, whole or not at all; the same one gives the same file.

    Returns:
        Bytes of the file.
    """
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=GROUP, **WRITTEN)
    write_bytes(path, buffer.getvalue())
    return buffer.tell()


def read_table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A table that `write_table` wrote.

    Raises:
        ValueError: it is damaged, or another one; names it.
        OSError: it is not there, or cannot be read.
    """
    with open(path, "rb") as file:  # what the system says of it is clearer than pyarrow's words
        return parsed_table(file, path, columns)


def parsed_table(file: BinaryIO, path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A table of an open file, which errors call `path`; see `read_table`."""
    try:
        wanted_columns = None if columns is None else list(columns)
        table = pq.read_table(file, columns=wanted_columns, page_checksum_verification=True)
    except (pa.ArrowException, KeyError, OSError) as error:
        if is_outside_input(error):
            raise
        message = f"damaged, or no index of weaktr: {one_line(str(error)):.200}"
        raise ValueError(f"{path}: {message}") from error
    wanted = SCHEMA if columns is None else pa.schema([SCHEMA.field(name) for name in columns])
    if set(table.schema.names) != set(wanted.names):
        raise ValueError(f"{path}: expected the columns {', '.join(wanted.names)}")
    try:
        return table.select(wanted.names).cast(wanted)
    except (pa.ArrowException, ValueError) as error:
        message = f"expected columns of other types: {one_line(str(error)):.200}"
        raise ValueError(f"{path}: {message}") from error


def rows_of(table: pa.Table) -> Iterable[Row]:
    """The rows of a table of `SCHEMA`."""
    for batch in table.to_batches():
        for values in batch.to_pylist():
            texts = {key: named_text(values[key]) for key in _NAMES if values[key] is not None}
            yield Row.of(values | texts)


def turned_in(rows: Iterable[Row]) -> dict[str, int]:
    """How many photographs with masks EXIF turns, see `MaskReport.turned`."""
    return Counter(row.exif for row in rows if row.exif and row.mask_digest is not None)


def _plain(row: Row) -> dict[str, Any]:
    """As `pa.Table.from_pylist` takes it."""
    values = {field.name: getattr(row, field.name) for field in SCHEMA}
    for key, value in values.items():
        if isinstance(value, dict):
            values[key] = list(value.items())
        elif isinstance(value, str):
            values[key] = stored_text(value)
    return values
