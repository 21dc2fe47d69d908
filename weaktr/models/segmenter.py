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
from weaktr.data.classes import MAX_CLASSES
from weaktr.models.blocks import run_block
from weaktr.models.vit import BackboneModel, ViT, blocks_of, require_count
from weaktr.ops.clipped_cross_entropy import ClippedLoss, clipped_cross_entropy

#: LayerNorm epsilon of the published decoder (torch's default).
DECODER_NORM_EPS = 1e-5


class MultiLogits(NamedTuple):
    """What a `multi_mask_transformer` predicts, each [B, L, H, W]."""

    early: Tensor  #: from the tokens before the decoder's last block
    final: Tensor  #: from the tokens after it


class Encoding(NamedTuple):
    """What the encoder makes of images."""

    patches: Tensor  #: [B, P, W] patch tokens of the model's layers, W = layers · D
    grid: tuple[int, int]  #: their rows and columns, h · w = P
    #: [B, C] logits of the classes that an image shows, where the model has an `image_head`
    classes: Tensor | None


class LinearDecoder(nn.Module):
    """One linear layer per patch."""

    def __init__(self, dim: int, num_labels: int) -> None:
        super().__init__()
        self.head = nn.Linear(dim, num_labels)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B, P, W] -> logits [B, L, P]."""
        logits: Tensor = self.head(patches).transpose(1, 2)
        return logits


class MaskTransformer(nn.Module):
    """Class embeddings attend to patches; logits are their normalised scalar products.

    Args:
        width: W, of the patches it gets.
        dim: D, its own.
        num_labels: L.
        layers: transformer blocks.
        heads: attention heads, D / 64 in the published models.
        dropout: rate in attention, projection and MLP during training.
    """

    def __init__(
        self, width: int, dim: int, num_labels: int, layers: int, heads: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_labels = num_labels
        #: a setting of the run, see `run_block`
        self.recompute = False
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
        self.proj_dec = nn.Linear(width, dim)
        self.proj_patch = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.proj_classes = nn.Parameter(dim**-0.5 * torch.randn(dim, dim))
        self.decoder_norm = nn.LayerNorm(dim, eps=DECODER_NORM_EPS)
        self.mask_norm = nn.LayerNorm(num_labels, eps=DECODER_NORM_EPS)
        self.apply(_init_linear)
        nn.init.trunc_normal_(self.cls_emb, std=0.02)

    def forward(self, patches: Tensor) -> Tensor:
        """Patches [B, P, W] -> logits [B, L, P]."""
        x = self._join(patches)
        for block in self.blocks:
            x = self._run(block, x)
        return self.masks(x)

    def early_and_final(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, L, P] before and after the last block, through the same projections."""
        x = self._join(patches)
        for block in self.blocks[:-1]:
            x = self._run(block, x)
        return self.masks(x), self.masks(self._run(self.blocks[-1], x))

    def masks(self, x: Tensor) -> Tensor:
        """Tokens [B, P + L, D] -> logits [B, L, P]."""
        x = self.decoder_norm(x)
        patches = x[:, : -self.num_labels] @ self.proj_patch
        classes = x[:, -self.num_labels :] @ self.proj_classes
        patches = patches / patches.norm(dim=-1, keepdim=True)
        classes = classes / classes.norm(dim=-1, keepdim=True)
        logits: Tensor = self.mask_norm(patches @ classes.transpose(1, 2))
        return logits.transpose(1, 2)

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        return run_block(block, x, recompute=self.recompute).tokens

    def _join(self, patches: Tensor) -> Tensor:
        classes = self.cls_emb.expand(patches.shape[0], -1, -1)
        return torch.cat([self.proj_dec(patches), classes], 1)


class ImageHead(nn.Module):
    """Which classes an image shows: one linear layer on its class token and its mean patch.

    Of several class tokens the mean counts; a backbone without any gives the patches alone. What
    pads a crop in training is no patch of the image.

    Args:
        dim: W, width of the tokens.
        num_classes: C.
        class_tokens: T, at the front of the encoder's tokens.
    """

    def __init__(self, dim: int, num_classes: int, class_tokens: int) -> None:
        super().__init__()
        self.class_tokens = class_tokens
        self.head = nn.Linear(2 * dim if class_tokens else dim, num_classes)
        self.apply(_init_linear)

    def forward(self, tokens: Tensor, patches: Tensor, inside: Tensor | None = None) -> Tensor:
        """Which classes images show.

        Args:
            tokens: [B, N, W], all of them.
            patches: [B, P, W], those of the patches.
            inside: [B, P], 1 for patches whose mean counts, 0 for others; None = all count.

        Returns:
            Logits [B, C].
        """
        if inside is None:
            parts = [patches.mean(1)]
        else:
            parts = [(patches * inside[:, :, None]).sum(1) / inside.sum(1, keepdim=True)]
        if self.class_tokens:
            parts.append(tokens[:, : self.class_tokens].mean(1))
        logits: Tensor = self.head(torch.cat(parts, 1))
        return logits


def gated(logits: Tensor, classes: Tensor | None, weight: float = 1.0) -> Tensor:
    """Logits of pixels, with what is known of the whole image.

        logits[c] + weight · ln sigmoid(classes[c]) for each class c, background as it is

    Args:
        logits: [B, L, ...].
        classes: [B, C] logits of the classes of an image, C = L - 1; None = nothing is known.
        weight: 0 = take no notice.
    """
    if classes is None:
        return logits
    known = F.pad(weight * F.logsigmoid(classes), (1, 0))
    return logits + known.reshape(*known.shape, *(1,) * (logits.ndim - 2))


class Segmenter(BackboneModel):
    """A plain ViT with a segmentation decoder.

    Args:
        config: see `SegModelConfig`.
        num_labels: L, 2 to 255, background included.

    Raises:
        ValueError: any argument out of range.
    """

    config: SegModelConfig

    def __init__(self, config: SegModelConfig, num_labels: int) -> None:
        num_labels = require_count("num_labels", num_labels, 2, MAX_CLASSES + 1)
        super().__init__(config, ViT(config, class_tokens=config.class_tokens))
        self.num_labels = num_labels
        #: blocks of the encoder whose patches the decoder gets, from 0
        self.layers = blocks_of(config.layers, len(self.vit.blocks))
        # what is not computed gets no gradient, for which several processes would wait
        self.vit.blocks[max(self.layers) + 1 :].requires_grad_(False)
        dim = self.vit.embed_dim
        width = len(self.layers) * dim
        self.decoder: LinearDecoder | MaskTransformer
        if config.decoder == "linear":
            self.decoder = LinearDecoder(width, num_labels)
        else:
            heads = config.decoder_heads or max(1, dim // 64)
            layers, dropout = config.decoder_layers, config.dropout
            self.decoder = MaskTransformer(width, dim, num_labels, layers, heads, dropout)
        self.image_head: ImageHead | None = None
        if config.image_head:
            self.image_head = ImageHead(width, num_labels - 1, self.vit.num_class_tokens)
        #: whether the encoder is not trained, see `freeze_encoder`
        self.is_frozen = False

    def freeze_encoder(self) -> None:
        """Keep the encoder as it is: no gradients, no dropout, no stochastic depth."""
        self.is_frozen = True
        self.vit.requires_grad_(False)
        self.vit.eval()

    def train(self, mode: bool = True) -> Segmenter:
        """As of every module, but a frozen encoder stays in eval mode."""
        super().train(mode)
        if self.is_frozen:
            self.vit.eval()
        return self

    def recompute_blocks(self, enabled: bool) -> None:
        """As of every model; of the mask transformer's blocks too."""
        super().recompute_blocks(enabled)
        if isinstance(self.decoder, MaskTransformer):
            self.decoder.recompute = enabled

    @torch.no_grad()
    def start_from(self, shares: Tensor) -> None:
        """Make ln(share) of each label the bias of its logits, so that training starts from it.

        Args:
            shares: [L] of the labels among all patches, above 0, sum to 1.
        """
        decoder = self.decoder
        bias = decoder.head.bias if isinstance(decoder, LinearDecoder) else decoder.mask_norm.bias
        bias.copy_(shares.log())

    @property
    def multi(self) -> bool:
        """Whether the decoder also gives its logits before the last block."""
        return self.config.decoder == "multi_mask_transformer"

    def forward(self, images: Tensor) -> Tensor | MultiLogits:
        """Normalised images [B, 3, H, W] -> logits [B, L, H, W]; two for a multi decoder."""
        size = (images.shape[-2], images.shape[-1])
        encoding = self.encode(images)
        logits = [
            self._upsample(gated(own, encoding.classes), encoding.grid, size)
            for own in self.outputs(encoding)
        ]
        return MultiLogits(*logits) if self.multi else logits[0]

    def patch_logits(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, L, h, w], one per patch of the padded image."""
        return self.decode(self.encode(images))

    def patch_outputs(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images [B, 3, H, W] -> logits [B, E, L, h, w] and `Encoding.classes`.

        E = 2 for a multi decoder, else 1. The logits take no notice of the classes (`gated`).
        """
        encoding = self.encode(images)
        logits = torch.stack(self.outputs(encoding), 1)
        return logits.unflatten(3, encoding.grid), encoding.classes

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
        return self.clipped_loss(self.encode(images), labels, start_value=start_value, tile=tile)

    def clipped_loss(
        self,
        encoding: Encoding,
        labels: Tensor,
        *,
        start_value: float = 1.2,
        tile: int = 120,
        batch: int | None = None,
    ) -> ClippedLoss:
        """`loss` of images that are encoded; its arguments, `batch` see `clipped_cross_entropy`."""
        size = (labels.shape[-2], labels.shape[-1])
        logits = self.decode(encoding)
        if any(side % self.patch_size for side in size):
            logits = self._upsample(logits.flatten(2), encoding.grid, size)
        return clipped_cross_entropy(
            logits, labels, patch_size=tile, start_value=start_value, batch=batch
        )

    def encode(self, images: Tensor, inside: Tensor | None = None) -> Encoding:
        """Normalised images [B, 3, H, W], padded to whole patches -> their encoding.

        Args:
            images: [B, 3, H, W] normalised.
            inside: [B, h, w], 0 for patches that are nothing but padding, which does not count in
                what an image shows, else 1; None = there are none.
        """
        height, width = images.shape[-2:]
        patch = self.patch_size
        grid = (-(-height // patch), -(-width // patch))
        padded = F.pad(images, (0, grid[1] * patch - width, 0, grid[0] * patch - height))
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.is_frozen):
            tokens = self.tokens(padded)
        return self.encoding_of(tokens, grid, inside)

    def tokens(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> all tokens [B, N, W] of the encoder's `layers`."""
        tokens: Tensor = self.vit(images, self.layers)
        return tokens

    def encoding_of(
        self, tokens: Tensor, grid: tuple[int, int], inside: Tensor | None = None
    ) -> Encoding:
        """The encoder's tokens [B, N, W] of images of `grid` patches -> their encoding."""
        patches, classes = tokens[:, self.vit.num_prefix_tokens :], None
        if self.image_head is not None:
            inside = None if inside is None else inside.flatten(1)
            classes = self.image_head(tokens, patches, inside)
        return Encoding(patches, grid, classes)

    def decode(self, encoding: Encoding) -> Tensor:
        """(Final) logits [B, L, h, w] of the patches, without notice of the classes (`gated`)."""
        logits: Tensor = self.decoder(encoding.patches)
        return logits.unflatten(2, encoding.grid)

    def outputs(self, encoding: Encoding) -> list[Tensor]:
        """Logits [B, L, P] of the patches, (early and) final, without notice of the classes."""
        if self.multi:
            assert isinstance(self.decoder, MaskTransformer)
            return [*self.decoder.early_and_final(encoding.patches)]
        return [self.decoder(encoding.patches)]

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
