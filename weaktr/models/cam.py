"""Stage 1: a ViT with one class token per class that yields class activation maps (CAMs).

    cross[c, j] = 1/M Σ_m w_m A_m[c, C + j]         class -> patch attention, fused
    patch[i, j] = 1/M Σ_m w_m A_m[C + i, C + j]     patch -> patch attention, fused
    fine[c, i]  = Σ_j patch[i, j] · cross[c, j] · coarse[c, j]

with M = depth × heads attention maps A_m, importance weights w from `AttentionFusion` and coarse
the ReLU of the 3×3 head. Training needs only the mean of fine over i and so never forms a map
(`weaktr.ops.head_stats`); inference forms fine without keeping one (`weaktr.ops.fuse_heads`).

Source: arXiv 2304.01184, section 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weaktr.models.blocks import Layer
from weaktr.models.pretrained import load_backbone
from weaktr.models.vit import ViT
from weaktr.ops import fuse_heads, head_stats

#: What is spread by the patch attention: "fused" cross attention × coarse CAM (the method),
#: "coarse" the plain CAM alone, "transcam" the cross attention alone.
ATTENTION_TYPES = ("fused", "coarse", "transcam")
POOLS = ("avg", "max")


class CamOutput(NamedTuple):
    """Three predictions of the image-level label, each [B, C] logits."""

    class_logits: Tensor  #: mean of each class token
    coarse_logits: Tensor  #: mean of the coarse CAM
    fine_logits: Tensor  #: mean of the refined CAM; its gradient reaches the fusion only


class AttentionFusion(nn.Module):
    """Adaptive attention fusion (AAF): an importance weight in (0, 1) for every attention map.

    Args:
        maps: M = depth × heads.
        head_dim: d, width of one head's output.
        reduction: the map MLP has int(M / reduction) hidden units.
        feat_reduction: the feature MLP has int(d / feat_reduction) hidden units.

    Raises:
        ValueError: a reduction that leaves no hidden unit.

    Source: arXiv 2304.01184, section 3.2; layer sizes of the published code.
    """

    def __init__(self, maps: int, head_dim: int, reduction: float, feat_reduction: float) -> None:
        super().__init__()
        map_hidden, feature_hidden = int(maps / reduction), int(head_dim / feat_reduction)
        if map_hidden < 1:
            raise ValueError(f"reduction: expected at most {maps} (depth × heads), got {reduction}")
        if feature_hidden < 1:
            raise ValueError(
                f"feat_reduction: expected at most {head_dim} (head width), got {feat_reduction}"
            )
        self.feature_hidden = nn.Linear(head_dim, feature_hidden)
        self.feature_score = nn.Linear(feature_hidden, 1)
        self.map_hidden = nn.Linear(maps, map_hidden, bias=False)
        self.map_score = nn.Linear(map_hidden, maps, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Pooled attention output [B, M, d] of every map -> weights [B, M]."""
        scores = self.feature_score(self.feature_hidden(features)).squeeze(-1)
        weights: Tensor = self.map_score(F.relu(self.map_hidden(scores))).sigmoid()
        return weights


class Encoding(NamedTuple):
    """The backbone's pass over a batch, before any CAM is made."""

    class_tokens: Tensor  #: [B, C, D] of the last block
    patch_map: Tensor  #: [B, D, h, w] of the last block
    features: Tensor  #: [B, K, H, d] pooled attention output per layer and head
    layers: list[Any]  #: per layer what `collect` returned


class MapsOfLayers:
    """Queries, keys and log-sum-exp of all layers' maps, copied out of each layer as it comes.

    What else the layer computed in the same memory (its values) can then go.
    """

    def __init__(self, depth: int) -> None:
        self.depth, self.count = depth, 0
        self.parts: dict[str, Tensor] = {}

    def add(self, layer: Layer, patches: int) -> None:
        """Take what is needed of the next layer."""
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
        """q [B, M, N, d], k [B, M, N, d], lse [B, M, N] where it is known."""
        parts = {name: part.flatten(1, 2) for name, part in self.parts.items()}
        return parts["q"], parts["k"], parts.get("lse")


class CamModel(nn.Module):
    """Class activation maps from a plain ViT and image-level labels.

    Args:
        backbone: timm name of a plain ViT.
        num_classes: C >= 1 foreground classes.
        image_size: training size in pixels; sets the stored position grid.
        patch_size: pixels; the backbone's own where None.
        pool: "avg" or "max" over tokens of the attention output that feeds the fusion.
        reduction, feat_reduction: see `AttentionFusion`.
        drop_path: stochastic depth rate of the last block.
        patch_norm: apply the backbone's final norm to the patches before the head. The published
            model does not; backbones that were pretrained with it (DINOv2, DINOv3) gain by it.
        position, norm_eps, attention: see `ViT`.
        weights, resize: None (random), "timm" (timm's pretrained), or a file, and how its positions
            are resized: see `load_backbone`.
        backbone_args: further arguments of the timm model.

    Raises:
        ValueError: any argument out of range.
    """

    def __init__(
        self,
        backbone: str,
        num_classes: int,
        *,
        image_size: int | tuple[int, int] = 224,
        patch_size: int | None = None,
        pool: str = "max",
        reduction: float = 8.0,
        feat_reduction: float = 8.0,
        drop_path: float = 0.0,
        patch_norm: bool = False,
        position: str = "timm",
        norm_eps: float | None = None,
        weights: str | Path | None = None,
        resize: str = "timm",
        backbone_args: Mapping[str, Any] | None = None,
        attention: str | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
        if pool not in POOLS:
            raise ValueError(f"pool: expected one of {POOLS}, got {pool!r}")
        self.config: dict[str, Any] = {
            "backbone": backbone,
            "num_classes": num_classes,
            "image_size": image_size,
            "patch_size": patch_size,
            "pool": pool,
            "reduction": reduction,
            "feat_reduction": feat_reduction,
            "drop_path": drop_path,
            "patch_norm": patch_norm,
            "position": position,
            "norm_eps": norm_eps,
            "backbone_args": dict(backbone_args or {}),
        }
        self.num_classes = num_classes
        self.pool = pool
        self.patch_norm = patch_norm
        self.vit = ViT(
            backbone,
            class_tokens=num_classes,
            image_size=image_size,
            patch_size=patch_size,
            drop_path=drop_path,
            position=position,
            norm_eps=norm_eps,
            backbone_args=backbone_args,
            attention=attention,
        )
        if not patch_norm:
            self.vit.norm.requires_grad_(False)
        dim, heads = self.vit.embed_dim, self.vit.num_heads
        self.head = nn.Conv2d(dim, num_classes, kernel_size=3, padding=1)
        self.fusion = AttentionFusion(
            len(self.vit.blocks) * heads, dim // heads, reduction, feat_reduction
        )
        if weights is not None:
            load_backbone(
                self.vit, weights, backbone=backbone, backbone_args=backbone_args, resize=resize
            )

    @property
    def patch_size(self) -> int:
        return self.vit.patch_size

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """(mean, std) per RGB channel in [0, 1]."""
        return self.vit.normalization

    def forward(self, images: Tensor) -> CamOutput:
        """Normalised images [B, 3, H, W], any size of at least one patch -> `CamOutput`.

        No attention map outlives its layer: each leaves its class rows and column means only.
        """
        classes = self.num_classes

        def statistics(layer: Layer, patches: int) -> tuple[Tensor, Tensor]:
            stats = layer.stats or head_stats(
                layer.q, layer.k, num_classes=classes, num_patches=patches, lse=layer.lse
            )
            assert stats.column_means is not None
            return stats.class_rows, stats.column_means

        encoding = self.encode(images, statistics, with_stats=True)
        coarse_map = self.head(encoding.patch_map)
        weights = self.fusion(encoding.features.transpose(1, 2).flatten(1, 2))
        share = by_layer(weights, encoding.features.shape) / weights.shape[1]
        class_rows = torch.stack([rows for rows, _ in encoding.layers], 1)
        columns = torch.stack([means for _, means in encoding.layers], 1)
        cross = torch.einsum("bkh,bkhcj->bcj", share, class_rows.to(share.dtype))
        column = torch.einsum("bkh,bkhj->bj", share, columns.to(share.dtype))
        coarse = coarse_map.detach().relu().flatten(2)
        return CamOutput(
            class_logits=encoding.class_tokens.mean(-1),
            coarse_logits=coarse_map.mean((2, 3)),
            fine_logits=torch.einsum("bj,bcj,bcj->bc", column, cross, coarse.to(cross.dtype)),
        )

    @torch.no_grad()
    def cams(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        attention_type: str = "fused",
        refine: bool = True,
    ) -> Tensor:
        """Class activation maps at patch resolution.

        Args:
            images: [B, 3, H, W] normalised, at least one patch large.
            labels: [B, C] multi-hot (bool or number); classes that are absent cost nothing and
                come back as zeros. None computes every class.
            attention_type: one of `ATTENTION_TYPES`.
            refine: spread the map by the fused patch attention. From random weights the patch
                attention is no affinity and this hurts; with pretrained weights it helps.

        Returns:
            [B, C, h, w] float32 >= 0, not normalised.

        Raises:
            ValueError: unknown attention type, labels of another shape.
        """
        if attention_type not in ATTENTION_TYPES:
            raise ValueError(
                f"attention_type: expected one of {ATTENTION_TYPES}, got {attention_type!r}"
            )
        present = self._present(labels, images.shape[0])
        keep_qk = refine or attention_type != "coarse"
        maps = MapsOfLayers(len(self.vit.blocks))
        encoding = self.encode(images, maps.add if keep_qk else lambda layer, patches: None)
        coarse = F.relu(self.head(encoding.patch_map)).float()
        grid = coarse.shape[-2:]
        kept = present.any(0).nonzero().flatten()
        result = torch.zeros_like(coarse)
        if len(kept):
            cams = coarse.flatten(2)[:, kept]
            if keep_qk:
                cams = self._with_attention(encoding, maps, cams, kept, attention_type, refine)
            result[:, kept] = cams.unflatten(2, grid)
        return result * present[:, :, None, None]

    def _with_attention(
        self,
        encoding: Encoding,
        maps: MapsOfLayers,
        coarse: Tensor,
        kept: Tensor,
        attention_type: str,
        refine: bool,
    ) -> Tensor:
        """Coarse maps [B, C', P] of the `kept` classes -> maps with attention applied."""
        weights = self.fusion(encoding.features.transpose(1, 2).flatten(1, 2)).float()
        weights = by_layer(weights, encoding.features.shape).flatten(1)
        q, k, lse = maps.stacked()
        stats = head_stats(
            q,
            k,
            num_classes=self.num_classes,
            num_patches=coarse.shape[-1],
            lse=lse,
            column_means=False,
        )
        values = coarse
        if attention_type != "coarse":
            rows = stats.class_rows[:, :, kept].float()
            values = torch.einsum("bm,bmcj->bcj", weights / weights.shape[1], rows)
            if attention_type == "fused":
                values = values * coarse
        if refine:
            values = fuse_heads(q, k, stats.lse, weights, values.transpose(1, 2)).transpose(1, 2)
        return values.float()

    def _present(self, labels: Tensor | None, batch: int) -> Tensor:
        """[B, C] bool of the classes to compute."""
        if labels is None:
            return torch.ones(
                batch, self.num_classes, dtype=torch.bool, device=self.head.weight.device
            )
        if labels.shape != (batch, self.num_classes):
            raise ValueError(
                f"labels: expected multi-hot [{batch}, {self.num_classes}], "
                f"got {tuple(labels.shape)}"
            )
        return labels.to(self.head.weight.device) > 0

    def encode(self, images: Tensor, collect: Any, *, with_stats: bool = False) -> Encoding:
        """Run the backbone; `collect(layer, P)` decides what of each layer's attention is kept.

        `with_stats`: whether it has a use for `head_stats` where attention gives them for nothing.
        """
        tokens, grid, rope = self.vit.embed(images)
        patches = grid[0] * grid[1]
        statistics = (self.num_classes, patches) if with_stats else None
        features, kept = [], []
        for index in range(len(self.vit.blocks)):
            layer = self.vit.run_block(index, tokens, rope, with_lse=True, statistics=statistics)
            tokens = layer.tokens
            features.append(self.pooled(layer.attended.detach()))
            kept.append(collect(layer, patches))
        last = self.vit.norm(tokens) if self.patch_norm else tokens
        patch_map = last[:, -patches:].transpose(1, 2).unflatten(2, grid)
        return Encoding(tokens[:, : self.num_classes], patch_map, torch.stack(features, 1), kept)

    def pooled(self, attended: Tensor) -> Tensor:
        """[B, N, D] -> [B, H, d], pooled over all tokens.

        Head j takes the channels j, j + H, j + 2H, ...: the published model splits channels so,
        and its fusion weights depend on it.
        """
        pooled = attended.amax(1) if self.pool == "max" else attended.mean(1)
        return pooled.unflatten(1, (-1, self.vit.num_heads)).transpose(1, 2)


def by_layer(weights: Tensor, shape: torch.Size) -> Tensor:
    """Weights [B, M] in the fusion's order (head · depth + layer) -> [B, K, H]."""
    _, depth, heads, _ = shape
    return weights.unflatten(1, (heads, depth)).transpose(1, 2)
