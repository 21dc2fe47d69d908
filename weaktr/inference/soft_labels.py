"""CAMs, or what refiners made of them -> soft labels: shares of labels in cells of an image."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.refine import Maps
from weaktr.refine.maps import scores_of_labels


class Softening(NamedTuple):
    """How soft labels are computed; see `LabelConfig`."""

    temperature: float  #: tau; the smaller, the more decided
    stride: int  #: side of a cell in pixels


def soft_labels(softening: Softening, plain: Maps, refined: Maps) -> Tensor:
    """Soft labels of one image, by what its last refiner gives.

        scores, or no refiner  y = scores^(1 / tau) / Σ scores^(1 / tau), uniform where all are 0
        labels alone           y = c for the pixel's label, (1 - c) / K for each other one, with the
                               refiner's confidence c in it (1 where it has none)

    Of scores softmax([threshold, cam_1, ..., cam_K]) the first line makes
    softmax([threshold, cam_1, ..., cam_K] / tau). Then y is averaged over cells, which divide
    height and width evenly.

    Args:
        softening: temperature and size of the cells.
        plain: the labels before the refiners, with scores.
        refined: those after them.

    Returns:
        uint8 [K + 1, h, w], background first: shares in 255ths, which sum to 255, with
        h = ceil(H / stride).
    """
    is_plain = refined.labels is plain.labels
    if refined.scores is not None and (is_plain or refined.scores is not plain.scores):
        best = refined.scores.amax(0)
        powers = (refined.scores / best).pow(1 / softening.temperature)
        pixels = torch.where(best > 0, powers / powers.sum(0), 1 / refined.num_labels)
    else:
        sure = None if refined.num_labels == 1 else refined.confidence
        share = 1.0 if sure is None else sure.float().clamp(0, 1)
        pixels = scores_of_labels(refined.labels, refined.num_labels, share)
    height, width = pixels.shape[1:]
    cells = (-(-height // softening.stride), -(-width // softening.stride))
    return _in_255ths(F.adaptive_avg_pool2d(pixels, cells))


def _in_255ths(shares: Tensor) -> Tensor:
    """Shares [K, h, w] as whole 255ths that sum to 255, none of them off by one or more.

    All are rounded down; what is then missing goes to those that lost most. Rounding each by itself
    would take a sixth of a label's share away beside a hundred small ones.
    """
    exact = 255 * shares
    whole = exact.floor()
    missing = (255 - whole.sum(0)).round()
    place = (whole - exact).argsort(dim=0, stable=True).argsort(dim=0)  # 0 = lost most
    return (whole + (place < missing)).to(torch.uint8)
