"""Stage 2: a ViT encoder and a light decoder that predict a label for every pixel.

Images are padded right and bottom with zeros (after normalisation) to whole patches; the decoder's
patch logits are upsampled bilinearly and cropped back.

Source: arXiv 2304.01184, section 4; decoders: Strudel et al., "Segmenter", arXiv 2105.05633.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from weaktr.config import SegModelConfig
from weaktr.models.blocks import run_block
from weaktr.models.vit import BackboneModel, ViT
from weaktr.ops.clipped_cross_entropy import ClippedLoss, clipped_cross_entropy

DECODERS = ("mask_transformer", "multi_mask_transformer", "linear")
#: LayerNorm epsilon of the published decoder (torch's default).
DECODER_NORM_EPS = 1e-5


class MultiLogits(NamedTuple):
    """What a `multi_mask_transformer` predicts, each [B, L, H, W]."""

    early: Tensor  #: from the tokens before the decoder's last block
    final: Tensor  #: from the tokens after it


class LinearDecoder(nn.Module):
    """One linear layer per patch."""

    def __init__(self, dim: int, num_labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_labels)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B, P, D] -> logits [B, L, P]."""
        logits: Tensor = self.head(patches).transpose(1, 2)
        return logits


class MaskTransformer(nn.Module):
    """Class embeddings attend to patches; logits are their normalised scalar products.

    Args:
        dim: D, encoder and decoder width.
        num_labels: L.
        layers: transformer blocks.
        heads: attention heads, D / 64 in the published models.
        dropout: rate in attention, projection and MLP during training.
    """

    def __init__(self, dim: int, num_labels: int, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.blocks = nn.ModuleList(
            Block(
                dim,
                heads,
                qkv_bias=True,
                proj_drop=dropout,
                attn_drop=dropout,
                norm_layer=nn.LayerNorm,
            )
            for _ in range(layers)
        )
        self.cls_emb = nn.Parameter(torch.empty(1, num_labels, dim))
        self.proj_dec = nn.Linear(dim, dim)
        self.proj_patch = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.proj_classes = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.decoder_norm = nn.LayerNorm(dim, eps=DECODER_NORM_EPS)
        self.mask_norm = nn.LayerNorm(num_labels, eps=DECODER_NORM_EPS)
        self.apply(_init_linear)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B, P, D] -> logits [B, L, P]."""
        x = self._join(patches)
        for block in self.blocks:
            x = run_block(block, x).tokens
        return self.masks(x)

    def early_and_final(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L, P] before and after the last block, through the same projections."""
        x = self._join(patches)
        for block in self.blocks[:-1]:
            x = run_block(block, x).tokens
        return self.masks(x), self.masks(run_block(self.blocks[-1], x).tokens)

    def masks(self, x: Tensor) -> Tensor:
        """Tokens [B, P + L, D] -> logits [B, L, P]."""
        x = self.decoder_norm(x)
        patches = x[:, : -self.num_labels] @ self.proj_patch
        classes = x[:, -self.num_labels :] @ self.proj_classes
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        logits: Tensor = self.mask_norm(patches @ classes.transpose(1, 2))
        return logits.transpose(1, 2)

    def _join(self, patches: Tensor) -> Tensor:
        classes = self.cls_emb.expand(patches.shape[0], -1, -1)
        return torch.cat([self.proj_dec(patches), classes], 1)


class Segmenter(BackboneModel):
    """A plain ViT with a segmentation decoder.

    Args:
        config: see `SegModelConfig`.
        num_labels: L >= 2, background included.

    Raises:
        ValueError: any argument out of range.
    """

    config: SegModelConfig

    def __init__(self, config: SegModelConfig, num_labels: int) -> None:
        if config.decoder not in DECODERS:
            raise ValueError(f"decoder: expected one of {DECODERS}, got {config.decoder!r}")
        if num_labels < 2:
            raise ValueError(f"num_labels: expected at least 2 (with background), got {num_labels}")
        super().__init__(config, ViT(config, class_tokens=config.class_tokens))
        self.num_labels = num_labels
        dim = self.vit.embed_dim
        self.decoder: LinearDecoder | MaskTransformer
        if config.decoder == "linear":
            self.decoder = LinearDecoder(dim, num_labels)
        else:
            heads = config.decoder_heads or max(1, dim // 64)
            layers, dropout = config.decoder_layers, config.dropout
            self.decoder = MaskTransformer(dim, num_labels, layers, heads, dropout)

    @property
    def multi(self) -> bool:
        """Whether the decoder also gives its logits before the last block."""
        return self.config.decoder == "multi_mask_transformer"

    def forward(self, images: Tensor) -> Tensor | MultiLogits:
        """Normalised images [B, 3, H, W] -> logits [B, L, H, W]; two for a multi decoder."""
        size = (images.shape[-2], images.shape[-1])
        patches, grid = self._encode(images)
        if self.multi:
            assert isinstance(self.decoder, MaskTransformer)
            early, final = self.decoder.early_and_final(patches)
            return MultiLogits(self._upsample(early, grid, size), self._upsample(final, grid, size))
        return self._upsample(self.decoder(patches), grid, size)

    def patch_logits(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, L, h, w], one per patch of the padded image."""
        patches, grid = self._encode(images)
        logits: Tensor = self.decoder(patches)
        return logits.unflatten(2, grid)

    def patch_outputs(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, E, L, h, w]; E = 2 for a multi decoder, else 1."""
        patches, grid = self._encode(images)
        if self.multi:
            assert isinstance(self.decoder, MaskTransformer)
            logits = torch.stack(self.decoder.early_and_final(patches), 1)
        else:
            logits = self.decoder(patches)[:, None]
        return logits.unflatten(3, grid)

    def loss(
        self, images: Tensor, labels: Tensor, *, start_value: float = 1.2, tile: int = 120
    ) -> ClippedLoss:
        """Gradient-clipping loss of the decoder's (final) prediction.

        Args:
            images: [B, 3, H, W] normalised.
            labels: [B, H, W] integer, 255 = ignore.
            start_value: no clipping while the batch mean is above it.
            tile: side in pixels of the clipping tiles (the published ``patch_size``).
        """
        size = (images.shape[-2], images.shape[-1])
        logits = self.patch_logits(images)
        if any(side % self.patch_size for side in size):
            grid = (logits.shape[-2], logits.shape[-1])
            logits = self._upsample(logits.flatten(2), grid, size)
        return clipped_cross_entropy(logits, labels, patch_size=tile, start_value=start_value)

    def _encode(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Padded images -> patch tokens [B, P, D] after the final norm, and their grid."""
        height, width = images.shape[-2:]
        patch = self.patch_size
        grid = (-(-height // patch), -(-width // patch))
        padded = F.pad(images, (0, grid[1] * patch - width, 0, grid[0] * patch - height))
        return self.vit(padded)[:, self.vit.num_prefix_tokens :], grid

    def _upsample(self, logits: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """[B, L, P] -> [B, L, H, W]: bilinear to the padded size, then cropped."""
        padded = (grid[0] * self.patch_size, grid[1] * self.patch_size)
        full = F.interpolate(
            logits.unflatten(2, grid), size=padded, mode="bilinear", align_corners=False
        )
        return full[..., : size[0], : size[1]]


def _init_linear(module: nn.Module) -> None:
    """Linear layers: truncated normal 0.02, zero bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
