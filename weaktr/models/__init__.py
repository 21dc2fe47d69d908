"""Models of both stages over timm's plain ViTs."""

from weaktr.models.cam import CamModel, CamOutput
from weaktr.models.segmenter import MultiLogits, Segmenter
from weaktr.models.vit import ViT

__all__ = ["CamModel", "CamOutput", "MultiLogits", "Segmenter", "ViT"]
