"""Stage 2: images and pseudo labels -> checkpoint.

The loss is the cross-entropy with gradient clipping (`weaktr.ops.clipped_cross_entropy`), or
one for soft labels, of patches (`weaktr.ops.collision_cross_entropy`).

Source: reference.md 41-46.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from weaktr import processes
from weaktr.config import SegModelConfig
from weaktr.data import Manifest, Sample
from weaktr.data.datasets import SegDataset
from weaktr.data.masks import MaskFolder
from weaktr.data.parallel import ordered_map
from weaktr.data.transforms import Normalization, seg_train_transform
from weaktr.evaluation.conditions import HELD_OUT, held_out, split_name
from weaktr.evaluation.iou import scored
from weaktr.evaluation.models import score_segmenter
from weaktr.inference.features import FeatureEncoder, FeatureStore, View
from weaktr.labelling.masks import is_of, unusable_in_words
from weaktr.labelling.store import soft_file
from weaktr.messages import counted, few
from weaktr.models import Segmenter
from weaktr.models.pretrained import load_backbone
from weaktr.models.segmenter import LinearDecoder
from weaktr.ops import collision_cross_entropy, soft_cross_entropy
from weaktr.progress import track
from weaktr.stages.carried import save_model
from weaktr.stages.label import LABEL
from weaktr.stages.run import MODEL, Run, Stage, at_most_lr, model_digest, to_segment
from weaktr.training.compiling import compiled
from weaktr.training.decoder_start import start_decoder
from weaktr.training.loader import EpochLoader
from weaktr.training.loop import TrainingLoop
from weaktr.training.optimizers import PolynomialSchedule, segmenter_optimizer
from weaktr.training.segmenter_losses import (
    LEAST_SHARE,
    SILENCED,
    Losses,
    PatchLoss,
    Silence,
    balancing,
    segmenter_losses,
)
from weaktr.training.state import STATE, set_seeds

log = logging.getLogger("weaktr")

#: At most so many photographs give the discriminant from which a decoder starts.
START_FROM = 4000


def train_seg(run: Run, folder: Path) -> int:
    """Train the segmenter; continues from the last checkpoint in its folder.

    Args:
        run: `Recipe.seg_model` and `Run.train_seg` are used.
        folder: gets checkpoints, ``metrics.jsonl`` and ``model.safetensors``, all of them of the
            first process.

    Returns:
        How many pseudo labels cannot be used (`supervision`).
    """
    recipe, settings = run.recipe, run.train_seg
    set_seeds(recipe.seed)
    config = starting_config(run)
    model = Segmenter(config, run.train.classes.num_labels)
    load_backbone(model.vit, config)
    model = model.to(run.device)
    model.recompute_blocks(settings.recompute)
    learnt = supervision(run)
    log_chosen_amount(run)
    dataset = crops_of(learnt, model, run)
    loader = EpochLoader(dataset, settings.batch_size, recipe.seed, recipe.num_workers, run.device)
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
        lr_min=at_most_lr(settings, "min_lr"),
        power=settings.power,
        warmup_t=settings.warmup_steps,
        t_in_epochs=False,
    )

    weights = None
    if settings.balance:
        shares = shares_of_labels(dataset)
        weights = balancing(shares, settings.balance).to(run.device)
        model.start_from(shares.clamp_min(LEAST_SHARE))  # or it would start with rare labels
    if settings.start == "discriminant" and not processes.of_first((folder / STATE).is_file):
        assert isinstance(model.decoder, LinearDecoder)
        decoder, patches = model.decoder, labelled_patches(model, dataset, run)
        processes.of_first(lambda: start_decoder(decoder, patches))  # weights: with the first step
    run.cache.forget()  # no later stage asks for what the encoder gave

    def losses_with(patch_loss: PatchLoss) -> Callable[..., Losses]:
        def losses(*tensors: Tensor) -> Losses:
            return segmenter_losses(
                model,
                settings,
                patch_loss,
                *tensors,
                weights=weights,
                batch=settings.batch_size,
            )

        return compiled(losses, settings.compile)

    first, later = losses_with(soft_cross_entropy), losses_with(collision_cross_entropy)

    def losses(*tensors: Tensor) -> Losses:
        warmup = settings.loss_warmup * settings.epochs * loop.steps_per_epoch
        is_warm = settings.loss == "collision" and loop.step >= warmup
        return (later if is_warm else first)(*tensors)

    def set_lr(_: int, step: int) -> None:
        schedule.step_update(step)

    may_clip = settings.loss == "clipped" and settings.clip_start > 0
    watch = Silence(settings.clip_start).notice if may_clip else None
    loop = TrainingLoop(
        folder, model, optimizer, loader, settings, recipe, set_lr, beside=(SILENCED,), watch=watch
    )
    trained = loop.train(losses, validation(run) if settings.validate_every else None)
    if processes.is_first():
        save_model(trained, run, folder)
    return learnt.left_out


def log_chosen_amount(run: Run) -> None:
    """Say how long and in which batches is trained, where the photographs decide."""
    asked, settings = run.recipe.train_seg, run.train_seg
    if "auto" not in (asked.epochs, asked.batch_size):
        return
    log.info(
        "train_seg: %d epochs, %d crops in a batch, for %d photographs%s (epochs: %s, "
        "batch_size: %s)",
        settings.epochs, settings.batch_size, len(to_segment(run.train, run.recipe)),
        f", {settings.crops} crops of each" if settings.crops > 1 else "",
        asked.epochs, asked.batch_size,
    )  # fmt: skip


def crops_of(learnt: Supervision, model: Segmenter, run: Run) -> SegDataset:
    """Augmented crops of the photographs, with what is learnt of them."""
    settings = run.train_seg
    transform = seg_train_transform(
        settings.crop,
        normalization=cast(Normalization, model.normalization),
        **asdict(settings.augment),
        patch_size=model.patch_size,
    )
    return SegDataset(
        learnt.images,
        transform,
        seed=run.recipe.seed,
        patch_size=None if settings.loss == "clipped" else model.patch_size,
        soft=learnt.soft,
        with_classes=model.config.image_head,
        crops=settings.crops,
    )


def validation(run: Run) -> Callable[[Segmenter], dict[str, float]]:
    """What scores a model on `Run.val`, for the log."""
    watched = run.val
    kind, what = held_out(run.train, watched)
    key = "watched_miou" if kind == HELD_OUT else f"watched_{kind}_miou"

    def validate(model: Segmenter) -> dict[str, float]:
        score = partial(score_segmenter, model, watched.samples, run.recipe.predict)
        scores = scored(score, f"predictions against {split_name(watched)}")
        if scores is None:
            return {}
        log.info(
            "mIoU %.1f of %s (%d images, single scale, no flip, no CRF); not used by the training",
            scores.miou, what, scores.images,
        )  # fmt: skip
        return {key: scores.miou}

    return validate


def shares_of_labels(dataset: SegDataset) -> Tensor:
    """How large a share of what is learnt each label has, each photograph as large as any other.

    Returns:
        float32 [L], sums to 1. What is ignored does not count; where there is nothing else, all
        labels have the same share.
    """
    title = "how frequent labels are"
    masses = ordered_map(dataset.mass, dataset.samples)
    every = track(masses, title, len(dataset.samples), is_minor=True)
    total = sum(every, torch.zeros(dataset.num_labels, dtype=torch.float64))
    if not total.any():
        total = torch.ones_like(total)
    return (total / total.sum()).float()


def labelled_patches(
    model: Segmenter, dataset: SegDataset, run: Run
) -> Iterator[tuple[Tensor, Tensor]]:
    """What the decoder gets of photographs before training, and the labels of that.

    All of them, or of more than `START_FROM` evenly so many, pass through the encoder as a whole,
    at the short side of the training. The last block's features are always kept too, so that both
    stages can share what they keep.

    Yields:
        Features float32 [P, W] of the patches that have labels, and their shares [P, L].
    """
    depth = len(model.vit.blocks)
    encoder = FeatureEncoder(
        model.config,
        run.device,
        layers=[index for index in model.layers if index != depth - 1],
        vit=deepcopy(model.vit),
    )
    view = View(run.train_seg.augment.short_side)
    store = FeatureStore(encoder, run.cache, view, run.contents)
    index = {sample.name: index for index, sample in enumerate(dataset.samples)}
    for sample, found in store.of(dataset.samples[:: -(-len(dataset.samples) // START_FROM)]):
        others = iter(found.layers)
        maps = [found.patches if i == depth - 1 else next(others) for i in model.layers]
        shares = dataset.shares(index[sample.name], (maps[0].shape[0], maps[0].shape[1]))
        shares = shares.flatten(1).T
        known = shares.sum(1) > 0
        features = torch.cat(maps, 2).flatten(0, 1)[known]
        yield features.to(run.device).float(), shares[known].to(run.device)


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


class Supervision(NamedTuple):
    """What stage 2 learns from."""

    images: Manifest  #: with the masks to train on
    left_out: int = 0  #: images whose pseudo labels somebody has made something unusable
    soft: Mapping[str, Path] = {}  #: name of an image -> its soft labels, where they are to be used


def supervision(run: Run) -> Supervision:
    """The training images with the masks to train on: pseudo labels, or for an upper bound truth.

    The log names those that are left out, and classes that no other image shows. A mask that was
    corrected by hand stands for itself: its image has no soft labels.

    Raises:
        ValueError: no training image has such a mask, or one has no soft labels though they are to
            be used.
    """
    manifest = run.train
    if run.recipe.train_seg.masks == "truth":
        log.warning("train_seg.masks=truth: an upper bound, trained on true masks")
        samples = tuple(sample for sample in manifest.samples if sample.mask is not None)
        if not samples:
            raise ValueError(f"train_seg.masks=truth: {manifest.name} {manifest.split} has no mask")
        return Supervision(replace(manifest, samples=samples))
    num_labels = manifest.classes.num_labels
    masks = MaskFolder(run.of("label"), verify=True, contents=run.contents, num_labels=num_labels)
    if told := unusable_in_words(masks, manifest):
        log.warning("%s: %s", masks.folder, told)
    usable = [sample for sample in manifest.samples if masks.is_usable(sample.name)]
    changed = {s.name for s in usable if not is_of(run.contents, masks.entries[s.name], s.image)}
    if changed:
        told = counted(len(changed), "photograph has", "photographs have")
        log.warning(
            "left out: %s changed since the pseudo labels were made, or their labels have (%s); "
            "run label again", told, few(sorted(changed)),
        )  # fmt: skip
    samples = tuple(
        replace(sample, mask=masks.path(sample.name), mask_ids=None)
        for sample in usable
        if sample.name not in changed
    )
    if not samples:
        raise ValueError(
            f"{masks.index}: no pseudo label of any training image; run label first, or see in its "
            "log why it left all of them out"
        )
    if lost := manifest.lost_classes(samples):
        log.warning(
            "no photograph with a pseudo label that can be used shows %s, so it is not learnt",
            few(lost),
        )
    left_out = len(changed) + sum(sample.name in masks.unusable for sample in manifest)
    soft = {}
    if run.recipe.train_seg.labels == "soft":
        soft = require_soft_labels(masks, samples)
    return Supervision(replace(manifest, samples=samples), left_out, soft)


def require_soft_labels(masks: MaskFolder, samples: Iterable[Sample]) -> dict[str, Path]:
    """The files of soft labels of images that have masks; a mask corrected by hand needs none.

    Raises:
        ValueError: an image has none.
    """
    names = [s.name for s in samples if s.name in masks and s.name not in masks.edited]
    files = {name: soft_file(masks.folder, name) for name in names}
    if lacking := [name for name, file in files.items() if not file.is_file()]:
        raise ValueError(
            f"{masks.folder}: {len(lacking)} images have no soft labels ({few(lacking)}): "
            "run label again with label.soft: true"
        )
    return files


def settings_of_amount(run: Run) -> dict[str, Any]:
    """`Stage.also`: what makes photographs without a class count for "auto"."""
    settings, unlabelled = run.recipe.train_seg, run.recipe.label.unlabelled
    is_auto = "auto" in (settings.epochs, settings.batch_size)
    if settings.masks == "truth" or not is_auto or unlabelled == "skip":
        return {}
    return {"label.unlabelled": unlabelled}


TRAIN_SEG = Stage(
    "train_seg",
    settings=("seed", "seg_model", "train_seg"),
    also=settings_of_amount,
    images=lambda run: [run.train],
    work=train_seg,
    result=model_digest,
    weights=lambda run: starting_config(run).weights,
    after=(LABEL,),
    optional=lambda recipe: recipe.train_seg.masks == "truth",
)
