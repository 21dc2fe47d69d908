"""The stored segmenter of the published code, its image and the settings of its inference."""

from __future__ import annotations

from typing import Any

from tests.parity.recipe import recipe_weight
from tests.stored import FACTS, arrays
from weaktr.config import PredictConfig
from weaktr.models import Segmenter
from weaktr.models.released.state_dicts import segmenter_from_published

E = arrays("E_inference")
FACT = FACTS["E_inference"]
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)


def settings_of(**changes: Any) -> PredictConfig:
    """The stored run's settings, with changes."""
    given = {
        "short_side": 52, "ratios": RATIOS, "window": 48, "stride": 32, "ensemble": "plain",
        "crf": None,
    }  # fmt: skip
    return PredictConfig(**(given | changes))


def segmenter() -> Segmenter:
    """The model in eval mode."""
    state = {k: recipe_weight(k, shape, 201) for k, shape in FACT["state_dict"].items()}
    return segmenter_from_published(
        state,
        encoder_heads=6,
        decoder_heads=2,
        decoder="mask_transformer",
        patch_size=16,
        image_size=48,
    ).eval()
