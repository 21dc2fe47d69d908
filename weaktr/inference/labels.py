"""CAMs -> label maps by a background threshold."""

from __future__ import annotations

import numpy as np


def scores_from_cams(cams: np.ndarray, threshold: float) -> np.ndarray:
    """Scores of background and classes.

        scores = softmax([threshold, cam_1, ..., cam_K])

    The softmax keeps the order but rounds: a CAM that exceeds the threshold by one unit in the last
    place becomes equal to it, and then the first (background) wins, as in the published labels.

    Args:
        cams: float32 [K, H, W] in [0, 1].
        threshold: background score in [0, 1].

    Returns:
        float32 [K + 1, H, W], sums to 1.

    Source: reference.md 28.
    """
    background = np.full((1, *cams.shape[1:]), threshold, np.float32)
    scores = np.concatenate([background, cams.astype(np.float32, copy=False)])
    scores = np.exp(scores - scores.max(0))
    return scores / scores.sum(0)


def labels_from_cams(cams: np.ndarray, threshold: float) -> np.ndarray:
    """The best class of each pixel, or background where no CAM exceeds the threshold.

    Args:
        cams, threshold: see `scores_from_cams`.

    Returns:
        uint8 [H, W]: 0 = background, i + 1 = the i-th CAM.
    """
    return scores_from_cams(cams, threshold).argmax(0).astype(np.uint8)
