"""`clipped_cross_entropy`: the stage-2 loss, cross-entropy with gradient clipping.

Pseudo labels are wrong in places, and wrong pixels keep a large loss. Once training has settled,
pixels whose loss is far above that of their neighbourhood are held at a threshold, which stops
their gradient:

    ce[b, y, x]   = -log softmax(bilinear(logits))[labels], 0 where ignored
    mean          = mean of ce over the batch and all its pixels
    tile[y, x]    = mean of ce over the batch and the patch_size × patch_size tile of (y, x)
    threshold     = max(tile, mean), without gradient
    loss          = mean(min(ce, threshold))      if mean <= start_value, else mean(ce)

All means include the ignored pixels. Where the tile does not divide the image, the last tile of an
axis is smaller and its mean is over its own pixels.

Source: arXiv 2304.01184, section 3.3 (gradient clipping decoder).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from weaktr.ops.registry import Backend, Op, Triton, register

OP = register(
    Op(
        "clipped_cross_entropy",
        backends=(
            Triton("weaktr.kernels.clipped_cross_entropy"),
            Backend("torch", "weaktr.ops.clipped_cross_entropy.definition"),
        ),
        usual={"num_labels": 21, "enlarging": 16.0},
    )
)


class ClippedLossInputs(NamedTuple):
    """What the backends take, checked; see `clipped_cross_entropy`."""

    logits: Tensor  #: [B, L, h, w] floating point, of any strides
    labels: Tensor  #: [B, H, W] uint8 or int64, of any strides
    patch_size: int  #: side of a tile, pixels of the labels
    start_value: float  #: largest mean loss with which clipping is active, nats
    ignore_index: int  #: label without loss
    batch: int  #: images of the whole batch, of which these are a process's part


class ClippedLoss(NamedTuple):
    """What `clipped_cross_entropy` returns; only `loss` carries a gradient."""

    loss: Tensor  #: scalar, what to minimise; of a part of a batch its share of that
    mean_loss: Tensor  #: scalar, mean cross-entropy of the whole batch before clipping
    loss_map: Tensor  #: [B, H, W] cross-entropy of every pixel before clipping, 0 where ignored
    clipped: Tensor  #: scalar bool, whether clipping was active in this step
    thresholds: Tensor  #: [tiles down, tiles across] max(tile, mean), whether active or not


def clipped_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    *,
    patch_size: int = 120,
    start_value: float = 1.2,
    ignore_index: int = 255,
    batch: int | None = None,
    backend: str = "auto",
) -> ClippedLoss:
    """Cross-entropy whose outliers within a tile are clipped (formula above).

    Args:
        logits: [B, L, h, w] floating point; enlarged bilinearly (align_corners=False) to H × W
            where h × w differs. Half precision is computed in float32.
        labels: [B, H, W] uint8 or int64, 0..L-1 or `ignore_index`.
        patch_size: side of a tile in pixels of the labels, >= 1.
        start_value: clipping is active while the mean loss is at most this (nats).
        ignore_index: label without loss.
        batch: images of the whole batch where other processes have the rest of it
            (`weaktr.processes`), each of which calls this: means and thresholds are those of the
            whole batch, and the losses of the parts add up to its loss. None = it is all here.
        backend: see `weaktr.ops.registry.Op.pick`.

    Returns:
        `ClippedLoss` in float32 (float64 for float64 logits). NaN logits give a NaN loss.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit; on the CPU also labels out of range
            (elsewhere that check would stall the device, whose own assertion reports them).
        BackendUnavailable: `backend` was named and cannot run, or takes no such inputs.
    """
    _check(logits, labels, patch_size, ignore_index)
    facts = {"num_labels": logits.shape[1], "enlarging": labels.shape[2] / logits.shape[3]}
    run = OP.pick(logits.device, backend, **facts)
    whole = len(labels) if batch is None else batch
    loss: ClippedLoss = run(
        ClippedLossInputs(logits, labels, patch_size, start_value, ignore_index, whole)
    )
    return loss


def _check(logits: Tensor, labels: Tensor, patch_size: int, ignore_index: int) -> None:
    if logits.ndim != 4 or not logits.is_floating_point() or 0 in logits.shape:
        raise ValueError(
            "logits: expected floating point [B, L, h, w], none of them 0, "
            f"got {logits.dtype} {tuple(logits.shape)}"
        )
    if labels.ndim != 3 or labels.dtype not in (torch.uint8, torch.int64) or 0 in labels.shape:
        raise ValueError(
            "labels: expected uint8 or int64 [B, H, W], none of them 0, "
            f"got {labels.dtype} {tuple(labels.shape)}"
        )
    if labels.shape[0] != logits.shape[0] or labels.device != logits.device:
        raise ValueError(
            f"labels: expected a batch of {logits.shape[0]} on {logits.device} like logits, "
            f"got {labels.shape[0]} on {labels.device}"
        )
    if patch_size < 1:
        raise ValueError(f"patch_size: expected at least 1 pixel, got {patch_size}")
    if labels.device.type == "cpu" and not torch.compiler.is_compiling():
        num_labels = logits.shape[1]
        lowest, highest = labels.masked_fill(labels == ignore_index, 0).aminmax()
        if lowest < 0 or highest >= num_labels:
            wrong = ((labels < 0) | (labels >= num_labels)) & (labels != ignore_index)
            raise ValueError(
                f"labels: expected 0..{num_labels - 1} or {ignore_index} (ignore), "
                f"got {labels[wrong].unique()[:10].tolist()}"
            )
