"""Tensors of the published code's checkpoints -> our models.

Models built here compute exactly what the published code computes: its position interpolation, its
LayerNorm epsilons, and no final norm in stage 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from weaktr.config import CamModelConfig, Decoder, Pool, SegModelConfig
from weaktr.models.cam import CamModel
from weaktr.models.checkpoints import built
from weaktr.models.pretrained import timm_name
from weaktr.models.segmenter import Segmenter
from weaktr.models.vit import Normalization

State = dict[str, Tensor]

#: The fusion's layers, published name -> ours.
FUSION_NAMES = {
    "adaptive_attention_fusion.attn_head_ffn.0.": "fusion.map_hidden.",
    "adaptive_attention_fusion.attn_head_ffn.2.": "fusion.map_score.",
    "adaptive_attention_fusion.attn_feat_ffn.0.": "fusion.feature_hidden.",
    "adaptive_attention_fusion.attn_feat_ffn.1.": "fusion.feature_score.",
}
#: Published LayerNorm epsilon by stage.
CAM_NORM_EPS, SEGMENTER_NORM_EPS = 1e-6, 1e-5
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
#: What the published ``normalization`` setting of stage 2 means: (mean, std).
NORMALIZATIONS = {"deit": IMAGENET, "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), "eva02": CLIP}

#: timm names that give each kind its architecture and normalisation, by which a training goes on
#: from an imported model; every size is overridden from the tensors.
BACKBONES = {
    "deit": "deit_small_patch16_224",
    "augreg": "vit_small_patch16_224",
    "deit_distilled": "deit_small_patch16_224",
    "dinov2": "vit_small_patch14_dinov2",
    "eva02": "eva02_small_patch14_224",
}


def cam_model_from_published(
    state_dict: Mapping[str, Tensor],
    *,
    num_heads: int,
    reduction: float,
    feat_reduction: float,
    pool: Pool,
) -> CamModel:
    """A stage-1 model of the published code.

    Args:
        state_dict: tensors under the published names.
        num_heads: attention heads of the backbone (the tensors do not show it).
        reduction, feat_reduction, pool: of the fusion, as trained.

    Returns:
        `CamModel` in eval mode.

    Raises:
        ValueError: tensors missing, unknown or of the wrong shape.
    """
    require(state_dict, "cls_token", "pos_embed", "patch_embed.proj.weight", "head.weight")
    _, classes, dim = shape_of(state_dict, "cls_token", 3)
    side = _square_side(shape_of(state_dict, "pos_embed", 3)[1] - classes, "pos_embed")
    patch = shape_of(state_dict, "patch_embed.proj.weight", 4)[-1]
    config = CamModelConfig(
        BACKBONES["deit"],
        weights=None,
        image_size=side * patch,
        patch_size=patch,
        drop_path=0.0,
        pool=pool,
        reduction=reduction,
        feat_reduction=feat_reduction,
        position="published_cam",
        norm_eps=CAM_NORM_EPS,
        backbone_args=_sizes(state_dict, dim, num_heads),
    )
    model = built(lambda: CamModel(config, classes), cam_names(state_dict))
    model.vit.normalization = IMAGENET
    return model.eval()


def cam_names(tensors: Mapping[str, Tensor]) -> State:
    """Tensors (weights or gradients) of a published stage-1 model under our names."""
    out: State = {}
    for key, value in tensors.items():
        for old, new in FUSION_NAMES.items():
            if key.startswith(old):
                out[new + key.removeprefix(old)] = value
                break
        else:
            out[key if key.startswith("head.") else f"vit.{key}"] = value
    return out


def segmenter_from_published(
    state_dict: Mapping[str, Tensor],
    *,
    encoder_heads: int,
    decoder_heads: int | None = None,
    decoder: Decoder = "mask_transformer",
    patch_size: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    normalization: Normalization | None = None,
) -> Segmenter:
    """A stage-2 model of the published code.

    DeiT, distilled DeiT, AugReg, DINOv2 and EVA-02 encoders are recognised by their keys; DeiT and
    AugReg have the same keys and arithmetic and differ only in `normalization`.

    Args:
        state_dict: tensors under the published names (``encoder.``, ``decoder.``).
        encoder_heads, decoder_heads: attention heads (the tensors do not show them); the decoder's
            default is D / 64, at least 1.
        decoder: see `SegModelConfig`.
        patch_size: checked against the patch projection where given.
        image_size: training crop in pixels; from a square position grid where None.
        normalization: (mean, std); ImageNet's (CLIP's for EVA-02) where None.

    Returns:
        `Segmenter` in eval mode.

    Raises:
        ValueError: tensors missing, unknown or of the wrong shape, sizes that contradict them.
    """
    kernel, position = "encoder.patch_embed.proj.weight", "encoder.pos_embed"
    require(state_dict, "encoder.cls_token", kernel, position)
    dim, _, _, patch = shape_of(state_dict, kernel, 4)
    if patch_size not in (None, patch):
        raise ValueError(f"patch_size: the patch projection says {patch}, got {patch_size}")
    kind = encoder_kind(state_dict)
    prefix = 2 if kind == "deit_distilled" else 1
    if image_size is None:
        image_size = patch * _square_side(shape_of(state_dict, position, 3)[1] - prefix, position)
    encoder = {
        k.removeprefix("encoder."): v for k, v in state_dict.items() if k.startswith("encoder.")
    }
    labelled = "decoder.head.weight" if decoder == "linear" else "decoder.mask_norm.weight"
    require(state_dict, labelled)
    if not state_dict[labelled].ndim:
        raise ValueError(f"{labelled}: expected an entry for each label, got a number")
    is_augreg = kind == "deit" and normalization == NORMALIZATIONS["vit"]
    config = SegModelConfig(
        BACKBONES["augreg" if is_augreg else kind],
        weights=None,
        decoder=decoder,
        decoder_layers=depth_of(state_dict, "decoder.blocks."),
        decoder_heads=decoder_heads,
        image_size=image_size,
        patch_size=patch,
        position="published_seg",
        norm_eps=SEGMENTER_NORM_EPS,
        class_tokens=prefix,
        backbone_args=_sizes(encoder, dim, encoder_heads),
    )
    num_labels = state_dict[labelled].shape[0]
    model = built(lambda: Segmenter(config, num_labels), segmenter_names(state_dict))
    default = CLIP if kind == "eva02" else IMAGENET
    model.vit.normalization = default if normalization is None else normalization
    return model.eval()


def encoder_kind(state_dict: Mapping[str, Tensor]) -> str:
    """Which family the encoder of a stage-2 checkpoint is: a key of `BACKBONES`."""
    if "encoder.blocks.0.attn.q_bias" in state_dict:
        return "eva02"
    if "encoder.blocks.0.ls1.gamma" in state_dict:
        return "dinov2"
    return "deit_distilled" if "encoder.dist_token" in state_dict else "deit"


def segmenter_names(tensors: Mapping[str, Tensor]) -> State:
    """Tensors (weights or gradients) of a published stage-2 model under our names.

    The unused classifier and EVA-02's constant rotary tables are dropped; the distillation token
    becomes the second class token.
    """
    out: State = {}
    for key, value in tensors.items():
        if key.startswith(("encoder.head.", "encoder.head_dist.")) or "rope." in key:
            continue
        ours = "vit." + key.removeprefix("encoder.") if key.startswith("encoder.") else key
        out[timm_name(ours)] = value
    if "vit.dist_token" in out:
        out["vit.cls_token"] = torch.cat([out["vit.cls_token"], out.pop("vit.dist_token")], 1)
    return out


def _sizes(encoder: Mapping[str, Tensor], dim: int, heads: int) -> dict[str, int | float]:
    """timm arguments for width, depth, heads and MLP width, read from tensor shapes."""
    if heads < 1 or dim % heads:
        raise ValueError(f"heads: expected a divisor of the width {dim}, got {heads}")
    if "blocks.0.mlp.fc1.weight" not in encoder:
        width = shape_of(encoder, "blocks.0.mlp.w3.weight", 2)[1]
    else:
        width = shape_of(encoder, "blocks.0.mlp.fc1.weight", 2)[0]
    return {
        "embed_dim": dim,
        "depth": depth_of(encoder, "blocks."),
        "num_heads": heads,
        # half a unit more, so that timm's int(dim * ratio) cannot round down to hidden - 1
        "mlp_ratio": (width + 0.5) / dim,
    }


def depth_of(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of blocks, from keys ``{prefix}{index}.``.

    Raises:
        ValueError: a block between others is missing.
    """
    matches = (re.match(re.escape(prefix) + r"(\d{1,9})\.", key) for key in tensors)
    indices = {int(match[1]) for match in matches if match}
    depth = max(indices, default=-1) + 1
    if depth > len(indices):
        gap = next(index for index in range(depth) if index not in indices)
        raise ValueError(f"state_dict: missing {prefix}{gap} of {depth} blocks")
    return depth


def shape_of(tensors: Mapping[str, Tensor], name: str, sides: int) -> tuple[int, ...]:
    """The shape of a tensor.

    Raises:
        ValueError: there is none, or it has another number of sides, or nothing in it.
    """
    require(tensors, name)
    shape = tuple(tensors[name].shape)
    if len(shape) != sides or 0 in shape:
        raise ValueError(f"{name}: expected a shape of {sides} sides, got {shape}")
    return shape


def _square_side(count: int, name: str) -> int:
    side = math.isqrt(max(count, 0))
    if side * side != count or side == 0:
        raise ValueError(
            f"{name}: {count} patch positions are no square grid; give image_size where it applies"
        )
    return side


def require(tensors: Mapping[str, Tensor], *names: str) -> None:
    """Raise ValueError that names those of `names` which are not among the tensors."""
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"state_dict: missing {', '.join(missing)}; has {list(tensors)[:4]} ...")
