"""Statistics of an index: what became of its photographs, and what their masks show.

They are plain values of JSON. Shares are summed in whole billionths, so that the statistics of many
shards, added in any order, are exactly those of all their rows.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from weaktr.messages import one_line
from weaktr.shards.columns import LABELS, Pairs, pairs_of, shown_in, texts_of
from weaktr.shards.rows import Status

#: The columns that statistics need.
COLUMNS = (
    *("name", "image", "status", "error", "height", "width"),
    *("labels", "areas", "confidence", "mask_digest", "mask_bytes"),
)
#: Rows that are counted together: few enough for the caches of a processor.
BATCH = 20_000
#: Parts in which shares are summed.
UNIT = 10**9
#: Kinds of errors that are counted apart, and the characters of one.
KINDS, KIND_LENGTH = 60, 120
#: What further kinds are counted under.
OTHER = "other"


def statistics_of(table: pa.Table) -> dict[str, Any]:
    """The statistics of rows.

    Args:
        table: has `COLUMNS` of `weaktr.shards.rows.SCHEMA`.

    Returns:
        images: number of rows.
        status: each status -> number of rows.
        masks, bytes, pixels: how many masks there are, and what they amount to.
        labels: label as text -> images whose masks show it; its area and its confidence in them,
            each as the images in which it is known, the sum in billionths and the mean.
        errors: kind -> images, and one of the messages; the most frequent first.

    Raises:
        ValueError: a label is outside 0..255.
    """
    sums, status = np.zeros((5, LABELS), np.int64), Counter[str]()
    masks = size = pixels = 0
    errors: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for batch in table.to_batches(max_chunksize=BATCH):
        status.update(_counts(batch["status"]))
        has_mask = batch.filter(batch["mask_digest"].is_valid())
        masks += has_mask.num_rows
        size += pc.sum(has_mask["mask_bytes"]).as_py() or 0
        pixels += _pixels(has_mask)
        sums += _sums(has_mask)
        _count_errors(batch, errors, examples)
    return {
        "images": table.num_rows,
        "status": {name: status[name] for name in get_args(Status)},
        "masks": masks,
        "bytes": size,
        "pixels": pixels,
        "labels": _labels(sums),
        "errors": _errors(errors, examples),
    }


def added(statistics: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The statistics of several shards together.

    Raises:
        ValueError: some are not of this form.
    """
    status, errors = Counter[str](), Counter[str]()
    examples: dict[str, str] = {}
    sums = np.zeros((5, LABELS), np.int64)
    plain = dict.fromkeys(("images", "masks", "bytes", "pixels"), 0)
    try:
        for one in statistics:
            for key in plain:
                plain[key] += int(one[key])
            status.update({name: int(one["status"][name]) for name in get_args(Status)})
            sums += _sums_in(one["labels"])
            for kind, error in one["errors"].items():
                errors[kind] += int(error["images"])
                examples.setdefault(kind, str(error["example"]))
    except (ArithmeticError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"statistics: damaged ({type(error).__name__}: {error})") from error
    return {
        "images": plain.pop("images"),
        "status": {name: status[name] for name in get_args(Status)},
        **plain,
        "labels": _labels(sums),
        "errors": _errors(errors, examples),
    }


def _counts(column: pa.Array) -> dict[str, int]:
    counts = pc.value_counts(texts_of(column)).to_pylist()
    return {str(count["values"]): count["counts"] for count in counts}


def _pixels(batch: pa.RecordBatch) -> int:
    height, width = (batch[key].cast(pa.int64()) for key in ("height", "width"))
    return pc.sum(pc.multiply(height, width)).as_py() or 0


def _sums(batch: pa.RecordBatch) -> np.ndarray:
    """Of each label, int64 [5, 256]: the images that show it; those with its area, and the sum of
    the areas; those with its confidence, and the sum.
    """
    shown, confidence = shown_in(batch), pairs_of(batch["confidence"])
    confidence = confidence.where(np.isin(confidence.keys, shown.keys))
    images = np.bincount(shown.labels, minlength=LABELS)
    return np.stack([images, *_sum_of(shown), *_sum_of(confidence)]).astype(np.int64)


def _sum_of(pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """How many finite values each label has, and their sum in billionths; int64 [256] each."""
    pairs = pairs.where(np.isfinite(pairs.values))
    total = np.zeros(LABELS, np.int64)
    np.add.at(total, pairs.labels, np.rint(pairs.values * UNIT).astype(np.int64))
    return np.bincount(pairs.labels, minlength=LABELS), total


def _labels(sums: np.ndarray) -> dict[str, Any]:
    """The labels that a mask shows, of what `_sums` gave."""

    def mean(images: int, total: int) -> dict[str, Any]:
        value = total / images / UNIT if images else None
        return {"images": images, "billionths": total, "mean": value}

    columns = {int(label): sums[:, label].tolist() for label in np.flatnonzero(sums[0])}
    return {
        str(label): {"images": images, "area": mean(*area), "confidence": mean(*confidence)}
        for label, (images, *both) in columns.items()
        for area, confidence in [(both[:2], both[2:])]
    }


def _sums_in(labels: Mapping[str, Any]) -> np.ndarray:
    """What `_labels` was given."""
    sums = np.zeros((5, LABELS), np.int64)
    for label, one in labels.items():
        parts = [one[name][key] for name in ("area", "confidence") for key in _SUM]
        sums[:, int(label)] = [one["images"], *parts]
    return sums


_SUM = ("images", "billionths")


def _count_errors(batch: pa.RecordBatch, counts: Counter[str], examples: dict[str, str]) -> None:
    wrong = batch.select(["name", "image", "error"]).filter(batch["error"].is_valid())
    for row in wrong.to_pylist():
        kind = kind_of(row["error"], (row["name"], row["image"] or row["name"]))
        counts[kind] += 1
        examples.setdefault(kind, row["error"])


def kind_of(error: str, names: Sequence[str] = ()) -> str:
    """What an error is counted under: its words up to the first colon, without file or numbers.

    Args:
        error: the message.
        names: of the photograph, with which the message may begin.
    """
    head, colon, rest = error.partition(": ")
    while colon and rest and ("/" in head or head.split(" (")[0] in names):
        error = rest
        head, colon, rest = error.partition(": ")
    return re.sub(r"\d+", "#", one_line(error.partition(":")[0]))[:KIND_LENGTH]


def _errors(counts: Counter[str], examples: Mapping[str, str]) -> dict[str, Any]:
    """The most frequent kinds; the others count together."""
    kinds = sorted(counts, key=lambda kind: (kind == OTHER, -counts[kind], kind))
    shown, rest = kinds, kinds[:0]
    if len(kinds) > KINDS:
        shown, rest = kinds[: KINDS - 1], kinds[KINDS - 1 :]
    errors = {kind: {"images": counts[kind], "example": examples[kind]} for kind in shown}
    if rest:
        total = sum(counts[kind] for kind in rest)
        errors[OTHER] = {"images": total, "example": examples[rest[0]]}
    return errors
