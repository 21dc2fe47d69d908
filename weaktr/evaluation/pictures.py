"""Side-by-side pictures: image | CAM of each class, plain and refined | masks | legend."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from weaktr.data.classes import IGNORE, palette
from weaktr.evaluation.overlay import overlay
from weaktr.files import write_bytes
from weaktr.messages import one_line
from weaktr.seals import BLANK, sealed, sealed_png

_CELL = 2.3  # inches
BACKDROP = "#fbfaf7"


@dataclass(frozen=True)
class Panel:
    """One picture of a strip.

    Args:
        title: stands above it.
        mask: uint8 [H, W] labels, or None.
        heat: float [H, W] in [0, 1], or None.
    """

    title: str
    mask: np.ndarray | None = None
    heat: np.ndarray | None = None


@dataclass(frozen=True)
class Strip:
    """One image and, beside it, pictures of everything known about it.

    Args:
        name: stands at its left.
        image: uint8 [H, W, 3] RGB.
        panels: from left to right, after the image itself; None = an empty place.
    """

    name: str
    image: np.ndarray
    panels: Sequence[Panel | None]


def draw(strips: Sequence[Strip], label_names: Sequence[str], path: Path, title: str = "") -> None:
    """Draw strips below each other, with a legend of the labels that occur, as a PNG.

    Args:
        strips: at least one; they may have different numbers of panels.
        label_names: L names, background first.
        path: the PNG; its folder is created if missing.
        title: stands above everything.

    Raises:
        ValueError: no strips.
    """
    if not strips:
        raise ValueError("strips: expected at least one image to draw, got none")
    columns = 1 + max(len(strip.panels) for strip in strips)
    heights = [_CELL * strip.image.shape[0] / strip.image.shape[1] + 0.28 for strip in strips]
    panels = [panel for strip in strips for panel in strip.panels if panel is not None]
    masks = [panel.mask for panel in panels if panel.mask is not None]
    present = sorted({int(label) for mask in masks for label in np.unique(mask)} - {0})
    size = (_CELL * columns, sum(heights) + 0.9)
    grid: dict[str, Any] = {"squeeze": False, "gridspec_kw": {"height_ratios": heights}}
    with figure_file(path, size, len(strips), columns, **grid) as (figure, axes):
        for strip, line in zip(strips, axes, strict=True):
            _draw_strip(strip, line)
        if title:
            figure.suptitle(one_line(title), fontsize=12, fontweight="bold", x=0.01, ha="left")
        figure.legend(
            [_swatch(label) for label in present],
            [_label_name(label, label_names) for label in present],
            loc="outside lower center",
            ncols=min(max(len(present), 1), 3 * columns // 2),  # long names: two thirds of a cell
            frameon=False,
            fontsize=9,
        )


@contextmanager
def figure_file(
    path: Path, size: tuple[float, float], *grid: int, **options: Any
) -> Iterator[tuple[Figure, Any]]:
    """A new figure and its axes, to be drawn on in a ``with`` statement; then it becomes a file.

    Every figure is made here: its texts are taken as they are, and letters that no font has become
    boxes without a warning. `one_line` makes names of others fit to be texts. (matplotlib's own
    ``wrap`` still reads formulas.) pyplot is not used: its figures, and where it draws them, are
    the user's.

    Args:
        path: a PNG or SVG, by its suffix; the same for the same figure.
        size: width and height in inches.
        grid, options: of `Figure.subplots`.

    Raises:
        ValueError: another suffix.
    """
    as_it_is = matplotlib.rc_context({"text.parse_math": False, "text.usetex": False})
    with as_it_is, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of letters, and of names that take the room
        figure = Figure(figsize=size, layout="constrained", facecolor=BACKDROP)
        yield figure, figure.subplots(*grid, **options)
        write_bytes(path, _figure_bytes(figure, path.suffix))


def _figure_bytes(figure: Figure, suffix: str) -> bytes:
    """A figure as the content of a file, PNG or SVG."""
    if suffix not in (".png", ".svg"):
        raise ValueError(f"suffix: expected .png or .svg, got {suffix!r}")
    buffer = io.BytesIO()
    metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "weaktr"}):
        figure.savefig(buffer, format=suffix[1:], dpi=130, facecolor=BACKDROP, metadata=metadata)
    content = buffer.getvalue()
    if suffix == ".svg":
        return sealed(content + f"<!-- {BLANK} -->\n".encode())
    return sealed_png(content)


def heat_overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """A CAM in colours from dark blue to yellow over the grey image.

    Args:
        image: uint8 [H, W, 3] RGB.
        heat: float [H, W] in [0, 1].

    Returns:
        uint8 [H, W, 3].
    """
    colours = 255 * matplotlib.colormaps["inferno"](heat)[..., :3]
    grey = image.mean(2, keepdims=True)
    return (0.35 * grey + 0.65 * colours).round().clip(0, 255).astype(np.uint8)


def _draw_strip(strip: Strip, axes: Sequence[Axes]) -> None:
    """Draw one strip into a line of axes, which may be longer."""
    for axis in axes:
        axis.set_axis_off()
    axes[0].imshow(strip.image)
    axes[0].set_title(one_line(strip.name), fontsize=8, color="#555555")
    for axis, panel in zip(axes[1:], strip.panels, strict=False):
        if panel is None:
            continue
        picture = strip.image
        if panel.mask is not None:
            picture = overlay(strip.image, panel.mask)
        elif panel.heat is not None:
            picture = heat_overlay(strip.image, panel.heat)
        axis.imshow(picture)
        axis.set_title(one_line(panel.title), fontsize=8)


def _swatch(label: int) -> Patch:
    """The colour of a label, for the legend."""
    colour = palette()[label] / 255 if label != IGNORE else (1.0, 1.0, 1.0)
    return Patch(facecolor=colour, edgecolor="#333333", linewidth=0.5)


def _label_name(label: int, names: Sequence[str]) -> str:
    """What a label is called in the legend."""
    return "ignored" if label == IGNORE else one_line(names[label])
