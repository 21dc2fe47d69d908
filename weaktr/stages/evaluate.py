"""Masks and truth -> metrics.json. The only stage that reads true masks.

Every number carries the split, the scales, the flip and the CRF it was made with.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from weaktr.config import Recipe
from weaktr.data import Manifest, Sample
from weaktr.data.io import read_mask, require_same_size
from weaktr.data.masks import MaskFolder
from weaktr.evaluation.conditions import (
    cam_name,
    label_conditions,
    listed,
    prediction_conditions,
    split_name,
    yes,
)
from weaktr.evaluation.models import cam_curve
from weaktr.evaluation.pairs import Evaluation, Pair, evaluate_pairs
from weaktr.evaluation.report import Conditions, Row, caption, draw_classes, print_rows, row_json
from weaktr.files import write_json
from weaktr.models import CamModel

log = logging.getLogger("weaktr")


def evaluate(
    recipe: Recipe, run: Path, score: Manifest, val: Manifest | None, cam_model: CamModel | None
) -> list[Row]:
    """Score what is there of a run.

    Args:
        recipe: what the run was made with.
        run: its folder; ``label`` and ``predict`` are read, ``evaluate/metrics.json`` and
            ``metrics.json`` written.
        score: images with masks for CAMs and pseudo labels.
        val: images with masks for predictions; None in a recipe without stage 2.
        cam_model: for the CAM rows; None leaves them out.

    Returns:
        The rows, also printed as a table.
    """
    rows: list[Row] = []
    if cam_model is not None:
        rows += _cam_rows(recipe, score, cam_model)
    rows += _label_rows(recipe, score, run / "label")
    if val is not None:
        rows += _prediction_rows(recipe, val, run / "predict")
    names = score.classes.label_names
    write_rows(run, recipe, rows, names)
    print_rows(rows, f"{recipe.name}: in %, trained from {_supervision(recipe)}")
    _draw(rows, names, run / "evaluate")
    return rows


def evaluate_masks(masks: MaskFolder, samples: Sequence[Sample], num_labels: int) -> Evaluation:
    """Scores of the masks of those samples that have a true mask.

    Raises:
        ValueError: no sample has both, or a mask has another size than its truth.
    """

    def pair(sample: Sample) -> Pair:
        mask, truth = masks.read(sample.name), read_mask(sample, num_labels)
        require_same_size(mask, truth.shape, masks.path(sample.name), sample.source)
        return mask, truth

    chosen = [s for s in samples if s.mask is not None and s.name in masks]
    if not chosen:
        raise ValueError(f"{masks.folder}: no mask here has a true mask beside it")
    return evaluate_pairs(chosen, pair, num_labels)


def write_rows(run: Path, recipe: Recipe, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Write ``evaluate/metrics.json`` (everything) and ``metrics.json`` (one flat table)."""
    supervision = {"supervision": _supervision(recipe)}
    details = [row_json(row, names) | supervision for row in rows]
    write_json(run / "evaluate" / "metrics.json", details)
    flat: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed}
    flat |= {row.key: round(row.scores.miou, 3) for row in rows}
    flat["conditions"] = {row.key: caption(row) for row in rows}
    write_json(run / "metrics.json", flat)


def _draw(rows: Sequence[Row], names: Sequence[str], folder: Path) -> None:
    """A bar chart of the pseudo labels and one of the predictions."""
    for what in ("pseudo_label", "val"):
        if chosen := [row for row in rows if row.key.startswith(what)]:
            draw_classes(chosen, names, folder / f"{what}_classes.png")


def _cam_rows(recipe: Recipe, score: Manifest, model: CamModel) -> list[Row]:
    """The plain CAM and the recipe's CAM, each at its best threshold."""
    if recipe.evaluate.cam_images == 0 or not _has_masks(score):
        return []
    used = recipe.label
    coarse = replace(used, attention_type="coarse", refine=False)
    kinds = {"cam_coarse_miou": coarse}
    if used != coarse:
        kinds["cam_miou"] = used
    rows = []
    for key, kind in kinds.items():
        threshold, found = cam_curve(model, score.samples, kind, recipe.evaluate).best()
        made = Conditions(
            split_name(score), listed(kind.scales), yes(kind.flip), "none", "-",
            f"best threshold {threshold:g}, chosen with these masks",
        )  # fmt: skip
        rows.append(Row(key, f"CAM, {cam_name(kind)}", made, found))
    return rows


def _label_rows(recipe: Recipe, score: Manifest, folder: Path) -> list[Row]:
    """Pseudo labels before and after the CRF, at the recipe's threshold."""
    made = label_conditions(recipe.label, split_name(score))
    return folder_rows("pseudo_label", "pseudo labels", made, folder, score)


def _prediction_rows(recipe: Recipe, val: Manifest, folder: Path) -> list[Row]:
    """Predictions before and after the CRF."""
    made = prediction_conditions(recipe.predict, split_name(val))
    return folder_rows("val", "stage-2 predictions", made, folder, val)


def folder_rows(key: str, what: str, made: Conditions, folder: Path, truth: Manifest) -> list[Row]:
    """A stage's masks without and, where it was used, with the CRF."""
    parts = [(f"{key}_miou", what, folder, made)]
    if made.crf != "none":
        before = replace(made, crf="none")
        parts.insert(
            0, (f"{key}_before_crf_miou", f"{what} before CRF", folder / "before_crf", before)
        )
    rows = []
    for name, title, masks, how in parts:
        found = _score_folder(MaskFolder(masks), truth)
        if found is not None:
            rows.append(Row(name, title, how, found.scores, found))
    return rows


def _score_folder(masks: MaskFolder, truth: Manifest) -> Evaluation | None:
    """Scores, or None with a word where there is nothing to compare."""
    both = [s for s in truth.samples if s.mask is not None and s.name in masks]
    if not both:
        log.info("%s: not scored, no true mask in %s", masks.folder, split_name(truth))
        return None
    expected = sum(s.mask is not None for s in truth.samples)
    if len(both) < expected:
        log.warning("%s: %d of %d images have a mask", masks.folder, len(both), expected)
    return evaluate_masks(masks, both, truth.classes.num_labels)


def _has_masks(manifest: Manifest) -> bool:
    return any(sample.mask is not None for sample in manifest.samples)


def _supervision(recipe: Recipe) -> str:
    return "true masks" if recipe.train_seg.masks == "truth" else "image-level labels"
