"""`collision_cross_entropy`: the stage-2 loss of soft labels, and the usual one beside it.

With σ = softmax(logits) and a soft label y, which sums to 1 over the labels:

    collision(y, σ)          = -ln Σ_c y_c σ_c
    soft_cross_entropy(y, σ) = -Σ_c y_c ln σ_c

The collision is the probability that y and σ, drawn from independently, are the same label. Where y
is one-hot, both are the cross-entropy; where y is undecided, the collision loss asks the model for
nothing: any prediction suits a uniform y, while the soft cross-entropy would have it uniform too.

Source: Zhang and Boykov, "Collision cross-entropy for soft class labels", arXiv 2303.07321.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from weaktr.ops.registry import Backend, Op, register

OP = register(
    Op(
        "collision_cross_entropy",
        backends=(Backend("torch", "weaktr.ops.collision_cross_entropy"),),
    )
)


def collision_cross_entropy(logits: Tensor, targets: Tensor, *, backend: str = "auto") -> Tensor:
    """Mean of -ln Σ_c y_c σ_c over the places that have a target.

    Args:
        logits: [B, L, ...] floating point. Half precision is computed in float32.
        targets: y, floating point of the same shape, >= 0, sums to 1 over L; all 0 = no target.
        backend: see `weaktr.ops.registry.Op.pick`.

    Returns:
        Scalar in float32 (float64 for float64 logits), in nats; 0 where nothing has a target. Only
        `logits` get a gradient.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
        BackendUnavailable: `backend` was named and cannot run.
    """
    _check(logits, targets)
    loss: Tensor = OP.pick(logits.device, backend)(logits, targets)
    return loss


def collision_cross_entropy_torch(logits: Tensor, targets: Tensor) -> Tensor:
    """The definition: logsumexp(logits) - logsumexp(logits + ln y), which no logit overflows.

    A place without target takes y = 1: the two terms are equal, and so are their gradients.
    """
    logits, targets = _in_full(logits, targets)
    has_target = targets.sum(1, keepdim=True) > 0
    log_targets = torch.where(has_target, targets, 1).log()
    losses = logits.logsumexp(1) - (logits + log_targets).logsumexp(1)
    return losses.sum() / has_target.sum().clamp(min=1)


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean of -Σ_c y_c ln σ_c over the places that have a target.

    It differs from the KL divergence of y and σ by the entropy of y, which has no gradient.
    Arguments, result and errors are those of `collision_cross_entropy`.
    """
    _check(logits, targets)
    logits, targets = _in_full(logits, targets)
    count = (targets.sum(1) > 0).sum()
    return F.cross_entropy(logits, targets, reduction="sum") / count.clamp(min=1)


def _in_full(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float32, or in float64 where the logits are; the targets without gradient."""
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype), targets.detach().to(dtype)


def _check(logits: Tensor, targets: Tensor) -> None:
    if logits.ndim < 2 or not logits.is_floating_point() or 0 in logits.shape:
        raise ValueError(
            "logits: expected floating point [B, L, ...], none of them 0, "
            f"got {logits.dtype} {tuple(logits.shape)}"
        )
    if targets.shape != logits.shape or not targets.is_floating_point():
        raise ValueError(
            f"targets: expected floating point {tuple(logits.shape)} like logits, "
            f"got {targets.dtype} {tuple(targets.shape)}"
        )
    if targets.device != logits.device:
        raise ValueError(
            f"targets: expected them on {logits.device} like logits, got {targets.device}"
        )
