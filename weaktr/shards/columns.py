"""Columns of an index (`weaktr.shards.rows.SCHEMA`) as arrays of NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from weaktr.data.mask_index import LEAST_SHARE

#: Labels are stored in 8 bits.
LABELS = 256


class Pairs(NamedTuple):
    """Labels of photographs and a number for each; parallel arrays, in the order of the rows."""

    rows: np.ndarray  #: int64, which row
    labels: np.ndarray  #: int64, 0..255
    values: np.ndarray  #: float64; NaN = not known

    @property
    def keys(self) -> np.ndarray:
        """A number of its own for each row and label."""
        return self.rows * LABELS + self.labels

    def where(self, chosen: np.ndarray) -> Pairs:
        """Those of `chosen`, a bool for each."""
        return Pairs(self.rows[chosen], self.labels[chosen], self.values[chosen])


def pairs_of(column: pa.Array) -> Pairs:
    """The pairs of a column of label -> number, or of labels alone.

    Raises:
        ValueError: a label is outside 0..255.
    """
    if not len(column):
        return Pairs(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))
    offsets = column.offsets.to_numpy().astype(np.int64)
    rows = np.repeat(np.arange(len(column)), np.diff(offsets))
    part = slice(offsets[0], offsets[-1])
    is_map = pa.types.is_map(column.type)
    labels = (column.keys if is_map else column.values)[part].to_numpy(zero_copy_only=False)
    if is_map:
        values = column.items[part].to_numpy(zero_copy_only=False).astype(np.float64)
    else:
        values = np.full(len(labels), np.nan)
    outside = ~((labels >= 0) & (labels < LABELS))  # NaN too, which stands for none
    if outside.any():
        raise ValueError(f"expected labels 0..{LABELS - 1}, got {labels[outside][0]}")
    pairs = Pairs(rows, labels.astype(np.int64), values)
    return pairs.where(column.is_valid().to_numpy(False)[rows]) if column.null_count else pairs


def areas_in(batch: pa.RecordBatch) -> Pairs:
    """The labels in the masks and their areas; NaN where an older version did not note them.

    Args:
        batch: rows with the columns ``areas`` and ``labels``.
    """
    areas, labels = pairs_of(batch["areas"]), pairs_of(batch["labels"])
    only_labels = labels.where(batch["areas"].is_null().to_numpy(False)[labels.rows])
    return Pairs(*map(np.concatenate, zip(areas, only_labels, strict=True)))


def shown_in(batch: pa.RecordBatch) -> Pairs:
    """The labels that masks show (`weaktr.data.mask_index.MaskEntry.shown`), and their areas."""
    areas = areas_in(batch)
    return areas.where(~(areas.values < LEAST_SHARE))


def of_label(pairs: Pairs, label: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` rows have a label, bool [count]; its values, NaN where not, [count]."""
    pairs = pairs.where(pairs.labels == label)
    has, values = np.zeros(count, bool), np.full(count, np.nan)
    has[pairs.rows], values[pairs.rows] = True, pairs.values
    return has, values


def texts_of(column: pa.Array) -> pa.Array:
    """A column of texts, which may be numbered (a dictionary), as plain texts."""
    return pc.cast(column, pa.string())
