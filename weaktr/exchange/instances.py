"""A mask as its parts: connected pixels of one class; run lengths and polygons of a part.

Polygons come from marching squares between the pixels' centres. Their corners lie beside the
pixels' edges, a hundredth of a pixel inside, so that readers that cut coordinates down to whole
pixels and those that ask which centres are inside find the same pixels.

Source: Lorensen and Cline, "Marching Cubes", SIGGRAPH 1987, in two dimensions (contourpy).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import contourpy
import numpy as np

from weaktr.data.classes import IGNORE
from weaktr.exchange.items import TINY, Item, Options, Report

#: Contours run this far outside of the pixels' centres; below a half, diagonal pixels are joined.
LEVEL = 0.49


class Part(NamedTuple):
    """Connected pixels of one class, diagonals included."""

    label: int
    left: int
    top: int
    inside: np.ndarray  #: bool [h, w] in its box

    @property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.inside))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, width, height in pixels."""
        height, width = self.inside.shape
        return self.left, self.top, width, height


def parts_of(item: Item, options: Options, report: Report) -> Iterator[Part]:
    """The parts of a mask, class by class; background and ignored pixels belong to none.

    Args:
        item: with the mask.
        options: `least_area` leaves small parts out.
        report: counts those, and tiny ones that are kept.
    """
    least, tiny = options.least_area * item.mask.size, TINY * item.mask.size
    for part in connected(item.mask):
        if part.area >= least:
            report.parts += 1
            report.tiny += part.area < tiny
            yield part
        else:
            report.notes["parts below --least-area are left out"] += 1


def connected(mask: np.ndarray) -> Iterator[Part]:
    """All parts of a mask, uint8 [H, W]."""
    from scipy import ndimage

    objects = np.where(mask == IGNORE, 0, mask)
    for index, of_class in enumerate(ndimage.find_objects(objects)):
        if of_class is None:
            continue
        inside = objects[of_class] == index + 1
        numbers, _ = ndimage.label(inside, np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(numbers), 1):
            top, left = (a.start + b.start for a, b in zip(of_class, box, strict=True))
            yield Part(index + 1, left, top, numbers[box] == number)


def runs_of_part(part: Part, size: tuple[int, int]) -> list[int]:
    """Run lengths of a part in its photograph, as `weaktr.data.outlines.runs_of` has them.

    Args:
        part: of a mask.
        size: (H, W) of that.
    """
    height, width = part.inside.shape
    columns = np.zeros((width, height + 2), np.int8)
    columns[:, 1:-1] = part.inside.T
    changes = np.diff(columns, axis=1)
    ends = []
    for kind in (1, -1):
        column, row = np.nonzero(changes == kind)
        ends.append((part.left + column) * size[0] + part.top + row)
    starts, stops = ends
    goes_on = starts[1:] == stops[:-1]  # over the end of a column of the whole image
    starts, stops = starts[np.r_[True, ~goes_on]], stops[np.r_[~goes_on, True]]
    borders = np.stack((starts, stops), 1).ravel()
    runs: list[int] = np.diff(borders, prepend=0, append=size[0] * size[1]).tolist()
    return runs if runs[-1] else runs[:-1]


def row_runs(inside: np.ndarray) -> list[int]:
    """Run lengths of pixels, row by row: outside, inside, outside, ... in turn."""
    pixels = inside.ravel()
    borders = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    runs: list[int] = np.diff(borders, prepend=0, append=pixels.size).tolist()
    return [0, *runs] if pixels[0] else runs


def rings_of(part: Part) -> list[np.ndarray]:
    """The outline of a part, then those of its holes.

    Returns:
        float64 [points, 2] each, x and y in pixels of the photograph, whose first pixel reaches
        from 0 to 1. A corner for every pixel that the outline passes, the last is not the first.
    """
    padded = np.pad(part.inside, 1).astype(np.float64)
    contours = contourpy.contour_generator(
        z=padded, name="serial", fill_type=contourpy.FillType.OuterOffset
    )
    found: Any = contours.filled(LEVEL, 2)
    ((points,), (offsets,)) = found
    whole = np.floor(points)
    mirrored = np.where(points == whole, points, 2 * whole + 1 - points)
    placed = mirrored + np.array([part.left - 0.5, part.top - 0.5])
    return [ring[:-1] for ring in np.split(placed, offsets[1:-1])]


def corners(ring: np.ndarray) -> np.ndarray:
    """A ring [points, 2] without the points in the middle of straight lines."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    cross = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    goes_straight = (np.abs(cross) < 1e-9) & ((before * after).sum(1) > 0)
    return ring[~goes_straight]


def without_holes(rings: list[np.ndarray]) -> np.ndarray:
    """One ring that goes round a part and, over bridges, round its holes.

    A bridge goes left from the leftmost corner of a hole, along a row of pixels that are inside,
    to the next ring. Holes further to the left have their bridges before.

    Args:
        rings: see `rings_of`.

    Returns:
        float64 [points, 2].
    """
    joined, *holes = rings
    for hole in sorted(holes, key=lambda ring: float(ring[:, 0].min())):
        first = int(hole[:, 0].argmin())
        corner = hole[first]
        is_left = (joined[:, 1] == corner[1]) & (joined[:, 0] < corner[0])
        at = int(np.where(is_left, joined[:, 0], -np.inf).argmax())
        around = np.concatenate((np.roll(hole, -first, axis=0), corner[None]))
        joined = np.concatenate((joined[: at + 1], around, joined[at:]))
    return joined
