"""Boundary F-score: how well the outlines of a prediction agree with the true ones.

For one label of one image, with B the boundary pixels of its region (those with a 4-neighbour
outside the region; the image's own edge is no boundary) and d the tolerance:

    precision = share of B(prediction) within d of B(truth)
    recall    = share of B(truth) within d of B(prediction)
    F         = 2 · precision · recall / (precision + recall)

Source: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013;
tolerance 0.75 % of the image's diagonal.
"""

from __future__ import annotations

import math

import numpy as np

from weaktr.data.classes import IGNORE

#: Tolerance as a share of the image's diagonal. Source: Csurka et al. 2013, section 3.
TOLERANCE = 0.0075


def boundary_f(
    prediction: np.ndarray, truth: np.ndarray, num_labels: int, tolerance: float = TOLERANCE
) -> np.ndarray:
    """Boundary F-score of each label in one image.

    Around objects, VOC truth has a band of ignored pixels, and the outline is somewhere in it. A
    predicted boundary pixel in that band is counted if it matches a true boundary, and is left out
    if it does not.

    Args:
        prediction: uint8 [H, W] labels.
        truth: uint8 [H, W] labels, 255 = ignored.
        num_labels: L.
        tolerance: d as a share of the diagonal, at least 0.

    Returns:
        float64 [L] in [0, 1]; NaN = no boundary of that label in truth and prediction.
    """
    scores = np.full(num_labels, np.nan)
    distance = tolerance * math.hypot(*truth.shape)
    present = np.unique(np.concatenate([np.unique(prediction), np.unique(truth)]))
    for label in present[present < num_labels]:
        predicted, true = boundary(prediction == label), boundary(truth == label)
        matched = predicted & dilate(true, distance)
        counted = matched | (predicted & (truth != IGNORE))
        if not (counted.any() or true.any()):
            continue
        recalled = true & dilate(predicted, distance)
        # F = 2PR / (P + R) is 0 where nothing matches, also where either has no boundary at all
        precision, recall = _share(matched, counted), _share(recalled, true)
        both = precision + recall
        scores[label] = 2 * precision * recall / both if both else 0.0
    return scores


def boundary(region: np.ndarray) -> np.ndarray:
    """Pixels of a region, bool [H, W], that have a 4-neighbour outside it."""
    inside = np.ones_like(region)
    inside[1:] &= region[:-1]
    inside[:-1] &= region[1:]
    inside[:, 1:] &= region[:, :-1]
    inside[:, :-1] &= region[:, 1:]
    return region & ~inside


def dilate(pixels: np.ndarray, distance: float) -> np.ndarray:
    """Places whose Euclidean distance to some pixel is at most `distance`.

    Args:
        pixels: bool [H, W].
        distance: in pixels, at least 0.

    Returns:
        bool [H, W].
    """
    out = np.zeros_like(pixels)
    row, half = pixels.copy(), 0
    for down in range(min(math.floor(distance), len(pixels)), -1, -1):
        width = math.floor(math.sqrt(max(distance**2 - down**2, 0.0)))
        for step in range(half + 1, min(width, pixels.shape[1]) + 1):
            row[:, step:] |= pixels[:, :-step]
            row[:, :-step] |= pixels[:, step:]
        half = width
        out[down:] |= row[: len(row) - down]
        out[: len(row) - down] |= row[down:]
    return out


def _share(part: np.ndarray, whole: np.ndarray) -> float:
    """Pixels of `part` over pixels of `whole`, 0 where `whole` has none."""
    return float(part.sum() / whole.sum()) if whole.any() else 0.0
