"""Models of both stages from the settings that differ from the defaults."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from weaktr.config import CamModelConfig, PatchesConfig, SegModelConfig
from weaktr.models import CamModel, PatchModel, Segmenter
from weaktr.models.pretrained import load_backbone

Model = TypeVar("Model", CamModel, Segmenter)


def cam_model(backbone: str, num_classes: int, **settings: Any) -> CamModel:
    """A stage-1 model without stochastic depth."""
    given = {"weights": None, "drop_path": 0.0} | settings
    return with_weights(CamModel(CamModelConfig(backbone, **given), num_classes))


def tiny_cam_model(num_classes: int = 2, **settings: Any) -> CamModel:
    """A stage-1 model, small enough to label images in milliseconds."""
    return cam_model(
        "vit_tiny_patch16_224",
        num_classes,
        image_size=32,
        patch_size=16,
        reduction=1,
        feat_reduction=1,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
        **settings,
    ).eval()


def segmenter(backbone: str, num_labels: int, **settings: Any) -> Segmenter:
    """A stage-2 model."""
    config = SegModelConfig(backbone, **{"weights": None} | settings)
    return with_weights(Segmenter(config, num_labels))


def with_weights(model: Model) -> Model:
    """The model with the starting weights that its configuration names, as trainings load them."""
    load_backbone(model.vit, model.config)
    return model


def patch_model(num_classes: int, *, seed: int = 0, **patches: Any) -> PatchModel:
    """A stage-1 model of patches, 8 pixels wide, whose classifier is drawn at random."""
    config = CamModelConfig(
        "vit_tiny_patch16_224",
        weights=None,
        kind="patches",
        image_size=32,
        patch_size=8,
        backbone_args={"embed_dim": 16, "depth": 2, "num_heads": 2},
        patches=PatchesConfig(**{"short_side": 32, "layers": (0, -1)} | patches),
    )
    torch.manual_seed(seed)
    model = PatchModel(config, num_classes)
    for drawn in (model.center, model.weight, model.bias, model.saliency):
        drawn.normal_()
    model.scale.uniform_(0.5, 2)
    model.saliency_range.copy_(torch.tensor([-1.0, 3.0]))
    return model.eval()
