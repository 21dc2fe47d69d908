"""Scores with the conditions they were produced under: as JSON, as tables, as a bar chart."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from weaktr.evaluation.bootstrap import LEVEL
from weaktr.evaluation.calibration import Calibration
from weaktr.evaluation.charts import Bars, class_bars
from weaktr.evaluation.iou import Confused, Scores
from weaktr.evaluation.pairs import Evaluation
from weaktr.messages import one_line
from weaktr.progress import console
from weaktr.refine import REFINERS

log = logging.getLogger("weaktr")

#: Stands for a condition that is not known.
UNKNOWN = "not known"


@dataclass(frozen=True)
class Conditions:
    """How masks were produced; a score is meaningless without it. "-" = does not apply.

    Args:
        split: data set and split.
        scales, flip: of the images.
        crf: the CRF's preset, "none" or "explicit"; or all refiners, see `refinement_name`.
        ensemble: of the decoder's outputs.
        note: further conditions, such as the threshold and where it comes from.
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
        what: what was scored, in words.
        conditions: how it was produced.
        scores: the numbers, in percent.
        evaluation: `scores` and everything else that was counted; None = only `scores` are known.
    """

    key: str
    what: str
    conditions: Conditions
    scores: Scores
    evaluation: Evaluation | None = None


def caption(row: Row) -> str:
    """What a number of this row is, in one line."""
    return f"{row.what}; {conditions_line(row)}"


def conditions_line(row: Row) -> str:
    """The conditions of a row, in one line."""
    conditions = row.conditions
    parts = [
        f"{conditions.split}, {row.scores.images} images",
        f"scales {conditions.scales}",
        f"flip {conditions.flip}",
        f"{refined_by(conditions.crf)} {conditions.crf}",
        f"ensemble {conditions.ensemble}",
        conditions.note,
    ]
    return "; ".join(part for part in parts if part)


def refined_by(refinement: str) -> str:
    """What to call a refinement: "CRF", or "refinement" where other refiners have a part in it.

    Args:
        refinement: see `weaktr.evaluation.conditions.refinement_name`.
    """
    names = {part.partition(" ")[0] for part in refinement.split(" + ")}
    return "refinement" if names & (REFINERS.keys() - {"crf"}) else "CRF"


def row_json(row: Row, names: Sequence[str]) -> dict[str, Any]:
    """Everything about a row, for metrics.json; numbers unrounded, null = undefined."""
    scores, evaluation = row.scores, row.evaluation
    summary: dict[str, Any] = {
        "miou": scores.miou,
        "false_positive": scores.false_positive,
        "false_negative": scores.false_negative,
        "precision": scores.precision,
        "recall": scores.recall,
        "pixel_accuracy": scores.pixel_accuracy,
    }
    per_label = {
        "iou": scores.iou,
        "false_positive": scores.false_positives,
        "false_negative": scores.false_negatives,
        "precision": scores.precisions,
        "recall": scores.recalls,
    }
    if evaluation is not None:
        summary["boundary_f"] = _number(evaluation.boundary_f)
        summary["miou_interval"] = evaluation.interval and {
            "percent": LEVEL,
            "low": evaluation.interval.low,
            "high": evaluation.interval.high,
            "resamples": len(evaluation.resampled),
        }
        per_label["boundary_f"] = evaluation.boundary
        summary["confused"] = [_confused_json(pair, names) for pair in evaluation.confused]
    summary["classes"] = {
        name: {what: _number(values[label]) for what, values in per_label.items()}
        for label, name in enumerate(names)
    }
    conditions = {name: value for name, value in row.conditions.__dict__.items() if value}
    return {
        "key": row.key,
        "what": row.what,
        "conditions": {**conditions, "images": scores.images},
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
        scores, evaluation = row.scores, row.evaluation
        bounds = evaluation and evaluation.interval
        table.add_row(
            row.what,
            f"{scores.miou:.2f}",
            f"{bounds.low:.1f}-{bounds.high:.1f}" if bounds else "",
            *(_text(value) for value in (
                scores.false_positive, scores.false_negative, scores.precision, scores.recall,
                evaluation.boundary_f if evaluation else math.nan,
            )),
            conditions_line(row),
        )  # fmt: skip
    console.print(table)


def print_classes(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Print the IoU of each class in each row, and the other numbers of the last row."""
    last = rows[-1]
    table = Table(
        title="per class, in %", caption=caption(last), title_justify="left", caption_justify="left"
    )
    table.add_column("class")
    for row in rows[:-1]:
        table.add_column(f"IoU, {row.what}", justify="right")
    for column in (f"IoU, {last.what}", "FP", "FN", "precision", "recall", "boundary F"):
        table.add_column(column, justify="right")
    scores, evaluation = last.scores, last.evaluation
    columns = [row.scores.iou for row in rows] + [
        scores.false_positives, scores.false_negatives, scores.precisions, scores.recalls,
        evaluation.boundary if evaluation else np.full(len(scores.iou), np.nan),
    ]  # fmt: skip
    for label, name in enumerate(names):
        values = [column[label] for column in columns]
        if not all(math.isnan(value) for value in values):
            table.add_row(name, *map(_text, values))
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
        numbers = (f"{pair.pixels}", f"{pair.share:.1f}")
        table.add_row(names[pair.truth], _predicted(pair, names), *numbers)
    console.print(table)


def print_calibration(calibration: Calibration) -> None:
    """Print how many pixels are right at each confidence, and the calibration error."""
    table = Table(
        title="confidence",
        caption=f"expected calibration error {100 * calibration.error():.1f} % "
        f"({calibration.images} images)",
        title_justify="left",
        caption_justify="left",
    )
    for column in ("confidence", "% of the pixels", "mean", "% right"):
        table.add_column(column, justify="right")
    for row in calibration.bins():
        if row.pixels:
            share = 100 * row.pixels / calibration.pixels
            numbers = (f"{share:.1f}", f"{row.confidence:.2f}", f"{100 * row.right:.1f}")
            table.add_row(f"{row.low:g} - {row.high:g}", *numbers)
    console.print(table)


def draw_classes(rows: Sequence[Row], names: Sequence[str], path: Path) -> bool:
    """Draw IoU of each class, a bar for each row, as PNG or SVG by the name's suffix.

    Returns:
        Whether it is drawn; else the log says why: numbers are worth more than their picture.
    """
    bars = [Bars(f"{row.what}, mIoU {row.scores.miou:.1f}", row.scores.iou) for row in rows]
    try:
        class_bars(bars, names, path, title="IoU in %", caption=caption(rows[-1]))
    except (ValueError, RuntimeError) as error:  # of matplotlib, its fonts and its settings
        log.warning("%s: the chart is not drawn: %s", path, one_line(str(error))[:300])
        path.unlink(missing_ok=True)
        return False
    return True


def _confused_json(pair: Confused, names: Sequence[str]) -> dict[str, Any]:
    return {
        "truth": names[pair.truth],
        "predicted": _predicted(pair, names),
        "pixels": pair.pixels,
        "percent_of_truth": pair.share,
    }


def _predicted(pair: Confused, names: Sequence[str]) -> str:
    """The name of the predicted label."""
    return names[pair.predicted] if pair.predicted < len(names) else "undecided"


def _number(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return None if math.isnan(value) else float(value)


def _text(value: float) -> str:
    """A number for a table."""
    return "-" if math.isnan(value) else f"{value:.1f}"
