"""`pydensecrf.utils`: energies from labels and probabilities, features in any number of axes.

Source: pydensecrf 1.0, utils.py.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weaktr.ops.dense_crf import unaries
from weaktr.pydensecrf.eigen import Float32

log = logging.getLogger("weaktr")


def unary_from_labels(
    labels: NDArray[Any], n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> Float32:
    """Energies of a label map that is right with probability `gt_prob`.

    Args:
        labels: integers of any shape. With `zero_unsure` 0 = unknown and 1..L, else 0..L-1.
        n_labels: L, without the unknown.
        gt_prob: in (0, 1).
        zero_unsure: on by default here, off in `weaktr.ops.unary_from_labels`.

    Returns:
        float32 [L, N].

    Raises:
        ValueError: an argument of the wrong dtype or range.
    """
    flat = np.asarray(labels).reshape(-1)
    return unaries.unary_from_labels(flat, n_labels, gt_prob, zero_unsure)


def compute_unary(labels: NDArray[Any], M: int, GT_PROB: float = 0.5) -> Float32:
    """`unary_from_labels` under its old name."""
    log.warning("compute_unary is deprecated, use unary_from_labels instead")
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(
    sm: NDArray[Any], scale: float | None = None, clip: float | None = 1e-5
) -> Float32:
    """Energies -log(clip(p, `clip`, 1)) of probabilities.

    Args:
        sm: probabilities [L, ...].
        scale: confidence in them, in (0, 1]: p becomes scale · p + (1 - scale) / L.
        clip: smaller probabilities are raised to this. None: they are not, and then 0 gives
            infinity, which `DenseCRF.setUnaryEnergy` refuses.

    Returns:
        float32 [L, N].

    Raises:
        ValueError: `scale` out of its range.
    """
    num_labels = sm.shape[0]
    if scale is not None:
        if not 0 < scale <= 1:
            raise ValueError(f"scale: expected a number in (0, 1], got {scale}")
        sm = scale * sm + (1 - scale) / num_labels
    if clip is not None:
        sm = np.clip(sm, clip, 1.0)
    with np.errstate(divide="ignore"):
        energies = -np.log(sm)
    return energies.reshape(num_labels, -1).astype(np.float32)


def softmax_to_unary(sm: NDArray[Any], GT_PROB: float = 1) -> Float32:
    """`unary_from_softmax` without clipping, under its old name."""
    log.warning("softmax_to_unary is deprecated, use unary_from_softmax instead")
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> Float32:
    """Features of positions, for `DenseCRF.addPairwiseEnergy`.

    Args:
        sdims: standard deviation along each axis in pixels, in the order of `shape`.
        shape: of the image or volume, d axes.

    Returns:
        float32 [d, N].

    Raises:
        ValueError: not one deviation an axis.
    """
    return _positions(sdims, shape).reshape(len(shape), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: NDArray[Any], chdim: int = -1
) -> Float32:
    """Features of positions and channels, for `DenseCRF.addPairwiseEnergy`.

    Args:
        sdims: standard deviation along each spatial axis in pixels, in the order of `img`.
        schan: standard deviation of the channels, one number or one each.
        img: numbers of any kind, any number of axes.
        chdim: which axis of `img` holds the channels; -1: none does, there is one channel.

    Returns:
        float32 [d + channels, N].

    Raises:
        ValueError: not one deviation an axis or channel.
    """
    channels = img[np.newaxis] if chdim == -1 else np.moveaxis(img, chdim, 0)
    channels = channels.astype(np.float32)
    deviations = np.asarray(schan, np.float32)
    if deviations.ndim == 0:
        deviations = deviations.repeat(len(channels))
    if deviations.shape != (len(channels),):
        raise ValueError(
            f"schan: expected one number or {len(channels)}, one a channel, got {schan!r}"
        )
    scaled = channels / _column(deviations, channels.ndim)
    features = np.concatenate([_positions(sdims, channels.shape[1:]), scaled])
    return features.reshape(len(features), -1)


def _positions(sdims: Sequence[float], shape: Sequence[int]) -> Float32:
    """Position along each axis over its deviation: float32 [d, *shape]."""
    if len(sdims) != len(shape):
        raise ValueError(f"sdims: expected {len(shape)} numbers, one an axis, got {sdims!r}")
    return np.indices(tuple(shape), np.float32) / _column(sdims, len(shape) + 1)


def _column(numbers: Sequence[float] | Float32, axes: int) -> Float32:
    """Numbers [d] as float32 [d, 1, 1, ...] with `axes` axes."""
    return np.asarray(numbers, np.float32).reshape(-1, *[1] * (axes - 1))
