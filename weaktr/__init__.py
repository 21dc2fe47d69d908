"""Weakly-supervised semantic segmentation with plain vision transformers (WeakTr).

    model = weaktr.load("runs/mine/train_cam/model.safetensors")
    mask = model.label("photo.jpg", ["dog", "person"])  # uint8 [H, W]
    masks = weaktr.label(model, "photos", "labels")  # of a folder

torch is imported when a name of `__all__` is used for the first time.

Source: Zhu et al., "WeakTr: Exploring Plain Vision Transformer for Weakly-supervised Semantic
Segmentation", arXiv 2304.01184.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["DenseCRF", "Model", "label", "load", "predict", "train"]

if TYPE_CHECKING:
    from weaktr.api import Model, label, load, predict, train
    from weaktr.ops.dense_crf.presets import DenseCRF
else:
    _MODULES = {
        "DenseCRF": "weaktr.ops.dense_crf.presets",
        "Model": "weaktr.api",
        "label": "weaktr.api",
        "load": "weaktr.api",
        "predict": "weaktr.api",
        "train": "weaktr.api",
    }

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
