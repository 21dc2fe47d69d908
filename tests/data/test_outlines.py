"""Outlines of COCO: as pycocotools draws them, and refused before it where it would crash."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from weaktr.data.outlines import MOST_PIXELS, area, check_outline, paint, require_size, runs_of

SIZE = (3, 4)


def painted(outline: Any, size: tuple[int, int]) -> np.ndarray:
    columns, runs = np.zeros(size[::-1], np.uint8), runs_of(outline, size)
    paint(columns, runs, 1)
    assert area(runs) == columns.sum()
    return columns.T


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools'
@pytest.mark.parametrize("seed", range(40))
def test_outlines_agree_with_pycocotools(seed):
    rng = np.random.default_rng(seed)
    height, width = size = (int(rng.integers(1, 60)), int(rng.integers(1, 60)))
    inside = np.asfortranarray(rng.random(size) < rng.random(), np.uint8)
    text = coco_mask.encode(inside)["counts"].decode()
    np.testing.assert_array_equal(painted({"size": [*size], "counts": text}, size), inside)
    edges = np.flatnonzero(np.diff(inside.ravel(order="F"), prepend=0, append=2))
    counts = np.diff(edges, prepend=0).tolist()
    np.testing.assert_array_equal(painted({"size": [*size], "counts": counts}, size), inside)
    corners = [
        np.stack([rng.uniform(-width, 2 * width, n), rng.uniform(-height, 2 * height, n)], 1)
        for n in rng.integers(3, 9, rng.integers(1, 4))
    ]
    polygons = [points.ravel().tolist() for points in corners]
    filled = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *size)))
    np.testing.assert_array_equal(painted(polygons, size), filled)


TRIANGLE = [0, 0, 2, 0, 2, 2]
RUNS = {"size": [3, 4], "counts": [0, 12]}
WRONG: dict[str, tuple[Any, str]] = {
    "NaN": ([[0, 0, 2, 0, 2, math.nan]], "polygons in or near an image of 4x3"),
    "infinite": ([[0, 0, math.inf, 0, 2, 2]], "polygons in or near an image of 4x3"),
    "minus infinite": ([[0, 0, -math.inf, 0, 2, 2]], "polygons in or near an image of 4x3"),
    "huge": ([[0, 0, 1e300, 0, 2, 2]], "polygons in or near an image of 4x3"),
    "far": ([[0, 0, 8.5, 0, 2, 2]], "polygons in or near an image of 4x3"),
    "beyond floats": ([[0, 0, 10**400, 0, 2, 2]], "polygons in or near an image of 4x3"),
    "null": ([[0, 0, None, 0, 2, 2]], "polygons .* of numbers"),
    "text": ([[0, 0, "2", 0, 2, 2]], "polygons .* of numbers"),
    "flag": ([[0, 0, True, 0, 2, 2]], "polygons .* of numbers"),
    "nested": ([[[0, 0], [2, 0], [2, 2]]], "polygons .* of numbers"),
    "flat": (TRIANGLE, "polygons .* of numbers"),
    "no numbers": ([[]], "at least three points, x and y each, got 0"),
    "one point": ([[1, 1]], "at least three points, x and y each, got 2"),
    "two points": ([[0, 0, 2, 2]], "at least three points, x and y each, got 4"),
    "odd": ([[0, 0, 2, 0, 2, 2, 1]], "at least three points, x and y each, got 7"),
    "a bad part": ([TRIANGLE, [0, 0]], "at least three points, x and y each, got 2"),
    "objects in a list": ([RUNS], "polygons .* of numbers"),
    "a number": (7, "polygons or run lengths, got 7"),
    "other words": ("RLE", "polygons or run lengths, got 'RLE'"),
    "no size": ({"counts": [12]}, "polygons or run lengths"),
    "no counts": ({"size": [3, 4]}, "polygons or run lengths"),
    "size turned": (RUNS | {"size": [4, 3]}, r"size \[3, 4\] \(height, width\), got \[4, 3\]"),
    "size of one": (RUNS | {"size": [12]}, "run lengths of size"),
    "size null": (RUNS | {"size": None}, "run lengths of size"),
    "size huge": (RUNS | {"size": [3 + 2**32, 4]}, "run lengths of size"),
    "negative": (RUNS | {"counts": [-1, 13]}, "run lengths of 0 and more, got -1"),
    "short": (RUNS | {"counts": [0, 11]}, r"sum is 3 x 4 = 12 pixels, got 11"),
    "long": (RUNS | {"counts": [0, 12, 1]}, r"sum is 3 x 4 = 12 pixels, got 13"),
    "empty": (RUNS | {"counts": []}, r"sum is 3 x 4 = 12 pixels, got 0"),
    "fraction": (RUNS | {"counts": [0.5, 11.5]}, "run lengths as whole numbers"),
    "count huge": (RUNS | {"counts": [2**63, 12]}, "run lengths as whole numbers"),
    "32 bits round": (RUNS | {"counts": [2**32, 12]}, "run lengths as whole numbers"),
    "count NaN": (RUNS | {"counts": [math.nan, 12]}, "run lengths as whole numbers"),
    "count null": (RUNS | {"counts": [None]}, "run lengths as whole numbers"),
    "count text": (RUNS | {"counts": ["12"]}, "run lengths as whole numbers"),
    "counts null": (RUNS | {"counts": None}, "run lengths as a list or text"),
    "counts object": (RUNS | {"counts": {}}, "run lengths as a list or text"),
    "text empty": (RUNS | {"counts": ""}, "sum is 3 x 4 = 12 pixels, got 0"),
    "text cut off": (RUNS | {"counts": "0P"}, "cut off"),
    "text of other signs": (RUNS | {"counts": "0<é"}, "other characters"),
    "text with a zero": (RUNS | {"counts": "0\0<"}, "other characters"),
    "text of one number": (RUNS | {"counts": "o" * 1000 + "0"}, "a number of 1001 digits"),
    "text too long": (RUNS | {"counts": "0<" * 3}, "sum is 3 x 4 = 12 pixels"),
    "text negative": (RUNS | {"counts": "0O<"}, "run lengths of 0 and more"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_outlines_are_refused(case):
    outline, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        check_outline(outline, SIZE)


def test_objects_may_reach_beyond_the_edge():
    assert len(check_outline([[-4, -3, 8, -3, 8, 6, -4, 6.0]], SIZE)) == 1


def test_the_work_for_a_polygon_is_bounded():
    there_and_back = [[0, 0, 9_999, 9_999] * 500]
    with pytest.raises(ValueError, match=r"at most 3355443 pixels around, got 9999000"):
        check_outline(there_and_back, (10_000, 10_000))


@pytest.mark.parametrize(
    "height",
    [0, -3, None, "3", True, 3.5, math.nan, math.inf, [3], MOST_PIXELS + 1, 2**31, 10**300],
)
def test_sizes_that_no_photograph_has(height):
    for size in [(height, 1), (1, height)]:
        with pytest.raises(ValueError, match="expected height and width"):
            require_size(*size)
    assert require_size(640.0, 3) == (640, 3)
