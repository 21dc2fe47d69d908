"""Bilinear resizing of 8-bit images in OpenCV's fixed-point arithmetic, without OpenCV.

Published segmentation pipelines (mmseg) scale images this way, and so do `predict`'s inputs.
"""

from __future__ import annotations

import numpy as np

#: Weights are integers; this one stands for 1.
_ONE = 2048


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize without antialiasing.

    Each output pixel blends the four neighbours of ``(i + 0.5) * scale - 0.5`` with 11-bit
    weights: rows first, then columns, dropping the bits that OpenCV drops.

    Args:
        image: uint8 [H, W, channels].
        height, width: of the result, >= 1.

    Returns:
        uint8 [height, width, channels], bit for bit ``cv2.resize(..., INTER_LINEAR)``.

    Raises:
        ValueError: not uint8 [H, W, channels], or an empty result.

    Source: OpenCV documentation of ``resize``; arithmetic fitted to stored outputs.
    """
    if image.dtype != np.uint8 or image.ndim != 3:
        raise ValueError(f"image: expected uint8 [H, W, C], got {image.dtype} {image.shape}")
    if height < 1 or width < 1:
        raise ValueError(f"height, width: expected at least 1, got {height}, {width}")
    if (height, width) == image.shape[:2]:
        return image
    left, right, u = _neighbours(image.shape[1], width)
    inside = (left >= 0) & (left < image.shape[1] - 1)
    u = np.where(inside, u, 0)
    rows = image.astype(np.int32)
    left, right = left.clip(0, image.shape[1] - 1), right.clip(0, image.shape[1] - 1)
    u0, u1 = _weights(u)
    rows = (rows[:, left] * u0[:, None] + rows[:, right] * u1[:, None]) >> 4
    upper, lower, v = _neighbours(image.shape[0], height)
    upper, lower = upper.clip(0, image.shape[0] - 1), lower.clip(0, image.shape[0] - 1)
    v0, v1 = _weights(v)
    blended = ((rows[upper] * v0[:, None, None]) >> 16) + ((rows[lower] * v1[:, None, None]) >> 16)
    return ((blended + 2) >> 2).clip(0, 255).astype(np.uint8)


def _neighbours(source: int, target: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both neighbours of each target position (may lie outside) and the share of the second."""
    scale = 1.0 / (target / source)
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position).astype(np.int64)
    return first, first + 1, position - first.astype(np.float32)


def _weights(share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    share = share.astype(np.float32)
    one = np.float32(_ONE)
    first = np.rint((np.float32(1) - share) * one).astype(np.int32)
    return first, np.rint(share * one).astype(np.int32)
