"""The published way to compute what we compute otherwise: the baselines of the benchmarks.

Rebuilt from descriptions of hustvl/WeakTr at 3457ad3, on our models' weights, so that results can
be compared. Every copy that the published code makes is made here too; nothing is made slower.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from weaktr.config import PredictConfig
from weaktr.inference.windows import View, on_device, pixels_of, scaled_images, views
from weaktr.models import CamModel, CamOutput, Segmenter
from weaktr.models.segmenter import MaskTransformer
from weaktr.models.vit import ViT


def block_with_map(block: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """One block with explicit softmax attention: (tokens, map [B, H, N, N], branch [B, N, D])."""
    attention = block.attn
    batch, count, width = tokens.shape
    qkv = attention.qkv(block.norm1(tokens)).reshape(batch, count, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
    branch = (weights @ v).transpose(1, 2).reshape(batch, count, width)
    branch = attention.proj_drop(attention.proj(branch))
    tokens = tokens + block.drop_path1(block.ls1(branch))
    tokens = tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
    return tokens, weights, branch


def encode(vit: ViT, images: Tensor) -> tuple[Tensor, tuple[int, int], list[Tensor], list[Tensor]]:
    """(tokens, grid, maps of every layer, attention branches of every layer)."""
    tokens, ((_, grid),), *_ = vit.embed(images)
    maps, branches = [], []
    for block in vit.blocks:
        tokens, weights, branch = block_with_map(block, tokens)
        maps.append(weights)
        branches.append(branch)
    return tokens, grid, maps, branches


def fused_attention(
    model: CamModel, maps: list[Tensor], branches: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Stack, clone and permute all maps, weigh them twice, average: (cross, patch attention)."""
    classes, heads = model.num_classes, model.vit.num_heads
    stacked = torch.stack(maps).detach().clone()  # [K, B, H, N, N]
    stacked = stacked.permute(1, 2, 0, 3, 4).contiguous().flatten(1, 2)  # [B, H·K, N, N]
    features = torch.stack(branches).detach().clone()  # [K, B, N, D]
    features = features.unflatten(-1, (-1, heads)).permute(1, 4, 0, 2, 3).contiguous()
    features = features.flatten(1, 2)  # [B, H·K, N, d]
    pooled = features.amax(2) if model.config.pool == "max" else features.mean(2)
    pooled = pooled.unflatten(1, (heads, -1)).transpose(1, 2)  # [B, K, H, d]
    weights = model.fusion(pooled).transpose(1, 2).flatten(1)[:, :, None, None]
    cross = (stacked * weights).mean(1)[:, :classes, classes:]
    patch = (stacked * weights).mean(1)[:, classes:, classes:]
    return cross, patch


def cam_forward(model: CamModel, images: Tensor) -> CamOutput:
    """Stage 1 with every attention map kept."""
    tokens, grid, maps, branches = encode(model.vit, images)
    patches = tokens[:, model.num_classes :].transpose(1, 2).unflatten(2, grid)
    coarse = model.head(patches)
    cross, patch = fused_attention(model, maps, branches)
    seeds = cross * coarse.detach().relu().flatten(2)
    fine = (patch[:, None] @ seeds[..., None]).squeeze(-1)
    return CamOutput(tokens[:, : model.num_classes].mean(-1), coarse.mean((2, 3)), fine.mean(-1))


@torch.no_grad()
def cams(model: CamModel, images: Tensor, labels: Tensor) -> Tensor:
    """Refined CAMs of all classes, absent ones masked out at the end: [B, C, h, w]."""
    tokens, grid, maps, branches = encode(model.vit, images)
    patches = tokens[:, model.num_classes :].transpose(1, 2).unflatten(2, grid)
    coarse = model.head(patches).relu().flatten(2)
    cross, patch = fused_attention(model, maps, branches)
    fine = (patch[:, None] @ (cross * coarse)[..., None]).squeeze(-1)
    return fine.unflatten(2, grid) * labels[:, :, None, None]


def patch_logits(model: Segmenter, images: Tensor) -> Tensor:
    """Stage 2 with explicit softmax attention, of a model with one mask transformer: [B, L, h, w].

    The sides of the images are multiples of the patch.
    """
    vit, decoder = model.vit, cast(MaskTransformer, model.decoder)
    tokens, ((_, grid),), *_ = vit.embed(images)
    for block in vit.blocks:
        tokens, *_ = block_with_map(block, tokens)
    patches = vit.norm(tokens)[:, vit.num_prefix_tokens :]
    classes = decoder.cls_emb.expand(len(images), -1, -1)
    x = torch.cat([decoder.proj_dec(patches), classes], 1)
    for block in decoder.blocks:
        x, *_ = block_with_map(block, x)
    return decoder.masks(x).unflatten(2, grid)


def clipped_loss(
    logits: Tensor, labels: Tensor, patch_size: int, start_value: float, ignore_index: int = 255
) -> Tensor:
    """Stage-2 loss in eager steps on full-resolution logits; tiles must divide the image."""
    logits = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    loss = F.cross_entropy(logits, labels.long(), ignore_index=ignore_index, reduction="none")
    mean = loss.mean()
    if mean > start_value:
        return mean
    tiles = F.avg_pool2d(loss.detach().mean(0)[None, None], patch_size)
    threshold = F.interpolate(tiles, scale_factor=patch_size, mode="nearest")[0]
    threshold = threshold.clamp(min=mean.detach()).expand_as(loss)
    return torch.where(loss > threshold, threshold, loss).mean()


@torch.inference_mode()
def probabilities(model: Segmenter, image: np.ndarray, settings: PredictConfig) -> np.ndarray:
    """All scales and flips, one window at a time: mean of softmax [L, H, W].

    Logits of three outputs are merged at each view's full size, brought to the image's, and turned
    into probabilities, two of which stay zero where the decoder has one output.
    """
    size = (image.shape[0], image.shape[1])
    device = next(model.parameters()).device
    total = torch.zeros(3, model.num_labels, *size, device=device)
    scaled = [torch.from_numpy(one) for one in scaled_images(image, settings)]
    chosen = views(scaled, settings)
    for view in chosen:
        pixels = pixels_of(view, on_device(model.normalization, device))
        logits = merged_windows(model, view, pixels, settings.window)
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        if view.flipped:
            logits = logits.flip(-1)
        total += logits.softmax(1)
    return (total / len(chosen))[0].cpu().numpy()


def merged_windows(model: Segmenter, view: View, pixels: Tensor, window: int) -> Tensor:
    """Mean over overlapping windows of each output's logits: [3, L, H, W]."""
    merged = pixels.new_zeros(3, model.num_labels, *view.size)
    count = pixels.new_zeros(view.size)
    for top in view.tops:
        for left in view.lefts:
            place = (..., slice(top, top + window), slice(left, left + window))
            logits = patch_logits(model, pixels[None][place])
            logits = F.interpolate(logits, scale_factor=model.patch_size, mode="bilinear")
            merged[place] += torch.cat([logits, torch.zeros_like(logits), torch.zeros_like(logits)])
            count[place] += 1
    return merged / count
