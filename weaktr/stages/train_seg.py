"""Stage 2: images and pseudo labels -> checkpoint.

The loss is the cross-entropy with gradient clipping (`weaktr.ops.clipped_cross_entropy`).

Source: reference.md 41-46.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

from torch import Tensor

from weaktr import data
from weaktr.config import Recipe, SegModelConfig, TrainSegConfig
from weaktr.data import Manifest, Sample
from weaktr.data.masks import MaskFolder
from weaktr.evaluation.models import score_segmenter
from weaktr.models import Segmenter, checkpoints
from weaktr.models.precision import choose_device
from weaktr.training.loop import EpochLoader, TrainingLoop, compiled
from weaktr.training.optimizers import PolynomialSchedule, segmenter_optimizer
from weaktr.training.state import set_seeds

log = logging.getLogger("weaktr")


def train_seg(
    recipe: Recipe,
    manifest: Manifest,
    pseudo_labels: Path,
    folder: Path,
    *,
    stage1: Path | None = None,
    watch: Sequence[Sample] = (),
) -> Path:
    """Train the segmenter; goes on from the last checkpoint in `folder`.

    Args:
        recipe: `Recipe.seg_model` and `Recipe.train_seg` are used.
        manifest: the images (with masks only where ``train_seg.masks`` is "truth").
        pseudo_labels: folder of the label stage.
        folder: gets checkpoints, ``metrics.jsonl`` and ``model.safetensors``.
        stage1: the stage-1 checkpoint, for ``seg_model.weights: stage1``.
        watch: samples with masks to look at every ``validate_every`` epochs. Nothing is chosen
            by them.

    Returns:
        The trained model's file.
    """
    settings = recipe.train_seg
    set_seeds(recipe.seed)
    config = starting_config(recipe.seg_model, stage1)
    model = Segmenter(config, manifest.classes.num_labels).to(choose_device(recipe.device))
    labelled = supervision(settings, manifest, pseudo_labels)
    loader = _loader(recipe, labelled, cast(data.Normalization, model.normalization))
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

    losses_of = compiled(losses, settings.compile)
    loop = TrainingLoop(folder, model, optimizer, loader, settings, recipe, set_lr)
    for epoch in loop.epochs():
        for images, labels in loop.batches():
            with loop.autocast():
                found = losses_of(images, labels)
            loop.backward(found)
        if watch and settings.validate_every and (epoch + 1) % settings.validate_every == 0:
            _look(loop, recipe, watch)
    classes = {"names": manifest.classes.names, "ids": manifest.classes.ids}
    return checkpoints.save(loop.finish(), folder / "model.safetensors", classes=classes)


def starting_config(config: SegModelConfig, stage1: Path | None) -> SegModelConfig:
    """The configuration with ``weights: stage1`` replaced by the file.

    Raises:
        ValueError: ``weights: stage1`` without a stage-1 checkpoint.
    """
    if config.weights != "stage1":
        return config
    if stage1 is None or not stage1.is_file():
        raise ValueError(
            f"seg_model.weights: 'stage1' needs train_cam's checkpoint, {stage1} is missing"
        )
    return replace(config, weights=str(stage1))


def _loader(recipe: Recipe, labelled: Manifest, normalization: data.Normalization) -> EpochLoader:
    settings = recipe.train_seg
    transform = data.seg_train_transform(
        settings.crop, normalization=normalization, **asdict(settings.augment)
    )
    dataset = data.SegDataset(labelled, transform, seed=recipe.seed)
    return EpochLoader(dataset, settings.batch_size, recipe.seed, recipe.num_workers)


def supervision(settings: TrainSegConfig, manifest: Manifest, pseudo_labels: Path) -> Manifest:
    """The training images with the masks to train on: pseudo labels in all but the upper bound.

    Args:
        settings: `TrainSegConfig.masks` decides.
        manifest: the images.
        pseudo_labels: folder of the label stage.

    Raises:
        ValueError: no training image has such a mask.
    """
    if settings.masks == "truth":
        log.warning("train_seg.masks=truth: an upper bound, trained on true masks")
        samples = tuple(sample for sample in manifest.samples if sample.mask is not None)
        if not samples:
            raise ValueError(f"train_seg.masks=truth: {manifest.name} {manifest.split} has no mask")
        return replace(manifest, samples=samples)
    masks = MaskFolder(pseudo_labels)
    samples = tuple(
        replace(sample, mask=masks.path(sample.name), mask_ids=None)
        for sample in manifest.samples
        if sample.name in masks
    )
    if not samples:
        raise ValueError(f"{masks.index}: no pseudo label of any training image; run label first")
    return replace(manifest, samples=samples)


def _look(loop: TrainingLoop[Segmenter], recipe: Recipe, watch: Sequence[Sample]) -> None:
    """Log the single-scale mIoU of the watched images, for the eye only."""
    model = loop.trained_model().eval()
    found = score_segmenter(model, watch, recipe.predict)
    log.info(
        "mIoU %.1f (%d watched images, single scale, no flip, no CRF); nothing is chosen by it",
        found.miou, found.images,
    )  # fmt: skip
    loop.log_scores({"watched_miou": found.miou})
