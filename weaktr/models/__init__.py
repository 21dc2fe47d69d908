"""Models of both stages over timm's plain ViTs."""

from weaktr.models.cam import CamModel, CamOutput
from weaktr.models.patches import PatchModel
from weaktr.models.segmenter import MultiLogits, Segmenter
from weaktr.models.vit import ViT

__all__ = [
    "CamModel",
    "CamOutput",
    "MultiLogits",
    "PatchModel",
    "Segmenter",
    "Stage1Model",
    "ViT",
]

#: What stage 1 trains, by `CamModelConfig.kind`.
Stage1Model = CamModel | PatchModel
