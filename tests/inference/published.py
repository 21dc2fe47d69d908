"""The stored segmenter of the published code, its image and the settings of its inference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tests.parity.recipe import recipe_weight
from tests.stored import FACTS, arrays
from weaktr.config import PredictConfig
from weaktr.data import Sample
from weaktr.data.photographs import reduced
from weaktr.inference.probabilities import SegInputs, probabilities, seg_inputs
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


def inputs_of(image: np.ndarray, settings: PredictConfig) -> SegInputs:
    """An image in memory, uint8 [H, W, 3], as a pipeline's readers hand it over."""
    sample = Sample("image", None, None, None, "")
    return seg_inputs(sample, reduced(image, settings.max_side), settings, torch.device("cpu"))


def scores_of(model: Segmenter, image: np.ndarray, settings: PredictConfig) -> np.ndarray:
    """float32 [L, H, W] of one image."""
    (scores,) = probabilities(model, [inputs_of(image, settings)], settings)
    return scores.numpy()
