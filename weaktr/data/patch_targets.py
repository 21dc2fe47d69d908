"""Labels of pixels, or soft labels of cells -> what share of each patch of a crop has which label.

Soft labels go through the transforms of their image as two matrices, which say how much each row
(column) of cells counts in each row (column) of pixels; their maps are never drawn at full size:

    share[k, i, j] ∝ Σ over the pixels (y, x) of patch (i, j): (rowsᵀ soft[k] columns)[y, x]
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as vision

from weaktr.data.classes import IGNORE


class SoftMap(tv_tensors.TVTensor):
    """Soft labels [K, h, w] of an image on its way through transforms.

    Attributes:
        rows: float32 [h, H], how much each row of cells counts in each row of the image's pixels.
        columns: float32 [w, W], likewise.
    """

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, shares: Tensor, size: tuple[int, int]) -> SoftMap:
        """Soft labels [K, h, w] whose cells divide an image of `size` pixels, bilinear between."""
        rows, columns = (
            _stretched(torch.eye(cells), length)
            for cells, length in zip(shares.shape[1:], size, strict=True)
        )
        return shares.as_subclass(cls)._placed(rows, columns)

    def _placed(self, rows: Tensor, columns: Tensor) -> SoftMap:
        """The same soft labels elsewhere in an image."""
        moved = self.as_subclass(Tensor).as_subclass(SoftMap)
        moved.rows, moved.columns = rows, columns
        return moved

    def of_patches(self, patch: int) -> Tensor:
        """float32 [K, ceil(H / patch), ceil(W / patch)], sums to 1; 0 where a patch is padding."""
        rows, columns = (_by_patch(weights, patch) for weights in (self.rows, self.columns))
        shares = rows.T @ self.as_subclass(Tensor).float() @ columns
        return normalised(shares)


class ToPatches(v2.Transform):
    """`SoftMap` -> shares float32 [K, h, w] of the patches (`SoftMap.of_patches`).

    Args:
        patch: side of a patch, in pixels.
    """

    _transformed_types = (SoftMap,)

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch = patch

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return inpt.of_patches(self.patch)


def shares_of_mask(mask: Tensor, num_labels: int, patch: int) -> Tensor:
    """What share of the labelled pixels of each patch has which label.

    Args:
        mask: uint8 [H, W], 0..L-1 or 255 = ignore.
        num_labels: L.
        patch: side of a patch, in pixels.

    Returns:
        float32 [L, ceil(H / patch), ceil(W / patch)], sums to 1; 0 where no pixel has a label.
    """
    height, width = (-(-side // patch) for side in mask.shape)
    row, column = (torch.arange(side) // patch for side in mask.shape)
    patches = row[:, None] * width + column
    values = (patches * (IGNORE + 1) + mask.long()).flatten()
    counts = torch.bincount(values, minlength=height * width * (IGNORE + 1))
    by_label = counts.view(height, width, -1)[..., :num_labels].permute(2, 0, 1)
    return normalised(by_label.float())


def normalised(shares: Tensor) -> Tensor:
    """[L, h, w] that sums to 1 over L, or to 0 where it did."""
    total = shares.sum(0)
    return torch.where(total > 0, shares / total, 0)


def _stretched(weights: Tensor, length: int) -> Tensor:
    """[cells, pixels] -> [cells, length], bilinear without antialiasing, as images are resized."""
    return F.interpolate(weights[None], size=length, mode="linear", align_corners=False)[0]


def _by_patch(weights: Tensor, patch: int) -> Tensor:
    """[cells, pixels] -> [cells, patches], the sum over the pixels of each patch."""
    padded = F.pad(weights, (0, -weights.shape[1] % patch))
    return padded.unflatten(1, (-1, patch)).sum(2)


@vision.register_kernel(vision.get_size, SoftMap)
def _size(soft: SoftMap) -> list[int]:
    return [soft.rows.shape[1], soft.columns.shape[1]]


@vision.register_kernel(vision.resize, SoftMap)
def _resize(soft: SoftMap, size: list[int], **_: Any) -> SoftMap:
    return soft._placed(_stretched(soft.rows, size[0]), _stretched(soft.columns, size[1]))


@vision.register_kernel(vision.crop, SoftMap)
def _crop(soft: SoftMap, top: int, left: int, height: int, width: int) -> SoftMap:
    return soft._placed(soft.rows[:, top : top + height], soft.columns[:, left : left + width])


@vision.register_kernel(vision.horizontal_flip, SoftMap)
def _flip(soft: SoftMap) -> SoftMap:
    return soft._placed(soft.rows, soft.columns.flip(1))


@vision.register_kernel(vision.pad, SoftMap)
def _pad(soft: SoftMap, padding: list[int], **_: Any) -> SoftMap:
    left, top, right, bottom = padding
    return soft._placed(F.pad(soft.rows, (top, bottom)), F.pad(soft.columns, (left, right)))
