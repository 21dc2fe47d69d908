"""Masks and truth -> metrics.json.

The trainings read true masks only with `validate_every` or with ``train_seg.masks: truth``.

Every number is stored with its conditions: split, scales, flip and CRF.
"""

from __future__ import annotations

import logging
import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from weaktr import processes
from weaktr.config import LabelConfig, PredictConfig, Recipe
from weaktr.data import Manifest, Sample
from weaktr.data.io import read_labels, read_mask, require_same_size
from weaktr.data.masks import MaskFolder, before_refinement
from weaktr.evaluation.conditions import (
    GIVEN,
    HELD_OUT,
    TRAINED_ON,
    cam_name,
    held_out,
    label_conditions,
    listed,
    noted,
    prediction_conditions,
    split_name,
    yes_or_no,
)
from weaktr.evaluation.iou import scored
from weaktr.evaluation.models import cam_curve
from weaktr.evaluation.pairs import Evaluation, Pair, evaluate_pairs
from weaktr.evaluation.report import (
    Conditions,
    Row,
    caption,
    draw_classes,
    print_rows,
    refined_by,
    row_json,
)
from weaktr.files import write_json
from weaktr.inference.threshold import read_choice
from weaktr.labelling.masks import unusable_in_words
from weaktr.messages import few
from weaktr.models import CamModel, Stage1Model
from weaktr.outputs import read_inputs
from weaktr.recipes import identity, make
from weaktr.stages.label import LABEL
from weaktr.stages.predict import PREDICT
from weaktr.stages.run import Run, Stage, cam_settings, result_of
from weaktr.stages.train_cam import TRAIN_CAM

log = logging.getLogger("weaktr")
T = TypeVar("T", LabelConfig, PredictConfig)

#: The scores in one flat table, which is also the run's ``metrics.json`` (`weaktr.stages.places`).
TABLE = "table.json"


def evaluate(run: Run, folder: Path) -> int:
    """Score all results that a run has; also printed as a table.

    Of several processes each scores its part of the images, and the first writes the numbers.

    Args:
        run: its ``label`` and ``predict`` are read. The CAMs of a recipe with stage 1 are computed
            again.
        folder: gets ``metrics.json`` with all details, `TABLE`, and charts.

    Returns:
        How many images could not be scored.

    Raises:
        ValueError: a mask has another size than its truth; the splits have other classes, or mean
            different images by one name.
    """
    recipe, score = run.recipe, run.score
    require_same_classes(run.train_images, score)
    require_same_images(run.train_images, score)
    rows: list[Row] = []
    not_scored = 0
    if "train_cam" in recipe.stages:
        rows, not_scored = _cam_rows(recipe, score, run.cam_model())
    choice = read_choice(run.of("label"))
    conditions = label_conditions(made_with(run, "label", recipe.label), split_name(score), choice)
    of_labels, left_out = folder_rows(
        run, "label", "pseudo_label", "pseudo labels", conditions, score
    )
    rows += of_labels
    not_scored += left_out
    if run.predicted is not None:
        require_same_classes(run.train_images, run.predicted)
        settings = made_with(run, "predict", recipe.predict)
        conditions = prediction_conditions(settings, split_name(run.predicted))
        key, what = held_out(run.train_images, run.predicted)
        of_predictions, left_out = folder_rows(run, "predict", key, what, conditions, run.predicted)
        rows += of_predictions
        not_scored += left_out
    if not processes.is_first():
        return not_scored
    names = score.classes.label_names
    supervision = "true masks" if recipe.train_seg.masks == "truth" else "image-level labels"
    if recipe.label.threshold == "search_on_masks":
        supervision += ", the threshold chosen with true masks"
    details = [row_json(row, names) | {"supervision": supervision} for row in rows]
    write_json(folder / "metrics.json", details)
    flat: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed}
    flat |= {row.key: round(row.scores.miou, 3) for row in rows}
    flat["conditions"] = {row.key: caption(row) for row in rows}
    write_json(folder / TABLE, flat, seal=True)
    print_rows(rows, f"{recipe.name}: in %, trained from {supervision}")
    for what in ("pseudo_label", HELD_OUT, TRAINED_ON):
        if chosen := [row for row in rows if row.key.startswith(what)]:
            draw_classes(chosen, names, folder / f"{what}_classes.png")
    return not_scored


def made_with(run: Run, stage: str, now: T) -> T:
    """The settings with which a stage's results were made, as far as that is noted, else `now`.

    With ``--from evaluate`` the recipe may have others.
    """
    noted = _noted(run, stage)
    former = {f.name: f.metadata["later"] for f in fields(now) if "later" in f.metadata}
    try:
        return make(type(now), former | noted) if noted else now
    except ValueError:  # of another version
        return now


def _noted(run: Run, stage: str) -> dict[str, Any]:
    """What `made_with` finds in the folder of a stage."""
    settings = (read_inputs(run.of(stage)) or {}).get("settings")
    found = settings.get(stage) if isinstance(settings, dict) else None
    return found if isinstance(found, dict) else {}


def settings_of_scores(run: Run) -> dict[str, Any]:
    """`Stage.also` of the evaluation, less what the results of ``label`` tell already.

    CAMs are computed again. Pseudo labels that an earlier recipe has left are scored too.
    """
    recipe = run.recipe
    also: dict[str, Any] = {}
    if "train_cam" in recipe.stages:
        noted = _noted(run, "label") if "label" in recipe.stages else {}
        cams = cam_settings(recipe)
        if any(noted.get(name.partition(".")[2]) != value for name, value in cams.items()):
            also |= cams
    if "label" not in recipe.stages and run.of("label").is_dir():
        also["label"] = identity(recipe.label) | {"masks": result_of(LABEL, run)}
    return also


def require_same_classes(train: Manifest, other: Manifest) -> None:
    """Raise `ValueError` unless the labels of both splits mean the same."""
    if train.classes != other.classes:
        raise ValueError(
            f"{split_name(other)}: expected the classes of {split_name(train)}, "
            f"{few(train.classes.names)}; got {few(other.classes.names)}"
        )


def require_same_images(train: Manifest, score: Manifest) -> None:
    """Raise `ValueError` where a name means one image in training and another in scoring.

    Pseudo labels are those of the training images, and are scored by name.
    """
    image_of = {sample.name: sample.image for sample in train}
    for sample in score:
        image = image_of.get(sample.name, sample.image)
        if os.path.realpath(image) != os.path.realpath(sample.image):
            raise ValueError(
                f"data.score_split: expected one image for the name {sample.name!r}, got "
                f"{sample.image} in {split_name(score)} and {image} in {split_name(train)}"
            )


def _cam_rows(recipe: Recipe, score: Manifest, model: Stage1Model) -> tuple[list[Row], int]:
    """The plain CAM and the recipe's CAM, each at its best threshold; how many images have none."""
    chosen = [s for s in score.samples if s.mask is not None and s.labels is not None]
    chosen = chosen[: recipe.evaluate.cam_images]
    if not chosen:
        return [], 0
    coarse = replace(recipe.label, attention_type="coarse", refine=False)
    kinds = {"cam_coarse_miou": coarse} if isinstance(model, CamModel) else {}
    if recipe.label != coarse or not kinds:
        kinds["cam_miou"] = recipe.label
    rows, not_scored = [], 0
    for key, kind in kinds.items():
        curve = cam_curve(model, chosen, kind, recipe.evaluate)
        not_scored = max(not_scored, len(chosen) - curve.images)
        best = scored(curve.best, f"CAMs against {split_name(score)}")
        if best is None:
            continue
        threshold, scores = best
        conditions = Conditions(
            split_name(score), listed(kind.scales), yes_or_no(kind.flip), "none", "-",
            noted(f"best threshold {threshold:g}, chosen with these masks", GIVEN),
        )  # fmt: skip
        rows.append(Row(key, f"CAM, {cam_name(kind)}", conditions, scores))
    return rows, not_scored


def folder_rows(
    run: Run, stage: str, key: str, what: str, conditions: Conditions, truth: Manifest
) -> tuple[list[Row], int]:
    """A stage's masks, first those before refinement, if any; how many cannot be used."""
    folder = run.of(stage)
    sources = [(f"{key}_miou", what, folder, conditions)]
    if conditions.crf != "none":
        before, plain = before_refinement(folder), replace(conditions, crf="none")
        title = f"{what} before {refined_by(conditions.crf)}"
        sources.insert(0, (f"{key}_before_crf_miou", title, before, plain))
    rows = []
    for name, title, masks, kind in sources:
        num_labels = truth.classes.num_labels
        there = MaskFolder(masks, verify=True, contents=run.contents, num_labels=num_labels)
        evaluation = score_folder(there, truth)
        if evaluation is not None:
            rows.append(Row(name, title, kind, evaluation.scores, evaluation))
    return rows, sum(sample.name in there.unusable for sample in truth)


def score_folder(masks: MaskFolder, truth: Manifest) -> Evaluation | None:
    """Scores of the masks of those samples that have a true mask.

    Returns:
        None, which the log says, where no sample is left, or no true mask has a known label.

    Raises:
        ValueError: a mask has another size than its truth, or holds a value that is no label.
    """
    true = [sample for sample in truth.samples if sample.mask is not None]
    if told := unusable_in_words(masks, true):
        log.warning("%s: %s", masks.folder, told)
    both = [sample for sample in true if masks.is_usable(sample.name)]
    if true and not both:
        log.info(
            "%s: not scored: no image has both a mask here and a true mask in %s",
            masks.folder, split_name(truth),
        )  # fmt: skip
    if not both:
        return None
    if len(both) < len(true):
        log.warning("%s: %d of %d images have a mask", masks.folder, len(both), len(true))
    num_labels = truth.classes.num_labels

    def pair(sample: Sample) -> Pair:
        path, true_mask = masks.path(sample.name), read_mask(sample, num_labels)
        mask = read_labels(path, num_labels, sample.source)
        require_same_size(mask, true_mask.shape, path, sample.source)
        return mask, true_mask

    what = f"{masks.folder} against {split_name(truth)}"
    return scored(lambda: evaluate_pairs(both, pair, num_labels), what)


EVALUATE = Stage(
    "evaluate",
    settings=("evaluate",),
    also=settings_of_scores,
    images=lambda run: [run.score, run.predicted],
    work=evaluate,
    result=lambda run, folder: run.contents.digest(folder / "metrics.json"),
    after=(TRAIN_CAM, LABEL, PREDICT),
    optional=lambda recipe: True,
)
