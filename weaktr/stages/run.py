"""A run: a recipe, the folder of its results and its data; and what a stage of it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from weaktr.config import DataConfig, Recipe, SizedTrainSegConfig, TrainCamConfig, TrainSegConfig
from weaktr.contents import CONTENTS, Contents, digest_of
from weaktr.data import Manifest, Problem, Sample, load_manifest
from weaktr.data.array_cache import ArrayCache
from weaktr.data.masks import MaskFolder, before_refinement
from weaktr.models import Segmenter, Stage1Model, checkpoints
from weaktr.models.precision import choose_device
from weaktr.outputs import FEATURES
from weaktr.recipes import identity
from weaktr.refine import Refiner
from weaktr.training.amount import sized

MODEL = "model.safetensors"
#: The fields of `LabelConfig` that the CAMs of images with image-level labels depend on.
OF_CAMS = ("attention_type", "refine", "scales", "flip", "max_side", "amp")


@dataclass(frozen=True)
class Run:
    """A recipe and the folder of its results.

    Args:
        recipe: what to do.
        folder: of the results; each stage writes into a folder of its own name in it.
    """

    recipe: Recipe
    folder: Path

    @cached_property
    def train(self) -> Manifest:
        """Training images; with true masks only if stage 2 learns from them (an upper bound)."""
        manifest = load_split(self.recipe.data, self.recipe.data.train_split)
        return manifest if self.recipe.train_seg.masks == "truth" else without_masks(manifest)

    @cached_property
    def train_images(self) -> Manifest:
        """Training images with image-level labels only."""
        return without_masks(self.train)

    @cached_property
    def score(self) -> Manifest:
        """Images whose masks score CAMs and pseudo labels."""
        settings = self.recipe.data
        return load_split(settings, settings.score_split or settings.train_split)

    @cached_property
    def val(self) -> Manifest:
        """Held-out images."""
        return load_split(self.recipe.data, self.recipe.data.val_split)

    @property
    def predicted(self) -> Manifest | None:
        """The images that get predictions, or None in a recipe without stage 2."""
        return self.val if "predict" in self.recipe.stages else None

    @cached_property
    def train_seg(self) -> SizedTrainSegConfig:
        """`Recipe.train_seg` with numbers in place of "auto"."""
        return sized(self.recipe.train_seg, len(to_segment(self.train, self.recipe)))

    @cached_property
    def contents(self) -> Contents:
        """What is known of the content of files; kept in the run's folder."""
        return Contents(self.folder / CONTENTS)

    @cached_property
    def results(self) -> dict[str, str]:
        """What `result_of` has found of the stages."""
        return {}

    @cached_property
    def cache(self) -> ArrayCache:
        """What a frozen backbone gave for photographs."""
        settings = self.recipe.cache
        folder = self.folder / FEATURES if settings.folder is None else Path(settings.folder)
        return ArrayCache(
            folder if settings.disk_gb else None,
            memory_mb=settings.memory_mb,
            disk_gb=settings.disk_gb,
        )

    @property
    def device(self) -> torch.device:
        """Where models run."""
        return choose_device(self.recipe.device)

    def of(self, stage: str) -> Path:
        """The folder of a stage."""
        return self.folder / stage

    def cam_model(self) -> Stage1Model:
        """The trained stage-1 model."""
        model, _ = checkpoints.load(self.of("train_cam") / MODEL, self.device)
        assert not isinstance(model, Segmenter)
        return model

    def segmenter(self) -> Segmenter:
        """The trained stage-2 model."""
        model, _ = checkpoints.load(self.of("train_seg") / MODEL, self.device)
        assert isinstance(model, Segmenter)
        return model


@dataclass(frozen=True)
class Stage:
    """One stage: what it is called, what its results depend on, and what it runs.

    Args:
        name: of the stage, of its folder and of its settings in the recipe.
        settings: fields of `Recipe` that its results depend on.
        also: further settings on which they depend, or do so in this recipe: whole name -> value.
        images: the manifests that its results depend on.
        work: runs the stage: writes its results into a folder, and returns how many images it had
            to leave out.
        result: one digest of the results in a folder.
        weights: the file from which a training starts; None = there is none.
        chosen_on: images with true masks by which a setting is chosen; None = none is.
        by_image: whether each image has a result of its own, from its own file and labels
            (`weaktr.labelling.store`), so that those of the other images stay when one changes.
        refiners: of the masks; files that they read count as those of an image.
        after: stages whose results it starts from.
        optional: whether those that are not in the recipe are left out.
    """

    name: str
    settings: tuple[str, ...]
    images: Callable[[Run], list[Manifest | None]]
    work: Callable[[Run, Path], int]
    result: Callable[[Run, Path], str]
    weights: Callable[[Run], str | None] = lambda run: None
    also: Callable[[Run], Mapping[str, Any]] = lambda run: {}
    chosen_on: Callable[[Run], Manifest | None] = lambda run: None
    by_image: bool = False
    refiners: Callable[[Run], Sequence[Refiner]] = lambda run: ()
    after: tuple[Stage, ...] = ()
    optional: Callable[[Recipe], bool] = lambda recipe: False

    def needs(self, recipe: Recipe) -> list[Stage]:
        """Those of `after` that a recipe's results start from."""
        is_optional = self.optional(recipe)
        return [stage for stage in self.after if not is_optional or stage.name in recipe.stages]


def model_digest(run: Run, folder: Path) -> str:
    """`Stage.result` of a training."""
    return run.contents.digest(folder / MODEL)


def masks_digest(run: Run, folder: Path) -> str:
    """`Stage.result` of a stage that makes masks, those changed by hand included."""
    folders = [folder, before_refinement(folder)]
    parts = [MaskFolder(f, verify=True, contents=run.contents).digest() for f in folders]
    return digest_of([tuple(parts)])


def result_of(stage: Stage, run: Run) -> str:
    """`Stage.result` of a finished stage in its place, computed once."""
    if stage.name not in run.results:
        run.results[stage.name] = stage.result(run, run.of(stage.name))
    return run.results[stage.name]


def cam_settings(recipe: Recipe) -> dict[str, Any]:
    """The settings of `OF_CAMS`, as `Stage.also` has them."""
    settings = identity(recipe.label)
    return {f"label.{name}": settings[name] for name in OF_CAMS if name in settings}


def at_most_lr(settings: TrainCamConfig | TrainSegConfig, name: str) -> float:
    """A learning rate of a schedule, ``min_lr`` or ``warmup_lr``, or `lr` where it is above that.

    The defaults are for the default `lr`, and must not stand in the way of a lower one.
    """
    rate: float = getattr(settings, name)
    return min(rate, settings.lr)


def load_split(settings: DataConfig, split: str, problems: list[Problem] | None = None) -> Manifest:
    """The manifest of one split of a recipe's data; `problems`: see `load_manifest`."""
    root = Path(settings.root)
    if settings.source == "manifest":
        return Manifest.load(root / f"{split}.json")
    options = dict(settings.options)
    if split == settings.val_split:
        options |= settings.val_options
    if problems is not None:
        options["problems"] = problems
    return load_manifest(settings.source, root, split, **options)


def to_segment(samples: Iterable[Sample], recipe: Recipe) -> list[Sample]:
    """The training images that stage 2 learns from, as far as is known before they are labelled."""
    if recipe.train_seg.masks == "truth":
        return [sample for sample in samples if sample.mask is not None]
    if recipe.label.unlabelled == "background":
        return list(samples)
    return [sample for sample in samples if sample.labels != ()]


def without_masks(manifest: Manifest) -> Manifest:
    """The manifest with image-level labels only: all that weakly supervised training may read."""
    samples = tuple(replace(s, mask=None, mask_ids=None) for s in manifest.samples)
    return replace(manifest, samples=samples)
