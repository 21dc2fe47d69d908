"""Released checkpoints of the published code -> native ones.

Stage, classes, depth, heads, backbone family, patch size, training size and decoder follow from
the names and shapes of the tensors. Two facts do not: how stage 1 pooled (avg or max) and, since
DeiT and AugReg have the same tensors, the normalisation of the images. They come from the caller,
from the ``variant.yml`` beside the checkpoint, or from the published commands where only one value
fits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from weaktr.config import Decoder, Pool
from weaktr.data.classes import COCO80, COCO90, VOC, Classes
from weaktr.models import checkpoints
from weaktr.models.cam import POOLS, CamModel
from weaktr.models.checkpoints import require_finite
from weaktr.models.released.state_dicts import (
    NORMALIZATIONS,
    cam_model_from_published,
    depth_of,
    encoder_kind,
    require,
    segmenter_from_published,
    shape_of,
)
from weaktr.models.released.torch_file import read_torch_file, weights_in
from weaktr.models.released.variant import FILE_NAME, Variant, read_variant
from weaktr.models.segmenter import Segmenter

#: Plain facts beside the weights that are carried over.
FACTS = ("epoch", "miou", "n_cls")
#: The data sets of the published models, by number of classes.
KNOWN_CLASSES = {len(classes): classes for classes in (VOC, COCO80, COCO90)}
#: Width of a head in every published model.
HEAD_WIDTH = 64
#: `reduction` of the published stage-1 commands; with it they pool by max.
PUBLISHED_REDUCTION = 8.0
#: Normalisation of the families that were published with a single one.
FAMILY_NORMALIZATION = {"deit_distilled": "deit", "dinov2": "deit", "eva02": "eva02"}


#: Under which name the description of an imported checkpoint says where it came from.
PUBLISHED = "published"


@dataclass(frozen=True)
class Choices:
    """What the caller may set where tensors and ``variant.yml`` do not.

    Args:
        variant: path of a ``variant.yml``; the one beside the checkpoint where None.
        normalization: a key of `NORMALIZATIONS`, for stage 2.
        pool: "avg" or "max", for stage 1.
        classes: C class names; VOC's or COCO's where the number fits and None is given.
    """

    variant: Path | None = None
    normalization: str | None = None
    pool: str | None = None
    classes: Sequence[str] | None = None


@dataclass(frozen=True)
class Imported:
    """A native checkpoint and facts about the published one that it comes from.

    Args:
        path: its ``model.safetensors``.
        model: what is in it, in eval mode.
        classes: the foreground classes.
        facts: of the published file: name, SHA-256, epoch and mIoU where they were stored.
        variant: the settings in ``variant.yml``.
        source: that file; None = there was none.
    """

    path: Path
    model: CamModel | Segmenter
    classes: Classes
    facts: dict[str, Any]
    variant: Variant
    source: Path | None


def import_checkpoint(path: Path, out: Path, choices: Choices | None = None) -> Imported:
    """Turn a released ``.pth`` of stage 1 or 2 into a native checkpoint.

    Args:
        path: the file; see `weaktr.models.released.torch_file` for what it may hold beside tensors.
        out: folder; gets ``model.safetensors`` and ``model.json``.
        choices: see `Choices`.

    Returns:
        `Imported`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a checkpoint; tensors missing, unknown or misshapen; a variant.yml that
            contradicts them; a fact that is neither in the tensors nor given.
    """
    choices = choices or Choices()
    state, facts = read_published(path)
    beside = path.parent / FILE_NAME
    source = choices.variant or (beside if beside.is_file() else None)
    variant = Variant() if source is None else read_variant(source)
    model: CamModel | Segmenter
    try:
        stage = stage_of(state)
        if variant.stage not in (None, stage):
            raise ValueError(
                f"{source} belongs to a {variant.stage} training, {path.name} is a {stage} "
                "checkpoint (cam = stage 1, segmenter = stage 2); give its own with --variant"
            )
        idle = "normalization" if stage == "cam" else "pool"
        if getattr(choices, idle) is not None:
            other = 2 if stage == "cam" else 1
            raise ValueError(
                f"{idle}: of stage {other}, which this checkpoint is not: leave it out"
            )
        if stage == "cam":
            model = _cam_model(state, variant, choices)
            classes = _classes(model.num_classes, choices.classes)
        else:
            model = _segmenter(state, variant, choices, facts)
            classes = _classes(model.num_labels - 1, choices.classes)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {"file": path.name, "sha256": sha256, **facts}
    class_list = {"names": classes.names, "ids": classes.ids}
    target = out / "model.safetensors"
    target = checkpoints.save(model, target, classes=class_list, **{PUBLISHED: facts})
    return Imported(target, model, classes, facts, variant, source)


def read_published(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights under their published names and plain facts (epoch, miou, n_cls) of a ``.pth``.

    The weights may be the whole file or below one of its entries (`weights_in`).

    Raises:
        FileNotFoundError, ValueError: see `read_torch_file`; no weights in it, or broken ones.
    """
    raw = read_torch_file(path)
    try:
        state = weights_in(raw)
        if strange := [k for k, v in state.items() if not isinstance(v, Tensor)]:
            raise ValueError(f"expected tensors only, but {', '.join(strange[:5])} is none")
        require_finite(state)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    facts = raw if isinstance(raw, dict) else {}
    numbers = {key: facts[key] for key in FACTS if isinstance(facts.get(key), int | float)}
    return state, {key: value for key, value in numbers.items() if abs(value) < 1e15}


def stage_of(state: Mapping[str, Tensor]) -> str:
    """The stage by the tensors' names: "cam" (stage 1) or "segmenter" (stage 2).

    Raises:
        ValueError: neither; the message says what the file seems to be.
    """
    if any(key.startswith("adaptive_attention_fusion.") for key in state):
        return "cam"
    if any(key.startswith("encoder.") for key in state):
        if any(key.startswith("decoder.") for key in state):
            return "segmenter"
    elif "patch_embed.proj.weight" in state:
        raise ValueError(
            "this is a backbone alone, not a checkpoint of stage 1 or 2; train from it with "
            "--set cam_model.weights=FILE or --set seg_model.weights=FILE"
        )
    raise ValueError(
        "expected a published checkpoint with adaptive_attention_fusion.* (stage 1) or encoder.* "
        f"and decoder.* (stage 2), got {list(state)[:4]} ..."
    )


def _cam_model(state: Mapping[str, Tensor], variant: Variant, choices: Choices) -> CamModel:
    """Stage 1; heads and both reductions follow from the sizes of the fusion's layers."""
    fusion = "adaptive_attention_fusion."
    hidden, feature = f"{fusion}attn_head_ffn.0.weight", f"{fusion}attn_feat_ffn.0.weight"
    require(state, "cls_token", "blocks.0.attn.qkv.weight", hidden, feature)
    map_units, num_maps = shape_of(state, hidden, 2)
    feature_units, head_dim = shape_of(state, feature, 2)
    depth, dim = depth_of(state, "blocks."), shape_of(state, "cls_token", 3)[-1]
    if not depth or num_maps % depth or num_maps // depth * head_dim != dim:
        raise ValueError(
            f"{hidden}: {num_maps} attention maps of width {head_dim} do not come from {depth} "
            f"blocks of width {dim}; blocks are missing or left over"
        )
    reduction = _ratio(num_maps, map_units)
    if variant.reduction is not None and int(num_maps / variant.reduction) != map_units:
        raise ValueError(
            f"{FILE_NAME}: reduction {variant.reduction:g} contradicts the tensors ({reduction:g})"
        )
    return cam_model_from_published(
        state,
        num_heads=num_maps // depth,
        reduction=reduction,
        feat_reduction=_ratio(head_dim, feature_units),
        pool=_pool(reduction, variant, choices),
    )


def _pool(reduction: float, variant: Variant, choices: Choices) -> Pool:
    """How stage 1 pooled: as given, as in variant.yml, or as the published commands do."""
    pool = choices.pool or variant.pool
    if pool is None and reduction == PUBLISHED_REDUCTION:
        pool = "max"
    if pool is None:
        raise ValueError(
            "pool: no tensor tells whether stage 1 pooled by avg or max; give --pool max or "
            f"--pool avg, as trained, or the {FILE_NAME} of the training (reduction is "
            f"{reduction:g}; {PUBLISHED_REDUCTION:g} with max is what was published)"
        )
    if pool not in POOLS:
        raise ValueError(f"pool: expected one of {POOLS}, got {pool!r}")
    return cast(Pool, pool)


def _segmenter(
    state: Mapping[str, Tensor], variant: Variant, choices: Choices, facts: Mapping[str, Any]
) -> Segmenter:
    """Stage 2, checked against the settings in variant.yml and the facts in the file."""
    require(state, "encoder.cls_token", "encoder.blocks.0.attn.qkv.weight")
    dim = shape_of(state, "encoder.cls_token", 3)[-1]
    table = "encoder.rope.freqs_cos"
    head_width = shape_of(state, table, 2)[-1] if table in state else HEAD_WIDTH
    linear = "decoder.head.weight" in state
    decoder: Decoder = "linear" if linear else "mask_transformer"
    if not linear and variant.decoder == "multi_mask_transformer":  # the same tensors
        decoder = "multi_mask_transformer"
    normalization = _normalization(encoder_kind(state), variant, choices)
    model = segmenter_from_published(
        state,
        encoder_heads=variant.encoder_heads or max(1, dim // head_width),
        decoder_heads=variant.decoder_heads,
        decoder=decoder,
        patch_size=variant.patch_size,
        image_size=variant.image_size,
        normalization=NORMALIZATIONS[normalization],
    )
    claims = {  # what variant.yml or the file says, and what the tensors show
        "n_layers": (variant.depth, len(model.vit.blocks)),
        "d_model": (variant.width, dim),
        "n_cls": (variant.labels, model.num_labels),
        "n_cls of the checkpoint": (facts.get("n_cls"), model.num_labels),
        "decoder": (variant.decoder and "linear" in variant.decoder, variant.decoder and linear),
    }
    wrong = [f"{k} {a} (tensors: {b})" for k, (a, b) in claims.items() if a is not None and a != b]
    if wrong:
        raise ValueError(
            f"{FILE_NAME} belongs to another checkpoint, it contradicts the tensors: "
            + "; ".join(wrong)
        )
    return model


def _normalization(kind: str, variant: Variant, choices: Choices) -> str:
    """A key of `NORMALIZATIONS`."""
    chosen = choices.normalization or variant.normalization or FAMILY_NORMALIZATION.get(kind)
    if chosen is None:
        raise ValueError(
            f"normalization: not given, and DeiT and AugReg (WeakTr-†) have the same tensors "
            f"but other image statistics; put the {FILE_NAME} that was released with this file "
            "beside it or give it with --variant, or say --normalization deit or vit (AugReg)"
        )
    if chosen not in NORMALIZATIONS:
        raise ValueError(f"normalization: expected one of {sorted(NORMALIZATIONS)}, got {chosen!r}")
    return chosen


def _classes(count: int, names: Sequence[str] | None) -> Classes:
    """The classes by their given names, or those of VOC or COCO by their number."""
    if names is not None:
        if len(names) != count:
            raise ValueError(f"classes: expected {count} names for this model, got {len(names)}")
        return Classes(tuple(names))
    if count not in KNOWN_CLASSES:
        raise ValueError(
            f"classes: {count} is neither VOC (20) nor COCO (80 or 90); give their names with "
            "--classes FILE, one a line, without background"
        )
    return KNOWN_CLASSES[count]


def _ratio(whole: int, part: int) -> float:
    """A number r with int(whole / r) == part: whole / part where rounding allows."""
    ratio = whole / part
    return ratio if int(whole / ratio) == part else whole / (part + 0.5)
