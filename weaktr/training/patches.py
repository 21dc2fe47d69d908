"""Photographs with image-level labels -> the classifier of `weaktr.models.patches`.

    1  saliency s: the first principal component of the last block's patches, turned so that the
       borders of the photographs are low in it, and scaled by their quantiles
    2  each patch starts as 1 - s background and s / K of each of its photograph's K classes
    3  rounds: a linear discriminant is fitted to these shares and gives new ones of patches that it
       was not fitted to (the photographs are in folds), among the labels of their photograph, at
       least so much of each
    4  the discriminant of all patches

Judging photographs by those others is what keeps a classifier from believing what it was told about
their background. A discriminant has a closed form: means of the labels and one covariance, so that
a round takes seconds. With all patches of fold f left out it only takes other sums.

Source: the steps are this project's own. Least shares: Papandreou et al., arXiv 1502.02734.
Saliency by principal components is usual with DINO's features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from weaktr.config import TrainPatchesConfig
from weaktr.models.patches import PatchModel, log_odds, with_least_shares
from weaktr.training.discriminants import Moments, discriminant

log = logging.getLogger("weaktr")

#: Quantiles of the borders' components that count as no saliency and as full.
BORDER_QUANTILES = (0.5, 0.95)
#: A feature that varies less is as good as constant.
LEAST_SCALE = 1e-6
#: The score of a class that no photograph shows, beside which every other is certain.
NEVER = -1e4


@dataclass(frozen=True)
class Patches:
    """The patches of photographs that are learned from, fold by fold.

    Args:
        x: float32 [P, F], standardised, of which classes are told.
        y: float32 [P, D], likewise, of which saliency is told.
        photograph: [P] 0..N-1, ascending.
        border: bool [P], whether a patch lies at the border of its photograph.
        shown: float32 [N, C], multi-hot.
        folds: of each fold its patches in `x`.
    """

    x: Tensor
    y: Tensor
    photograph: Tensor
    border: Tensor
    shown: Tensor
    folds: Sequence[slice]


def gather(
    model: PatchModel,
    photographs: Iterable[tuple[Tensor, Tensor]],
    count: int,
    settings: TrainPatchesConfig,
    seed: int,
) -> Patches:
    """The patches in the order of their folds, standardised; the model learns by what.

    Photographs are in random folds, whatever the order in which they came. One with more patches
    than its part of `most_patches` gives so many, drawn at random; the others are not kept.

    Args:
        model: gets `center` and `scale`.
        photographs: of each its features [h, w, F + D] and its classes [C], multi-hot.
        count: how many there are at most.
        settings: see `TrainPatchesConfig`.
        seed: of the folds, and of the patches that are drawn.

    Raises:
        ValueError: fewer than two photographs; features that are not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    part = max(1, settings.most_patches // count)
    rows, borders, shown, is_cut = [], [], [], False
    for maps, own in photographs:
        at_border = torch.ones(maps.shape[:2], dtype=torch.bool)
        at_border[1:-1, 1:-1] = False
        taken: Tensor | slice = slice(None)
        if at_border.numel() > part:
            taken, is_cut = torch.randperm(at_border.numel(), generator=generator)[:part], True
        rows.append(maps.flatten(0, 1)[taken])
        borders.append(at_border.flatten()[taken])
        shown.append(own)
    if len(rows) < 2:
        raise ValueError(f"expected at least 2 photographs to learn from, got {len(rows)}")
    if is_cut:
        log.info("at most %d patches of each photograph are learned from (most_patches)", part)
    order = torch.randperm(len(rows), generator=generator.manual_seed(seed)).tolist()
    counts = torch.tensor([len(rows[index]) for index in order])
    ends = [0, *counts.cumsum(0).tolist()]
    device = model.center.device
    widths = (model.width, len(model.saliency))
    parts = [torch.empty(ends[-1], width, device=device) for width in widths]  # x and y
    for index, (start, end) in zip(order, pairwise(ends), strict=True):
        for part_of_all, own in zip(parts, rows[index].split(widths, 1), strict=True):
            part_of_all[start:end] = own
    del rows
    centers, scales = model.center.split(widths), model.scale.split(widths)
    for values, center, scale in zip(parts, centers, scales, strict=True):
        if not values.isfinite().all():
            raise ValueError("features: expected finite numbers, got NaN or infinity")
        deviation, mean = torch.std_mean(values, 0)
        center.copy_(mean)
        scale.copy_(torch.where(deviation > LEAST_SCALE, deviation, 1.0))
        values.sub_(center).div_(scale)
    folds = min(settings.folds, len(order))
    bounds = [ends[round(fold * len(order) / folds)] for fold in range(folds + 1)]
    return Patches(
        parts[0],
        parts[1],
        torch.repeat_interleave(torch.arange(len(order)), counts).to(device),
        torch.cat([borders[index] for index in order]).to(device),
        torch.stack([shown[index] for index in order]).to(device, torch.float32),
        [slice(*pair) for pair in pairwise(bounds)],
    )


def fit_patches(
    model: PatchModel,
    patches: Patches,
    settings: TrainPatchesConfig,
    told: Callable[[int, dict[str, float]], None] = lambda number, facts: None,
) -> None:
    """Fit the classifier of a model. A class that no photograph shows is never found by it.

    Args:
        model: gets its weights.
        patches: from `gather`, with the same model.
        settings: see `TrainPatchesConfig`.
        told: called after each round with its number and what it changed.
    """
    fit_saliency(model, patches)
    discriminants = Discriminants(patches, settings)
    salient = model.saliencies(patches.y)
    background = model.config.patches.saliency_weight * log_odds(salient)
    allowed = torch.cat([torch.ones_like(patches.shown[:, :1]), patches.shown], 1) > 0
    least = least_shares(model, patches.shown)
    shares = first_shares(salient, patches)
    for number in range(1, settings.rounds + 1):
        scores = discriminants.scores_of_folds(shares)
        scores[:, 0] -= background
        scores.masked_fill_(~allowed[patches.photograph], -torch.inf)
        likely = scores.softmax(1)
        del scores
        likely = with_least_shares(likely, patches.photograph, least)
        changed = (likely.argmax(1) != shares.argmax(1)).float().mean().item()
        shares = likely
        told(number, {"changed": changed, "background": shares[:, 0].mean().item()})
    weight, bias = discriminants.of_all(shares)
    model.weight.copy_(weight)
    model.bias.copy_(torch.where(allowed.any(0), bias, NEVER))


def fit_saliency(model: PatchModel, patches: Patches) -> None:
    """The first principal component, low at the borders; see the top of this file."""
    covariance = patches.y.T @ patches.y / len(patches.y)
    direction = torch.linalg.eigh(covariance)[1][:, -1]
    values = patches.y @ direction
    at_border = values[patches.border]
    if at_border.mean() > values.mean():
        direction, at_border = -direction, -at_border
    # torch.quantile takes 16 million values at most
    at_border = at_border[:: max(1, len(at_border) // 1_000_000)]
    low, high = torch.quantile(at_border, at_border.new_tensor(BORDER_QUANTILES))
    model.saliency.copy_(direction)
    model.saliency_range.copy_(torch.stack([low, torch.maximum(high, low + 1e-3)]))


def first_shares(salient: Tensor, patches: Patches) -> Tensor:
    """What saliency and image-level labels alone say of each patch: [P, C + 1]."""
    classes = patches.shown / patches.shown.sum(1, keepdim=True).clamp_min(1)
    front = salient[:, None] * classes[patches.photograph]
    return torch.cat([1 - front.sum(1, keepdim=True), front], 1)


def least_shares(model: PatchModel, shown: Tensor) -> Tensor:
    """[N, C + 1]: of the background and of each class that a photograph shows."""
    settings = model.config.patches
    background = shown.new_full((len(shown), 1), settings.least_background)
    return torch.cat([background, settings.least_share * shown], 1)


class Discriminants:
    """Discriminants of patches, fold by fold.

    Args:
        patches: that are fitted to.
        settings: `shrinkage` and `temperature`.
    """

    def __init__(self, patches: Patches, settings: TrainPatchesConfig) -> None:
        self.patches, self.settings = patches, settings
        self.squares = [patches.x[fold].T @ patches.x[fold] for fold in patches.folds]
        self.all_squares = torch.stack(self.squares).sum(0)

    def of_all(self, shares: Tensor) -> tuple[Tensor, Tensor]:
        """w [L, F] and b [L] of all patches with shares [P, L]."""
        return self._solved(self._moments(shares))

    def scores_of_folds(self, shares: Tensor) -> Tensor:
        """Scores [P, L] of every patch by the discriminant of the other folds, if there are any."""
        if len(self.patches.folds) == 1:
            weight, bias = self.of_all(shares)
            return self.patches.x @ weight.T + bias
        moments, scores = self._moments(shares), torch.empty_like(shares)
        for fold, squares in zip(self.patches.folds, self.squares, strict=True):
            x, own = self.patches.x[fold], shares[fold]
            weight, bias = self._solved(moments - Moments(own.sum(0), own.T @ x, squares))
            scores[fold] = x @ weight.T + bias
        return scores

    def _moments(self, shares: Tensor) -> Moments:
        return Moments(shares.sum(0), shares.T @ self.patches.x, self.all_squares)

    def _solved(self, moments: Moments) -> tuple[Tensor, Tensor]:
        weight, bias = discriminant(moments, self.settings.shrinkage)
        return weight / self.settings.temperature, bias / self.settings.temperature
