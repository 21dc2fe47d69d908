"""Models of both stages with random weights, from the settings that differ from the defaults."""

from __future__ import annotations

from typing import Any

from weaktr.config import CamModelConfig, SegModelConfig
from weaktr.models import CamModel, Segmenter


def cam_model(backbone: str, num_classes: int, **settings: Any) -> CamModel:
    """A stage-1 model without stochastic depth."""
    given = {"weights": None, "drop_path": 0.0} | settings
    return CamModel(CamModelConfig(backbone, **given), num_classes)


def segmenter(backbone: str, num_labels: int, **settings: Any) -> Segmenter:
    """A stage-2 model."""
    return Segmenter(SegModelConfig(backbone, **{"weights": None} | settings), num_labels)
