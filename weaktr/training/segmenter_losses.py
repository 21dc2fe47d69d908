"""The losses of a batch of stage 2: of pixels or patches, and of the classes of whole images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor

from weaktr.config import TrainSegConfig
from weaktr.models import Segmenter

#: Names of losses -> scalars, whose sum is minimised.
Losses: TypeAlias = dict[str, Tensor]
#: Logits and shares of labels, each [B, L, h, w] -> scalar.
PatchLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def segmenter_losses(
    model: Segmenter,
    settings: TrainSegConfig,
    patch_loss: PatchLoss,
    images: Tensor,
    labels: Tensor,
    classes: Tensor | None = None,
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
    """
    encoding = model.encode(images)
    if settings.loss == "clipped":
        start, tile = settings.clip_start, settings.clip_patch
        losses = {
            "clipped": model.clipped_loss(encoding, labels, start_value=start, tile=tile).loss
        }
    else:
        losses = {"soft": patch_loss(model.decode(encoding), labels)}
    if classes is not None and encoding.classes is not None:
        losses["image"] = class_loss(encoding.classes, classes)
    return losses


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
