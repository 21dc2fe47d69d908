"""Linear discriminants of patches with shares of labels, from sums over them.

    w_c = Σ⁻¹ μ_c,  b_c = -½ μ_c · Σ⁻¹ μ_c

with the means μ_c of the labels and the one covariance Σ within them, ridged by a part of its mean
diagonal. All labels count as equally frequent.

Source: Fisher, 1936.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Moments(NamedTuple):
    """Sums over patches with features x [P, F] and shares of labels y [P, L]."""

    mass: Tensor  #: [L], Σ y
    sums: Tensor  #: [L, F], Σ y xᵀ
    squares: Tensor  #: [F, F], Σ x xᵀ

    def __sub__(self, part: Moments) -> Moments:
        """Of all patches but those of `part`."""
        return Moments(*(own - other for own, other in zip(self, part, strict=True)))


def discriminant(moments: Moments, shrinkage: float) -> tuple[Tensor, Tensor]:
    """w [L, F] and b [L]. Labels without a patch get the mean of all patches.

    Args:
        moments: of patches whose shares of labels sum to 1.
        shrinkage: how much of its mean is added to the diagonal of the covariance.
    """
    mass, sums, squares = moments
    total = mass.sum()
    mean = sums.sum(0) / total
    means = torch.where(mass[:, None] > 1e-3, sums / mass.clamp_min(1e-3)[:, None], mean)
    within = squares / total - (means.T * (mass / total)) @ means
    # where no feature varies, any ridge will do
    within.diagonal().add_((shrinkage * within.diagonal().mean()).clamp_min(1e-6))
    weight = torch.linalg.solve(within, means.T).T
    return weight, -0.5 * (weight * means).sum(1)
