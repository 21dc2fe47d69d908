"""What can be known before a run, looked at before it: all faults at once, in seconds.

    stages, folder      earlier stages are finished, nothing of others is in the way
    device              there, and able to run what the recipe names
    images              every split that is read: photographs and masks by their headers
    trainings           image-level labels; the images that make a step and an epoch
    settings            refiners
    models, weights     can be built, are there, fit (`weaktr.stages.check_models`)

Only what the stages that will run need is looked at. No pixel is decoded, but those of masks that
somebody has corrected, and of PNGs with ``exif: apply``, whose EXIF may come last; of a true mask
that training must not see, only the size is read.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from weaktr.config import (
    Recipe,
    SizedTrainSegConfig,
    TrainCamConfig,
)
from weaktr.data import Classes, DataError, Manifest, Problem
from weaktr.data.headers import Headers
from weaktr.data.masks import MaskFolder
from weaktr.files import WRONG_PATHS
from weaktr.labelling.masks import unusable_in_words
from weaktr.messages import few, first_lines
from weaktr.models import PatchModel, Segmenter, Stage1Model
from weaktr.models.precision import choose_device
from weaktr.ops.attention import ATTENTIONS, chosen_attention
from weaktr.ops.attention import OP as ATTENTION
from weaktr.ops.registry import OPS, BackendUnavailable
from weaktr.outputs import finished_facts, read_inputs, refuse_files_of_others
from weaktr.ranges import SHOWN
from weaktr.refine import choose_refiners
from weaktr.stages.check_models import (
    built_cam_model,
    built_segmenter,
    checkpoint_of,
    require_compiler,
    require_hub,
    require_memory,
    require_patch,
    require_patches_memory,
    require_stage1,
    require_view_memory,
    require_views,
    require_weights,
    require_whole_patches,
)
from weaktr.stages.idle_settings import never_reached, without_effect_in
from weaktr.stages.init import labels_since
from weaktr.stages.places import in_the_way
from weaktr.stages.run import Run, Stage, load_split, to_segment
from weaktr.stages.threshold import require_masks
from weaktr.stages.train_seg import require_soft_labels, starting_config
from weaktr.training.amount import sized

log = logging.getLogger("weaktr")

#: How parts are called that count true masks, and that are only scored.
TRUTH, TO_SCORE_ON = "true masks of split ", ", to score on"
M = TypeVar("M", bound=Stage1Model | Segmenter)


@dataclass
class Part:
    """One part of the check.

    Args:
        what: was looked at.
        found: what it is, in words.
        faults: what will stop the run.
        warnings: what will not, but should be known.
        outside: those of the faults that are the system's: files that may not be read.
    """

    what: str
    found: str = ""
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    outside: set[str] = field(default_factory=set)

    def add(self, problems: Sequence[Problem]) -> None:
        """Make problems of data faults of this part."""
        self.faults += map(str, problems)
        self.outside.update(str(problem) for problem in problems if problem.is_outside)

    @contextmanager
    def noting(self, group: str = "") -> Iterator[None]:
        """Makes an error inside it a fault of this part.

        Args:
            group: of settings in which the error is; "" where its message says so itself.
        """
        try:
            yield
        except DataError as error:
            self.add(error.problems)
            self.faults += [] if error.problems else [str(error)]
        except Exception as error:  # of timm, torch and Pillow for what is in a recipe or a file
            log.debug("%s", self.what, exc_info=True)
            first = (str(error).splitlines() or [""])[0][:SHOWN]
            if not isinstance(error, (ValueError, OSError, BackendUnavailable)):
                first = f"{type(error).__name__}: {first}"
            names_setting = re.match(r"[a-z_.]+: ", first)
            fault = f"{group}{'.' if names_setting else ': '}{first}" if group else first
            self.faults.append(fault)
            if isinstance(error, OSError) and not isinstance(error, WRONG_PATHS):
                self.outside.add(fault)


def require_no_faults(parts: Sequence[Part]) -> None:
    """Log the warnings of a check.

    Raises:
        ValueError: there is a fault; all of them are listed.
        OSError: the same, where all are files that may not be read.
    """
    for part in parts:
        for warning in first_lines(part.warnings):
            log.warning("%s: %s", part.what, warning)
    if faults := [line for part in parts for line in first_lines(part.faults)]:
        count = "several faults, found before anything ran:\n" if len(faults) > 1 else ""
        raise (OSError if are_outside(parts) else ValueError)(count + "\n".join(faults))


def are_outside(parts: Sequence[Part]) -> bool:
    """Whether all faults of a check are files that the system does not let be read."""
    return all(fault in part.outside for part in parts for fault in part.faults)


def check_run(run: Run, stages: Sequence[Stage]) -> list[Part]:
    """Check all that the stages of a run need.

    Args:
        run: its manifests are opened.
        stages: that will run, in their order.

    Returns:
        What was looked at, with the faults.
    """
    if not stages:
        return []
    check = _Check(run, {stage.name for stage in stages})
    check.folder(stages)
    device = check.device()
    check.images()
    check.truth()
    if "train_cam" in check.names:
        check.train_cam()
    if "train_seg" in check.names:
        check.train_seg()
    check.corrected()
    check.unused()
    check.refiners()
    check.views()
    check.models(device)
    check.weights()
    told: set[str] = set()
    for part in check.parts:  # a file may be in several splits
        part.faults = [fault for fault in dict.fromkeys(part.faults) if fault not in told]
        told.update(part.faults)
    return check.parts


def changed_labels(recipe: Recipe) -> list[str]:
    """What to tell where the labels have changed of which ``weaktr init`` made the splits."""
    data = recipe.data
    if data.source != "folder" or "labels_file" in data.options:
        return []
    told = labels_since(Path(data.root))
    return [] if told is None else [told]


class _Check:
    """The parts of a check, and what they found that later ones need."""

    def __init__(self, run: Run, names: set[str]) -> None:
        self.run, self.recipe, self.names = run, run.recipe, names
        self.parts: list[Part] = []
        self.headers = Headers()
        self.train: Manifest | None = None
        self.score: Manifest | None = None
        self.val: Manifest | None = None
        self.classes: Classes | None = None
        #: split that is scored -> the part of its true masks, and how many there are
        self.scored: dict[str, tuple[Part, int]] = {}
        self.cam_model: Stage1Model | None = None
        self.segmenter: Segmenter | None = None

    def part(self, what: str) -> Part:
        """A new part."""
        self.parts.append(Part(what))
        return self.parts[-1]

    def folder(self, stages: Sequence[Stage]) -> None:
        """Earlier stages are finished, and each stage's folder is its own."""
        part = self.part("stages")
        part.found = ", ".join(stage.name for stage in stages)
        for stage in stages:
            for name in (before.name for before in stage.needs(self.recipe)):
                if name in self.names:
                    continue
                is_left_out = name not in self.recipe.stages
                with part.noting():
                    if finished_facts(self.run.of(name)) is None:
                        advice = (
                            "add it to stages" if is_left_out else "run without --from and --only"
                        )
                        raise ValueError(
                            f"{self.run.folder}: {name} is not finished, which {stage.name} needs; "
                            f"{advice}"
                        )
        with part.noting():
            part.faults += in_the_way(self.run)
            for stage in [] if part.faults else stages:
                if read_inputs(self.run.of(stage.name)) is None:
                    refuse_files_of_others(self.run.of(stage.name))

    def device(self) -> torch.device | None:
        """The device is there and runs what the recipe names."""
        part, recipe = self.part("device"), self.recipe
        device = None
        with part.noting():
            device = choose_device(recipe.device)
        if device is None or part.faults:
            return None
        part.found = str(device)
        for op in OPS.values():
            backend, reasons = op.choice(device.type, op.asked_for(), op.usual)
            if backend is None:
                part.faults.append(f"{op.name} cannot run on {device.type}: {reasons}")
        for stage, group in (("train_cam", "cam_model"), ("train_seg", "seg_model")):
            with part.noting():
                name = ATTENTIONS[chosen_attention(getattr(recipe, group).attention)]
                if stage in self.names and name != "auto":
                    backend, reasons = ATTENTION.choice(device.type, name, ATTENTION.usual)
                    if backend is None:
                        raise ValueError(f"{group}.attention: {reasons[name]}; got {name!r}")
        for stage in sorted(self.names - {"evaluate"}):
            if getattr(recipe, stage).amp == "fp16" and device.type == "cpu":
                part.faults.append(
                    f"{stage}.amp: expected auto, fast, none or bf16 on a CPU, got 'fp16', for GPUs"
                )
        return device

    def images(self) -> None:
        """Every split that is read can be opened, and its files are what they are to be."""
        recipe, names = self.recipe, self.names
        if names & {"train_cam", "label", "train_seg"}:
            self._to_learn_from()
        searched = "label" in names and recipe.label.threshold == "search_on_masks"
        is_validated = recipe.train_cam.validate_every and recipe.cam_model.kind != "patches"
        validated = "train_cam" in names and bool(is_validated)
        if "evaluate" in names or validated or searched:
            self._to_score_on()
        watched = "train_seg" in names and bool(recipe.train_seg.validate_every)
        scored = "evaluate" in names and "predict" in recipe.stages
        if "predict" in names or watched or scored:
            self._to_predict(with_masks=watched or scored)

    def _to_learn_from(self) -> None:
        """The training images; what labelling alone cannot read is left out by name."""
        split, names = self.recipe.data.train_split, self.names
        part = self.part(f"split {split}, to learn from")
        self.train = self._opened(part, split, "train")
        if self.train is None:
            return
        part.warnings += changed_labels(self.recipe)
        stops = bool(names & {"train_cam", "train_seg"})
        problems = self.headers.problems(self.train.samples)
        if stops:
            part.add(problems)
        else:
            part.warnings += map(str, problems)
        if "train_seg" in names and self.recipe.train_seg.masks == "truth":
            self._masks(split, self.train)

    def _to_score_on(self) -> None:
        """The images whose true masks score CAMs and pseudo labels."""
        split = self.recipe.data.score_split or self.recipe.data.train_split
        part = self.part(f"split {split}{TO_SCORE_ON}")
        self.score = score = self._opened(part, split, "score")
        masks = self._masks(split, score, are_scored=True)
        if "label" in self.names and score is not None:
            with part.noting("label"):
                require_masks(self.run)
        if masks and self.train is not None and masks.isdisjoint(s.name for s in self.train):
            part.warnings.append("none is a training image, so pseudo labels will not be scored")

    def _to_predict(self, *, with_masks: bool) -> None:
        """The held-out images; what prediction cannot read is left out by name."""
        split = self.recipe.data.val_split
        part = self.part(f"split {split}, to predict")
        self.val = val = self._opened(part, split, "val")
        masks = self._masks(split, val, are_scored=True) if with_masks else set()
        if val is not None and "predict" in self.names:
            others = [sample for sample in val if sample.name not in masks]
            part.warnings += map(str, self.headers.problems(others))
        part.warnings += self._trained_on()

    def _trained_on(self) -> Iterator[str]:
        """Images that are trained on though a val split of its own is to hold them out."""
        if self.train is None or self.val is None or not self.names & {"train_cam", "train_seg"}:
            return
        trained, images = ({sample.image for sample in split} for split in (self.train, self.val))
        shared = [sample.name for sample in self.val if sample.image in trained]
        if shared and images != trained:
            data = self.recipe.data
            yield (
                f"{len(shared)} of {len(self.val)} images are in split {data.train_split} too and "
                f"are trained on ({few(shared)}), so what they score is no validation; take them "
                f"out of split {data.train_split} or {data.val_split}"
            )

    def _opened(self, part: Part, split: str, of_run: str) -> Manifest | None:
        """A split of the run; where it has faults, what else can be said of it is still looked at.

        Args:
            part: gets the faults.
            split: its name in the data set.
            of_run: its name in `Run`.
        """
        manifest: Manifest | None = None
        with part.noting("data"):
            manifest = getattr(self.run, of_run)
        if manifest is None:
            with suppress(Exception):  # told above
                manifest = load_split(self.recipe.data, split, problems=[])
        if manifest is None:
            return None
        part.found = f"{len(manifest)} images, {len(manifest.classes)} classes"
        if not manifest.samples:
            part.faults.append(f"{manifest.name} {manifest.split}: holds no images")
        if self.classes is None:
            self.classes = manifest.classes
        elif len(manifest.classes) and manifest.classes != self.classes:
            part.faults.append(
                f"{manifest.name} {manifest.split}: expected the classes of the other split, "
                f"{few(self.classes.names)}; got {few(manifest.classes.names)}"
            )
        return manifest

    def _masks(
        self, split: str, manifest: Manifest | None, *, are_scored: bool = False
    ) -> set[str]:
        """The true masks of a split are of the size of their photographs; returns their names."""
        part = self.part(f"{TRUTH}{split}")
        samples = [sample for sample in manifest or () if sample.mask is not None]
        part.found = str(len(samples))
        part.add(self.headers.problems(samples, masks=True))
        if are_scored and manifest:
            self.scored[split] = part, len(samples)
        return {sample.name for sample in samples}

    def truth(self) -> None:
        """Where there are true masks of one scored split, those of the other are missed."""
        if not any(count for _, count in self.scored.values()):
            return
        for part, count in self.scored.values():
            if not count:
                part.warnings.append("no image has a true mask, so nothing of this split is scored")

    def train_cam(self) -> None:
        """The labels, and whether there are steps."""
        part, settings = self.part("train_cam"), self.recipe.train_cam
        if self.train is None:
            return
        for sample in self.train:
            if sample.labels is None:
                part.faults.append(
                    f"{sample.image} ({sample.source}): has no image-level labels, which stage 1 "
                    "trains from"
                )
            elif any(not 0 <= label < len(self.train.classes) for label in sample.labels):
                part.faults.append(
                    f"{sample.image} ({sample.source}): labels: expected class indices 0.."
                    f"{len(self.train.classes) - 1}, got {sample.labels}"
                )
        if self.recipe.cam_model.kind == "patches":
            self._train_patches(part, self.train)
            return
        self._steps(part, len(self.train), settings, "train_cam")
        if settings.choose == "fisher" and 0 < settings.epochs < settings.validate_every:
            part.faults.append(
                f"train_cam.validate_every: expected at most the {settings.epochs} epochs, of "
                f"which choose: fisher takes one, got {settings.validate_every}"
            )
        part.warnings += never_reached(settings, "train_cam")
        if 0 < settings.epochs <= settings.warmup_epochs:
            part.warnings.append(
                f"train_cam.warmup_epochs: {settings.warmup_epochs} of {settings.epochs} epochs: "
                f"lr, {settings.lr}, is never reached"
            )

    def _train_patches(self, part: Part, train: Manifest) -> None:
        """There are photographs to learn from, and of every class."""
        part.found = f"{len(train)} images"
        if len(train) < 2:
            part.faults.append(
                f"train_cam: expected at least 2 photographs to learn from, got {len(train)}"
            )
        shown = {label for sample in train for label in sample.labels or ()}
        missing = [name for index, name in enumerate(train.classes.names) if index not in shown]
        if missing:
            part.warnings.append(
                f"no photograph shows {few(missing)}, so it will not be found in any"
            )

    def train_seg(self) -> None:
        """How many images there will be at most, and whether they make steps."""
        part, settings = self.part("train_seg"), self._train_seg()
        if self.train is None:
            return
        samples = self.train.samples
        if settings.masks == "truth" or "label" in self.names:
            count = len(to_segment(samples, self.recipe))
        else:
            with part.noting():
                is_soft, known = settings.labels == "soft", self.run.contents
                labelled = MaskFolder(self.run.of("label"), verify=is_soft, contents=known)
                count = sum(sample.name in labelled for sample in samples)
                if is_soft:
                    require_soft_labels(labelled, samples)
        if self.recipe.seg_model.image_head:
            part.faults += [
                f"{sample.image} ({sample.source}): has no image-level labels, which an image head "
                "trains from"
                for sample in samples
                if sample.labels is None
            ]
        if part.faults:
            return
        if count == 0:
            kind = "true mask" if settings.masks == "truth" else "class, and so no pseudo label"
            part.faults.append(f"no image of split {self.train.split} has a {kind}")
            return
        batches = self._steps(part, count, settings, "train_seg")
        part.warnings += never_reached(settings, "train_seg")
        steps = settings.epochs * (batches // settings.accumulate)
        if 0 < steps <= settings.warmup_steps:
            part.warnings.append(
                f"train_seg.warmup_steps: {settings.warmup_steps} of at most {steps} steps: lr, "
                f"{settings.lr}, is never reached"
            )
        largest = int(settings.augment.short_side * settings.augment.ratio[1])
        if largest < settings.crop:
            part.warnings.append(
                f"train_seg.crop: {settings.crop} pixels, but the short side of images is at most "
                f"{largest} (train_seg.augment.short_side and ratio): every crop is padded"
            )

    def _train_seg(self) -> SizedTrainSegConfig:
        """`Run.train_seg`, also of a split that has faults."""
        count = len(to_segment(self.train or (), self.recipe))
        return sized(self.recipe.train_seg, count)

    def _steps(
        self, part: Part, count: int, settings: TrainCamConfig | SizedTrainSegConfig, stage: str
    ) -> int:
        """The batches of an epoch over `count` images; too few are a fault."""
        crops = settings.crops if isinstance(settings, SizedTrainSegConfig) else 1
        batches = count * crops // settings.batch_size
        each = "" if crops == 1 else f", {crops} crops of each"
        part.found = f"{count} images{each}, {settings.epochs} epochs, {batches} batches in each"
        if batches == 0:
            part.faults.append(
                f"{stage}.batch_size: {settings.batch_size} is more than the {count} samples"
                f"{each}, so there is no step; take a smaller batch"
            )
        elif batches < settings.accumulate:
            part.faults.append(
                f"{stage}.accumulate: expected at most the {batches} batches of an epoch, got "
                f"{settings.accumulate}"
            )
        return batches

    def corrected(self) -> None:
        """Masks that somebody has changed are masks of their photographs and classes."""
        count = None if self.classes is None else self.classes.num_labels
        readers = {"label": {"label", "train_seg", "evaluate"}, "predict": {"predict", "evaluate"}}
        for stage, names in readers.items():
            samples = (self.train or self.score) if stage == "label" else self.val
            if not names & self.names or not samples or not self.run.of(stage).is_dir():
                continue
            part = self.part(f"corrected masks of {stage}")
            with part.noting():
                known = self.run.contents
                masks = MaskFolder(
                    self.run.of(stage), verify=True, contents=known, num_labels=count
                )
                part.found = str(len(masks.edited))
                if told := unusable_in_words(masks, samples):
                    part.warnings.append(told)

    def unused(self) -> None:
        """Settings that do nothing are told."""
        if told := without_effect_in(self.recipe):
            self.part("recipe").warnings += told

    def refiners(self) -> None:
        """The refiners take their settings."""
        for stage in ("label", "predict"):
            if stage in self.names:
                part = self.part(stage)
                with part.noting(stage):
                    refiners = choose_refiners(getattr(self.recipe, stage))
                    part.found = "settings fit" if refiners else "settings fit, no refiner"

    def models(self, device: torch.device | None) -> None:
        """Models can be built, and the checkpoints of earlier stages are there."""
        recipe, names, run = self.recipe, self.names, self.run
        count = 20 if self.classes is None else len(self.classes)
        if "train_cam" in names:
            part = self.part("cam_model")
            with part.noting("cam_model"):
                model = built_cam_model(recipe.cam_model, count)
                self.cam_model = self._sized(part, model, device, recipe.train_cam)
        elif "label" in names or ("evaluate" in names and "train_cam" in recipe.stages):
            with self.part("model of train_cam").noting():
                kind = "patches" if recipe.cam_model.kind == "patches" else "cam"
                checkpoint_of(run.of("train_cam"), kind, self.classes)
        decoder = recipe.seg_model.decoder
        if "train_seg" in names:
            part = self.part("seg_model")
            with part.noting("seg_model"):
                segmenter = built_segmenter(recipe.seg_model, count + 1)
                self.segmenter = self._sized(part, segmenter, device, self._train_seg())
                self._sides(segmenter.patch_size)
        elif "predict" in names:
            with self.part("model of train_seg").noting():
                description = checkpoint_of(run.of("train_seg"), "segmenter", self.classes)
                decoder = description["config"]["decoder"]
        if "predict" in names and (recipe.predict.ensemble, decoder) == ("published", "linear"):
            self.part("ensemble").faults.append(
                "predict.ensemble: 'published' needs a mask transformer, got seg_model.decoder "
                "'linear'; use ensemble: plain"
            )

    def _sides(self, patch: int) -> None:
        """Crops, windows and scaled images have room for a patch of stage 2."""
        crops, views = self.recipe.train_seg, self.recipe.predict
        part = self.part("sizes of crops and windows")
        part.found = f"of {patch} pixels at least, a patch"
        with part.noting("train_seg"):
            require_patch({"crop": crops.crop}, patch)
        with part.noting("train_seg.augment"):
            require_patch({"short_side": crops.augment.short_side}, patch)
        if "predict" in self.names:
            with part.noting("predict"):
                require_patch({"window": views.window, "short_side": views.short_side}, patch)

    def views(self) -> None:
        """Images fit the memory at their largest size."""
        part = self.part("sizes of images")
        part.found = "fit the memory"
        if "train_seg" in self.names:
            augment = self.recipe.train_seg.augment
            with part.noting("train_seg.augment"):
                require_view_memory({"ratio": int(augment.short_side * augment.ratio[1])})
        if "predict" in self.names:
            with part.noting("predict"):
                require_views(self.recipe.predict)

    def _sized(
        self,
        part: Part,
        model: M,
        device: torch.device | None,
        settings: TrainCamConfig | SizedTrainSegConfig,
    ) -> M | None:
        """`model`, where it fits the memory and training images are whole patches of it."""
        millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        part.found = f"{model.config.backbone}, {millions:.1f} million weights"
        with part.noting(part.what):
            require_whole_patches(model)
        if device is not None:
            with part.noting(part.what):
                require_memory(model, device, settings)
            if isinstance(model, PatchModel):
                self._require_patches(part, model, device)
            elif settings.compile and device.type == "cpu":
                stage = "train_cam" if isinstance(settings, TrainCamConfig) else "train_seg"
                with part.noting(stage):
                    require_compiler()
        return None if part.faults else model

    def _require_patches(self, part: Part, model: PatchModel, device: torch.device) -> None:
        """Photographs have room for a patch, and those that are learned from fit the memory."""
        with part.noting("cam_model.patches"):
            require_patch({"short_side": model.config.patches.short_side}, model.patch_size)
        if self.train:
            with part.noting("train_cam"):
                settings = self.recipe.train_cam.patches
                require_patches_memory(model, device, settings, len(self.train))

    def weights(self) -> None:
        """The weights that trainings start from are there and fit."""
        models = {"train_cam": self.cam_model, "train_seg": self.segmenter}
        for stage, name in (("train_cam", "cam_model"), ("train_seg", "seg_model")):
            config, model = getattr(self.recipe, name), models[stage]
            if stage not in self.names or config.weights is None:
                continue
            part = self.part(f"weights of {name}")
            part.found = config.weights
            with part.noting(name):
                if config.weights == "timm":
                    require_hub(config.backbone)
                    if any(other.faults for other in self.parts):
                        part.found += ", not fetched: there are faults"
                        continue
                if isinstance(model, Segmenter) and config.weights == "stage1":
                    if "train_cam" not in self.names:
                        require_weights(starting_config(self.run), model)
                    elif self.cam_model is not None:
                        require_stage1(self.cam_model, model)
                else:
                    require_weights(config, model)
