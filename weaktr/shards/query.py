"""Photographs of an index that have something in common: a class, a status, a low confidence."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from weaktr.data.classes import IGNORE
from weaktr.data.shard_tables import stored_text
from weaktr.messages import brief, few
from weaktr.shards.columns import LABELS, areas_in, of_label, pairs_of, shown_in, texts_of
from weaktr.shards.index import batches_of
from weaktr.shards.records import Results
from weaktr.shards.rows import SCHEMA, Status

#: The columns of what `select` gives; area and confidence are those of the class.
SELECTED = pa.schema(
    [
        *(SCHEMA.field(name).with_type(pa.string()) for name in ("name", "shard", "status")),
        pa.field("area", pa.float64()),
        pa.field("confidence", pa.float64()),
        SCHEMA.field("error"),
    ]
)


@dataclass(frozen=True)
class Query:
    """What rows must have; None = it does not matter.

    Args:
        label: number in masks that the mask shows (see `LEAST_SHARE`); with bounds of
            its area, that occurs in the mask.
        status: what became of the photograph.
        min_area, max_area: bounds of the share of the pixels with `label`, both included.
        min_confidence, max_confidence: bounds of the mean score of the pixels with `label`; without
            one, of the least confident class that the mask shows. Rows in which it is not known are
            left out.
        shard: name of the shard.
        error: part of the message, in small or large letters.

    Raises:
        ValueError: a value is outside its range, or bounds are the wrong way round.
    """

    label: int | None = None
    status: Status | None = None
    min_area: float | None = None
    max_area: float | None = None
    min_confidence: float | None = None
    max_confidence: float | None = None
    shard: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if self.label is not None and not 0 <= self.label < LABELS:
            raise ValueError(f"label: expected 0..{LABELS - 1}, got {brief(self.label)}")
        if self.status is not None and self.status not in get_args(Status):
            expected = ", ".join(get_args(Status))
            raise ValueError(f"status: expected one of {expected}, got {brief(self.status)}")
        for name in ("area", "confidence"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            for bound in (least, most):
                if bound is not None and not 0 <= bound <= 1:
                    raise ValueError(f"{name}: expected a share from 0 to 1, got {bound}")
            if None not in (least, most) and least > most:
                raise ValueError(
                    f"{name}: expected the least not above the most, got {least} and {most}"
                )
        if self.label is None and (self.min_area, self.max_area) != (None, None):
            raise ValueError("area: expected a class, of which it is the area")

    @property
    def bounds_area(self) -> bool:
        """Whether the area matters."""
        return self.min_area is not None or self.max_area is not None

    @property
    def bounds_confidence(self) -> bool:
        """Whether the confidence matters."""
        return self.min_confidence is not None or self.max_confidence is not None

    @property
    def columns(self) -> list[str]:
        """The columns that decide."""
        of_masks = self.label is not None or self.bounds_confidence
        wanted = {
            "status": self.status is not None,
            "shard": self.shard is not None,
            "error": self.error is not None,
            "areas": of_masks,
            "labels": of_masks,
            "confidence": self.bounds_confidence,
        }
        return [name for name, is_wanted in wanted.items() if is_wanted]


def count(results: Results, query: Query) -> int:
    """How many rows a query finds; reads only the columns that it needs.

    Raises:
        ValueError: a file is damaged; names it.
    """
    columns = query.columns or ["status"]
    return sum(int(matches(batch, query).sum()) for batch in batches_of(results, columns))


def select(results: Results, query: Query) -> pa.Table:
    """The rows that a query finds, in order: `SELECTED`.

    Raises:
        ValueError: a file is damaged; names it.
    """
    return pa.Table.from_batches(selected_batches(results, query), SELECTED)


def selected_batches(results: Results, query: Query) -> Iterator[pa.RecordBatch]:
    """What `select` gives, in parts."""
    columns = ["name", "shard", "status", "areas", "labels", "confidence", "error"]
    for batch in batches_of(results, columns):
        batch = batch.filter(pa.array(matches(batch, query)))  # noqa: PLW2901
        area, confidence = _area(batch, query)[1], _confidence(batch, query)
        yield pa.RecordBatch.from_arrays(
            [
                *(texts_of(batch[name]) for name in ("name", "shard", "status")),
                pa.array(area, from_pandas=True),  # NaN = not known
                pa.array(confidence, from_pandas=True),
                batch["error"],
            ],
            schema=SELECTED,
        )


def matches(batch: pa.RecordBatch, query: Query) -> np.ndarray:
    """Which rows a query finds, bool [rows].

    Args:
        batch: has the query's `columns`.
        query: what is looked for.
    """
    fits = np.ones(batch.num_rows, bool)
    for name in ("status", "shard"):
        wanted = getattr(query, name)
        if wanted is not None:
            same = pc.equal(texts_of(batch[name]), stored_text(wanted))
            fits &= same.to_numpy(zero_copy_only=False)
    if query.error is not None:
        found = pc.match_substring(batch["error"], stored_text(query.error), ignore_case=True)
        fits &= found.fill_null(False).to_numpy(zero_copy_only=False)
    if query.label is not None:
        has, area = _area(batch, query)
        fits &= has
        if query.bounds_area:
            fits &= _is_between(area, query.min_area, query.max_area)
    if query.bounds_confidence:
        confidence = _confidence(batch, query)
        fits &= _is_between(confidence, query.min_confidence, query.max_confidence)
    return fits


def label_of(text: str, classes: Sequence[str] | None) -> int:
    """The number in masks of a class.

    Args:
        text: its name, "background", "ignore", or the number itself where no class has that name.
        classes: names; None = not known.

    Raises:
        ValueError: there is no such class; names those of which the name is close.
    """
    label_of_name = {"background": 0, "ignore": IGNORE}
    label_of_name |= {name: index for index, name in enumerate(classes or (), 1)}
    if text in label_of_name:
        return label_of_name[text]
    last = LABELS - 1 if classes is None else len(classes)
    if text.isascii() and text.isdigit() and (int(text) <= last or int(text) == IGNORE):
        return int(text)
    if classes is None:
        raise ValueError(
            f"class: the names of the classes are not known here: expected a number in masks, "
            f"0..{last}, got {brief(text)}"
        )
    close = difflib.get_close_matches(text[:100], classes, n=3, cutoff=0.5)
    told = f"did you mean {few(close, between=' or ')}?" if close else f"there are {few(classes)}"
    raise ValueError(f"class: no class is called {brief(text)}; {told}")


def _area(batch: pa.RecordBatch, query: Query) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have the label of a query, and its area (NaN = not known, or no label)."""
    if query.label is None:
        return np.ones(batch.num_rows, bool), np.full(batch.num_rows, np.nan)
    pairs = areas_in(batch) if query.bounds_area else shown_in(batch)
    return of_label(pairs, query.label, batch.num_rows)


def _confidence(batch: pa.RecordBatch, query: Query) -> np.ndarray:
    """In the label of a query, or in the least confident class; float64 [rows], NaN = not known."""
    pairs = pairs_of(batch["confidence"])
    if query.label is not None:
        return of_label(pairs, query.label, batch.num_rows)[1]
    is_class = (pairs.labels != 0) & (pairs.labels != IGNORE)
    pairs = pairs.where(is_class & np.isin(pairs.keys, shown_in(batch).keys))
    least = np.full(batch.num_rows, np.nan)
    np.fmin.at(least, pairs.rows, pairs.values)
    return least


def _is_between(values: np.ndarray, least: float | None, most: float | None) -> np.ndarray:
    """Bounds included; NaN is not."""
    low, high = -np.inf if least is None else least, np.inf if most is None else most
    return (values >= low) & (values <= high)
