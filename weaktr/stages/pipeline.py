"""All stages in order: skips what is finished, goes on where a run stopped.

A stage is done again only if what it is made from has changed: its settings, the seed, its
images and labels, or the stage before it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from weaktr.config import STAGES, DataConfig, Recipe
from weaktr.data import Manifest, load_manifest
from weaktr.files import write_bytes
from weaktr.models import CamModel, Segmenter, checkpoints
from weaktr.models.precision import choose_device
from weaktr.outputs import FINISHED, begin, fingerprint, is_finished, made_from_of, mark_finished
from weaktr.progress import timed
from weaktr.recipes import as_tree, dump_recipe
from weaktr.stages.evaluate import evaluate
from weaktr.stages.label import label
from weaktr.stages.predict import predict
from weaktr.stages.train_cam import train_cam
from weaktr.stages.train_seg import train_seg

log = logging.getLogger("weaktr")

MODEL = "model.safetensors"


def load_split(settings: DataConfig, split: str) -> Manifest:
    """The manifest of one split of a recipe's data."""
    root = Path(settings.root)
    if settings.source == "manifest":
        return Manifest.load(root / f"{split}.json")
    options = dict(settings.options)
    if split == settings.val_split:
        options |= settings.val_options
    return load_manifest(settings.source, root, split, **options)


def without_masks(manifest: Manifest) -> Manifest:
    """The manifest with image-level labels only: what training gets to see."""
    samples = tuple(replace(s, mask=None, mask_ids=None) for s in manifest.samples)
    return replace(manifest, samples=samples)


@dataclass(frozen=True)
class Pipeline:
    """A recipe and the folder of its run."""

    recipe: Recipe
    run: Path

    @cached_property
    def train(self) -> Manifest:
        """Training images with image-level labels only."""
        found = load_split(self.recipe.data, self.recipe.data.train_split)
        if self.recipe.train_seg.masks == "truth":
            return found
        return without_masks(found)

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

    def folder(self, stage: str) -> Path:
        """Where a stage writes."""
        return self.run / stage

    def made_from(self, stage: str) -> str:
        """The fingerprint of a stage's inputs: settings, data, and the stage before it."""
        recipe = self.recipe
        parts: dict[str, Callable[[], Any]] = {
            "train_cam": lambda: [
                recipe.seed, as_tree(recipe.cam_model), as_tree(recipe.train_cam),
                without_masks(self.train).fingerprint(),
            ],
            "label": lambda: [
                as_tree(recipe.label), without_masks(self.train).fingerprint(),
                self._upstream("train_cam"),
            ],
            "train_seg": lambda: [
                recipe.seed, as_tree(recipe.seg_model), as_tree(recipe.train_seg),
                self.train.fingerprint(), self._upstream("label"),
            ],
            "predict": lambda: [
                as_tree(recipe.predict), without_masks(self.val).fingerprint(),
                self._upstream("train_seg"),
            ],
            "evaluate": lambda: [
                as_tree(recipe.evaluate), self.score.fingerprint(),
                None if self.predicted is None else self.predicted.fingerprint(),
                *(
                    self._upstream(stage)
                    for stage in ("train_cam", "label", "predict")
                    if stage in recipe.stages
                ),
            ],
        }  # fmt: skip
        return fingerprint(stage, *parts[stage]())

    def run_stage(self, stage: str, *, force: bool = False) -> None:
        """Run one stage unless it is finished.

        Args:
            stage: one of `STAGES`.
            force: run it from its beginning in any case.

        Raises:
            ValueError: an earlier stage that this one needs is not finished.
        """
        folder, made_from = self.folder(stage), self.made_from(stage)
        if not force and is_finished(folder, made_from):
            log.info("%s: finished before, nothing has changed", stage)
            return
        settings = as_tree(getattr(self.recipe, stage))
        begin(folder, made_from, replace=True, force=force, settings=settings)
        work: dict[str, Callable[[], object]] = {
            "train_cam": self._train_cam,
            "label": self._label,
            "train_seg": self._train_seg,
            "predict": self._predict,
            "evaluate": self._evaluate,
        }
        with timed(stage):
            work[stage]()
        mark_finished(folder, made_from)
        (folder / "state.pt").unlink(missing_ok=True)

    def _upstream(self, stage: str) -> str:
        """What the results of an earlier stage were made from."""
        made_from = made_from_of(self.folder(stage) / FINISHED)
        if made_from is None:
            raise ValueError(f"{self.run}: {stage} is not finished; run without --from and --only")
        return made_from

    def cam_model(self) -> CamModel:
        """The trained stage-1 model."""
        device = choose_device(self.recipe.device)
        model, _ = checkpoints.load(self.folder("train_cam") / MODEL, device)
        assert isinstance(model, CamModel)
        return model

    def _train_cam(self) -> None:
        watch = self.score.samples if self.recipe.train_cam.validate_every else ()
        train = without_masks(self.train)
        train_cam(self.recipe, train, self.folder("train_cam"), watch)

    def _label(self) -> None:
        train = without_masks(self.train)
        label(self.cam_model(), train.samples, self.folder("label"), self.recipe.label)

    def _train_seg(self) -> None:
        watch = self.val.samples if self.recipe.train_seg.validate_every else ()
        stage1 = self.folder("train_cam") / MODEL
        folder = self.folder("train_seg")
        train_seg(self.recipe, self.train, self.folder("label"), folder, stage1=stage1, watch=watch)

    def _predict(self) -> None:
        device = choose_device(self.recipe.device)
        model, _ = checkpoints.load(self.folder("train_seg") / MODEL, device)
        assert isinstance(model, Segmenter)
        images = without_masks(self.val).samples
        predict(model, images, self.folder("predict"), self.recipe.predict)

    def _evaluate(self) -> None:
        cam_model = self.cam_model() if "train_cam" in self.recipe.stages else None
        evaluate(self.recipe, self.run, self.score, self.predicted, cam_model)


def run_recipe(
    recipe: Recipe,
    run: Path,
    *,
    start: str | None = None,
    only: str | None = None,
    force: bool = False,
) -> None:
    """Run the stages of a recipe in order.

    Args:
        recipe: what to do.
        run: folder of the results.
        start: first stage to look at; earlier results are taken as they are.
        only: the one stage to look at.
        force: run the chosen stages from their beginning even if they are finished.

    Raises:
        ValueError: unknown stage, one that the recipe has not, or an earlier stage is not
            finished.
    """
    for name, stage in (("--from", start), ("--only", only)):
        if stage is not None and stage not in STAGES:
            raise ValueError(f"{name}: expected one of {', '.join(STAGES)}; got {stage!r}")
    if only is not None and only not in recipe.stages:
        raise ValueError(
            f"--only: {recipe.name} has no {only}; its stages are {', '.join(recipe.stages)}"
        )
    later = (only,) if only else STAGES[STAGES.index(start or STAGES[0]) :]
    chosen = [stage for stage in later if stage in recipe.stages]
    pipeline = Pipeline(recipe, run)
    write_bytes(run / "recipe.yaml", dump_recipe(recipe).encode())
    for stage in chosen:
        pipeline.run_stage(stage, force=force)
