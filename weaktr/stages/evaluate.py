"""Masks and truth -> metrics.json. The only stage that reads true masks.

Every number carries the split, the scales, the flip and the CRF it was made with.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from weaktr import artifacts, data
from weaktr.artifacts import MaskFolder
from weaktr.config import EvaluateConfig, LabelConfig, PredictConfig, Recipe
from weaktr.data import Manifest, Sample
from weaktr.models import CamModel, Segmenter
from weaktr.progress import console, track
from weaktr.stages.label import image_cams
from weaktr.stages.parallel import ordered_map, read_images
from weaktr.stages.predict import for_ensemble, probabilities
from weaktr.stages.scores import Scores, ThresholdCurve, score_pairs

log = logging.getLogger("weaktr")


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Args:
        key: its name in metrics.json (``..._miou``).
        what: what was scored, for people.
        scores: the numbers, in percent.
        split: the data set and split.
        scales, flip, crf: how it was made; "-" = does not apply.
        note: threshold and where it comes from, and the like.
    """

    key: str
    what: str
    scores: Scores
    split: str
    scales: str
    flip: str
    crf: str
    note: str


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
    if val is not None and (row := _prediction_row(recipe, val, run / "predict")):
        rows.append(row)
    write_rows(run, recipe, rows, score.classes.label_names)
    print_rows(rows, f"{recipe.name}: mIoU in %, trained from {_supervision(recipe)}")
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
    made = image_cams(model, read_images(chosen, []), label)
    for sample, _, cams in track(made, "scoring CAMs", len(chosen)):
        curve.add(cams, sample.labels or (), data.read_mask(sample, num_labels))
    return curve


def score_masks(masks: MaskFolder, samples: Sequence[Sample], num_labels: int) -> Scores:
    """Scores of the masks of those samples that have a true mask.

    Raises:
        ValueError: no sample has both, or a mask has another size than its truth.
    """

    def pair(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        mask, truth = masks.read(sample.name), data.read_mask(sample, num_labels)
        if mask.shape != truth.shape:
            raise ValueError(
                f"{masks.path(sample.name)}: expected the size of the truth {truth.shape}, "
                f"got {mask.shape}"
            )
        return mask, truth

    chosen = [s for s in samples if s.mask is not None and s.name in masks]
    if not chosen:
        raise ValueError(f"{masks.folder}: no mask here has a true mask beside it")
    return score_pairs(ordered_map(pair, chosen), num_labels)


def score_folders(
    masks: Path, truth: Path, num_labels: int, names: Sequence[str] | None = None
) -> Scores:
    """Scores of a folder of masks against a folder of true masks of the same names.

    Args:
        masks: PNGs, labels or 255.
        truth: PNGs, labels or 255 = not counted.
        num_labels: L, background included.
        names: file names without suffix; None = all of `masks`.

    Raises:
        ValueError: nothing to score, a missing file, or sizes that differ.
    """
    chosen = names or [
        p.relative_to(masks).with_suffix("").as_posix() for p in masks.rglob("*.png")
    ]
    if not chosen:
        raise ValueError(f"masks: no PNG in {masks}")

    def pair(name: str) -> tuple[np.ndarray, np.ndarray]:
        mine = data.read_labels(masks / f"{name}.png", num_labels)
        theirs = data.read_labels(truth / f"{name}.png", num_labels)
        if mine.shape != theirs.shape:
            raise ValueError(f"{name}: mask has {mine.shape}, its truth {theirs.shape} (H, W)")
        return mine, theirs

    return score_pairs(ordered_map(pair, sorted(chosen)), num_labels)


def score_segmenter(model: Segmenter, samples: Sequence[Sample], settings: PredictConfig) -> Scores:
    """Scores of single-scale predictions without flip, ensemble and CRF (a quick look)."""
    quick = replace(settings, ratios=(1.0,), flip=False, ensemble="plain", crf=None)
    plain = for_ensemble(model, quick.ensemble)

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for sample, image in read_images([s for s in samples if s.mask is not None], []):
            scored = probabilities(plain, image, quick)
            yield scored.argmax(0).astype(np.uint8), data.read_mask(sample, model.num_labels)

    return score_pairs(pairs(), model.num_labels)


def write_rows(run: Path, recipe: Recipe, rows: Sequence[Row], names: Sequence[str]) -> None:
    """Write ``evaluate/metrics.json`` (everything) and ``metrics.json`` (one flat table)."""
    details = []
    for row in rows:
        entry: dict[str, Any] = asdict(row)
        iou = entry["scores"].pop("iou")
        entry["scores"]["iou"] = {
            name: None if math.isnan(value) else round(float(value), 3)
            for name, value in zip(names, iou, strict=True)
        }
        entry["supervision"] = _supervision(recipe)
        details.append(entry)
    artifacts.write_json(run / "evaluate" / "metrics.json", details)
    flat: dict[str, Any] = {"recipe": recipe.name, "seed": recipe.seed}
    flat |= {row.key: round(row.scores.miou, 3) for row in rows}
    flat["conditions"] = {row.key: _conditions(row) for row in rows}
    artifacts.write_json(run / "metrics.json", flat)


def print_rows(rows: Sequence[Row], title: str) -> None:
    """Print the report."""
    table = Table(title=title, title_justify="left")
    for column in ("what", "mIoU", "split", "images", "scales", "flip", "CRF", "note"):
        table.add_column(column, justify="right" if column in ("mIoU", "images") else "left")
    for row in rows:
        found = row.scores
        table.add_row(
            row.what, f"{found.miou:.2f}", row.split, str(found.images),
            row.scales, row.flip, row.crf, row.note,
        )  # fmt: skip
    console.print(table)


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
        note = f"best threshold {threshold:g}, chosen with these masks"
        scales, flip = listed(kind.scales), _yes(kind.flip)
        what = f"CAM, {cam_name(kind)}"
        rows.append(Row(key, what, found, _split(score), scales, flip, "none", note))
    return rows


def _label_rows(recipe: Recipe, score: Manifest, folder: Path) -> list[Row]:
    """Pseudo labels before and after the CRF, at the recipe's threshold."""
    used = recipe.label
    crf = crf_name(used.crf)
    parts = [("pseudo_label_miou", "pseudo labels", folder, crf)]
    if crf != "none":
        before = ("pseudo_label_before_crf_miou", "pseudo labels before CRF")
        parts.insert(0, (*before, folder / "before_crf", "none"))
    rows = []
    for key, what, masks, how in parts:
        found = _score_folder(MaskFolder(masks), score)
        if found is not None:
            note = f"threshold {used.threshold:g} of the recipe"
            row = Row(
                key, what, found, _split(score), listed(used.scales), _yes(used.flip), how, note
            )
            rows.append(row)
    return rows


def _prediction_row(recipe: Recipe, val: Manifest, folder: Path) -> Row | None:
    used = recipe.predict
    found = _score_folder(MaskFolder(folder), val)
    if found is None:
        return None
    return Row(
        "val_miou", "stage-2 predictions", found, _split(val), listed(used.ratios),
        _yes(used.flip), crf_name(used.crf), f"ensemble {used.ensemble}",
    )  # fmt: skip


def _score_folder(masks: MaskFolder, truth: Manifest) -> Scores | None:
    """Scores, or None with a word where there is nothing to compare."""
    both = [s for s in truth.samples if s.mask is not None and s.name in masks]
    if not both:
        log.info("%s: not scored, no true mask in %s", masks.folder, _split(truth))
        return None
    expected = sum(s.mask is not None for s in truth.samples)
    if len(both) < expected:
        log.warning("%s: %d of %d images have a mask", masks.folder, len(both), expected)
    return score_masks(masks, both, truth.classes.num_labels)


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


def _split(manifest: Manifest) -> str:
    return f"{manifest.name} {manifest.split}"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _supervision(recipe: Recipe) -> str:
    return "true masks" if recipe.train_seg.masks == "truth" else "image-level labels"


def _conditions(row: Row) -> str:
    return (
        f"{row.what}; {row.split}, {row.scores.images} images; scales {row.scales}; "
        f"flip {row.flip}; CRF {row.crf}; {row.note}"
    )
