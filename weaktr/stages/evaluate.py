"""Masks and truth -> metrics.json. The only stage that reads true masks.

Every number carries the split, the scales, the flip and the CRF it was made with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from weaktr import artifacts, data
from weaktr.artifacts import MaskFolder
from weaktr.config import EvaluateConfig, LabelConfig, PredictConfig, Recipe
from weaktr.data import Manifest, Sample
from weaktr.data.io import require_same_size
from weaktr.models import CamModel, Segmenter
from weaktr.parallel import read_images
from weaktr.progress import track
from weaktr.scores.evaluation import Evaluation, Pair, evaluate_pairs
from weaktr.scores.iou import Scores, ThresholdCurve, score_pairs
from weaktr.scores.report import Conditions, Row, caption, draw_classes, print_rows, row_json
from weaktr.stages.cams import for_labelling, image_cams
from weaktr.stages.predict import for_prediction, probabilities

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


def cam_curve(
    model: CamModel, samples: Sequence[Sample], label: LabelConfig, settings: EvaluateConfig
) -> ThresholdCurve:
    """mIoU of CAM labels over background thresholds.

    Args:
        model: in eval mode.
        samples: those without mask or image-level label are passed over.
        label: scales, flip, attention type and refinement of the CAMs.
        settings: thresholds and how many images.
    """
    num_labels = model.num_classes + 1
    chosen = [s for s in samples if s.mask is not None and s.labels is not None]
    chosen = chosen[: settings.cam_images]
    first, last, step = settings.thresholds
    count = round((last - first) / step) + 1
    curve = ThresholdCurve(first + step * np.arange(count), num_labels)
    made = image_cams(for_labelling(model, label), read_images(chosen, []), label)
    for sample, _, cams in track(made, "scoring CAMs", len(chosen)):
        curve.add(cams, sample.labels or (), data.read_mask(sample, num_labels))
    return curve


def evaluate_masks(masks: MaskFolder, samples: Sequence[Sample], num_labels: int) -> Evaluation:
    """Scores of the masks of those samples that have a true mask.

    Raises:
        ValueError: no sample has both, or a mask has another size than its truth.
    """

    def pair(sample: Sample) -> Pair:
        mask, truth = masks.read(sample.name), data.read_mask(sample, num_labels)
        require_same_size(mask, truth.shape, masks.path(sample.name), sample.source)
        return mask, truth

    chosen = [s for s in samples if s.mask is not None and s.name in masks]
    if not chosen:
        raise ValueError(f"{masks.folder}: no mask here has a true mask beside it")
    return evaluate_pairs(chosen, pair, num_labels)


def score_segmenter(model: Segmenter, samples: Sequence[Sample], settings: PredictConfig) -> Scores:
    """Scores of single-scale predictions without flip, ensemble and CRF (a quick look)."""
    quick = replace(settings, ratios=(1.0,), flip=False, ensemble="plain", crf=None)
    plain = for_prediction(model, quick)

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for sample, image in read_images([s for s in samples if s.mask is not None], []):
            scored = probabilities(plain, image, quick)
            yield scored.argmax(0).astype(np.uint8), data.read_mask(sample, model.num_labels)

    return score_pairs(pairs(), model.num_labels)


def write_rows(run: Path, recipe: Recipe, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Write ``evaluate/metrics.json`` (everything) and ``metrics.json`` (one flat table)."""
    supervision = {"supervision": _supervision(recipe)}
    details = [row_json(row, names) | supervision for row in rows]
    artifacts.write_json(run / "evaluate" / "metrics.json", details)
    flat: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed}
    flat |= {row.key: round(row.scores.miou, 3) for row in rows}
    flat["conditions"] = {row.key: caption(row) for row in rows}
    artifacts.write_json(run / "metrics.json", flat)


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
            split_name(score), listed(kind.scales), _yes(kind.flip), "none", "-",
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


def label_conditions(used: LabelConfig, split: str) -> Conditions:
    """How pseudo labels of a split were made with these settings."""
    return Conditions(
        split, listed(used.scales), _yes(used.flip), crf_name(used.crf), "-",
        f"threshold {used.threshold:g} of the recipe",
    )  # fmt: skip


def prediction_conditions(used: PredictConfig, split: str) -> Conditions:
    """How masks of a split were made with these settings."""
    return Conditions(
        split, listed(used.ratios), _yes(used.flip), crf_name(used.crf), used.ensemble
    )


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


def cam_name(settings: LabelConfig) -> str:
    """The kind of CAM in words."""
    return f"{settings.attention_type}{', refined' if settings.refine else ''}"


def crf_name(setting: str | dict[str, Any] | None) -> str:
    """The CRF in words."""
    return "none" if setting is None else setting if isinstance(setting, str) else "explicit"


def listed(values: Sequence[float]) -> str:
    """``1, 1.2``."""
    return ", ".join(f"{value:g}" for value in values)


def _has_masks(manifest: Manifest) -> bool:
    return any(sample.mask is not None for sample in manifest.samples)


def split_name(manifest: Manifest) -> str:
    """Data set and split."""
    return f"{manifest.name} {manifest.split}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _supervision(recipe: Recipe) -> str:
    return "true masks" if recipe.train_seg.masks == "truth" else "image-level labels"
