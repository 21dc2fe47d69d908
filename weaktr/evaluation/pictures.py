"""Side-by-side pictures: image | CAM of each class, plain and refined | masks | legend."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from weaktr.data.classes import IGNORE, palette
from weaktr.evaluation.overlay import overlay
from weaktr.files import write_bytes
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
    figure, axes = plt.subplots(
        len(strips),
        columns,
        figsize=(_CELL * columns, sum(heights) + 0.9),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
        facecolor=BACKDROP,
    )
    for strip, line in zip(strips, axes, strict=True):
        _draw_strip(strip, line)
    if title:
        figure.suptitle(title, fontsize=12, fontweight="bold", x=0.01, ha="left")
    panels = [panel for strip in strips for panel in strip.panels if panel is not None]
    masks = [panel.mask for panel in panels if panel.mask is not None]
    present = sorted({int(label) for mask in masks for label in np.unique(mask)} - {0})
    figure.legend(
        handles=[_swatch(label, label_names) for label in present],
        loc="outside lower center",
        ncols=min(max(len(present), 1), 3 * columns // 2),  # long names need two thirds of a cell
        frameon=False,
        fontsize=9,
    )
    write_bytes(path, figure_bytes(figure, path.suffix))


def figure_bytes(figure: Figure, suffix: str) -> bytes:
    """A figure as the content of a file, PNG or SVG, the same for the same figure; closes it.

    Raises:
        ValueError: another suffix.
    """
    if suffix not in (".png", ".svg"):
        raise ValueError(f"suffix: expected .png or .svg, got {suffix!r}")
    buffer = io.BytesIO()
    metadata = {"Date": None} if suffix == ".svg" else {"Software": None}
    with plt.rc_context({"svg.hashsalt": "weaktr"}):
        figure.savefig(buffer, format=suffix[1:], dpi=130, facecolor=BACKDROP, metadata=metadata)
    plt.close(figure)
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
    axes[0].set_title(strip.name, fontsize=8, color="#555555")
    for axis, panel in zip(axes[1:], strip.panels, strict=False):
        if panel is None:
            continue
        picture = strip.image
        if panel.mask is not None:
            picture = overlay(strip.image, panel.mask)
        elif panel.heat is not None:
            picture = heat_overlay(strip.image, panel.heat)
        axis.imshow(picture)
        axis.set_title(panel.title, fontsize=8)


def _swatch(label: int, names: Sequence[str]) -> Patch:
    """The legend's entry of a label."""
    colour = palette()[label] / 255 if label != IGNORE else (1.0, 1.0, 1.0)
    name = "ignored" if label == IGNORE else names[label]
    return Patch(facecolor=colour, edgecolor="#333333", linewidth=0.5, label=name)
