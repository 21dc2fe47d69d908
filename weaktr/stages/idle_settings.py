"""Settings of a recipe that do nothing: others make no use of them, or a run never comes so far."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from operator import attrgetter

from weaktr.config import (
    LabelConfig,
    PredictConfig,
    Recipe,
    SegModelConfig,
    SizedTrainSegConfig,
    TrainCamConfig,
    TrainSegConfig,
)
from weaktr.inference.patch_cams import WITHOUT_EFFECT
from weaktr.stages.run import at_most_lr


def without_effect_in(recipe: Recipe) -> list[str]:
    """What to tell of settings that differ from the defaults, but of which others make no use."""
    usual, told = Recipe(), []
    for reason, names in _unused_in(recipe):
        given = [name for name in names if attrgetter(name)(recipe) != attrgetter(name)(usual)]
        if given:
            told.append(f"without effect for {reason}: {', '.join(given)}")
    return told


def _unused_in(recipe: Recipe) -> Iterator[tuple[str, list[str]]]:
    """Each setting for which others are without effect, in words, and their whole names."""
    if recipe.data.source == "manifest":  # which says it for each photograph
        yield "data.source manifest", ["data.options", "data.val_options"]
    kind = recipe.cam_model.kind
    names = ["cam_model.patches", "train_cam.patches"]
    if kind == "patches":
        of_training = (f.name for f in fields(TrainCamConfig) if f.name != "patches")
        names = [
            "cam_model.pool", "cam_model.reduction", "cam_model.feat_reduction",
            "cam_model.patch_norm", *(f"train_cam.{name}" for name in of_training),
            *(f"label.{name}" for name in WITHOUT_EFFECT),
        ]  # fmt: skip
    yield f"cam_model.kind {kind}", names
    if kind != "patches" and recipe.train_cam.warmup_epochs == 0:
        yield "train_cam.warmup_epochs 0", ["train_cam.warmup_lr"]
    if "label" in recipe.stages:
        yield from _unused_by_label(recipe.label)
    if "train_seg" in recipe.stages:
        yield from _unused_by_seg_model(recipe.seg_model)
        yield from _unused_by_train_seg(recipe.train_seg)
    if "predict" in recipe.stages and not uses_stage_crf(recipe.predict):
        yield f"predict.refiners {json.dumps(recipe.predict.refiners)}", ["predict.crf"]
    if not recipe.seg_model.image_head:
        yield "seg_model.image_head false", ["predict.image_weight"]


def _unused_by_label(settings: LabelConfig) -> Iterator[tuple[str, list[str]]]:
    """`_unused_in` of the group ``label``."""
    if not settings.soft:
        yield "label.soft false", ["label.soft_temperature", "label.soft_stride"]
    if not uses_stage_crf(settings):
        names = ["label.crf"] if uses_crf(settings) else ["label.crf", "label.gt_prob"]
        yield f"label.refiners {json.dumps(settings.refiners)}", names
    elif settings.crf is None:
        yield "label.crf null", ["label.gt_prob"]


def _unused_by_seg_model(settings: SegModelConfig) -> Iterator[tuple[str, list[str]]]:
    """`_unused_in` of the group ``seg_model``."""
    if settings.decoder == "linear":
        of_transformer = ("decoder_layers", "decoder_heads", "dropout")
        yield "seg_model.decoder linear", [f"seg_model.{name}" for name in of_transformer]


def _unused_by_train_seg(settings: TrainSegConfig) -> Iterator[tuple[str, list[str]]]:
    """`_unused_in` of the group ``train_seg``."""
    if settings.loss != "clipped":
        yield f"train_seg.loss {settings.loss}", ["train_seg.clip_start", "train_seg.clip_patch"]
    if settings.loss != "collision":
        yield f"train_seg.loss {settings.loss}", ["train_seg.loss_warmup"]
    if settings.optimizer != "sgd":
        yield f"train_seg.optimizer {settings.optimizer}", ["train_seg.momentum"]
    if settings.encoder_lr == 0:
        yield "train_seg.encoder_lr 0", ["train_seg.layer_decay"]


def uses_crf(settings: LabelConfig | PredictConfig) -> bool:
    """Whether the refiners of a stage have a CRF among them."""
    return any("crf" in (r if isinstance(r, dict) else (r,)) for r in settings.refiners)


def uses_stage_crf(settings: LabelConfig | PredictConfig) -> bool:
    """Whether ``crf`` of a stage counts: it is null, or a CRF in the list does not give its own."""
    own = [r["crf"] for r in settings.refiners if isinstance(r, dict) and "crf" in r]
    of_stage = [
        one for one in own if one is None or (isinstance(one, dict) and [*one] == ["start"])
    ]
    return settings.crf is None or "crf" in settings.refiners or bool(of_stage)


def never_reached(settings: TrainCamConfig | SizedTrainSegConfig, stage: str) -> list[str]:
    """What to tell of settings whose epoch, step or learning rate a training does not come to."""
    told = rates_above_lr(settings, stage)
    if 0 < settings.epochs < settings.validate_every:
        told.append(
            f"{stage}.validate_every: {settings.validate_every}, but there are {settings.epochs} "
            "epochs: nothing is measured"
        )
    if isinstance(settings, TrainCamConfig):
        return told
    if settings.loss == "collision" and settings.loss_warmup == 1:
        told.append(f"{stage}.loss_warmup: 1: the loss collision is never reached")
    return told


def rates_above_lr(settings: TrainCamConfig | SizedTrainSegConfig, stage: str) -> list[str]:
    """What to tell of learning rates that a schedule takes down to `lr`, its highest."""
    names = [name for name in ("warmup_lr", "min_lr") if hasattr(settings, name)]
    return [
        f"{stage}.{name}: {getattr(settings, name):g} is above {stage}.lr, {settings.lr:g}, "
        "which is taken in its place"
        for name in names
        if at_most_lr(settings, name) < getattr(settings, name)
    ]
