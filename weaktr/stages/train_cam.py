"""Stage 1: images and image-level labels -> checkpoint.

    loss = soft_margin(class_logits) + soft_margin(coarse_logits) + soft_margin(fine_logits)

Source: reference.md 15-22.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import torch.nn.functional as F
from timm.scheduler import CosineLRScheduler
from torch import Tensor

from weaktr import processes
from weaktr.data.datasets import CamDataset, SeededDataset
from weaktr.data.transforms import Normalization, cam_train_transform
from weaktr.evaluation.conditions import split_name
from weaktr.evaluation.iou import scored
from weaktr.evaluation.models import cam_curve
from weaktr.inference.cams import CamsOfModel
from weaktr.inference.head_inputs import as_computed, head_inputs_dataset, reasons_against
from weaktr.inference.threshold import THRESHOLDS, best_threshold, drawn, mean_fisher_curve
from weaktr.models import CamModel, CamOutput
from weaktr.models.cam import HeadInputs
from weaktr.models.pretrained import load_backbone
from weaktr.stages.carried import save_model
from weaktr.stages.run import MODEL, Run, Stage, at_most_lr, cam_settings, model_digest
from weaktr.stages.train_patches import train_patches
from weaktr.training.compiling import compiled
from weaktr.training.loader import EpochLoader
from weaktr.training.loop import TrainingLoop
from weaktr.training.loss_log import METRICS
from weaktr.training.metrics import entries_in
from weaktr.training.optimizers import cam_optimizer
from weaktr.training.state import set_seeds

log = logging.getLogger("weaktr")

#: Training images by which an epoch is chosen.
CONTRAST_IMAGES = 100


def train_cam(run: Run, folder: Path) -> int:
    """Train the CAM model; continues from the last checkpoint in its folder.

    Args:
        run: `Recipe.cam_model` and `Recipe.train_cam` are used.
        folder: gets checkpoints, ``metrics.jsonl`` and ``model.safetensors``, all of them of the
            first process.

    Returns:
        0, since a training leaves no image out; with ``cam_model.kind: patches`` see
        `train_patches`.
    """
    recipe, settings = run.recipe, run.recipe.train_cam
    if recipe.cam_model.kind == "patches":
        return train_patches(run, folder)
    set_seeds(recipe.seed)
    model = CamModel(recipe.cam_model, len(run.train_images.classes))
    load_backbone(model.vit, recipe.cam_model)
    model = model.to(run.device)
    model.recompute_blocks(settings.recompute)
    reasons = reasons_against(model, settings)
    if reasons and settings.backbone_lr == 0 and settings.class_tokens == "frozen":
        log.info(
            "the backbone is frozen, but photographs pass through it in every epoch: %s",
            "; ".join(reasons),
        )
    passes_once = not reasons
    if passes_once:
        dataset: SeededDataset = head_inputs_dataset(
            model, run.train_images, settings, run.cache, run.contents, recipe.seed
        )
    else:
        dataset = crops_of(model, run)
    workers = 0 if passes_once else recipe.num_workers  # memory needs no other process
    loader = EpochLoader(dataset, settings.batch_size, recipe.seed, workers, run.device)
    optimizer = cam_optimizer(
        model,
        settings.lr,
        settings.weight_decay,
        backbone_lr=settings.backbone_lr,
        class_tokens=settings.class_tokens,
    )
    batches = len(loader)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=max(1, settings.epochs * batches),  # timm refuses 0
        lr_min=at_most_lr(settings, "min_lr"),
        warmup_t=settings.warmup_epochs * batches,  # type: ignore[arg-type] # a float is fine
        warmup_lr_init=at_most_lr(settings, "warmup_lr"),
        t_in_epochs=False,
    )

    def set_lr(epoch: int, step: int) -> None:
        one_epoch_late = max(0, epoch - 1) * batches
        schedule.step_update(
            one_epoch_late if settings.lag_one_epoch else step * settings.accumulate
        )

    def losses(*batch: Tensor) -> dict[str, Tensor]:
        *parts, targets = batch
        inputs = as_computed(HeadInputs(*parts)) if passes_once else None
        output = model(*parts) if inputs is None else model.outputs(inputs)
        return cam_losses(output, targets, settings.batch_size)

    loop = TrainingLoop(folder, model, optimizer, loader, settings, recipe, set_lr)
    chooses = settings.choose == "fisher"
    chosen = BestEpoch(run, folder) if chooses and processes.is_first() else None

    def consider(model: CamModel) -> dict[str, float]:
        assert chosen is not None  # the first process asks it
        return chosen.consider(model)

    def validate(model: CamModel) -> dict[str, float]:
        scores = scores_of(model, run)
        return scores | (processes.of_first(lambda: consider(model)) if chooses else {})

    watch = validate if settings.validate_every else None
    trained = loop.train(compiled(losses, settings.compile), watch)
    if processes.is_first() and (chosen is None or not chosen.is_saved):
        save_model(trained, run, folder)
    return 0


def crops_of(model: CamModel, run: Run) -> CamDataset:
    """Augmented crops of the photographs, with their classes."""
    transform = cam_train_transform(
        run.recipe.cam_model.image_size,
        normalization=cast(Normalization, model.normalization),
        **asdict(run.recipe.train_cam.augment),
    )
    return CamDataset(run.train_images, transform, seed=run.recipe.seed)


def scores_of(model: CamModel, run: Run) -> dict[str, float]:
    """What the CAMs of `Run.score` score at their best threshold, for the log."""
    recipe, watched = run.recipe, run.score
    curve = cam_curve(model, watched.samples, recipe.label, recipe.evaluate)
    best = scored(curve.best, f"CAMs against {split_name(watched)}")
    if best is None:
        return {}
    threshold, scores = best
    log.info(
        "CAM mIoU %.1f (%d images, scales %s, threshold %.2f); does not affect the training",
        scores.miou, scores.images, recipe.label.scales, threshold,
    )  # fmt: skip
    return {"cam_miou": scores.miou, "cam_threshold": threshold}


class BestEpoch:
    """Saves the model of the epoch with the largest `contrast` of those that it is shown.

    Args:
        run: whose training it is.
        folder: of the stage; its log says which epochs were considered before.
    """

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        logged = [entry.get("fisher") for entry in entries_in(folder / METRICS)]
        self.best = max((value for value in logged if isinstance(value, float)), default=0.0)

    @property
    def is_saved(self) -> bool:
        """Whether a model was chosen."""
        return self.best > 0 and (self.folder / MODEL).is_file()

    def consider(self, model: CamModel) -> dict[str, float]:
        """Save a model in eval mode if it is the best so far; returns its scores for the log."""
        value, threshold = contrast(model, self.run)
        if value > self.best:
            self.best = value
            save_model(model, self.run, self.folder)
        log.info("fisher %.4f at threshold %.2f, the best so far %.4f", value, threshold, self.best)
        return {"fisher": value, "fisher_threshold": threshold}


def contrast(model: CamModel, run: Run) -> tuple[float, float]:
    """How much foreground and background differ in the patch features of a model.

    Args:
        model: in eval mode.
        run: `CONTRAST_IMAGES` of its training images are looked at, always the same ones.

    Returns:
        The mean of `fisher_curve` at its best threshold, and that threshold.
    """
    settings = run.recipe.label
    source = CamsOfModel(model, settings, with_features=True)
    samples = drawn([sample for sample in run.train_images if sample.labels], CONTRAST_IMAGES)
    values, _ = mean_fisher_curve(source, samples, settings.queue_mb, "fisher")
    return float(values.max()), best_threshold(THRESHOLDS, values.tolist())


def cam_losses(output: CamOutput, targets: Tensor, batch: int | None = None) -> dict[str, Tensor]:
    """The three parts of the loss.

    Args:
        output: of `CamModel`, each [B, C] logits.
        targets: [B, C] multi-hot.
        batch: images of the whole batch where these are a part of it, whose losses are then their
            share of the batch's; None = these are all.

    Returns:
        "class", "coarse" and "fine": scalars.

    Source: reference.md 15.
    """
    losses = {
        "class": F.multilabel_soft_margin_loss(output.class_logits.float(), targets),
        "coarse": F.multilabel_soft_margin_loss(output.coarse_logits.float(), targets),
        "fine": F.multilabel_soft_margin_loss(output.fine_logits.float(), targets),
    }
    if batch is None or batch == len(targets):
        return losses
    return {name: loss * (len(targets) / batch) for name, loss in losses.items()}


def settings_of_choice(run: Run) -> dict[str, Any]:
    """`Stage.also`: the CAMs by which an epoch is chosen."""
    settings = run.recipe.train_cam
    is_chosen = settings.choose == "fisher" and run.recipe.cam_model.kind != "patches"
    return cam_settings(run.recipe) if is_chosen else {}


TRAIN_CAM = Stage(
    "train_cam",
    settings=("seed", "cam_model", "train_cam"),
    also=settings_of_choice,
    images=lambda run: [run.train_images],
    work=train_cam,
    result=model_digest,
    weights=lambda run: run.recipe.cam_model.weights,
)
