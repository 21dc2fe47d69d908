"""Adaptive attention fusion: the importance of each attention map, and the maps' weighted mean.

For the formulas see `weaktr.models.cam`. The MLP over the maps counts them head by head
(head · K + layer) as the published layers do, all other code layer by layer (layer · H + head).

Source: arXiv 2304.01184, section 3.2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weaktr.models.blocks import Layer


class AttentionFusion(nn.Module):
    """An importance weight in (0, 1) for every attention map (AAF).

    Args:
        num_maps: M = depth × heads.
        head_dim: d, width of one head's output.
        reduction: the map MLP has int(M / reduction) hidden units.
        feat_reduction: the feature MLP has int(d / feat_reduction) hidden units.

    Raises:
        ValueError: a reduction that leaves no hidden unit.

    Source: arXiv 2304.01184, section 3.2; layer sizes: reference.md 8.
    """

    def __init__(
        self, num_maps: int, head_dim: int, reduction: float, feat_reduction: float
    ) -> None:
        super().__init__()
        map_units, feature_units = int(num_maps / reduction), int(head_dim / feat_reduction)
        if map_units < 1:
            raise ValueError(
                f"reduction: expected at most {num_maps} (depth × heads), got {reduction}"
            )
        if feature_units < 1:
            raise ValueError(
                f"feat_reduction: expected at most {head_dim} (head width), got {feat_reduction}"
            )
        self.feature_hidden = nn.Linear(head_dim, feature_units)
        self.feature_score = nn.Linear(feature_units, 1)
        self.map_hidden = nn.Linear(num_maps, map_units, bias=False)
        self.map_score = nn.Linear(map_units, num_maps, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Pooled attention output [B, K, H, d] of every layer and head -> weights [B, K, H].

        Source: the order of the maps: reference.md 7, 8.
        """
        _, depth, heads, _ = features.shape
        by_head = features.transpose(1, 2).flatten(1, 2)
        scores = self.feature_score(self.feature_hidden(by_head)).squeeze(-1)
        weights: Tensor = self.map_score(F.relu(self.map_hidden(scores))).sigmoid()
        return weights.unflatten(1, (heads, depth)).transpose(1, 2)


def share_of(weights: Tensor) -> Tensor:
    """Each map's share of the weighted mean, w_m / M: [B, K, H] -> [B, K, H]."""
    return weights / (weights.shape[1] * weights.shape[2])


def cross_attention(weights: Tensor, class_rows: Tensor) -> Tensor:
    """The fused class -> patch attention, cross in `weaktr.models.cam`.

    Args:
        weights: [B, K, H] importance of each layer's and head's map.
        class_rows: [B, K, H, C, P], the maps' rows of class tokens and columns of patches.

    Returns:
        [B, C, P] in the dtype of `weights`.
    """
    share = share_of(weights)
    return torch.einsum("bkh,bkhcj->bcj", share, class_rows.to(share.dtype))


class StackedLayers:
    """Queries, keys and log-sum-exp of all layers, copied from each layer after it ran.

    The memory that a layer's queries and keys share with its values can then be freed.

    Args:
        depth: K, number of layers.
    """

    def __init__(self, depth: int) -> None:
        self.depth, self.count = depth, 0
        self.parts: dict[str, Tensor] = {}

    def add(self, layer: Layer) -> None:
        """Copy what is needed of the next layer."""
        for name in ("q", "k", "lse"):
            part = getattr(layer, name)
            if part is None:
                continue
            if self.count == 0:
                shape = (len(part), self.depth, *part.shape[1:])
                self.parts[name] = part.new_empty(shape)
            self.parts[name][:, self.count] = part
        self.count += 1

    def stacked(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """q [B, M, N, d], k [B, M, N, d], lse [B, M, N] where it is known; layer by layer."""
        parts = {name: part.flatten(1, 2) for name, part in self.parts.items()}
        return parts["q"], parts["k"], parts.get("lse")
