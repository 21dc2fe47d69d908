"""The definition of `clipped_cross_entropy` in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from weaktr import processes
from weaktr.ops.clipped_cross_entropy import ClippedLoss, ClippedLossInputs
from weaktr.ops.clipped_cross_entropy.tiles import TiledCrossEntropy, worth_tiling


def clipped_cross_entropy_torch(inputs: ClippedLossInputs) -> ClippedLoss:
    """The formula in PyTorch; on the CPU tile by tile where that is faster, same results."""
    logits, labels, patch_size, start_value, ignore_index, batch = inputs
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    tiled = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if tiled and worth_tiling(logits, labels):
        losses: Tensor = TiledCrossEntropy.apply(logits, labels, ignore_index)
    else:
        losses = pixel_losses(logits, labels, ignore_index)
    return clip_losses(losses, patch_size, start_value, batch)


def pixel_losses(logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
    """The definition of ce: [B, L, h, w] and [B, H, W] -> [B, H, W]."""
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="none")


def clip_losses(
    losses: Tensor, patch_size: int, start_value: float, batch: int | None = None
) -> ClippedLoss:
    """The definition of the rest: ce [B, H, W], with gradient, -> result.

    Nothing waits for the device. The arguments are those of `clipped_cross_entropy`.
    """
    loss_map = losses.detach()
    share = 1.0 if batch is None else len(losses) / batch
    tile = tile_size(patch_size, loss_map)
    mean_loss, tiles = loss_map.mean(), tile_means(loss_map.mean(0), tile)
    if share < 1:
        every = processes.total(torch.cat([mean_loss[None], tiles.flatten()]) * share)
        mean_loss, tiles = every[0], every[1:].view_as(tiles)
    clipped = mean_loss <= start_value
    thresholds = torch.maximum(tiles, mean_loss)
    threshold = of_pixels(thresholds, patch_size, loss_map)
    # not torch.minimum: where loss == threshold that would halve the gradient
    loss = torch.where(clipped & (losses > threshold), threshold, losses).mean()
    if share < 1:
        loss = loss * share
    return ClippedLoss(loss, mean_loss, loss_map, clipped, thresholds)


def tile_size(patch_size: int, loss_map: Tensor) -> tuple[int, int]:
    """(H, W) of a whole tile of a loss map [B, H, W]."""
    return min(patch_size, loss_map.shape[1]), min(patch_size, loss_map.shape[2])


def of_pixels(tiles: Tensor, patch_size: int, loss_map: Tensor) -> Tensor:
    """[tiles down, tiles across] -> [H, W] of a loss map [B, H, W], each in its tile's pixels."""
    for axis, side in enumerate(tile_size(patch_size, loss_map)):
        tiles = tiles.repeat_interleave(side, axis)
    return tiles[: loss_map.shape[1], : loss_map.shape[2]]


def tile_means(image: Tensor, tile: tuple[int, int]) -> Tensor:
    """Mean over each tile's own pixels: [H, W] -> [tiles down, tiles across].

    On the CPU rounded as in the published code. Elsewhere pooling would have one thread for a tile.
    """
    if image.device.type == "cpu":
        return F.avg_pool2d(image[None], tile, ceil_mode=True)[0]
    return sums_of_tiles(image, tile) / sums_of_tiles(torch.ones_like(image), tile)


def sums_of_tiles(image: Tensor, tile: tuple[int, int]) -> Tensor:
    """[H, W] -> [tiles down, tiles across]; pixels that the last tiles lack count as 0."""
    sums = F.pad(image, (0, -image.shape[1] % tile[1], 0, -image.shape[0] % tile[0]))
    for axis in (0, 1):
        sums = sums.unflatten(axis, (-1, tile[axis])).sum(axis + 1)
    return sums
