"""How long the stages of a run will take on this machine: a photograph or a step of each, measured.

Models with random weights do the work, since the values do not matter for the time. Loading of
training images counts as far as a training waits for it. Scores are left out, and so is what
happens once: reading weights, fitting the classifier of patches.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from PIL import Image
from torch import Tensor

from weaktr.config import PredictConfig, SizedTrainSegConfig, TrainCamConfig
from weaktr.data import Sample
from weaktr.data.datasets import CamDataset, SegDataset
from weaktr.data.io import image_size
from weaktr.data.transforms import cam_train_transform, seg_train_transform
from weaktr.inference.head_inputs import reasons_against
from weaktr.inference.labels import label_maps, uses_features
from weaktr.inference.patch_cams import cams_of
from weaktr.inference.predictions import Predictor
from weaktr.inference.threshold import drawn
from weaktr.inference.windows import scaled_images, views
from weaktr.models import CamModel, PatchModel, Segmenter
from weaktr.models.memory import is_out_of_memory
from weaktr.models.precision import autocast, training_amp
from weaktr.ops import soft_cross_entropy
from weaktr.refine import choose_refiners
from weaktr.stages.run import Run, Stage, to_segment
from weaktr.stages.train_cam import cam_losses
from weaktr.training.optimizers import cam_optimizer, segmenter_optimizer
from weaktr.training.segmenter_losses import segmenter_losses
from weaktr.training.state import STATE, random_state, restore_random_state
from weaktr.training.workers import Speed, on_one_core, seconds_an_image

log = logging.getLogger("weaktr")

#: Work that took so many seconds at its first time is not done again for a better measurement.
LONG = 1.0
#: Photographs of which one of usual size is looked for; images in a step on a CPU whose whole batch
#: would take more than so many seconds.
LOOKED_AT, IMAGES_ON_CPU, AFFORDED = 9, 2, 4.0


def forecast(run: Run, stages: Sequence[Stage], fewest: int = 1) -> dict[str, float]:
    """About how many seconds stages will take, by their names.

    Args:
        run: whose data have been checked.
        stages: that will run, each from its beginning; see `go_on`.
        fewest: photographs for which it is worth the time.

    Returns:
        Nothing for fewer photographs, and where something goes wrong: the run will say what.
    """
    names = {stage.name for stage in stages}
    seconds: dict[str, float] = {}
    state = random_state()
    try:
        if names & {"train_cam", "label"} and len(run.train_images) >= fewest:
            seconds |= _of_stage1(run, "train_cam" in names)
        if names & {"train_seg", "predict"} and len(run.train) >= fewest:
            seconds |= _of_stage2(run, names)
    except Exception:
        log.debug("forecast", exc_info=True)
        return {}
    finally:
        restore_random_state(state)
    return {
        stage.name: seconds[stage.name] for stage in stages if stage.name in names & set(seconds)
    }


def go_on(run: Run, stages: Sequence[Stage]) -> list[str]:
    """The trainings that may go on where they stopped, so that a part of their time is over."""
    return [stage.name for stage in stages if (run.of(stage.name) / STATE).is_file()]


def _of_stage1(run: Run, trains: bool) -> dict[str, float]:
    """The seconds of labelling, and where it `trains` of stage 1."""
    recipe, images = run.recipe, run.train_images
    config, settings = recipe.cam_model, recipe.label
    kind = PatchModel if config.kind == "patches" else CamModel
    model = kind(config, len(images.classes)).to(run.device).eval()
    refiners = choose_refiners(settings)
    source = cams_of(model, settings, with_features=uses_features(settings, refiners))
    shown = [sample for sample in images if sample.labels]
    usual = _usual(shown)
    inputs = source.read(usual)
    read = _seconds(lambda: source.read(usual), run.device)
    cams = _seconds(lambda: source.cams([inputs]), run.device)
    maps = _seconds(lambda: label_maps(source, [inputs], 0.5, refiners), run.device)
    if not isinstance(model, CamModel):
        kept = 0.0 if recipe.cache.disk_gb or recipe.cache.memory_mb else cams
        after = read + max(maps - cams, 0.0)
        return {"train_cam": len(images) * cams, "label": len(shown) * (after + kept)}
    seconds = {"label": len(shown) * (read + maps)}
    if not trains:
        return seconds
    train = recipe.train_cam
    model.recompute_blocks(train.recompute)
    optimizer = cam_optimizer(
        model.train(), train.lr, backbone_lr=train.backbone_lr, class_tokens=train.class_tokens
    )
    size = config.image_size if isinstance(config.image_size, tuple) else (config.image_size,) * 2

    def step(count: int) -> None:
        pixels = torch.zeros(count, 3, *size, device=run.device)
        targets = torch.zeros(count, len(images.classes), device=run.device)
        with autocast(training_amp(train.amp, run.device), run.device):
            losses = cam_losses(model(pixels), targets)
        _update(losses, optimizer)

    dataset = CamDataset(
        replace(images, samples=(usual,)),
        cam_train_transform(config.image_size, **asdict(train.augment)),
    )
    speed = Speed(
        loading=_seconds_of_loading(lambda: dataset[0], run.device),
        model=_seconds_of_an_image(step, _at_once(train), run.device),
    )
    passes_once = not reasons_against(model, train)  # and so is loaded once, by this process
    each = seconds_an_image(speed, run.device, 0 if passes_once else recipe.num_workers)
    return {"train_cam": (1 if passes_once else train.epochs) * len(images) * each, **seconds}


def _of_stage2(run: Run, names: Collection[str]) -> dict[str, float]:
    """The seconds of stage 2's training and of predictions, those of `names`."""
    settings, images = run.train_seg, to_segment(run.train, run.recipe)
    labels = run.train.classes.num_labels
    model = Segmenter(run.recipe.seg_model, labels).to(run.device)
    model.recompute_blocks(settings.recompute)
    seconds = {}
    if "predict" in names:
        seconds["predict"] = _seconds_of_predictions(run, model.eval())
    if "train_seg" not in names:
        return seconds
    optimizer = segmenter_optimizer(
        model.train(), settings.lr, encoder_lr=settings.encoder_lr,
        layer_decay=settings.layer_decay, momentum=settings.momentum,
        weight_decay=settings.weight_decay, kind=settings.optimizer,
    )  # fmt: skip
    side, grid = settings.crop, settings.crop // model.patch_size

    def step(count: int) -> None:
        pixels = torch.zeros(count, 3, side, side, device=run.device)
        if settings.loss == "clipped":
            targets = torch.zeros(count, side, side, dtype=torch.long, device=run.device)
        else:
            targets = torch.full((count, labels, grid, grid), 1 / labels, device=run.device)
        classes = torch.zeros(count, labels - 1, device=run.device)

        def losses_now() -> dict[str, Tensor]:
            with autocast(training_amp(settings.amp, run.device), run.device):
                return segmenter_losses(
                    model, settings, soft_cross_entropy, pixels, targets, classes
                )

        if at_once < settings.batch_size:  # the totals of the batch are computed before
            with torch.no_grad():
                losses_now()
        _update(losses_now(), optimizer)

    at_once = _at_once(settings)
    speed = Speed(
        loading=_seconds_of_a_crop(run, model, _usual(images)),
        model=_seconds_of_an_image(step, at_once, run.device),
    )
    each = seconds_an_image(speed, run.device, run.recipe.num_workers)
    return {"train_seg": settings.epochs * settings.crops * len(images) * each, **seconds}


def _seconds_of_a_crop(run: Run, model: Segmenter, sample: Sample) -> float:
    """The seconds that one core needs to load a photograph, for each of its crops.

    Its pseudo label is still to be made; an empty mask is read in its place. Shares of labels in
    patches, and files of soft labels, are left out.
    """
    settings = run.train_seg
    with TemporaryDirectory() as folder:
        mask = Path(folder) / "mask.png"
        height, width = image_size(sample.image, sample.source, sample.exif)
        Image.new("L", (width, height)).save(mask)
        dataset = SegDataset(
            replace(run.train, samples=(replace(sample, mask=mask, mask_ids=None),)),
            seg_train_transform(
                settings.crop, **asdict(settings.augment), patch_size=model.patch_size
            ),
            crops=settings.crops,
        )
        load = partial(dataset.__getitems__, range(settings.crops))
        return _seconds_of_loading(load, run.device) / settings.crops


def _seconds_of_loading(load: Callable[[], object], device: torch.device) -> float:
    with on_one_core():
        return _seconds(load, device)


def _seconds_of_predictions(run: Run, model: Segmenter) -> float:
    """The seconds of all predictions, by the windows of the smallest ratio of one photograph."""
    settings: PredictConfig = run.recipe.predict
    least = replace(settings, ratios=(min(settings.ratios),), flip=False)
    predictor = Predictor(model, least)
    inputs = predictor.read(_usual(run.val.samples))
    read = _seconds(lambda: predictor.read(inputs.sample), run.device)
    windows = _seconds(lambda: predictor.probabilities([inputs]), run.device)
    maps = _seconds(lambda: predictor.label_maps([inputs]), run.device)
    scaled = [torch.from_numpy(i) for i in scaled_images(inputs.photograph.pixels, settings)]
    every, measured = (
        sum(len(view.tops) * len(view.lefts) for view in views(images, own))
        for images, own in ((scaled, settings), (inputs.scaled, least))
    )
    each = read + windows * every / measured + max(maps - windows, 0.0)
    return len(run.val) * each


def _at_once(settings: TrainCamConfig | SizedTrainSegConfig) -> int:
    """Images of a batch that a training computes at a time, as far as its settings say."""
    if settings.micro_batch == "auto":
        return settings.batch_size
    return min(settings.micro_batch, settings.batch_size)


def _usual(samples: Sequence[Sample]) -> Sample:
    """One of some photographs whose number of pixels is their median."""
    some = drawn(samples, LOOKED_AT)

    def pixels(sample: Sample) -> int:
        height, width = image_size(sample.image, sample.source, sample.exif)
        return height * width

    return sorted(some, key=pixels)[len(some) // 2]


def _seconds_of_an_image(step: Callable[[int], None], batch: int, device: torch.device) -> float:
    """The seconds of a step for each of its images; of a whole batch, unless that takes long.

    Args:
        step: does a step with so many images.
        batch: images of a step of the training.
        device: where it runs.
    """
    few = min(batch, IMAGES_ON_CPU) if device.type == "cpu" else batch
    try:
        seconds = _seconds(partial(step, few), device)
    except (MemoryError, RuntimeError) as error:
        if few == 1 or not is_out_of_memory(error):
            raise
        return _seconds_of_an_image(step, -(-few // 2), device)  # a training computes it in pieces
    if few < batch and seconds / few * batch < AFFORDED:
        few, seconds = batch, _seconds(lambda: step(batch), device)
    return seconds / few


def _update(losses: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> None:
    torch.stack(list(losses.values())).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """How long some work takes: at its second time, unless the first was long."""
    for _ in range(2):
        started = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - started
        if seconds > LONG:
            break
    return seconds
