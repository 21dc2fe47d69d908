"""What was trained on what, how, how long and on which machine; scores and curves: of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from weaktr.config import Recipe
from weaktr.files import read_json
from weaktr.messages import one_line
from weaktr.outputs import finished_facts, read_inputs
from weaktr.recipes import as_tree
from weaktr.stages.run import Run
from weaktr.training.loss_log import METRICS
from weaktr.training.metrics import entries_in

#: Points of a curve; of longer ones the means of as many pieces are drawn.
MOST_POINTS = 400
#: What the position in a log is called, the finest first; and values of it in words.
POSITIONS = ("step", "round", "epoch")
IN_WORDS = {
    "lr": "learning rate",
    "changed": "share of the patches whose label changed",
    "background": "share of the patches that are background",
    "silenced": "share of the pixels of objects that clipping leaves without effect",
}
#: What to look for in a curve, by the value's name.
HINTS = {
    "loss": "Falls, then stays level: settled. Still falling at the end: more epochs may help.",
    "changed": "Falls, then stays low: settled.",
    "background": "Stays between the two ends. Near 1 hardly any object is left, near 0 hardly any "
    "background.",
    "silenced": "Near 1 the model learns background alone: lower train_seg.clip_start.",
    "lr": "A setting, not a result: how far each step goes.",
    "fisher": "How well foreground and background part, without masks: higher is better.",
}
OF_PART = "A part of the loss: should fall too."
OF_SCORE = "A score in %: higher is better."
#: Values that say least; they are folded away.
MINOR = frozenset({"lr", "changed", "background", "fisher_threshold", "cam_threshold"})
#: Titles of the stages.
STAGES = {
    "train_cam": "Stage 1: classifier",
    "label": "Pseudo labels",
    "train_seg": "Stage 2: segmenter",
    "predict": "Predictions",
    "evaluate": "Evaluation",
}
#: What is shown of a line of the evaluation, beside its intervals and conditions.
SCORES = ("miou", "precision", "recall", "pixel_accuracy", "boundary_f")

Facts = dict[str, dict[str, str]]


def facts_of_run(run: Run) -> Facts:
    """Facts in groups, as text."""
    recipe, data = run.recipe, run.recipe.data
    train = run.train_images
    splits = {f"photographs of {train.split}": f"{len(train):,}"}
    if run.predicted is not None and run.predicted.split != train.split:
        splits[f"photographs of {run.predicted.split}"] = f"{len(run.predicted):,}"
    models = {"stage 1": f"{recipe.cam_model.backbone}, {recipe.cam_model.kind}"}
    models["weights of stage 1"] = _weights(recipe.cam_model.weights)
    if "train_seg" in recipe.stages:
        models["stage 2"] = f"{recipe.seg_model.backbone}, {recipe.seg_model.decoder}"
        models["weights of stage 2"] = _weights(recipe.seg_model.weights)
    machine = [facts["machine"] for _, facts in _finished(run) if "machine" in facts]
    return {
        "Data": {
            "source": data.source, "folder": data.root, **splits,
            "classes": f"{len(train.classes):,}",
        },
        "Models": models,
        "Machine": _texts(machine[-1]) if machine else {},
    }  # fmt: skip


def facts_of_command(folder: Path) -> Facts:
    """Facts of the command that made the masks of a folder, in groups."""
    stored = read_inputs(folder) or {}
    about = stored.get("about", {})
    return {
        "Data": {"photographs in": str(about.get("photographs"))},
        "Models": {"command": f"weaktr {about.get('command')}", "from": str(stored.get("source"))},
        "Settings": _texts(stored.get("settings", {})),
    }


def changed_settings(recipe: Recipe) -> dict[str, str]:
    """The settings that are not weaktr's defaults."""
    default = dict(_leaves(as_tree(Recipe())))
    return {
        name: one_line(str(value))
        for name, value in _leaves(as_tree(recipe))
        if value != default.get(name)
    }


def stage_rows(run: Run) -> list[dict[str, Any]]:
    """Of each stage of a run: its title, seconds and end; None = not noted, or not finished."""
    finished = dict(_finished(run))
    return [
        {
            "title": STAGES[name],
            "is_finished": name in finished,
            "seconds": finished.get(name, {}).get("seconds"),
            "finished_at": finished.get(name, {}).get("finished_at"),
        }
        for name in run.recipe.stages
    ]


def score_rows(run: Run) -> list[dict[str, Any]]:
    """The lines of a finished evaluation with their intervals, conditions and classes."""
    file = run.of("evaluate") / "metrics.json"
    if finished_facts(file.parent) is None or not file.is_file():
        return []
    try:
        return [_score_row(line) for line in read_json(file, finite=False)]
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{file}: expected the scores that evaluate wrote, got something else ({error}); run "
            "it again with --only evaluate --force"
        ) from error


def _score_row(line: Mapping[str, Any]) -> dict[str, Any]:
    """What is shown of a line of ``metrics.json``."""
    scores, interval = line["scores"], line["scores"].get("miou_interval") or {}
    return (
        {name: _number(scores.get(name)) for name in SCORES}
        | {name: interval.get(name) for name in ("low", "high", "percent")}
        | {
            "key": line["key"],
            "what": line["what"],
            "caption": line["caption"],
            "supervision": line.get("supervision", ""),
            "classes": {name: of.get("iou") for name, of in scores["classes"].items()},
        }
    )


def _number(value: Any) -> Any:
    """A score; None in place of NaN, which older versions wrote for masks without a label."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def curves(run: Run) -> list[dict[str, Any]]:
    """Of each training of a run its curves: title, axes, points, and what to look for."""
    found = []
    for stage in ("train_cam", "train_seg"):
        file = run.of(stage) / METRICS
        entries = entries_in(file) if file.is_file() else []
        seen: list[list[tuple[float, float]]] = []
        for name in dict.fromkeys(key for entry in entries for key in entry):
            points = [*_points(entries, name)]
            if name in POSITIONS or len(points) < 2 or points in seen:
                continue
            seen.append(points)
            is_part = name not in HINTS and any({"loss", name} <= e.keys() for e in entries)
            found.append(
                {
                    "title": STAGES[stage],
                    "x": next(x for x in POSITIONS if x in entries[0]),
                    "y": f"loss: {name}" if is_part else IN_WORDS.get(name, name.replace("_", " ")),
                    "points": _thinned(points),
                    "is_mean": len(points) > MOST_POINTS,
                    "hint": _hint(name, is_part=is_part),
                    "is_minor": name in MINOR,
                }
            )
    return found


def _hint(name: str, *, is_part: bool) -> str:
    """What to look for in a curve; empty = nothing is known."""
    if is_part:
        return OF_PART
    return HINTS.get(name, OF_SCORE if name.endswith("miou") else "")


def _points(entries: list[dict[str, Any]], name: str) -> Iterator[tuple[float, float]]:
    """(position, value) of the entries that have a finite number of this name."""
    for entry in entries:
        position = next((entry[x] for x in POSITIONS if x in entry), None)
        value = entry.get(name)
        if position is not None and isinstance(value, int | float) and np.isfinite(value):
            yield float(position), float(value)


def _thinned(points: list[tuple[float, float]]) -> list[list[float]]:
    """Not more than `MOST_POINTS`, numbers with six digits."""
    pieces = np.array_split(np.array(points), min(len(points), MOST_POINTS))
    return [[float(f"{mean:.6g}") for mean in piece.mean(0)] for piece in pieces]


def _finished(run: Run) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in run.recipe.stages:
        facts = finished_facts(run.of(name))
        if facts is not None:
            yield name, facts


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The plain values of a tree of settings with their names; a list is one value."""
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): one_line(str(value)) for key, value in values.items()}


def _weights(weights: str | None) -> str:
    """The name of weights, which may be a file."""
    return "none" if weights is None else Path(weights).name
