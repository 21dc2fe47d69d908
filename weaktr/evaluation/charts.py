"""Charts of scores."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from weaktr.evaluation.pictures import BACKDROP, figure_file
from weaktr.messages import one_line

_COLOURS = ("#b9c6d2", "#2f6690", "#81a88d", "#d9a05b")
_ROW = 0.24  # inches a class
_LINE = 110  # letters of the caption


@dataclass(frozen=True)
class Bars:
    """One bar for each class.

    Args:
        title: stands in the legend.
        values: [L] in percent; NaN = no bar.
    """

    title: str
    values: np.ndarray


def class_bars(
    series: Sequence[Bars], names: Sequence[str], path: Path, *, title: str, caption: str
) -> None:
    """Horizontal bars, the best class of the last series on top; its mean as a line.

    Args:
        series: at least one, of the same length as `names`.
        names: L names.
        path: a PNG or SVG, by its suffix.
        title: stands above.
        caption: stands below: what the numbers are.

    Raises:
        ValueError: no series, or one of another length than `names`.
    """
    if not series or any(len(bars.values) != len(names) for bars in series):
        lengths = [len(bars.values) for bars in series]
        raise ValueError(f"series: expected some of {len(names)} values each, got {lengths}")
    known = ~np.all([np.isnan(bars.values) for bars in series], axis=0)
    order = np.argsort(np.nan_to_num(series[-1].values, nan=-1.0)[known], kind="stable")
    places = np.arange(len(order))
    size = (7.5, 1.5 + _ROW * max(len(order), 4))
    with figure_file(path, size) as (figure, axis):
        thickness = 0.8 / len(series)
        for number, bars in enumerate(series):
            values = bars.values[known][order]
            offset = 0.4 - thickness * (number + 0.5)
            colour = _COLOURS[(number + len(_COLOURS) + 2 - len(series)) % len(_COLOURS)]
            label = one_line(bars.title)
            axis.barh(places + offset, values, thickness, label=label, color=colour)
        last = series[-1].values[known][order]
        longest = np.nanmax([bars.values[known][order] for bars in series], axis=0).tolist()
        for place, value in enumerate(last.tolist()):
            if not math.isnan(value):
                _number(axis, value, (longest[place], place))
        axis.axvline(float(np.nanmean(last)), color="#333333", linewidth=0.8, linestyle=":")
        shown = [one_line(name) for name in np.array(names)[known][order]]
        axis.set_yticks(places, shown, fontsize=8)
        axis.tick_params(left=False)
        axis.set_xlim(0, 106)
        axis.set_ylim(-0.7, len(order) - 0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.set_facecolor(BACKDROP)
        axis.set_title(one_line(title), loc="left", fontsize=11, fontweight="bold")
        lines = textwrap.fill(one_line(caption), _LINE)
        axis.set_xlabel(lines, fontsize=7, loc="left", color="#555555")
        figure.legend(loc="outside upper right", ncols=len(series), frameon=False, fontsize=8)


def threshold_chart(
    curve: Sequence[tuple[float, float]], chosen: float, path: Path, *, title: str, caption: str
) -> None:
    """A criterion over background thresholds, and the threshold that was chosen by it.

    Args:
        curve: (threshold, criterion), ascending.
        chosen: the threshold.
        path: a PNG or SVG, by its suffix.
        title: stands above.
        caption: stands below: what the criterion is, of which images.
    """
    thresholds, values = np.asarray(curve).T
    with figure_file(path, (7.5, 3.0)) as (_, axis):
        axis.plot(thresholds, values, color=_COLOURS[1], linewidth=1.6)
        axis.axvline(chosen, color=_COLOURS[3], linewidth=1.2)
        axis.text(chosen + 0.01, values.min(), f"{chosen:g}", fontsize=9, color="#333333")
        axis.set_xlim(0, 1)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_facecolor(BACKDROP)
        axis.set_title(one_line(title), loc="left", fontsize=11, fontweight="bold")
        lines = textwrap.fill(one_line(caption), _LINE)
        axis.set_xlabel(lines, fontsize=7, loc="left", color="#555555")


def _number(axis: Axes, value: float, end: tuple[float, float]) -> None:
    """A value beside the end of its class's bars, on a patch that hides the line of the mean."""
    patch = {"facecolor": BACKDROP, "edgecolor": "none", "pad": 0.6}
    x, y = end
    axis.text(x + 0.8, y, f"{value:.1f}", va="center", fontsize=7, color="#333333", bbox=patch)
