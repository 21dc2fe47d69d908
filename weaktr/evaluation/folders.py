"""What ``weaktr eval`` does: folders of masks, or of CAMs, against a folder of true masks."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weaktr.config import LabelConfig, PredictConfig
from weaktr.data import Classes, DataError, Problem, read_labels
from weaktr.data.io import require_same_size, size_message
from weaktr.data.masks import MaskFolder, before_refinement
from weaktr.data.names import known_names
from weaktr.data.parallel import ordered_map
from weaktr.data.photographs import enlarged, working_size
from weaktr.data.stored_maps import read_cams
from weaktr.evaluation.bootstrap import LEVEL
from weaktr.evaluation.boundary import TOLERANCE
from weaktr.evaluation.calibration import Calibration
from weaktr.evaluation.conditions import (
    GIVEN,
    PREDICTED,
    label_conditions,
    noted,
    prediction_conditions,
)
from weaktr.evaluation.iou import NothingToScore, ThresholdCurve
from weaktr.evaluation.pairs import Pair, evaluate_pairs
from weaktr.evaluation.report import (
    UNKNOWN,
    Conditions,
    Row,
    draw_classes,
    refined_by,
    row_json,
)
from weaktr.files import files_below, files_in, names_in, read_json, write_json
from weaktr.inference.labels import labels_from_cams
from weaktr.inference.threshold import read_choice
from weaktr.messages import few
from weaktr.outputs import INPUTS, RECIPE, command_of
from weaktr.progress import track
from weaktr.recipes import make

log = logging.getLogger("weaktr")

#: The suffixes of masks.
PNG = (".png", ".PNG")


@dataclass(frozen=True)
class Truth:
    """Where the true masks are and what their pixels mean.

    Args:
        folder: PNGs, ``NAME.png`` or ``NAME.PNG``.
        classes: of the masks, in their order; their ids are what the pixels of true masks hold.
        names: lines that say which images (see `known_names`); None = all that were predicted.
    """

    folder: Path
    classes: Classes
    names: Sequence[str] | None = None

    @cached_property
    def files(self) -> dict[str, Path]:
        """Name -> true mask; errors as of `files_in`."""
        return files_in(self.folder, *PNG)

    def read(self, name: str) -> np.ndarray:
        """True labels, uint8 [H, W]."""
        ids = self.classes.ids
        is_plain = ids == tuple(range(1, len(ids) + 1))
        mask_ids = None if is_plain else ids
        return read_labels(self.files[name], self.classes.num_labels, mask_ids=mask_ids)


@dataclass(frozen=True)
class Source:
    """Masks (or CAMs) to score.

    Args:
        what: what they are, in words.
        folder: of the files.
        conditions: how they were produced.
    """

    what: str
    folder: Path
    conditions: Conditions

    @cached_property
    def files(self) -> dict[str, Path]:
        """Name -> mask; errors as of `files_in`."""
        return files_in(self.folder, *PNG)


def mask_sources(masks: Path, conditions: Conditions, without_crf: Path | None) -> list[Source]:
    """The masks of a folder, and those before refinement.

    Args:
        masks: what `predict` or `label` wrote, or its ``masks``, or any folder of PNGs.
        conditions: how the masks were produced.
        without_crf: masks from before refinement, where they are in another place.

    Raises:
        ValueError: no such folder, or no PNG in it.
    """
    stages = [masks / stage for stage in ("label", "predict") if (masks / stage).is_dir()]
    if (masks / RECIPE).is_file() and stages:
        raise ValueError(
            f"{masks}: expected a folder of masks, got a run; take {' or '.join(map(str, stages))}"
        )
    home = stage_folder(masks)
    folder = home / "masks" if (home / "masks").is_dir() else masks
    before = without_crf or before_refinement(home) / "masks"
    is_crf = refined_by(conditions.crf) == "CRF"
    what, plain = ("with CRF", "without CRF") if is_crf else ("refined", "before refinement")
    sources = [Source(what, folder, conditions)]
    if without_crf is not None or (before.is_dir() and conditions.crf != "none"):
        sources.insert(0, Source(plain, before, replace(conditions, crf="none")))
    elif conditions.crf in ("none", UNKNOWN):
        what = "without CRF" if conditions.crf == "none" else "masks"
        sources = [Source(what, folder, conditions)]
    for source in sources:
        try:
            files_in(source.folder, *PNG)
        except ValueError as error:
            if not any(source.folder.glob("*.tar")):
                raise
            advice = "unpack the tars, or label with --output png"
            raise ValueError(f"{error}; {advice}") from error
    return sources


def stage_folder(files: Path) -> Path:
    """The folder of a stage, from that folder itself or its ``masks`` or ``cams``."""
    parts = ("masks", "cams")
    files = Path(os.path.abspath(files))  # "." has no name
    if files.name not in parts or any((files / part).is_dir() for part in parts):
        return files
    return files.parent


def written_conditions(files: Path, split: str, *, of_cams: bool = False) -> Conditions:
    """How the masks or CAMs in a stage's folder were produced, by its ``inputs.json``.

    Args:
        files: that folder, or its ``masks`` or ``cams``.
        split: what to call the images.
        of_cams: whether it is asked of the CAMs.

    Raises:
        ValueError: weaktr did not write that file; nothing in it is imported or run.
    """
    home = stage_folder(files)
    file = home / INPUTS
    content = read_json(file) if file.is_file() else {}
    settings = content.get("settings", {}) if isinstance(content, dict) else None
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: expected a mapping that has settings as a mapping")
    origin = ""
    for stage in ("label", "predict"):  # in the folder of a run they stand under its name
        if isinstance(settings.get(stage), dict):
            settings, origin = settings[stage], " of the recipe"
    settings = {key: value for key, value in settings.items() if key != "exif"}
    conditions, classes = Conditions(split), ""
    if "ratios" in settings:
        classes = origin_of_classes(home, is_free=True) if command_of(content) == "label" else ""
        predict = make(PredictConfig, settings, origin=str(file))
        conditions = replace(prediction_conditions(predict, split), note=classes)
    elif {"attention_type", "threshold"} & settings.keys():
        classes = origin_of_classes(home, is_free=False)
        label = make(LabelConfig, settings, origin=str(file))
        choice = read_choice(home)
        conditions = label_conditions(label, split, choice, classes=classes, origin=origin)
        if "attention_type" not in settings:  # of CAMs in files
            conditions = replace(conditions, scales=UNKNOWN, flip=UNKNOWN)
    if of_cams:
        return replace(conditions, crf="none", ensemble="-", note=classes)
    return conditions


def origin_of_classes(home: Path, *, is_free: bool) -> str:
    """Whether the classes that masks may show were given, by their index, in words.

    Args:
        home: the folder of a stage.
        is_free: whether the model chose among all classes where none were given.

    Returns:
        "" = not known: of an older version, or of CAMs in files.
    """
    try:
        masks = MaskFolder(home)
    except ValueError:  # damaged, or of masks in tars, where nothing else needs it
        return ""
    known = [entry for entry in [*masks.entries.values(), *masks.without.values()] if entry.inputs]
    given = sum(entry.given is not None for entry in known)
    free = sum(entry.given is None and (is_free or entry.predicted is not None) for entry in known)
    if given and free:
        return f"{GIVEN} for {given} of {given + free} photographs, else predicted by the model"
    return GIVEN if given else PREDICTED if free else ""


def score_masks(source: Source, truth: Truth, tolerance: float = TOLERANCE) -> Row:
    """One row for a folder of masks.

    Raises:
        ValueError: a mask is missing, of another size than its truth, or holds no label.
    """
    names = chosen_names(source.folder, PNG, truth)

    def pair(name: str) -> Pair:
        path = source.files[name]
        mask, true = read_labels(path, truth.classes.num_labels), truth.read(name)
        require_same_size(mask, (true.shape[0], true.shape[1]), path)
        return mask, true

    return _row(source, names, pair, truth, tolerance)


def score_confidence(masks: Path, truth: Truth) -> Calibration | None:
    """How often pixels are right at each confidence; None where no confidence was written.

    Args:
        masks: what `label` wrote, with ``confidence`` beside ``masks``.
        truth: the true masks.

    Raises:
        ValueError: see `score_masks`; or a confidence is no grey PNG of its mask's size.
    """
    home = stage_folder(masks)
    folder, there = home / "masks", home / "confidence"
    if not (folder.is_dir() and there.is_dir()):
        return None
    calibration, num_labels = Calibration(), truth.classes.num_labels
    files = files_in(folder, *PNG)
    names = [n for n in chosen_names(folder, PNG, truth) if (there / f"{n}.png").is_file()]
    for name in track(names, "calibration", len(names)):
        mask, true = read_labels(files[name], num_labels), truth.read(name)
        grey = there / f"{name}.png"
        confidence = read_labels(grey, 256)  # all greys
        require_same_size(confidence, (true.shape[0], true.shape[1]), grey)
        calibration.add(confidence, mask, true)
    return calibration if calibration.pixels else None


def score_cams(
    source: Source,
    truth: Truth,
    thresholds: Sequence[float],
    tolerance: float = TOLERANCE,
) -> tuple[Row, list[tuple[float, float]]]:
    """CAMs at their best threshold, and mIoU at every threshold.

    Args:
        source: CAMs as `weaktr label --dump-cams` or the published code writes them.
        truth: the true masks.
        thresholds: background scores, ascending; a single one is used without a search.
        tolerance: of the boundary F-score.

    Raises:
        ValueError: see `score_masks` and `read_cams`.
    """
    names = chosen_names(source.folder, (".npz", ".npy"), truth)
    suffix = names_in(source.folder, ".npz", ".npy")[1]

    def cams_of(name: str) -> tuple[np.ndarray, list[int], np.ndarray]:
        path = source.folder / f"{name}{suffix}"
        cams, classes = read_cams(path)
        true = truth.read(name)
        size = (true.shape[0], true.shape[1])
        if cams.shape[1:] == working_size(size, max(cams.shape[1:])):
            cams = enlarged(cams, size)  # of a photograph above max_side
        if cams.shape[1:] != size:
            raise DataError(Problem(str(path), "", size_message("CAMs", cams.shape[1:], size)))
        if outside := [k for k in classes.tolist() if not 0 <= k < len(truth.classes)]:
            last = len(truth.classes) - 1
            raise ValueError(f"{path}: expected class indices 0 to {last}, got {outside}")
        return cams, classes.tolist(), true

    curve = ThresholdCurve(np.asarray(thresholds), truth.classes.num_labels)
    counts = ordered_map(lambda name: curve.counts(*cams_of(name)), names)
    for own in track(counts, "thresholds", len(names)):
        curve.add(own)
    with _named(truth):
        threshold, _ = curve.best()
    origin = "given" if len(thresholds) == 1 else "best, chosen with these masks"

    def pair(name: str) -> Pair:
        cams, classes, true = cams_of(name)
        labels = np.array([0, *(index + 1 for index in classes)], np.uint8)
        best = labels_from_cams(torch.from_numpy(cams.astype(np.float32, copy=False)), threshold)
        return labels[best.numpy()], true

    note = noted(f"threshold {threshold:g}, {origin}", source.conditions.note)
    conditions = replace(source.conditions, note=note)
    row = _row(replace(source, conditions=conditions), names, pair, truth, tolerance)
    points = [scores.miou for scores in curve.scores()]
    return row, list(zip(map(float, thresholds), points, strict=True))


def chosen_names(folder: Path, suffixes: Sequence[str], truth: Truth) -> list[str]:
    """Which images to score: those in `Truth.names`, else all that were predicted.

    Raises:
        ValueError: nothing in `folder`, or images to score are missing in it or in the truth.
    """
    predicted, true = files_in(folder, *suffixes), truth.files
    names = list(predicted)
    if truth.names is not None:
        names = sorted(known_names(truth.names, {*predicted, *true}))
    _require(names, predicted, folder, "was not predicted")
    hint = "" if truth.names is not None else "; --names FILE scores the images of a list"
    _require(names, true, truth.folder, "has no true mask", hint)
    if truth.names is None and len(true) > len(names):
        log.warning(
            "%d of %d true masks have a prediction, the others are not scored; "
            "--names says which images belong to a split",
            len(names), len(true),
        )  # fmt: skip
    return names


def write_report(
    rows: Sequence[Row],
    names: Sequence[str],
    folder: Path,
    curve: Sequence[tuple[float, float]] = (),
    *,
    tolerance: float = TOLERANCE,
    chart: str = "png",
    calibration: Calibration | None = None,
) -> list[Path]:
    """Write ``metrics.json`` and the bar chart ``classes.png``.

    Args:
        rows: before and after refinement.
        names: of the L labels.
        folder: where to.
        curve: (threshold, mIoU) of CAMs.
        tolerance: of the boundary F-score.
        chart: "png" or "svg".
        calibration: of the confidence, where there is one.

    Returns:
        The files, without the chart where it cannot be drawn.
    """
    content: dict[str, Any] = {
        "rows": [row_json(row, names) for row in rows],
        "boundary_tolerance": {"share_of_diagonal": tolerance},
    }
    if gain := refinement_gain(rows):
        content["crf_gain"] = gain
    if calibration is not None:
        content["calibration"] = calibration.as_json()
    if curve:
        content["threshold_curve"] = [{"threshold": t, "miou": miou} for t, miou in curve]
    numbers, picture = folder / "metrics.json", folder / f"classes.{chart}"
    write_json(numbers, content, seal=True)
    return [numbers, picture] if draw_classes(rows, names, picture) else [numbers]


def refinement_gain(rows: Sequence[Row]) -> dict[str, float] | None:
    """mIoU after minus before refinement, with its interval; None where there is only one row."""
    if len(rows) != 2 or rows[0].evaluation is None or rows[1].evaluation is None:
        return None
    bounds = rows[1].evaluation.gain_over(rows[0].evaluation)
    return {
        "miou": rows[1].scores.miou - rows[0].scores.miou,
        "percent": LEVEL,
        "low": bounds.low,
        "high": bounds.high,
    }


def _require(
    names: Sequence[str], available: Container[str], folder: Path, what: str, hint: str = ""
) -> None:
    """Raise ValueError that counts the names which are not available and lists the first ones."""
    missing = [name for name in names if name not in available]
    if missing:
        told = f"{len(missing)} of {len(names)} images: {what}: {few(missing)}"
        lost = {folder / name for name in missing}
        files = (file for file in files_below(folder) if file.with_suffix("") in lost)
        if suffixes := sorted({file.suffix for file in files}):
            told += f" (files of these names have the suffix {few(suffixes)}, which is not read)"
        raise ValueError(f"{folder}: {told}{hint}")


@contextmanager
def _named(truth: Truth) -> Iterator[None]:
    """Let errors of true masks in which there is nothing to score name their folder."""
    try:
        yield
    except NothingToScore as error:
        raise NothingToScore(f"{truth.folder}: {error}") from error


def _row(
    source: Source,
    names: Sequence[str],
    pair: Callable[[str], Pair],
    truth: Truth,
    tolerance: float,
) -> Row:
    """The scores of all images of a source, with a progress bar."""
    progress = track(names, f"scoring {source.what}", len(names))
    with _named(truth):
        evaluation = evaluate_pairs(progress, pair, truth.classes.num_labels, tolerance=tolerance)
    return Row("miou", source.what, source.conditions, evaluation.scores, evaluation)
