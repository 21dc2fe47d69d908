"""Stage 1 for few photographs: a linear classifier of the patches of a frozen backbone.

    x_p = (layers of the backbone at patch p, side by side - center) / scale
    y_p = the last block at patch p, likewise
    s_p = clamp((v · y_p - low) / (high - low), 0, 1)             saliency
    z_pc = w_c · x_p + b_c                                        classes, background c = 0
    P_pc = softmax over c of z_pc - [c = 0] · λ · ln(s_p / (1 - s_p))

The background is compared with the classes that the photograph shows alone. How w, b, v come from
photographs and image-level labels is in `weaktr.training.patches`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weaktr.config import CamModelConfig
from weaktr.data.classes import MAX_CLASSES
from weaktr.models.vit import BackboneModel, ViT, blocks_of, require_count
from weaktr.ops.upload import upload

#: Saliencies are taken as certain up to this and its complement.
LEAST_SALIENCY = 0.02
#: Rounds in which shares are brought to what they are at least, and by what factor at most in one.
SHARE_ROUNDS, MOST_FACTOR = 6, 1000.0
#: Share of a photograph's patches whose mean says how likely a class is in it.
TOP = 0.05


class PatchModel(BackboneModel):
    """Class scores and saliency of patches; no parameter of it is trained by gradients.

    Args:
        config: see `CamModelConfig`, with `PatchesConfig`.
        num_classes: C >= 1 foreground classes.

    Raises:
        ValueError: any argument out of range.
    """

    config: CamModelConfig
    center: Tensor  #: [F + D], of x and y
    scale: Tensor  #: [F + D]
    weight: Tensor  #: w, [C + 1, F], F = layers · D
    bias: Tensor  #: b, [C + 1]
    saliency: Tensor  #: v, [D]
    saliency_range: Tensor  #: low and high, [2]

    def __init__(self, config: CamModelConfig, num_classes: int) -> None:
        num_classes = require_count("num_classes", num_classes, 1, MAX_CLASSES)
        super().__init__(config, ViT(config))
        layers = blocks_of(config.patches.layers, len(self.vit.blocks), "patches.layers")
        self.num_classes = num_classes
        self.requires_grad_(False)
        dim = self.vit.embed_dim
        self.width = len(layers) * dim
        self.register_buffer("center", torch.zeros(self.width + dim))
        self.register_buffer("scale", torch.ones(self.width + dim))
        self.register_buffer("weight", torch.zeros(num_classes + 1, self.width))
        self.register_buffer("bias", torch.zeros(num_classes + 1))
        self.register_buffer("saliency", torch.zeros(dim))
        self.register_buffer("saliency_range", torch.tensor([0.0, 1.0]))
        self.register_load_state_dict_post_hook(PatchModel._require_ranges)

    def _require_ranges(self, _: object) -> None:
        """Raise `ValueError` unless everything by which is divided is above 0."""
        low, high = self.saliency_range.tolist()
        if not high > low:
            raise ValueError(f"saliency_range: expected a range, low and high, got {low}, {high}")
        if not (self.scale > 0).all():
            raise ValueError(f"scale: expected numbers above 0, got {self.scale.min().item()}")

    def standardised(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """x [P, F] and y [P, D] of features [P, F + D] (`weaktr.inference.patch_cams.stacked`)."""
        values = (features.float() - self.center) / self.scale
        return values[:, : self.width], values[:, self.width :]

    def scores(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """z of labels, the background's with its saliency.

        Args:
            features: [P, F + D].
            labels: [L] integer, 0 = background first; None = all C + 1.

        Returns:
            float32 [P, L].
        """
        x, y = self.standardised(features)
        weight, bias = self.weight, self.bias
        if labels is not None:
            weight, bias = weight.index_select(0, labels), bias.index_select(0, labels)
        scores = x @ weight.T + bias
        scores[:, 0] -= self.config.patches.saliency_weight * log_odds(self.saliencies(y))
        return scores

    def saliencies(self, y: Tensor) -> Tensor:
        """s: [P] in [0, 1]."""
        low, high = self.saliency_range
        return ((y @ self.saliency - low) / (high - low)).clamp(0, 1)

    @torch.inference_mode()
    def shares(self, features: Tensor, classes: Sequence[int]) -> Tensor:
        """How likely each patch is background or one of a photograph's classes.

        Args:
            features: [P, F + D] of its patches.
            classes: K class indices that it shows.

        Returns:
            [P, K + 1], sums to 1; each column has its least share on average.
        """
        own = torch.tensor([0, *(index + 1 for index in classes)])
        likely = self.scores(features, upload(own, features.device)).softmax(1)
        settings = self.config.patches
        least = likely.new_full((1, len(own)), settings.least_share)
        least[0, 0].fill_(settings.least_background)
        photograph = torch.zeros(len(likely), dtype=torch.long, device=likely.device)
        return with_least_shares(likely, photograph, least)

    @torch.inference_mode()
    def class_probabilities(self, features: Tensor) -> Tensor:
        """How likely each class is in a photograph with features [P, F + D]: [C].

        The mean over the patches, of all, that are most like it.
        """
        likely = self.scores(features).softmax(1)[:, 1:]
        return likely.topk(max(1, round(TOP * len(likely))), 0).values.mean(0)


def log_odds(shares: Tensor) -> Tensor:
    """ln(s / (1 - s)) with s kept away from 0 and 1 by `LEAST_SALIENCY`."""
    return shares.clamp(LEAST_SALIENCY, 1 - LEAST_SALIENCY).logit()


def with_least_shares(likely: Tensor, photograph: Tensor, least: Tensor) -> Tensor:
    """Raise the labels of a photograph that have too little of it.

    Until every label has its share: one whose mean over the photograph is below its least share is
    multiplied by what is missing, and each patch is brought back to a sum of 1. That is done
    `SHARE_ROUNDS` times, without a look at the result, for which the host would wait: labels of
    which almost every patch is certain that it has another one come nearer to their share, but not
    up to it.

    Args:
        likely: [P, L], sums to 1 over L.
        photograph: [P] 0..N-1, to which each patch belongs.
        least: [N, L]; 0 where nothing is asked for. Those of a photograph with so many labels that
            they would be more than 1 together are scaled down to 1.

    Returns:
        [P, L], sums to 1.
    """
    least = least / least.sum(1, keepdim=True).clamp_min(1)
    ones = torch.ones_like(likely[:, 0])  # `bincount` would wait for the device
    count = torch.zeros_like(least[:, 0]).index_add_(0, photograph, ones).clamp_min(1)[:, None]
    for _ in range(SHARE_ROUNDS):
        mean = torch.zeros_like(least).index_add_(0, photograph, likely) / count
        factor = (least / mean.clamp_min(1e-6)).clamp(1, MOST_FACTOR)
        likely = likely * factor[photograph]
        likely = likely / likely.sum(1, keepdim=True)
    return likely
