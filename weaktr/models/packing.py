"""The tokens of several images as one batch: stacked if all have one size, else one after another.

Everything but attention, pooling and the fusion treats each token by itself. Images of different
sizes are therefore packed one after another, so that linear layers, norms and MLPs see one long
sequence [1, ΣN, D]; operations on a whole image take its part of the sequence (`split`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from weaktr.ops.attention import Packing, packing_of


class TokenBatch(NamedTuple):
    """Embedded images: of each image class, register, patch tokens, in this order."""

    tokens: Tensor  #: [B, N, D]; packed [1, ΣN, D]
    #: neighbours of one size: how many they are, (h, w) in patches; one group if not packed
    groups: list[tuple[int, tuple[int, int]]]
    rope: Tensor | None  #: rotary embedding, where the backbone has one; packed of all tokens
    packing: Packing | None = None  #: where packed images lie, None for images of one size

    @property
    def grids(self) -> list[tuple[int, int]]:
        """(h, w) of each image, in patches."""
        return [grid for images, grid in self.groups for _ in range(images)]

    @property
    def patches(self) -> list[int]:
        """P = h · w of each image."""
        return [height * width for height, width in self.grids]

    def split(self, x: Tensor) -> list[Tensor]:
        """Anything laid out like `tokens`, [images, N, D] for each of `groups`."""
        if self.packing is None:
            return [x]
        images = [count for count, _ in self.groups]
        firsts = [stop - 1 for stop in accumulate(images)]
        tokens = [self.packing.lengths[first] for first in firsts]  # of each image of a group
        parts = x[0].split([count * own for count, own in zip(images, tokens, strict=True)])
        return [part.unflatten(0, (-1, own)) for part, own in zip(parts, tokens, strict=True)]


def pack(batches: Sequence[TokenBatch], prefix: int) -> TokenBatch:
    """Batches of one size each, at least one, packed one after another.

    Args:
        batches: of unpacked images.
        prefix: tokens at the front of each image, which are not rotated.
    """
    tokens = torch.cat([batch.tokens.flatten(0, 1) for batch in batches])[None]
    lengths, groups, ropes = [], [], []
    for batch in batches:
        images, length, _ = batch.tokens.shape
        lengths += [length] * images
        groups += batch.groups
        if batch.rope is not None:
            ropes += [_with_prefix(batch.rope, prefix)] * images
    rope = torch.cat(ropes, -2) if ropes else None
    return TokenBatch(tokens, groups, rope, packing_of(lengths, tokens.device))


def _with_prefix(rope: Tensor, prefix: int) -> Tensor:
    """Rotary embedding (sines, then cosines) preceded by that of tokens which are not rotated."""
    still = rope.new_zeros(*rope.shape[:-2], prefix, rope.shape[-1])
    still[..., rope.shape[-1] // 2 :] = 1
    return torch.cat([still, rope], -2)
