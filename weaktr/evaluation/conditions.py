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
        split, listed(used.scales), yes(used.flip), crf_name(used.crf), "-",
        f"threshold {used.threshold:g} of the recipe",
    )  # fmt: skip


def prediction_conditions(used: PredictConfig, split: str) -> Conditions:
    """How masks of a split were made with these settings."""
    return Conditions(split, listed(used.ratios), yes(used.flip), crf_name(used.crf), used.ensemble)


def cam_name(settings: LabelConfig) -> str:
    """The kind of CAM in words."""
    return f"{settings.attention_type}{', refined' if settings.refine else ''}"


def crf_name(setting: str | dict[str, Any] | None) -> str:
    """The CRF in words."""
    return "none" if setting is None else setting if isinstance(setting, str) else "explicit"


def listed(values: Sequence[float]) -> str:
    """``1, 1.2``."""
    return ", ".join(f"{value:g}" for value in values)


def split_name(manifest: Manifest) -> str:
    """Data set and split."""
    return f"{manifest.name} {manifest.split}"


def yes(value: bool) -> str:
    return "yes" if value else "no"
