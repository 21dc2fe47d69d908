"""Stage 2: images and pseudo labels -> checkpoint.

The loss is the cross-entropy with gradient clipping (`weaktr.ops.clipped_cross_entropy`).

Source: reference.md 41-46.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import cast

from torch import Tensor

from weaktr import data
from weaktr.config import SegModelConfig
from weaktr.data import Manifest, Sample
from weaktr.data.masks import MaskEntry, MaskFolder
from weaktr.evaluation.conditions import HELD_OUT, held_out, split_name
from weaktr.evaluation.iou import scored
from weaktr.evaluation.models import score_segmenter
from weaktr.models import Segmenter, checkpoints
from weaktr.models.pretrained import load_backbone
from weaktr.stages.label import LABEL
from weaktr.stages.masks import unusable_in_words
from weaktr.stages.run import MODEL, Run, Stage, model_digest
from weaktr.training.loop import EpochLoader, TrainingLoop, compiled
from weaktr.training.optimizers import PolynomialSchedule, segmenter_optimizer
from weaktr.training.state import set_seeds

log = logging.getLogger("weaktr")


def train_seg(run: Run, folder: Path) -> int:
    """Train the segmenter; continues from the last checkpoint in its folder.

    Args:
        run: `Recipe.seg_model` and `Recipe.train_seg` are used.
        folder: gets checkpoints, ``metrics.jsonl`` and ``model.safetensors``.

    Returns:
        How many pseudo labels cannot be used (`supervision`).
    """
    recipe, settings = run.recipe, run.recipe.train_seg
    classes = run.train.classes
    set_seeds(recipe.seed)
    config = starting_config(run)
    model = Segmenter(config, classes.num_labels)
    load_backbone(model.vit, config)
    model = model.to(run.device)
    transform = data.seg_train_transform(
        settings.crop,
        normalization=cast(data.Normalization, model.normalization),
        **asdict(settings.augment),
    )
    samples, left_out = supervision(run)
    dataset = data.SegDataset(samples, transform, seed=recipe.seed)
    loader = EpochLoader(dataset, settings.batch_size, recipe.seed, recipe.num_workers)
    optimizer = segmenter_optimizer(
        model,
        settings.lr,
        encoder_lr=settings.encoder_lr,
        layer_decay=settings.layer_decay,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        kind=settings.optimizer,
    )
    schedule = PolynomialSchedule(
        optimizer,
        t_initial=max(1, settings.epochs * (len(loader) // settings.accumulate)),  # timm refuses 0
        lr_min=settings.min_lr,
        power=settings.power,
        warmup_t=settings.warmup_steps,
        t_in_epochs=False,
    )

    def set_lr(_: int, step: int) -> None:
        schedule.step_update(step)

    def losses(images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        start, tile = settings.clip_start, settings.clip_patch
        return {"clipped": model.loss(images, labels, start_value=start, tile=tile).loss}

    watched = run.val if settings.validate_every else None
    kind, what = ("", "") if watched is None else held_out(run.train, watched)
    key = "watched_miou" if kind == HELD_OUT else f"watched_{kind}_miou"

    def validate(model: Segmenter) -> dict[str, float]:
        assert watched is not None
        score = partial(score_segmenter, model, watched.samples, recipe.predict)
        scores = scored(score, f"predictions against {split_name(watched)}")
        if scores is None:
            return {}
        log.info(
            "mIoU %.1f of %s (%d images, single scale, no flip, no CRF); not used by the training",
            scores.miou, what, scores.images,
        )  # fmt: skip
        return {key: scores.miou}

    loop = TrainingLoop(folder, model, optimizer, loader, settings, recipe, set_lr)
    trained = loop.train(compiled(losses, settings.compile), validate if watched else None)
    class_list = {"names": classes.names, "ids": classes.ids}
    checkpoints.save(trained, folder / MODEL, classes=class_list)
    return left_out


def starting_config(run: Run) -> SegModelConfig:
    """`Recipe.seg_model` with ``weights: stage1`` replaced by the run's stage-1 checkpoint.

    Raises:
        ValueError: there is none.
    """
    config = run.recipe.seg_model
    if config.weights != "stage1":
        return config
    stage1 = run.of("train_cam") / MODEL
    if not stage1.is_file():
        raise ValueError(
            f"seg_model.weights: 'stage1' needs train_cam's checkpoint, {stage1} is missing"
        )
    return replace(config, weights=str(stage1))


def supervision(run: Run) -> tuple[Manifest, int]:
    """The training images with the masks to train on: pseudo labels, or for an upper bound truth.

    Returns:
        The images, and how many are left out, which the log names, because somebody has made their
        pseudo labels something that cannot be used.

    Raises:
        ValueError: no training image has such a mask.
    """
    manifest = run.train
    if run.recipe.train_seg.masks == "truth":
        log.warning("train_seg.masks=truth: an upper bound, trained on true masks")
        samples = tuple(sample for sample in manifest.samples if sample.mask is not None)
        if not samples:
            raise ValueError(f"train_seg.masks=truth: {manifest.name} {manifest.split} has no mask")
        return replace(manifest, samples=samples), 0
    num_labels = manifest.classes.num_labels
    masks = MaskFolder(run.of("label"), verify=True, contents=run.contents, num_labels=num_labels)
    if told := unusable_in_words(masks, manifest):
        log.warning("%s: %s", masks.folder, told)
    samples = tuple(
        replace(sample, mask=masks.path(sample.name), mask_ids=None)
        for sample in manifest.samples
        if masks.is_usable(sample.name) and _is_of(masks.entries[sample.name], sample, run)
    )
    if not samples:
        raise ValueError(f"{masks.index}: no pseudo label of any training image; run label first")
    left_out = sum(sample.name in masks.unusable for sample in manifest)
    return replace(manifest, samples=samples), left_out


def _is_of(entry: MaskEntry, sample: Sample, run: Run) -> bool:
    """Whether a pseudo label is of the photograph that is there now; None = an older version's."""
    return entry.inputs is None or entry.inputs[0] == run.contents.digest(sample.image)


TRAIN_SEG = Stage(
    "train_seg",
    settings=("seed", "seg_model", "train_seg"),
    images=lambda run: [run.train],
    work=train_seg,
    result=model_digest,
    weights=lambda run: starting_config(run).weights,
    after=(LABEL,),
)
