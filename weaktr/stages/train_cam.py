"""Stage 1: images and image-level labels -> checkpoint.

    loss = soft_margin(class_logits) + soft_margin(coarse_logits) + soft_margin(fine_logits)

Source: reference.md 15-22.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from weaktr import data
from weaktr.config import Recipe
from weaktr.data import Manifest, Sample
from weaktr.evaluation.models import cam_curve
from weaktr.models import CamModel, CamOutput, checkpoints
from weaktr.models.precision import choose_device
from weaktr.training.loop import EpochLoader, TrainingLoop, compiled
from weaktr.training.optimizers import cam_optimizer
from weaktr.training.state import set_seeds

log = logging.getLogger("weaktr")


def train_cam(
    recipe: Recipe, manifest: Manifest, folder: Path, watch: Sequence[Sample] = ()
) -> Path:
    """Train the CAM model; goes on from the last checkpoint in `folder`.

    Args:
        recipe: `Recipe.cam_model` and `Recipe.train_cam` are used.
        manifest: images and image-level labels; `weaktr.data.CamDataset` opens no mask.
        folder: gets checkpoints, ``metrics.jsonl`` and ``model.safetensors``.
        watch: samples with masks to look at every ``validate_every`` epochs. Nothing is chosen
            by them.

    Returns:
        The trained model's file.
    """
    settings = recipe.train_cam
    set_seeds(recipe.seed)
    model = CamModel(recipe.cam_model, len(manifest.classes)).to(choose_device(recipe.device))
    transform = data.cam_train_transform(
        recipe.cam_model.image_size,
        normalization=cast(data.Normalization, model.normalization),
        **asdict(settings.augment),
    )
    dataset = data.CamDataset(manifest, transform, seed=recipe.seed)
    loader = EpochLoader(dataset, settings.batch_size, recipe.seed, recipe.num_workers)
    optimizer = cam_optimizer(
        model, settings.lr, settings.weight_decay, backbone_lr=settings.backbone_lr
    )
    batches = len(loader)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=max(1, settings.epochs * batches),  # timm refuses 0
        lr_min=settings.min_lr,
        warmup_t=settings.warmup_epochs * batches,  # type: ignore[arg-type] # need not be whole
        warmup_lr_init=settings.warmup_lr,
        t_in_epochs=False,
    )

    def set_lr(epoch: int, step: int) -> None:
        one_epoch_late = max(0, epoch - 1) * batches
        schedule.step_update(
            one_epoch_late if settings.lag_one_epoch else step * settings.accumulate
        )

    def losses(images: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return cam_losses(model(images), targets)

    losses_of = compiled(losses, settings.compile)
    loop = TrainingLoop(folder, model, optimizer, loader, settings, recipe, set_lr)
    for epoch in loop.epochs():
        for images, targets in loop.batches():
            with loop.autocast():
                found = losses_of(images, targets)
            loop.backward(found)
        if watch and settings.validate_every and (epoch + 1) % settings.validate_every == 0:
            _look(loop, recipe, watch)
    classes = {"names": manifest.classes.names, "ids": manifest.classes.ids}
    return checkpoints.save(loop.finish(), folder / "model.safetensors", classes=classes)


def cam_losses(output: CamOutput, targets: Tensor) -> dict[str, Tensor]:
    """The three parts of the loss.

    Args:
        output: of `CamModel`, each [B, C] logits.
        targets: [B, C] multi-hot.

    Returns:
        "class", "coarse" and "fine": scalars.

    Source: reference.md 15.
    """
    return {
        "class": F.multilabel_soft_margin_loss(output.class_logits.float(), targets),
        "coarse": F.multilabel_soft_margin_loss(output.coarse_logits.float(), targets),
        "fine": F.multilabel_soft_margin_loss(output.fine_logits.float(), targets),
    }


def _look(loop: TrainingLoop[CamModel], recipe: Recipe, watch: Sequence[Sample]) -> None:
    """Log the CAM mIoU at the recipe's scales, for the eye only."""
    model = loop.trained_model().eval()
    threshold, found = cam_curve(model, watch, recipe.label, recipe.evaluate).best()
    log.info(
        "CAM mIoU %.1f (%d watched images, scales %s, threshold %.2f); nothing is chosen by it",
        found.miou, found.images, recipe.label.scales, threshold,
    )  # fmt: skip
    loop.log_scores({"cam_miou": found.miou, "cam_threshold": threshold})
