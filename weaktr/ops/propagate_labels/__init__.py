"""`propagate_labels`: scores of an image's patches, spread over patches that look alike.

The patches are the nodes of a graph. With f_i their features of unit length, p_i their positions,
and W cut to the k largest entries of each row, its diagonal zero:

    W_ij = max(0, f_i · f_j)^γ · exp(-σ |p_i - p_j|)
    S = D^-½ (W + Wᵀ) D^-½                               D: the row sums of W + Wᵀ
    (I - α S) Z = Y

Z = Y + αSY + α²S²Y + ... : a patch gets the scores of others by every path to them, each step of it
weighed by α. A patch that resembles no other keeps its own.

Source: Zhou et al., "Learning with Local and Global Consistency", NeurIPS 2003; the affinities of
Stojnić et al., "LPOSS: Label Propagation Over Patches and Pixels for Open-vocabulary Semantic
Segmentation", CVPR 2025.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from weaktr.ops.registry import Backend, Op, register

OP = register(
    Op(
        "propagate_labels",
        backends=(Backend("torch", "weaktr.ops.propagate_labels.definition"),),
    )
)

#: The largest alpha. The condition of the equations is (1 + α) / (1 - α).
MOST_ALPHA = 0.999


class PropagationInputs(NamedTuple):
    """What the backends take, checked; see `propagate_labels`."""

    features: Tensor  #: [P, D], of the dtype of `scores`
    positions: Tensor  #: [P, 2], of the dtype of `scores`
    scores: Tensor  #: [P, L] float32 or float64
    gamma: float
    sigma: float  #: per unit of `positions`
    neighbours: int  #: k
    alpha: float


def propagate_labels(
    features: Tensor,
    positions: Tensor,
    scores: Tensor,
    *,
    gamma: float = 3.0,
    sigma: float = 0.01,
    neighbours: int = 400,
    alpha: float = 0.95,
    backend: str = "auto",
) -> Tensor:
    """Solve (I - αS) Z = Y for all labels at once (formulas above), without gradient.

    Memory: 16 bytes for each of P · min(k, P - 1) neighbours, and some MiB for pieces of W.

    Args:
        features: floating point [P, D], of any length; a row of zeros resembles nothing.
        positions: floating point [P, 2], of the patches' centres in any unit.
        scores: Y, floating point [P, L], such as probabilities. Half precision is computed in
            float32.
        gamma: exponent γ > 0 of the cosines.
        sigma: σ >= 0, per unit of `positions`; 0 = near and far patches count alike.
        neighbours: k >= 1, how many others each patch chooses; all of them where there are fewer.
            One that chooses a patch is its neighbour, too.
        alpha: share α in 0..`MOST_ALPHA` of a step; 0 gives Y.
        backend: see `weaktr.ops.registry.Op.pick`.

    Returns:
        Z [P, L] in float32 (float64 for float64 scores), where `scores` are; not negative where Y
        is not.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, numbers out of range, or features,
            positions or scores that are NaN or infinite.
        BackendUnavailable: `backend` was named and cannot run.
    """
    for name, value, is_right, range_ in (
        ("gamma", gamma, gamma > 0, "above 0"),
        ("sigma", sigma, sigma >= 0, "of at least 0"),
        ("neighbours", neighbours, neighbours >= 1, "of at least 1"),
        ("alpha", alpha, 0 <= alpha <= MOST_ALPHA, f"from 0 to {MOST_ALPHA}"),
    ):
        if not is_right:
            raise ValueError(f"{name}: expected a number {range_}, got {value!r}")
    given = {"features": features, "positions": positions, "scores": scores}
    for name, tensor in given.items():
        expected = "[P, 2]" if name == "positions" else "[P, D]" if name == "features" else "[P, L]"
        if tensor.ndim != 2 or not tensor.is_floating_point() or 0 in tensor.shape:
            raise ValueError(
                f"{name}: expected floating point {expected}, none of them 0, got {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        if len(tensor) != len(features) or tensor.device != features.device:
            raise ValueError(
                f"{name}: expected {len(features)} rows on {features.device} like features, got "
                f"{len(tensor)} on {tensor.device}"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{name}: expected finite numbers, got NaN or infinity")
    if positions.shape[1] != 2:
        raise ValueError(f"positions: expected [P, 2], got {tuple(positions.shape)}")
    dtype = torch.promote_types(scores.dtype, torch.float32)
    features, positions, scores = (tensor.detach().to(dtype) for tensor in given.values())
    run = OP.pick(features.device, backend)
    spread: Tensor = run(
        PropagationInputs(features, positions, scores, gamma, sigma, neighbours, alpha)
    )
    return spread
