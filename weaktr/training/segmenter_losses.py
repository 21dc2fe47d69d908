"""The losses of a batch of stage 2: of pixels or patches, and of the classes of whole images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from weaktr import processes
from weaktr.config import TrainSegConfig
from weaktr.models import Segmenter

#: Names of losses -> scalars, whose sum is minimised.
Losses: TypeAlias = dict[str, Tensor]
#: Logits and shares of labels, each [B, L, h, w] -> scalar.
PatchLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]

#: Labels that are rarer than this count as if they were not.
LEAST_SHARE = 1e-4


def segmenter_losses(
    model: Segmenter,
    settings: TrainSegConfig,
    patch_loss: PatchLoss,
    images: Tensor,
    labels: Tensor,
    classes: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    batch: int | None = None,
) -> Losses:
    """The losses of a batch from one forward pass of the encoder.

    Args:
        model: whose losses.
        settings: `loss`, and of the clipped one `clip_start` and `clip_patch`.
        patch_loss: the loss of patches, where `loss` is not "clipped".
        images: [B, 3, H, W] normalised.
        labels: clipped: [B, H, W] integer, 255 = ignore; else [B, L, h, w], shares of the labels in
            the model's patches, all 0 = ignore.
        classes: [B, C] of `weaktr.data.datasets.shown_classes`, for a model with an image head.
        weights: [L] of the labels, see `balancing`, for a loss that is a sum over labels.
        batch: images of the whole batch where other processes have the rest of it; the losses are
            then what these images add to those of the batch. None = it is all here.
    """
    encoding = model.encode(images)
    if settings.loss == "clipped":
        start, tile = settings.clip_start, settings.clip_patch
        clipped = model.clipped_loss(encoding, labels, start_value=start, tile=tile, batch=batch)
        losses = {"clipped": clipped.loss}
    else:
        logits = model.decode(encoding)
        if weights is not None:
            logits = logits + weights.log()[:, None, None]
            labels = labels * weights[:, None, None]
        losses = {"soft": patch_loss(logits, labels)}
        if batch is not None:
            losses["soft"] = losses["soft"] * processes.share((labels.sum(1) > 0).sum())
    if classes is not None and encoding.classes is not None:
        losses["image"] = class_loss(encoding.classes, classes)
        if batch is not None:
            losses["image"] = losses["image"] * processes.share((classes >= 0).sum())
    return losses


def balancing(shares: Tensor, balance: float) -> Tensor:
    """Weights by which rare labels count as much as frequent ones, or nearly.

        w_l = share_l^-balance / Σ_k share_k^(1 - balance)

    The mean weight over all patches is 1. A model whose logits z are learnt as softmax(z + ln w)
    against targets times w is not drawn towards rare labels by that: w changes how much each label
    counts in learning, not what is likely.

    Args:
        shares: [L] of the labels among all patches, sums to 1.
        balance: 0 = every weight is 1; 1 = every label counts the same.

    Source: Menon et al., "Long-tail learning via logit adjustment", arXiv 2007.07314 (the shift).
    """
    weights = shares.clamp_min(LEAST_SHARE).pow(-balance)
    return weights / (shares * weights).sum()


def class_loss(logits: Tensor, shown: Tensor) -> Tensor:
    """Binary cross-entropy of the classes of images, a mean over those that are known.

    Args:
        logits: [B, C].
        shown: [B, C] of 1, 0 and -1 = not known.
    """
    known = (shown >= 0).to(logits.dtype)
    targets = shown.clamp(min=0).to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, targets, known, reduction="sum")
    return total / known.sum().clamp(min=1)
