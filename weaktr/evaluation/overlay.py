"""Masks over their images."""

from __future__ import annotations

import numpy as np

from weaktr.data.classes import IGNORE, palette

#: Of the colours over the image.
OPACITY = 0.7


def overlay(image: np.ndarray, mask: np.ndarray, opacity: float = OPACITY) -> np.ndarray:
    """Labels in the VOC colours over the greyed image.

    Args:
        image: uint8 [H, W, 3] RGB.
        mask: uint8 [H, W] labels; 255 is drawn white.
        opacity: of the colours, 0..1.

    Returns:
        uint8 [H, W, 3].
    """
    colours = palette().astype(np.float32)
    colours[IGNORE] = 255
    grey = image.mean(2, keepdims=True)
    background = 0.3 * grey + 0.25 * image
    blended = np.where(
        mask[..., None] == 0, background, (1 - opacity) * grey + opacity * colours[mask]
    )
    return blended.round().clip(0, 255).astype(np.uint8)
