"""Pretrained backbone weights: read the common file formats, fit the tensors to a `ViT`.

Positions and patch projections are resized to the model's grid and patch size, one class token is
repeated for every class, and an error names the tensors that are missing or left over.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from weaktr.backbone_args import check_backbone_args
from weaktr.config import BackboneConfig
from weaktr.data.arrays import read_npz
from weaktr.messages import brief
from weaktr.models.checkpoints import (
    check_fit,
    describe,
    load_strict,
    normalization_of,
    read_safetensors,
    require_finite,
)
from weaktr.models.released.torch_file import read_torch_file, weights_in
from weaktr.models.vit import Normalization, ViT

log = logging.getLogger("weaktr")

State = dict[str, Tensor]

#: The projection of patches in a checkpoint of ours.
PROJECTION = "vit.patch_embed.proj.weight"
#: How positions are resized: timm's bicubic with antialiasing (and its pseudo-inverse patch
#: kernel), or plain "bicubic" / "bilinear" as the published code does (with a bicubic kernel).
RESIZE_METHODS = ("timm", "bicubic", "bilinear")
#: Parts of a checkpoint that no plain encoder needs.
IGNORED = (
    "head",
    "head_dist",
    "lm_head",
    "attn_pool",
    "pre_logits",
    "mask_token",
    "fusion",
    "adaptive_attention_fusion",
)
#: The frequencies of rotary positions where they are learnt; all others follow from the settings.
LEARNT_ROPE = "rope.freqs"
#: The largest patches, in pixels, that are resized (the work grows with the fourth power).
MOST_PATCH = 64
#: Names of the original EVA-02 and DINOv2 releases -> timm's.
RENAMES = (
    ("mlp.w12.", "mlp.fc1."),
    ("mlp.w1.", "mlp.fc1_g."),
    ("mlp.w2.", "mlp.fc1_x."),
    ("mlp.w3.", "mlp.fc2."),
    ("mlp.ffn_ln.", "mlp.norm."),
    ("attn.inner_attn_ln.", "attn.norm."),
    ("register_tokens", "reg_token"),
)


def load_backbone(vit: ViT, config: BackboneConfig) -> None:
    """Load the starting weights of a configuration into `vit` in place.

    Args:
        vit: the model to fill.
        config: its `weights`: None leaves them random; "timm" for the pretrained weights of
            `backbone` from timm's hub; else a file: safetensors or a torch checkpoint in timm's,
            DINOv2's or EVA-02's naming, an AugReg ``.npz``, or a checkpoint of ours or of the
            published code, whose backbone is taken (a stage-1 model gives stage 2 its backbone).
            `resize`: one of `RESIZE_METHODS`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: weights that do not fit; names what is missing or of the wrong shape.
    """
    if config.weights is not None:
        start = _starting_weights(config)
        with _named(config.weights):
            require_normalization(start.normalization, vit, config.backbone)
            load_strict(vit, fit_state(start.state, vit, config.resize, start.grid))


def check_backbone(vit: ViT, config: BackboneConfig) -> None:
    """Whether `load_backbone` could fill `vit`, which may have no memory (torch's "meta").

    The weights are read, and fitted to it by their shapes alone. Errors are those of
    `load_backbone`.
    """
    if config.weights is not None:
        start = _starting_weights(config)
        with _named(config.weights):
            require_normalization(start.normalization, vit, config.backbone)
            shapes = {name: value.to("meta") for name, value in start.state.items()}
            check_fit(vit.state_dict(), fit_state(shapes, vit, config.resize, start.grid))
            require_finite(start.state, torch.float32)


class StartingWeights(NamedTuple):
    """What `BackboneConfig.weights` stands for."""

    state: State  #: under timm's names
    grid: tuple[int, int] | None = None  #: (h, w) of the positions, where the file tells
    normalization: Normalization | None = None  #: of the images they were trained on, likewise


def _starting_weights(config: BackboneConfig) -> StartingWeights:
    if config.weights == "timm":
        return StartingWeights(timm_names(timm_state(config.backbone, config.backbone_args)))
    path = Path(str(config.weights))
    state = read_state(path)
    with _named(str(path)):
        info = _description(path, state)
        grid = stored_grid(info, state) if info else None
        return StartingWeights(timm_names(state), grid, _stored_normalization(info, state))


def require_normalization(trained: Normalization | None, vit: ViT, backbone: str) -> None:
    """Refuse weights that were trained on images normalised otherwise than `vit` expects them.

    Args:
        trained: their (mean, std); None = not known, which is not refused.
        vit: the model that they are to fill.
        backbone: its name, for the message.

    Raises:
        ValueError: they differ by more than rounding to two decimals of 255; names both.
    """
    if trained is None or np.allclose(trained, vit.normalization, rtol=0, atol=1e-4):
        return
    theirs, own = (
        " / ".join(", ".join(f"{value:.3g}" for value in values) for values in both)
        for both in (trained, vit.normalization)
    )
    raise ValueError(
        f"takes images normalised by mean / std {theirs}, and {backbone} by {own}; name a backbone "
        "of the same shape with the former (timm's deit_* have ImageNet's, its vit_* of AugReg 0.5)"
    )


@contextmanager
def _named(weights: str) -> Iterator[None]:
    """Makes an error of weights that do not fit a ValueError that names them."""
    try:
        yield
    except (ValueError, IndexError, RuntimeError) as error:
        message = " ".join(str(error).removeprefix(f"{weights}: ").split())
        raise ValueError(f"backbone weights {weights}: {message}") from error


def timm_state(backbone: str, backbone_args: Mapping[str, Any]) -> State:
    """timm's pretrained weights, from its cache or from the hub.

    Args:
        backbone, backbone_args: timm's name and arguments.

    Raises:
        ValueError: they are not in the cache and could not be downloaded, or do not fit; arguments
            that do not describe the network.
    """
    check_backbone_args(backbone_args)
    try:
        donor = timm.create_model(backbone, pretrained=True, num_classes=0, **backbone_args)
    except (OSError, RuntimeError) as error:
        raise ValueError(
            f"weights: {backbone} could not be downloaded, or is another ({error}); get the file "
            "elsewhere and give it with --set cam_model.weights=FILE or "
            "--set seg_model.weights=FILE"
        ) from error
    state: State = donor.state_dict()
    return state


def read_state(path: Path) -> State:
    """Tensors of a safetensors, npz (AugReg) or torch file; no pickled code is ever run.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or without a state dict; names the file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"weights: no file {path}")
    try:
        if path.suffix == ".npz":
            return augreg_names(path)
        tree = read_safetensors(path) if path.suffix == ".safetensors" else read_torch_file(path)
        return {k: v for k, v in weights_in(tree).items() if isinstance(v, Tensor)}
    except ValueError as error:
        message = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"weights: {path}: {message}") from error


def _description(path: Path, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """That of a checkpoint of ours; empty for other files."""
    if path.suffix != ".safetensors" or PROJECTION not in state:
        return {}
    try:
        return describe(path)
    except ValueError:  # weights of others that have the same names
        return {}


def _stored_normalization(
    info: Mapping[str, Any], state: Mapping[str, Tensor]
) -> Normalization | None:
    """(mean, std) that the weights of a file were trained with; None = it does not tell.

    Args:
        info: its `_description`.
        state: its tensors. Those of the published stage 1, by their names, have ImageNet's.

    Raises:
        ValueError: the description has none.
    """
    if info:
        return normalization_of(info)
    is_published = any(name.startswith("adaptive_attention_fusion.") for name in state)
    return (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD) if is_published else None


def stored_grid(info: Mapping[str, Any], state: Mapping[str, Tensor]) -> tuple[int, int]:
    """(h, w) of the positions in a checkpoint of ours.

    Args:
        info: its description.
        state: its tensors.

    Raises:
        ValueError: the description has no size of images, or the patches have none.
    """
    config, kernel = info.get("config"), state[PROJECTION]
    size: Any = config.get("image_size") if isinstance(config, dict) else config
    sides = size if isinstance(size, list) else [size, size]
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= 1 << 16 for side in sides):
        raise ValueError(
            "config.image_size of the description: expected one or two numbers of pixels, got "
            f"{brief(size) if size is not sides else str(sides)[:60]}"
        )
    _require_shape("patch_embed.proj.weight", kernel, 4)
    return sides[0] // kernel.shape[-2], sides[1] // kernel.shape[-1]


def timm_names(state: Mapping[str, Tensor]) -> State:
    """The encoder's tensors under timm's names; heads and buffers dropped."""
    for prefix in ("vit.", "encoder.", "backbone."):
        if any(key.startswith(prefix) for key in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
            break
    out: State = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] in IGNORED or ("rope" in parts and key != LEARNT_ROPE):
            continue
        out[timm_name(key)] = value
    if "norm.weight" not in out:  # models with average pooling call their last norm fc_norm
        out = {k.replace("fc_norm.", "norm."): v for k, v in out.items()}
    return {k: v for k, v in out.items() if not k.startswith("fc_norm.")}


def timm_name(key: str) -> str:
    """One tensor's name in the EVA-02 or DINOv2 release -> timm's."""
    for old, new in RENAMES:
        key = key.replace(old, new)
    return key


def fit_state(
    state: State, vit: ViT, resize: str = "timm", grid: tuple[int, int] | None = None
) -> State:
    """Resize and repeat the tensors of `state` (timm's names) until they fit `vit`.

    Class tokens start at random where the backbone, such as SigLIP, has none itself.

    Args:
        state: the tensors.
        vit: the model that they are to fit.
        resize: one of `RESIZE_METHODS`.
        grid: (h, w) of its positions; None = not known: square if their number is a square, else
            that of `vit`.

    Raises:
        ValueError: unknown `resize`, a position embedding that is no grid, or a token or patch
            projection that is none.
    """
    if resize not in RESIZE_METHODS:
        raise ValueError(f"resize: expected one of {RESIZE_METHODS}, got {resize!r}")
    state = dict(state)
    for name, sides in _SIDES.items():
        if name in state:
            _require_shape(name, state[name], sides)
    dist = state.pop("dist_token", None)
    cls, reg = state.get("cls_token"), state.get("reg_token")
    if "pos_embed" in state and vit.pos_embed is not None:
        prefix = [t for t in (cls, dist, reg) if t is not None]
        state["pos_embed"] = _fit_position(state, prefix, vit, resize, grid)
    if vit.cls_token is None:
        state.pop("cls_token", None)
    elif cls is not None:
        state["cls_token"] = repeat_token(state["cls_token"], vit.num_class_tokens)
    elif not vit.has_own_class_token:  # else it is missing, see `check_fit`
        log.warning("weights of a backbone without a class token: class tokens start at random")
        state["cls_token"] = vit.cls_token.detach()
    kernel = state.get("patch_embed.proj.weight")
    if kernel is not None and kernel.shape[-1] != vit.patch_size:
        wide = kernel.shape[-1]
        if kernel.shape != (vit.embed_dim, 3, wide, wide) or wide > MOST_PATCH:
            raise ValueError(
                f"patch_embed.proj.weight: expected ({vit.embed_dim}, 3, p, p) with p at most "
                f"{MOST_PATCH}, got {tuple(kernel.shape)}"
            )
        size = [vit.patch_size, vit.patch_size]
        if resize == "timm":
            kernel = resample_patch_embed(kernel, size)
        else:
            kernel = F.interpolate(kernel.float(), size=size, mode="bicubic", align_corners=False)
        state["patch_embed.proj.weight"] = kernel
    return state


#: Tensors that are resized or repeated -> how many sides they have.
_SIDES = {
    "cls_token": 3,
    "dist_token": 3,
    "reg_token": 3,
    "pos_embed": 3,
    "patch_embed.proj.weight": 4,
}


def _require_shape(name: str, tensor: Tensor, sides: int) -> None:
    """Raise ValueError unless a tensor has this number of sides, and something in it."""
    if tensor.ndim != sides or tensor.numel() == 0:
        shape = tuple(tensor.shape)
        raise ValueError(f"{name}: expected {sides} sides, none of them 0, got the shape {shape}")


def repeat_token(token: Tensor, count: int) -> Tensor:
    """[1, T, D] -> [1, count, D]: unchanged where T = count, else the mean token repeated."""
    if token.shape[1] == count:
        return token
    return token.mean(1, keepdim=True).repeat(1, count, 1)


def _fit_position(
    state: State, prefix: list[Tensor], vit: ViT, resize: str, grid: tuple[int, int] | None
) -> Tensor:
    """Position embedding of a checkpoint -> that of `vit` [1, prefix + P, D].

    Prefix tokens without positions of their own have zeros.
    """
    stored = state["pos_embed"]
    counts = [t.shape[1] for t in prefix]
    likely = (sum(counts), 1, 0) if vit.embed_prefix else (0, 1, sum(counts))
    for entries in likely:  # of prefix tokens: the others must fit `vit` or be a square grid
        own = grid_of(stored.shape[1] - entries, grid, vit.position_grid)
        if own is not None:
            break
    else:
        raise ValueError(
            f"pos_embed: {stored.shape[1]} entries are no square grid with any of {likely} prefix "
            "tokens"
        )
    patches = _resize_position(stored[:, entries:], own, vit.position_grid, resize)
    if not vit.embed_prefix:
        if entries and "cls_token" in state:  # fold the class token's position into the token
            state["cls_token"] = state["cls_token"] + stored[:, :1]
        return patches
    if not entries:  # to the prefix tokens nothing was added
        none = stored.new_zeros(1, vit.num_prefix_tokens, stored.shape[2])
        return torch.cat([none, patches], 1)
    classes = repeat_token(stored[:, : counts[0] if counts else 1], vit.num_class_tokens)
    registers = vit.num_prefix_tokens - vit.num_class_tokens
    return torch.cat([classes, stored[:, entries - registers : entries], patches], 1)


def grid_of(
    count: int, known: tuple[int, int] | None, of_model: tuple[int, int]
) -> tuple[int, int] | None:
    """(h, w) of `count` positions; None = they are no grid.

    Args:
        count: P0, of a checkpoint.
        known: its grid, where the checkpoint tells.
        of_model: the grid that is wanted.
    """
    if known is not None:
        return known if count == math.prod(known) else None
    side, fits = math.isqrt(max(count, 0)), count == math.prod(of_model)
    if side == 0 or side**2 != count:
        return of_model if fits else None
    if fits and of_model != (side, side):
        log.warning(
            "pos_embed: %d positions are taken as %d x %d, not as %d x %d",
            count, side, side, *of_model,
        )  # fmt: skip
    return side, side


def _resize_position(
    stored: Tensor, own: tuple[int, int], grid: tuple[int, int], resize: str
) -> Tensor:
    """[1, P0, D] of the grid `own` -> [1, h · w, D]."""
    if own == grid:
        return stored
    if resize == "timm":
        return resample_abs_pos_embed(stored, list(grid), list(own), num_prefix_tokens=0)
    image = stored.unflatten(1, own).permute(0, 3, 1, 2).float()
    resized = F.interpolate(image, size=grid, mode=resize, align_corners=False)
    return resized.flatten(2).transpose(1, 2).to(stored.dtype)


def augreg_names(path: Path) -> State:
    """An AugReg ``.npz`` (Flax names, HWIO kernels) -> timm's names and layouts.

    Raises:
        ValueError: damaged, or another file.
    """
    arrays = read_npz(path)
    raw = {key.removeprefix("opt/target/"): torch.from_numpy(arrays[key]) for key in arrays}
    try:
        return _augreg_state(raw)
    except (LookupError, RuntimeError) as error:
        raise ValueError(f"expected AugReg's arrays, got others ({error})") from error


def _augreg_state(raw: State) -> State:
    """The tensors of `augreg_names`; KeyError, IndexError or RuntimeError where they are others."""
    out = {
        "cls_token": raw["cls"],
        "pos_embed": raw["Transformer/posembed_input/pos_embedding"],
        "patch_embed.proj.weight": raw["embedding/kernel"].permute(3, 2, 0, 1).contiguous(),
        "patch_embed.proj.bias": raw["embedding/bias"],
        "norm.weight": raw["Transformer/encoder_norm/scale"],
        "norm.bias": raw["Transformer/encoder_norm/bias"],
    }
    if "head/kernel" in raw:
        out["head.weight"], out["head.bias"] = raw["head/kernel"].T, raw["head/bias"]
    depth = len({key.split("/")[1] for key in raw if key.startswith("Transformer/encoderblock_")})
    for index in range(depth):
        out |= _augreg_block(raw, f"Transformer/encoderblock_{index}/", f"blocks.{index}.")
    return out


def _augreg_block(raw: State, source: str, target: str) -> State:
    """One transformer block of `augreg_names`."""
    attention = source + "MultiHeadDotProductAttention_1/"
    parts = ("query", "key", "value")
    out = {
        "attn.qkv.weight": torch.cat([raw[f"{attention}{n}/kernel"].flatten(1).T for n in parts]),
        "attn.qkv.bias": torch.cat([raw[f"{attention}{n}/bias"].flatten() for n in parts]),
        "attn.proj.weight": raw[f"{attention}out/kernel"].flatten(0, 1).T,
        "attn.proj.bias": raw[f"{attention}out/bias"],
    }
    for ours, theirs in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
        out[f"{ours}.weight"] = raw[f"{source}{theirs}/scale"]
        out[f"{ours}.bias"] = raw[f"{source}{theirs}/bias"]
    for ours, theirs in (("mlp.fc1", "Dense_0"), ("mlp.fc2", "Dense_1")):
        out[f"{ours}.weight"] = raw[f"{source}MlpBlock_3/{theirs}/kernel"].T
        out[f"{ours}.bias"] = raw[f"{source}MlpBlock_3/{theirs}/bias"]
    return {target + key: value.contiguous() for key, value in out.items()}
