"""How masks or CAMs were made, in words that stand beside their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from weaktr.config import LabelConfig, PredictConfig
from weaktr.data import Manifest
from weaktr.evaluation.report import Conditions


def label_conditions(used: LabelConfig, split: str) -> Conditions:
    """How pseudo labels of a split were made with these settings."""
    return Conditions(
        split, listed(used.scales), yes(used.flip), refinement_name(used), "-",
        f"threshold {used.threshold:g} of the recipe",
    )  # fmt: skip


def prediction_conditions(used: PredictConfig, split: str) -> Conditions:
    """How masks of a split were made with these settings."""
    return Conditions(
        split, listed(used.ratios), yes(used.flip), refinement_name(used), used.ensemble
    )


def cam_name(settings: LabelConfig) -> str:
    """The kind of CAM in words."""
    return f"{settings.attention_type}{', refined' if settings.refine else ''}"


def refinement_name(used: LabelConfig | PredictConfig) -> str:
    """The refinement in words: the CRF's name, or the refiners one after the other."""
    crf = "none" if used.crf is None else used.crf if isinstance(used.crf, str) else "explicit"
    names = [crf if entry == "crf" else _in_words(entry) for entry in used.refiners]
    return " + ".join(name for name in names if name != "none") or "none"


def _in_words(entry: str | dict[str, Any]) -> str:
    if isinstance(entry, str):
        return entry
    return ", ".join(f"{name} {settings}" for name, settings in entry.items())


def listed(values: Sequence[float]) -> str:
    """``1, 1.2``."""
    return ", ".join(f"{value:g}" for value in values)


def split_name(manifest: Manifest) -> str:
    """Data set and split."""
    return f"{manifest.name} {manifest.split}"


def yes(value: bool) -> str:
    return "yes" if value else "no"
