"""Plain vision transformers from timm, with the intermediate values that the method needs.

`ViT` keeps timm's parts under timm's parameter names and runs them itself, because stage 1 needs
what timm's forward does not offer: any number of class tokens, and of every layer the queries, the
keys and the attention branch's output.
"""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache, partial
from typing import Any, SupportsIndex, get_args

import timm
import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from weaktr.config import BackboneConfig, Position
from weaktr.models.blocks import Layer, run_block
from weaktr.models.packing import TokenBatch
from weaktr.models.positions import resized_position
from weaktr.ops.attention import Statistics, chosen_attention
from weaktr.ops.tracing import is_exporting

log = logging.getLogger("weaktr")

#: (mean, std) per RGB channel in [0, 1].
Normalization = tuple[tuple[float, ...], tuple[float, ...]]
#: How the patch part of the position embedding follows a grid other than its own:
#: "timm" (bicubic, antialiased), "published_cam" and "published_seg" (what the published code does
#: in stage 1 and stage 2; kept for its checkpoints).
POSITION_MODES = get_args(Position)
#: Bytes of embeddings of positions that are kept of the last sizes of images, each of about 2 MB.
POSITION_BYTES = 128 * 2**20


class ViT(nn.Module):
    """A timm plain ViT with a free number of class tokens and random weights.

    Args:
        config: see `BackboneConfig`; its weights are loaded by `weaktr.models.pretrained`.
        class_tokens: T >= 0 tokens at the front (stage 1: one per class); the backbone's own
            number (1, or 0 for SigLIP) where None.

    Raises:
        ValueError: unknown backbone, or one that is not a plain ViT; unknown attention.
    """

    cls_token: nn.Parameter | None
    reg_token: nn.Parameter | None
    pos_embed: nn.Parameter | None

    def __init__(self, config: BackboneConfig, class_tokens: int | None = None) -> None:
        super().__init__()
        if config.position not in POSITION_MODES:
            raise ValueError(f"position: expected one of {POSITION_MODES}, got {config.position!r}")
        #: a setting of the run, not of the model; may be changed later
        self.attention = chosen_attention(config.attention)
        #: likewise, see `run_block`
        self.recompute = False
        self.position = config.position
        model = create_backbone(config)
        self.patch_embed = model.patch_embed
        self.norm_pre = model.norm_pre
        self.blocks = model.blocks
        self.norm = model.norm
        self.rope: Any = getattr(model, "rope", None)
        self.rope_per_block = bool(getattr(model, "rope_mixed", False))
        self.embed_dim: int = model.embed_dim
        self.num_heads: int = model.blocks[0].attn.num_heads
        self.patch_size: int = model.patch_embed.patch_size[0]
        mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
        #: that the backbone was pretrained with
        self.normalization: Normalization = (tuple(mean), tuple(std))
        self._adopt_prefix(model, class_tokens)
        if config.norm_eps is not None:
            for module in self.modules():
                if isinstance(module, nn.LayerNorm):
                    module.eps = config.norm_eps

    def _adopt_prefix(self, model: Any, class_tokens: int | None) -> None:
        """Take over class, register and position parameters, widened to `class_tokens`."""
        reg_token = getattr(model, "reg_token", None)
        pos_embed = getattr(model, "pos_embed", None)
        own_prefix = 0 if pos_embed is None else pos_embed.shape[1] - model.patch_embed.num_patches
        #: prefix tokens have position entries of their own (not so in DINOv2 with registers)
        self.embed_prefix = own_prefix > 0
        own = getattr(model, "cls_token", None)
        #: whether the backbone has a class token itself (SigLIP has none)
        self.has_own_class_token = own is not None
        if class_tokens is None:
            class_tokens = 0 if own is None else own.shape[1]
        if class_tokens == 0:
            self.register_parameter("cls_token", None)
        else:
            init = torch.empty(1, class_tokens, self.embed_dim)
            self.cls_token = nn.Parameter(nn.init.trunc_normal_(init, std=0.02))
        self.reg_token = reg_token
        #: see `_kept`
        self._positions: dict[tuple[Any, ...], Tensor] = {}
        if pos_embed is None:
            self.register_parameter("pos_embed", None)
            return
        patches = pos_embed[:, own_prefix:] if self.embed_prefix else pos_embed
        if self.embed_prefix:
            init = torch.empty(1, self.num_prefix_tokens, self.embed_dim)
            patches = torch.cat([nn.init.trunc_normal_(init, std=0.02), patches], 1)
        self.pos_embed = nn.Parameter(patches.detach().clone())

    @property
    def num_class_tokens(self) -> int:
        return 0 if self.cls_token is None else self.cls_token.shape[1]

    @property
    def num_prefix_tokens(self) -> int:
        return self.num_class_tokens + (0 if self.reg_token is None else self.reg_token.shape[1])

    @property
    def position_grid(self) -> tuple[int, int]:
        """(h, w) of the stored position embedding."""
        height, width = self.patch_embed.grid_size
        return height, width

    def embed(self, images: Tensor) -> TokenBatch:
        """Images [B, 3, H, W], normalised -> `TokenBatch`; less than a patch at the end is cut.

        Raises:
            ValueError: not [B, 3, H, W], or smaller than one patch.
        """
        size = images.shape[-2:]
        if images.ndim != 4 or images.shape[1] != 3 or min(size) < self.patch_size:
            raise ValueError(
                f"images: expected [B, 3, H, W] with H, W >= {self.patch_size} (one patch), "
                f"got {tuple(images.shape)}"
            )
        project = projected_by_product if images.is_cuda else projected_by_convolution
        patches, grid = project(self.patch_embed.proj, images)
        tokens = self.patch_embed.norm(patches)
        prefix = [t for t in (self.cls_token, self.reg_token) if t is not None]
        position = self._position_of(grid, (size[0], size[1]))
        if position is not None and not self.embed_prefix:
            tokens = tokens + position
        if prefix:
            batch = images.shape[0]
            tokens = torch.cat([*(t.expand(batch, -1, -1) for t in prefix), tokens], 1)
        if position is not None and self.embed_prefix:
            tokens = tokens + position
        rope = self._rope_of(grid, images.device)
        return TokenBatch(self.norm_pre(tokens), [(images.shape[0], grid)], rope)

    def run_block(
        self,
        index: int,
        tokens: Tensor,
        batch: TokenBatch,
        *,
        with_lse: bool = False,
        statistics: Statistics | None = None,
    ) -> Layer:
        """Run block `index`; returns its output and its intermediate values.

        Args:
            index: of the block.
            tokens: laid out like those of `batch`: the output of the block before.
            batch: whose packing and rotary embedding are used.
            with_lse, statistics: see `weaktr.ops.attention.softmax_attention`.
        """
        rope = batch.rope
        return run_block(
            self.blocks[index],
            tokens,
            rope[index] if rope is not None and self.rope_per_block else rope,
            self.num_prefix_tokens if batch.packing is None else 0,
            with_lse=with_lse,
            packing=batch.packing,
            statistics=statistics,
            attention=self.attention,
            recompute=self.recompute,
        )

    def forward(self, images: Tensor, layers: Sequence[int] = (-1,)) -> Tensor:
        """All tokens of some blocks, side by side, each after the final norm; no block after the
        last of them is computed.

        Args:
            images: [B, 3, H, W] normalised.
            layers: K blocks from 0; -1 = the last.

        Returns:
            [B, N, K · D].
        """
        wanted = blocks_of(layers, len(self.blocks))
        batch = self.embed(images)
        tokens, kept = batch.tokens, {}
        for index in range(max(wanted) + 1):
            tokens = self.run_block(index, tokens, batch).tokens
            if index in wanted:
                kept[index] = self.norm(tokens)
        parts = [kept[index] for index in wanted]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)

    def train(self, mode: bool = True) -> ViT:
        """As of every module. Kept positions are forgotten: training may have changed them."""
        self._positions.clear()
        super().train(mode)
        return self

    def _position_of(self, grid: tuple[int, int], size: tuple[int, int]) -> Tensor | None:
        """`_position`; on a GPU in eval mode those of the last sizes are kept.

        A parameter's version does not tell of every change: fused optimisers leave it as it is.
        """
        if (stored := self.pos_embed) is None:
            return None
        wants_gradient = torch.is_grad_enabled() or torch.compiler.is_compiling()
        is_changing = self.training or wants_gradient
        if not stored.is_cuda or is_changing:
            return self._position(grid, size)
        key = (grid, size, stored.data_ptr(), stored._version)
        return self._kept(key, partial(self._position, grid, size))

    def _rope_of(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """The rotary embedding of a grid, where there is one; on a GPU those of the last are kept.

        timm makes some of them on the host, which would wait for the GPU to copy them there.
        """
        if self.rope is None:
            return None
        make: Callable[[], Tensor] = partial(self.rope.get_embed, shape=list(grid))
        if device.type != "cuda" or torch.compiler.is_compiling():
            return make()
        is_learnt = next(self.rope.parameters(), None) is not None
        is_drawn = self.training and getattr(self.rope, "aug_active", False)
        return make() if is_learnt or is_drawn else self._kept((grid, device), make)

    def _kept(self, key: tuple[Any, ...], make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, of the last keys up to `POSITION_BYTES`; for trainings too."""
        found = self._positions.get(key)
        if found is None:
            with torch.inference_mode(False), torch.no_grad():
                found = self._positions[key] = make()
            for oldest in [*self._positions]:
                if sum(kept.nbytes for kept in [*self._positions.values()]) <= POSITION_BYTES:
                    break
                self._positions.pop(oldest, None)
        return found

    def _position(self, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """Position embedding [1, N or P, D] for `grid` of an image of `size` pixels."""
        assert self.pos_embed is not None
        prefix = self.num_prefix_tokens if self.embed_prefix else 0
        stored = self.pos_embed[:, prefix:]
        if is_exporting():
            patches = resized_position(stored, self.position_grid, grid, size, self.position)
        elif self.position == "timm":
            patches = resample_abs_pos_embed(
                stored, list(grid), list(self.position_grid), num_prefix_tokens=0
            )
        elif self.position == "published_cam":
            patches = _published_cam_position(stored, grid, size, self.position_grid)
        else:
            patches = _published_seg_position(stored, grid, self.position_grid)
        return torch.cat([self.pos_embed[:, :prefix], patches], 1) if prefix else patches


def projected_by_convolution(
    projection: nn.Conv2d, images: Tensor
) -> tuple[Tensor, tuple[int, int]]:
    """Patches [B, h · w, D] and their grid (h, w); less than a patch at the end is cut."""
    patches = projection(images)
    return patches.flatten(2).transpose(1, 2), (patches.shape[2], patches.shape[3])


def projected_by_product(projection: nn.Conv2d, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """`projected_by_convolution` as one matrix product.

    For a GPU: cuDNN has no fast kernel for patches that do not overlap (0.41 ms forwards for 64
    images of 224 x 224 in bfloat16 on an H200, where the product needs a few hundredths).
    """
    side = projection.kernel_size[0]
    grid = (images.shape[2] // side, images.shape[3] // side)
    whole = images[:, :, : grid[0] * side, : grid[1] * side]
    patches = whole.unflatten(3, (grid[1], side)).unflatten(2, (grid[0], side))
    patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, P, 3 · side²]
    return F.linear(patches, projection.weight.flatten(1), projection.bias), grid


def require_count(name: str, count: SupportsIndex, least: int, most: int) -> int:
    """How many classes or labels a model is to have, such as masks can hold.

    Raises:
        ValueError: more, or fewer, or not a whole number.
    """
    with suppress(TypeError):  # not a whole number
        whole = operator.index(count)
        if not isinstance(count, bool) and least <= whole <= most:
            return whole
    raise ValueError(f"{name}: expected {least} to {most}, got {count!r:.40}")


class BackboneModel(nn.Module):
    """What the models of both stages share: a configuration and the backbone built from it.

    Args:
        config: what the model was built from, stored in its checkpoints.
        vit: the backbone.
    """

    def __init__(self, config: BackboneConfig, vit: ViT) -> None:
        super().__init__()
        self.config = config
        self.vit = vit

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.vit.patch_size

    @property
    def normalization(self) -> Normalization:
        """(mean, std) per RGB channel in [0, 1]."""
        return self.vit.normalization

    def recompute_blocks(self, enabled: bool) -> None:
        """Train with less memory and the same results, at the cost of a second forward pass.

        Of each transformer block only what enters it is kept for the gradient.
        """
        self.vit.recompute = enabled


def blocks_of(layers: Sequence[int], depth: int, setting: str = "layers") -> tuple[int, ...]:
    """Blocks 0..depth-1 that may be counted from the end, -1 = the last, each once.

    Args:
        layers: the blocks.
        depth: how many there are.
        setting: where they are from, for the error.

    Raises:
        ValueError: there is no such block, or one is named twice.
    """
    blocks = tuple(index % depth for index in layers)
    if any(not -depth <= index < depth for index in layers) or len({*blocks}) < len(blocks):
        raise ValueError(
            f"{setting}: expected blocks {-depth}..{depth - 1}, each once, got {list(layers)}"
        )
    return blocks


def create_backbone(config: BackboneConfig) -> Any:
    """`timm.create_model` with random weights, no classifier, checked to be a plain ViT.

    Raises:
        ValueError: a backbone that is none of timm's own, arguments that timm cannot build, or no
            plain ViT.
    """
    backbone = config.backbone
    if not re.fullmatch(r"\w+(\.[\w.-]+)?", backbone) or not timm.is_model(backbone.split(".")[0]):
        family = re.split(r"\W|_", backbone)[0]
        near = timm.list_models(f"*{family}*")[:8]
        raise ValueError(f"backbone: timm has no model {backbone!r:.99}; some that it has: {near}")
    patch_size = {} if config.patch_size is None else {"patch_size": config.patch_size}
    try:
        model: Any = timm.create_model(
            backbone,
            pretrained=False,
            num_classes=0,
            global_pool="",
            img_size=config.image_size,
            drop_path_rate=config.drop_path,
            dynamic_img_size=True,
            **{**config.backbone_args, **patch_size},
        )
    except TypeError as error:  # convolutional and windowed models do not take these arguments
        raise ValueError(f"backbone: {backbone!r} is not a plain ViT ({error})") from error
    except (AssertionError, ArithmeticError, AttributeError, LookupError, RuntimeError) as error:
        raise ValueError(
            f"backbone: {backbone!r} cannot be built with image_size {config.image_size} and "
            f"backbone_args {config.backbone_args} ({type(error).__name__}: {error})"
        ) from error
    block: Any = model.blocks[0] if hasattr(model, "blocks") else None
    plain = isinstance(block, Block | EvaBlock) and isinstance(
        block.attn, Attention | AttentionRope | EvaAttention
    )
    if not plain:
        raise ValueError(
            f"backbone: {backbone!r} is not a plain ViT (blocks of {type(block).__name__}); "
            "expected a DeiT, AugReg, DINOv2, DINOv3, SigLIP or EVA-02 type model"
        )
    return model


@cache
def _warn_of_mixed_positions(grid: tuple[int, int], stored_grid: tuple[int, int]) -> None:
    """Say once that positions of one grid are used for another."""
    log.warning(
        "position=published_seg takes the positions of %d x %d patches as they are for %d x %d, "
        "as the published code does; position=timm resizes them", *stored_grid, *grid,
    )  # fmt: skip


def _as_image(position: Tensor, height: int) -> Tensor:
    """[1, P, D] -> [1, D, h, w]."""
    return position.unflatten(1, (height, -1)).permute(0, 3, 1, 2)


def _published_cam_position(
    stored: Tensor, grid: tuple[int, int], size: tuple[int, int], stored_grid: tuple[int, int]
) -> Tensor:
    """Stage 1 of the published code: bicubic with scale (h + 0.1) / h0, likewise across.

    An image with the stored grid takes the stored positions unchanged; if that grid is square, so
    must be the image. The published code knows square grids only, where h0 = √P0.
    """
    if grid == stored_grid and (size[0] == size[1] or grid[0] != grid[1]):
        return stored
    height, width = stored_grid
    resized = F.interpolate(
        _as_image(stored, height),
        scale_factor=((grid[0] + 0.1) / height, (grid[1] + 0.1) / width),
        mode="bicubic",
        align_corners=False,
    )
    return resized.flatten(2).transpose(1, 2)


def _published_seg_position(
    stored: Tensor, grid: tuple[int, int], stored_grid: tuple[int, int]
) -> Tensor:
    """Stage 2 of the published code: bilinear to the exact grid where the token count differs.

    So a model of 4 × 4 patches takes its positions as they are for 2 × 8 patches, which mixes them
    up (reference.md 34); a warning says so. Published models never meet such a grid.
    """
    if grid[0] * grid[1] == stored.shape[1]:
        if grid != stored_grid:
            _warn_of_mixed_positions(grid, stored_grid)
        return stored
    resized = F.interpolate(
        _as_image(stored, stored_grid[0]), size=grid, mode="bilinear", align_corners=False
    )
    return resized.flatten(2).transpose(1, 2)
