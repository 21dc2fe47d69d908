"""Scores with the conditions they were made under: as JSON, as tables, as a bar chart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from weaktr.evaluation.bootstrap import LEVEL
from weaktr.evaluation.charts import Bars, class_bars
from weaktr.evaluation.iou import Confused, Scores
from weaktr.evaluation.pairs import Evaluation
from weaktr.progress import console

#: Something that was not said.
UNKNOWN = "not known"


@dataclass(frozen=True)
class Conditions:
    """How masks were made: without these, a number means nothing. "-" = does not apply.

    Args:
        split: data set and split.
        scales, flip: of the images.
        crf: the CRF's preset, "none" or "explicit".
        ensemble: of the decoder's outputs.
        note: threshold and where it comes from, and the like.
    """

    split: str
    scales: str = UNKNOWN
    flip: str = UNKNOWN
    crf: str = UNKNOWN
    ensemble: str = UNKNOWN
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Args:
        key: its name in metrics.json (``..._miou``).
        what: what was scored, for people.
        made: how.
        scores: the numbers, in percent.
        evaluation: everything else that was counted along with `scores`; None = only those.
    """

    key: str
    what: str
    made: Conditions
    scores: Scores
    evaluation: Evaluation | None = None


def caption(row: Row) -> str:
    """What a number of this row is, in one line."""
    return f"{row.what}; {conditions(row)}"


def conditions(row: Row) -> str:
    """What a row was made with, in one line."""
    made = row.made
    parts = [
        f"{made.split}, {row.scores.images} images",
        f"scales {made.scales}",
        f"flip {made.flip}",
        f"CRF {made.crf}",
        f"ensemble {made.ensemble}",
        made.note,
    ]
    return "; ".join(part for part in parts if part)


def row_json(row: Row, names: Sequence[str]) -> dict[str, Any]:
    """Everything about a row, for metrics.json; numbers unrounded, null = undefined."""
    found, more = row.scores, row.evaluation
    summary: dict[str, Any] = {
        "miou": found.miou,
        "false_positive": found.false_positive,
        "false_negative": found.false_negative,
        "precision": found.precision,
        "recall": found.recall,
        "pixel_accuracy": found.pixel_accuracy,
    }
    per_label = {
        "iou": found.iou,
        "false_positive": found.false_positives,
        "false_negative": found.false_negatives,
        "precision": found.precisions,
        "recall": found.recalls,
    }
    if more is not None:
        summary["boundary_f"] = _number(more.boundary_f)
        summary["miou_interval"] = more.interval and {
            "percent": LEVEL,
            "low": more.interval.low,
            "high": more.interval.high,
            "resamples": len(more.resampled),
        }
        per_label["boundary_f"] = more.boundary
        summary["confused"] = [_confused_json(pair, names) for pair in more.confused]
    summary["classes"] = {
        name: {what: _number(values[label]) for what, values in per_label.items()}
        for label, name in enumerate(names)
    }
    made = {name: value for name, value in row.made.__dict__.items() if value}
    return {
        "key": row.key,
        "what": row.what,
        "conditions": {**made, "images": found.images},
        "caption": caption(row),
        "scores": summary,
    }


def print_rows(rows: Sequence[Row], title: str) -> None:
    """Print a line for each row."""
    if not rows:
        return
    table = Table(title=title, title_justify="left")
    table.add_column("what")
    for column in ("mIoU", f"{LEVEL:g} %", "FP", "FN", "prec.", "recall", "bound. F"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("made with")
    for row in rows:
        found, more = row.scores, row.evaluation
        bounds = more and more.interval
        table.add_row(
            row.what,
            f"{found.miou:.2f}",
            f"{bounds.low:.1f}-{bounds.high:.1f}" if bounds else "",
            *(_shown(value) for value in (
                found.false_positive, found.false_negative, found.precision, found.recall,
                more.boundary_f if more else math.nan,
            )),
            conditions(row),
        )  # fmt: skip
    console.print(table)


def print_classes(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Print IoU of each class and row, and the last row's other numbers, with its conditions."""
    last = rows[-1]
    table = Table(
        title="per class, in %", caption=caption(last), title_justify="left", caption_justify="left"
    )
    table.add_column("class")
    for row in rows[:-1]:
        table.add_column(f"IoU, {row.what}", justify="right")
    for column in (f"IoU, {last.what}", "FP", "FN", "precision", "recall", "boundary F"):
        table.add_column(column, justify="right")
    found, more = last.scores, last.evaluation
    columns = [row.scores.iou for row in rows] + [
        found.false_positives, found.false_negatives, found.precisions, found.recalls,
        more.boundary if more else np.full(len(found.iou), np.nan),
    ]  # fmt: skip
    for label, name in enumerate(names):
        values = [column[label] for column in columns]
        if not all(math.isnan(value) for value in values):
            table.add_row(name, *map(_shown, values))
    console.print(table)


def print_confused(row: Row, names: Sequence[str], count: int = 8) -> None:
    """Print the pairs of labels that were confused most."""
    if row.evaluation is None or not row.evaluation.confused:
        return
    table = Table(
        title="most confused", caption=caption(row), title_justify="left", caption_justify="left"
    )
    for column in ("truth", "predicted"):
        table.add_column(column)
    for column in ("pixels", "% of the truth"):
        table.add_column(column, justify="right")
    for pair in row.evaluation.confused[:count]:
        shown = (f"{pair.pixels}", f"{pair.share:.1f}")
        table.add_row(names[pair.truth], names[pair.predicted], *shown)
    console.print(table)


def draw_classes(rows: Sequence[Row], names: Sequence[str], path: Path) -> None:
    """Draw IoU of each class, a bar for each row, as PNG or SVG by the name's suffix."""
    bars = [Bars(f"{row.what}, mIoU {row.scores.miou:.1f}", row.scores.iou) for row in rows]
    class_bars(bars, names, path, title="IoU in %", caption=caption(rows[-1]))


def _confused_json(pair: Confused, names: Sequence[str]) -> dict[str, Any]:
    return {
        "truth": names[pair.truth],
        "predicted": names[pair.predicted],
        "pixels": pair.pixels,
        "percent_of_truth": pair.share,
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1f}"
