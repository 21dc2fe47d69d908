"""CAMs of images of different sizes in one pass, their tokens packed one behind the other.

Everything but attention treats tokens alone, so that linear layers, norms and MLPs see one long
sequence [1, ΣN, D]; attention, pooling and the fusion keep to each image's own tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from weaktr.models.cam import ATTENTION_TYPES, CamModel, MapsOfLayers, by_layer
from weaktr.models.vit import ViT
from weaktr.ops import fuse_heads_packed, head_stats_packed


class PackedTokens(NamedTuple):
    """Embedded images, one behind the other."""

    tokens: Tensor  #: [1, ΣN, D]
    grids: list[tuple[int, int]]  #: (h, w) of each image
    lengths: list[int]  #: N of each image
    rope: Tensor | None  #: rotary embedding of all tokens, where the backbone has one

    @property
    def patches(self) -> list[int]:
        """P of each image."""
        return [height * width for height, width in self.grids]


def embed_packed(vit: ViT, images: Sequence[Tensor]) -> PackedTokens:
    """Images [3, H, W] of any sizes, normalised, at least one; neighbours of one size go together.

    Raises:
        ValueError: an image that is not [3, H, W] or is smaller than one patch.
    """
    tokens, grids, lengths, ropes = [], [], [], []
    for group in _of_one_size(images):
        embedded = vit.embed(torch.stack(group))
        tokens.append(embedded.tokens.flatten(0, 1))
        grids += [embedded.grid] * len(group)
        lengths += [embedded.tokens.shape[1]] * len(group)
        if embedded.rope is not None:
            ropes += [_with_prefix(embedded.rope, vit.num_prefix_tokens)] * len(group)
    rope = torch.cat(ropes, -2) if ropes else None
    return PackedTokens(torch.cat(tokens)[None], grids, lengths, rope)


@torch.no_grad()
def cams_packed(
    model: CamModel,
    images: Sequence[Tensor],
    classes: Sequence[Sequence[int]],
    *,
    attention_type: str = "fused",
    refine: bool = True,
) -> list[Tensor]:
    """`CamModel.cams` of images of any sizes, for each image's own classes alone.

    Args:
        model: in eval mode.
        images: [3, H, W] each, normalised, at least one patch large.
        classes: for each image the indices of the classes to compute.
        attention_type, refine: see `CamModel.cams`.

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
    packed = embed_packed(model.vit, images)
    with_maps = refine or attention_type != "coarse"
    maps = MapsOfLayers(len(model.vit.blocks)) if with_maps else None
    tokens, features = _run_blocks(model, packed, maps)
    with torch.autocast(tokens.device.type, enabled=False):
        values = _coarse_cams(model, tokens, packed, classes)
        if maps is not None:
            settings = (classes, attention_type, refine)
            values = _with_attention(model, packed, maps, features, values, *settings)
    return [
        part[:, : len(own)].T.unflatten(1, grid)
        for part, own, grid in zip(values.split(packed.patches), classes, packed.grids, strict=True)
    ]


def _run_blocks(
    model: CamModel, packed: PackedTokens, maps: MapsOfLayers | None
) -> tuple[Tensor, Tensor]:
    """(tokens [ΣN, D] of the last block, pooled attention output [B, K, H, d]); fills `maps`."""
    tokens, features = packed.tokens, []
    for index in range(len(model.vit.blocks)):
        layer = model.vit.run_block(
            index, tokens, packed.rope, with_lse=maps is not None, lengths=packed.lengths
        )
        tokens = layer.tokens
        by_image = layer.attended[0].split(packed.lengths)
        features.append(torch.cat([model.pooled(attended[None]) for attended in by_image]))
        if maps is not None:
            maps.add(layer, sum(packed.patches))
    last = model.vit.norm(tokens) if model.patch_norm else tokens
    return last[0], torch.stack(features, 1)


def _coarse_cams(
    model: CamModel, tokens: Tensor, packed: PackedTokens, classes: Sequence[Sequence[int]]
) -> Tensor:
    """ReLU of the head for each image's own classes: [ΣP, C'], columns past an image's own 0."""
    cams = tokens.new_zeros(sum(packed.patches), max(1, *map(len, classes)), dtype=torch.float32)
    by_image = zip(
        tokens.split(packed.lengths), cams.split(packed.patches), packed.grids, classes, strict=True
    )
    for own_tokens, target, grid, own in by_image:
        patch_map = own_tokens[-len(target) :].T.unflatten(1, grid)
        found = F.relu(model.head(patch_map[None].to(model.head.weight.dtype)))[0, list(own)]
        target[:, : len(own)] = found.flatten(1).T
    return cams


def _with_attention(
    model: CamModel,
    packed: PackedTokens,
    maps: MapsOfLayers,
    features: Tensor,
    coarse: Tensor,
    classes: Sequence[Sequence[int]],
    attention_type: str,
    refine: bool,
) -> Tensor:
    """Coarse maps [ΣP, C'] -> maps with attention applied."""
    weights = model.fusion(features.float().transpose(1, 2).flatten(1, 2))
    weights = by_layer(weights, features.shape).flatten(1)
    q, k, lse = (None if part is None else part[0] for part in maps.stacked())
    assert q is not None and k is not None
    sizes: dict[str, Any] = {"tokens": packed.lengths, "patches": packed.patches}
    stats = head_stats_packed(
        q, k, num_classes=model.num_classes, lse=lse, column_means=False, **sizes
    )
    values = coarse
    if attention_type != "coarse":
        values = torch.zeros_like(coarse)
        by_image = zip(
            values.split(packed.patches),
            stats.class_rows.split(packed.patches, 2),
            weights / weights.shape[1],
            classes,
            strict=True,
        )
        for target, rows, share, own in by_image:
            target[:, : len(own)] = torch.einsum("m,mcj->jc", share, rows[:, list(own)].float())
        if attention_type == "fused":
            values = values * coarse
    return fuse_heads_packed(q, k, stats.lse, weights, values, **sizes) if refine else values


def _of_one_size(images: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    for _, group in groupby(images, key=lambda image: image.shape):
        yield list(group)


def _with_prefix(rope: Tensor, prefix: int) -> Tensor:
    """Rotary embedding (sines, then cosines) preceded by that of tokens which are not rotated."""
    still = rope.new_zeros(*rope.shape[:-2], prefix, rope.shape[-1])
    still[..., rope.shape[-1] // 2 :] = 1
    return torch.cat([still, rope], -2)
