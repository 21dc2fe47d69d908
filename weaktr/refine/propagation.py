"""Label propagation on the patch graph as a refinement: patches that look alike agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.config import LabelConfig, PredictConfig, PropagationConfig
from weaktr.ops import propagate_labels
from weaktr.recipes import make
from weaktr.refine.maps import Maps, best_labels, scores_of_labels

#: The short side of every photograph in the unit of distances: so many pixels.
SHORT_SIDE = 448
#: Patches of the largest graph, 128 x 128; the features of larger images are averaged to so many.
MOST_PATCHES = 16384


@dataclass(frozen=True)
class PropagationRefiner:
    """Labels of each image, spread over the graph of its patches; one label is not changed.

    The scores behind the maps are averaged over each patch, spread (`weaktr.ops.propagate_labels`),
    made to sum to 1 over the labels, and interpolated to the pixels.

    Args:
        settings: of the graph.
        gt_prob: confidence in labels that have no scores, such as those of a CRF before it.
    """

    settings: PropagationConfig
    gt_prob: float
    needs_features: ClassVar[bool] = True
    gives_scores: ClassVar[bool] = True

    def __call__(
        self,
        images: Sequence[Tensor],
        maps: Sequence[Maps],
        *,
        num_threads: int | None = None,
        confidence: bool = False,
    ) -> list[Maps]:
        """See `weaktr.refine.maps.Refiner`.

        Raises:
            ValueError: no patch features, or some that are NaN or infinite.
        """
        return [self._refined(own, confidence) if own.num_labels > 1 else own for own in maps]

    def _refined(self, maps: Maps, confidence: bool) -> Maps:
        if maps.features is None:
            raise ValueError(
                "maps: expected patch features for propagation, got none; they come from models, "
                "not from stored CAMs"
            )
        features, options = _bounded(maps.features), asdict(self.settings)
        if options.pop("center"):
            features = features - features.mean((1, 2), keepdim=True)
        size, grid = tuple(maps.labels.shape), (features.shape[1], features.shape[2])
        scores = maps.scores
        if scores is None:
            scores = scores_of_labels(maps.labels, maps.num_labels, self.gt_prob)
        spread = propagate_labels(
            features.flatten(1).T,
            patch_centres(grid, (size[0], size[1]), features.device),
            F.adaptive_avg_pool2d(scores, grid).flatten(1).T,
            **options,
        )
        total = spread.sum(1, keepdim=True)  # 0: no label there, in a window that saw none of them
        shares = torch.where(total > 0, spread / total, 1 / maps.num_labels).T.unflatten(1, grid)
        refined = F.interpolate(shares[None], size, mode="bilinear", align_corners=False)[0]
        labels, best = best_labels(refined)
        return Maps(labels, maps.num_labels, refined, best if confidence else None)


def patch_centres(grid: tuple[int, int], size: tuple[int, int], device: torch.device) -> Tensor:
    """The centres of an image's patches, in pixels of the image at a short side of `SHORT_SIDE`.

    So distances depend neither on the resolution of the photograph nor on the size of patches.

    Args:
        grid: (h, w) patches.
        size: (H, W) of the image in pixels.
        device: where they go.

    Returns:
        float32 [h · w, 2], row by row: down, across.
    """
    axes = [
        (torch.arange(count, device=device) + 0.5) * (side * SHORT_SIDE / min(size) / count)
        for count, side in zip(grid, size, strict=True)
    ]
    return torch.cartesian_prod(*axes)


def _bounded(features: Tensor) -> Tensor:
    """[D, h, w] averaged to a grid of the same proportion and at most `MOST_PATCHES`."""
    height, width = features.shape[1:]
    if height * width <= MOST_PATCHES:
        return features
    scale = math.sqrt(MOST_PATCHES / (height * width))
    rows = min(max(1, int(height * scale)), MOST_PATCHES)
    return F.adaptive_avg_pool2d(features, (rows, max(1, min(width, MOST_PATCHES // rows))))


def propagation_refiner(
    settings: Any, stage_settings: LabelConfig | PredictConfig
) -> PropagationRefiner:
    """Label propagation of a stage.

    Args:
        settings: fields of `PropagationConfig`; None = its defaults.
        stage_settings: of the stage; `gt_prob` of labelling counts where labels have no scores.

    Raises:
        ValueError: an unknown field, or a value out of range.
    """
    chosen = make(PropagationConfig, {} if settings is None else settings, "propagation")
    of_labels = stage_settings if isinstance(stage_settings, LabelConfig) else LabelConfig()
    return PropagationRefiner(chosen, of_labels.gt_prob)
