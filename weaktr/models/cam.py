"""Stage 1: a ViT with one class token per class that yields class activation maps (CAMs).

    cross[c, j] = 1/M Σ_m w_m A_m[c, N - P + j]            class -> patch attention, fused
    patch[i, j] = 1/M Σ_m w_m A_m[N - P + i, N - P + j]    patch -> patch attention, fused
    fine[c, i]  = Σ_j patch[i, j] · cross[c, j] · coarse[c, j]

with M = depth × heads attention maps A_m over N tokens, of which the last P are patches, importance
weights w (`weaktr.models.fusion`) and coarse the ReLU of the 3×3 head. Training needs only the mean
of fine over i and so never forms a map (`weaktr.ops.head_stats`); inference forms fine without
keeping one (`weaktr.ops.fuse_heads`).

Source: arXiv 2304.01184, section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weaktr.config import AttentionType, CamModelConfig, Pool
from weaktr.data.classes import MAX_CLASSES
from weaktr.models.blocks import Layer
from weaktr.models.fusion import AttentionFusion, StackedLayers, cross_attention, share_of
from weaktr.models.packing import TokenBatch, pack
from weaktr.models.vit import BackboneModel, ViT, require_count
from weaktr.ops import fuse_heads_packed, head_stats, head_stats_packed
from weaktr.ops.attention import Statistics
from weaktr.ops.attention_maps import full_precision
from weaktr.ops.head_stats import HeadStats
from weaktr.ops.tracing import without_autocast
from weaktr.ops.upload import upload

#: What is spread by the patch attention: "fused" cross attention × coarse CAM (the method),
#: "coarse" the plain CAM alone, "transcam" the cross attention alone.
ATTENTION_TYPES = get_args(AttentionType)
POOLS = get_args(Pool)


class CamOutput(NamedTuple):
    """Three predictions of the image-level label, each [B, C] logits."""

    class_logits: Tensor  #: mean of each class token
    coarse_logits: Tensor  #: mean of the coarse CAM
    fine_logits: Tensor  #: mean of the refined CAM; its gradient reaches the fusion only


class HeadInputs(NamedTuple):
    """All that head and fusion take from the backbone's pass over images of one size."""

    class_logits: Tensor  #: [B, C] mean of each class token
    patch_map: Tensor  #: [B, D, h, w] the patches of the last block
    features: Tensor  #: [B, K, H, d] pooled attention output of each layer and head
    #: [B, K, H, C, P] the maps' rows of class tokens; C may be 1 where all have the same
    class_rows: Tensor
    column_means: Tensor  #: [B, K, H, P] the maps' means over the rows of patches


class Encoding(NamedTuple):
    """The backbone's pass over a batch, before any CAM is computed."""

    tokens: Tensor  #: of the last block, laid out like those of the batch
    patch_maps: list[Tensor]  #: the patches of the last block, [images, D, h, w] of each group
    features: Tensor  #: [B, K, H, d] pooled attention output of each layer and head
    collected: list[Any]  #: what `collect` returned for each layer


class EncodedImages(NamedTuple):
    """Images of any sizes after the backbone, ready for the CAMs of any classes."""

    batch: TokenBatch
    encoding: Encoding
    layers: StackedLayers | None  #: queries and keys, where attention is used


class CamModel(BackboneModel):
    """Class activation maps from a plain ViT and image-level labels.

    Args:
        config: see `CamModelConfig`.
        num_classes: C >= 1 foreground classes.

    Raises:
        ValueError: any argument out of range.
    """

    config: CamModelConfig

    def __init__(self, config: CamModelConfig, num_classes: int) -> None:
        num_classes = require_count("num_classes", num_classes, 1, MAX_CLASSES)
        super().__init__(config, ViT(config, class_tokens=num_classes))
        self.num_classes = num_classes
        if not config.patch_norm:
            self.vit.norm.requires_grad_(False)
        dim, heads = self.vit.embed_dim, self.vit.num_heads
        self.head = nn.Conv2d(dim, num_classes, kernel_size=3, padding=1)
        num_maps, head_dim = len(self.vit.blocks) * heads, dim // heads
        self.fusion = AttentionFusion(num_maps, head_dim, config.reduction, config.feat_reduction)

    def forward(self, images: Tensor) -> CamOutput:
        """Normalised images [B, 3, H, W], any size of at least one patch -> `CamOutput`.

        No attention map outlives its layer: each leaves its class rows and column means only.
        """
        return self.outputs(self.head_inputs(images))

    def head_inputs(self, images: Tensor) -> HeadInputs:
        """The backbone's part of `forward`."""
        batch = self.vit.embed(images)
        classes, patches = self.num_classes, math.prod(batch.groups[0][1])

        def stats_of(layer: Layer) -> HeadStats:
            if layer.stats is not None:
                return layer.stats
            return head_stats(
                layer.q, layer.k, num_classes=classes, num_patches=patches, lse=layer.lse
            )

        encoding = self.encode(batch, stats_of, with_lse=True, statistics=(classes, patches))
        return HeadInputs(
            class_logits=encoding.tokens[:, :classes].mean(-1),
            patch_map=encoding.patch_maps[0],
            features=encoding.features,
            class_rows=torch.stack([stats.class_rows for stats in encoding.collected], 1),
            column_means=torch.stack([stats.column_means for stats in encoding.collected], 1),
        )

    def outputs(self, inputs: HeadInputs) -> CamOutput:
        """The part of head and fusion in `forward`."""
        coarse_map = self.head(inputs.patch_map)
        weights = self.fusion(inputs.features)
        cross = cross_attention(weights, inputs.class_rows)
        share = share_of(weights)
        column = torch.einsum("bkh,bkhj->bj", share, inputs.column_means.to(share.dtype))
        coarse = coarse_map.detach().relu().flatten(2)
        with without_autocast(coarse.device.type):  # float16 has no products so small
            parts = map(full_precision, (column, cross.expand_as(coarse), coarse))
            fine = torch.einsum("bj,bcj,bcj->bc", *parts)
        return CamOutput(inputs.class_logits, coarse_map.mean((2, 3)), fine)

    @torch.no_grad()
    def cams(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        attention_type: AttentionType = "fused",
        refine: bool = True,
    ) -> Tensor:
        """Class activation maps at patch resolution of images of one size.

        Args:
            images: [B, 3, H, W] normalised, at least one patch large.
            labels: [B, C] multi-hot (bool or number); absent classes are not computed, their maps
                are zeros. None computes every class.
            attention_type, refine: see `cams_of_sizes`.

        Returns:
            [B, C, h, w] float32 >= 0, not normalised.

        Raises:
            ValueError: no images, unknown attention type, labels of another shape.
        """
        shape = (len(images), self.num_classes)
        if not len(images):
            raise ValueError("images: expected at least one, got none")
        if labels is None:
            labels = torch.ones(shape)
        if labels.shape != shape:
            raise ValueError(f"labels: expected multi-hot {list(shape)}, got {tuple(labels.shape)}")
        classes = [row.nonzero().flatten().tolist() for row in (labels > 0).cpu()]
        cams = self.cams_of_sizes(
            list(images), classes, attention_type=attention_type, refine=refine
        )
        result = cams[0].new_zeros(*shape, *cams[0].shape[1:])
        for target, own_classes, own_cams in zip(result, classes, cams, strict=True):
            target[own_classes] = own_cams
        return result

    @torch.no_grad()
    def cams_of_sizes(
        self,
        images: Sequence[Tensor],
        classes: Sequence[Sequence[int]],
        *,
        attention_type: AttentionType = "fused",
        refine: bool = True,
    ) -> list[Tensor]:
        """Class activation maps of images of any sizes in one pass, of each image's own classes.

        Args:
            images: [3, H, W] each, normalised, at least one patch large.
            classes: for each image the indices of the classes to compute.
            attention_type: one of `ATTENTION_TYPES`.
            refine: spread the maps by the fused patch attention. This helps with pretrained
                weights; with random weights the patch attention is no affinity, and it hurts.

        Returns:
            For each image [K, h, w] float32 >= 0 in the order of its classes, not normalised.

        Raises:
            ValueError: unknown attention type, or not as many lists of classes as images.
        """
        if attention_type not in ATTENTION_TYPES:
            raise ValueError(
                f"attention_type: expected one of {ATTENTION_TYPES}, got {attention_type!r}"
            )
        if len(classes) != len(images):
            raise ValueError(
                f"classes: expected one list per image ({len(images)}), got {len(classes)}"
            )
        if not images:
            return []
        encoded = self.encode_sizes(images, with_attention=refine or attention_type != "coarse")
        groups = self.cams_of_groups(encoded, classes, attention_type=attention_type, refine=refine)
        each = (cams for group in groups for cams in group)
        return [cams[: len(own)] for own, cams in zip(classes, each, strict=True)]

    @torch.no_grad()
    def encode_sizes(self, images: Sequence[Tensor], *, with_attention: bool) -> EncodedImages:
        """Run the backbone on images of any sizes, at least one, in one pass.

        Args:
            images: [3, H, W] each, normalised, at least one patch large.
            with_attention: keep queries and keys, which all CAMs but plain coarse ones need.
        """
        equal = [torch.stack(list(group)) for _, group in groupby(images, lambda x: x.shape)]
        return self.encode_groups(equal, with_attention=with_attention)

    @torch.no_grad()
    def encode_groups(self, groups: Sequence[Tensor], *, with_attention: bool) -> EncodedImages:
        """`encode_sizes` of groups of images of one size, [b, 3, H, W] each."""
        batch = pack([self.vit.embed(group) for group in groups], self.vit.num_prefix_tokens)
        layers = StackedLayers(len(self.vit.blocks)) if with_attention else None
        collect = layers.add if layers is not None else lambda layer: None
        return EncodedImages(batch, self.encode(batch, collect, with_lse=with_attention), layers)

    @torch.no_grad()
    def class_probabilities(self, encoded: EncodedImages) -> Tensor:
        """How likely each class is in each image: [images, C] float32.

        The mean of both predictions that are trained on the image-level labels with a gradient to
        the backbone: sigmoid of the class token's and of the coarse CAM's mean.
        """
        parts = zip(
            encoded.batch.split(encoded.encoding.tokens), encoded.encoding.patch_maps, strict=True
        )
        with torch.autocast(encoded.batch.tokens.device.type, enabled=False):
            rows = [
                (
                    tokens[:, : self.num_classes].float().mean(-1).sigmoid()
                    + self._class_map(patch_map).float().mean((2, 3)).sigmoid()
                )
                / 2
                for group, patch_maps in parts
                for tokens, patch_map in zip(
                    computed_at_once(group), computed_at_once(patch_maps), strict=True
                )
            ]
        return torch.cat(rows)

    @torch.no_grad()
    def cams_of_groups(
        self,
        encoded: EncodedImages,
        classes: Sequence[Sequence[int]],
        *,
        attention_type: AttentionType = "fused",
        refine: bool = True,
    ) -> list[Tensor]:
        """`cams_of_sizes` of images that are encoded, group by group.

        Args:
            encoded: made with attention where these CAMs need it.
            classes, attention_type, refine: see `cams_of_sizes`.

        Returns:
            For each group of images of one size [images, C', h, w] float32, C' the most classes of
            an image of any group; maps beyond an image's own classes mean nothing.
        """
        batch, encoding, layers = encoded
        with torch.autocast(batch.tokens.device.type, enabled=False):
            chosen = ChosenClasses(classes, batch.patches, batch.tokens.device)
            values = self._coarse(encoding, chosen)
            if layers is not None:
                values = self._with_attention(
                    batch, layers, encoding.features, values, chosen, attention_type, refine
                )
        counts = [images * height * width for images, (height, width) in batch.groups]
        return [
            part.unflatten(0, (images, -1)).transpose(1, 2).unflatten(2, grid)
            for part, (images, grid) in zip(values.split(counts), batch.groups, strict=True)
        ]

    def _class_map(self, patch_map: Tensor, classes: Tensor | None = None) -> Tensor:
        """The head's map of patches [b, D, h, w]: [b, C, h, w], or of K chosen classes alone."""
        weight, bias = self.head.weight, self.head.bias
        if classes is not None:
            weight = weight.index_select(0, classes)
            bias = None if bias is None else bias.index_select(0, classes)
        return F.conv2d(patch_map.to(weight.dtype), weight, bias, padding=1)

    def _coarse(self, encoding: Encoding, chosen: ChosenClasses) -> Tensor:
        """ReLU of the head for each packed image's own classes: [ΣP, C'], see `ChosenClasses`."""
        if not len(chosen.union):
            return torch.zeros_like(chosen.image_of, dtype=torch.float32)[:, None]
        is_cuda = encoding.tokens.is_cuda
        scores = self._scores_together if is_cuda else self._scores_one_by_one
        return scores(encoding.patch_maps, chosen).float().relu()

    def _scores_together(self, patch_maps: Sequence[Tensor], chosen: ChosenClasses) -> Tensor:
        """The head of all chosen classes on groups of images, from which each takes its own."""
        scores = [self._class_map(group, chosen.union).flatten(2) for group in patch_maps]
        return chosen.columns_of(torch.cat([part.transpose(1, 2).flatten(0, 1) for part in scores]))

    def _scores_one_by_one(self, patch_maps: Sequence[Tensor], chosen: ChosenClasses) -> Tensor:
        """The same, of each image's own classes alone: their number, too, changes the rounding."""
        values = torch.zeros(len(chosen.image_of), chosen.table.shape[1])
        each = [patch_map[None] for group in patch_maps for patch_map in group]
        images = values.split([patch_map[0, 0].numel() for patch_map in each])
        for image, patch_map, own in zip(images, each, chosen.classes, strict=True):
            if own:
                scores = self._class_map(patch_map, torch.tensor(own))[0]
                image[:, : len(own)] = scores.flatten(1).T
        return values

    def _with_attention(
        self,
        batch: TokenBatch,
        layers: StackedLayers,
        features: Tensor,
        coarse: Tensor,
        chosen: ChosenClasses,
        attention_type: AttentionType,
        refine: bool,
    ) -> Tensor:
        """Coarse CAMs [ΣP, C'] -> CAMs with attention applied."""
        weights = self.fusion(features.to(self.head.weight.dtype)).float()
        q, k, lse = (None if part is None else part[0] for part in layers.stacked())
        assert q is not None and k is not None and batch.packing is not None
        lengths, patches = batch.packing.lengths, batch.patches
        stats = head_stats_packed(
            q, k, num_classes=self.num_classes, tokens=lengths, patches=patches, lse=lse,
            column_means=False, classes=chosen.classes,
        )  # fmt: skip
        values = coarse
        if attention_type != "coarse":
            share = share_of(weights).flatten(1).T.index_select(1, chosen.image_of)  # [M, ΣP]
            values = chosen.own(sum_of_maps(stats.class_rows.float().mul_(share[:, None])).T)
            if attention_type == "fused":
                values = values * coarse
        if not refine:
            return values
        return fuse_heads_packed(
            q, k, stats.lse, weights.flatten(1), values, tokens=lengths, patches=patches
        )

    def encode(
        self,
        batch: TokenBatch,
        collect: Callable[[Layer], Any],
        *,
        with_lse: bool = False,
        statistics: Statistics | None = None,
    ) -> Encoding:
        """Run the backbone on images of one size or packed ones.

        Args:
            batch: embedded images.
            collect: returns what to keep of each layer's attention.
            with_lse, statistics: by-products of attention that `collect` uses, see
                `weaktr.ops.attention.softmax_attention`.
        """
        tokens, features, kept = batch.tokens, [], []
        lengths = self._lengths(batch)
        for index in range(len(self.vit.blocks)):
            layer = self.vit.run_block(
                index, tokens, batch, with_lse=with_lse, statistics=statistics
            )
            tokens = layer.tokens
            features.append(self.pooled(layer.attended.detach(), lengths))
            kept.append(collect(layer))
        last = self.vit.norm(tokens) if self.config.patch_norm else tokens
        patch_maps = [
            part[:, part.shape[1] - height * width :].transpose(1, 2).unflatten(2, (height, width))
            for part, (_, (height, width)) in zip(batch.split(last), batch.groups, strict=True)
        ]
        return Encoding(tokens, patch_maps, torch.stack(features, 1), kept)

    def pooled(self, attended: Tensor, lengths: list[int] | Pieces | None = None) -> Tensor:
        """[B, N, D] -> [B, H, d], pooled over all tokens.

        Head j takes the channels j, j + H, j + 2H, ..., as in the published model: its fusion
        weights depend on this order. Source: reference.md 7.

        Args:
            attended: of images of one size, or packed [1, ΣN, D].
            lengths: N of each packed image; `Pieces` have them pooled together.
        """
        is_max = self.config.pool == "max"
        if isinstance(lengths, Pieces):
            values = attended[0] if is_max else attended[0].float()
            for counts in (lengths.tokens, lengths.pieces):
                values = torch.segment_reduce(  # unsafe: the counts are not read back to be checked
                    values, "max" if is_max else "sum", lengths=counts, axis=0, unsafe=True
                )
            pooled = (values if is_max else values / lengths.lengths).to(attended.dtype)
        else:
            parts = [attended] if lengths is None else attended.split(lengths, 1)
            pooled = torch.cat([part.amax(1) if is_max else part.mean(1) for part in parts])
        return pooled.unflatten(1, (-1, self.vit.num_heads)).transpose(1, 2)

    def _lengths(self, batch: TokenBatch) -> list[int] | Pieces | None:
        """Of packed images, as `pooled` takes them: on a GPU all together."""
        if batch.packing is None:
            return None
        lengths = batch.packing.lengths
        return pieces_of(lengths, batch.tokens.device) if batch.tokens.is_cuda else lengths


def computed_at_once(images: Tensor) -> Sequence[Tensor]:
    """Parts of a group of images [b, ...]: all of it, or on a CPU each image alone.

    How a CPU rounds depends on what is computed together, and an image's CAMs there must not.
    """
    return [images] if images.is_cuda else [image[None] for image in images]


def sum_of_maps(values: Tensor) -> Tensor:
    """[M, ...] -> [...]. On a CPU the order of a sum does not depend on where its maps lie."""
    return values.sum(0) if values.is_cuda else values.movedim(0, -1).contiguous().sum(-1)


#: Tokens of a piece. A thread of a GPU pools a channel of one, whose tokens pass one by one.
PIECE = 64


class Pieces(NamedTuple):
    """Packed images cut into pieces, which are pooled first; on the device."""

    tokens: Tensor  #: int64 [pieces] of each piece, at most `PIECE`
    pieces: Tensor  #: int64 [images] of each image
    lengths: Tensor  #: float32 [images, 1] N of each image


def pieces_of(lengths: Sequence[int], device: torch.device) -> Pieces:
    """`Pieces` of images with so many tokens."""
    cuts = [[min(PIECE, n - start) for start in range(0, n, PIECE)] for n in lengths]
    tokens = torch.tensor([count for own in cuts for count in own])
    numbers = upload(torch.cat([tokens, torch.tensor([len(own) for own in cuts])]), device)
    counts = upload(torch.tensor(lengths, dtype=torch.float32), device)
    return Pieces(numbers[: len(tokens)], numbers[len(tokens) :], counts[:, None])


class ChosenClasses:
    """Which classes' CAMs are computed of each packed image, as tables on the device.

    What is computed has C' columns, the largest number of classes of an image, at least 1. Those
    beyond an image's own classes are 0.

    Args:
        classes: of each image.
        patches: P of each image.
        device: where the tables go, in two copies.
    """

    def __init__(
        self, classes: Sequence[Sequence[int]], patches: Sequence[int], device: torch.device
    ) -> None:
        self.classes = classes
        union = sorted({index for own in classes for index in own})
        place = {index: column for column, index in enumerate(union)}
        width = max(1, *map(len, classes))
        rows = [[place[index] for index in own] for own in classes]
        table = [row + [len(union)] * (width - len(row)) for row in rows]
        images = torch.arange(len(classes)).repeat_interleave(torch.tensor(patches))
        numbers = upload(
            torch.tensor([*union, *(column for row in table for column in row)]), device
        )
        #: int64: all classes, sorted; of each image its classes' places among them, their number
        #: where it has fewer than C'; the image of each patch
        self.union, self.table = numbers[: len(union)], numbers[len(union) :].view(-1, width)
        self.image_of = upload(images, device)

    def columns_of(self, scores: Tensor) -> Tensor:
        """Each patch's scores of `union` [ΣP, U] -> those of its own image's classes [ΣP, C']."""
        return F.pad(scores, (0, 1)).gather(1, self.table[self.image_of])

    def own(self, values: Tensor) -> Tensor:
        """[ΣP, C'] with zeros in the columns beyond an image's own classes."""
        return values.where((self.table < len(self.union))[self.image_of], 0)
