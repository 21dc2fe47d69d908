"""`weaktr.ops.clipped_cross_entropy` on a GPU: no enlarged logits in memory, no atomic additions.

Between two rows and two columns of logits lies a *cell* of pixels, which is interpolated from its
four corners; at most ROWS rows of a cell's pixels are a *strip*. A program has one strip of some
cells side by side, usually in one warp. A thread has whole columns of it in its registers and takes
label by label: what varies along x alone is computed once a column, and what remains for a label of
a pixel is its interpolation along y, an exponential, a comparison with the own label and sums.

Forwards that gives every pixel's loss and log-sum-exp. Two smaller kernels then clip: the first
sums the losses of every tile, the second holds them at their threshold, and marks in the
log-sum-exp which pixels send no gradient. Backwards a strip is summed into the corners of its
cells, and each logit adds its corners of the cells around it; everything in a fixed order.

    cells.py           which pixels lie between which logits, and what a program has of them
    launches.py        the launches of the kernels
    cross_entropy.py   the kernels of the losses and of their gradient
    clipping.py        the kernels that clip
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from weaktr.kernels.clipped_cross_entropy.cells import tiles_of
from weaktr.kernels.clipped_cross_entropy.launches import (
    clip_losses,
    empty_scaled,
    logits_gradient,
    pixel_losses,
    scale_logits,
    wide,
)
from weaktr.ops.clipped_cross_entropy import ClippedLoss, ClippedLossInputs
from weaktr.ops.registry import takes

MOST_LABELS = 256
MOST_ENLARGING = 64


def refusal(num_labels: int, enlarging: float) -> str:
    """Why the kernels do not take such inputs, "" where they do.

    Args:
        num_labels: L.
        enlarging: W / w, labels' width by that of the logits.
    """
    if num_labels > MOST_LABELS:
        return f"its kernels take at most {MOST_LABELS} labels, got {num_labels}"
    if enlarging > MOST_ENLARGING:
        return f"its kernels enlarge the width at most {MOST_ENLARGING} times, got {enlarging:g}"
    return ""


@takes(f"up to {MOST_LABELS} labels; width enlarged up to {MOST_ENLARGING} times", refusal)
def clipped_cross_entropy_triton(inputs: ClippedLossInputs) -> ClippedLoss:
    """Like `clipped_cross_entropy_torch`.

    A label out of range gives its pixel, and thereby the loss, NaN.
    """
    run = clipped_loss if torch.compiler.is_compiling() else _ClippedLoss.apply
    loss, mean_loss, loss_map, clipped, thresholds, _, _ = run(*inputs)
    return ClippedLoss(loss, mean_loss, loss_map, clipped, thresholds)


# ---- operators ----------------------------------------------------------------------------------


def _forward(
    logits: Tensor,
    labels: Tensor,
    patch_size: int,
    start_value: float,
    ignore_index: int,
    batch: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The fields of `ClippedLoss`, then `scaled` and log-sum-exp for the gradient."""
    with torch.cuda.device_of(logits):
        scaled = scale_logits(logits)
        losses, lse = pixel_losses(scaled, labels, logits.shape[1], ignore_index)
        loss, mean, clipped, limits = clip_losses(losses, lse, patch_size, start_value, batch)
    return loss, mean, losses, clipped, limits, scaled, lse


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.share = len(inputs[1]) / inputs[5]
    ctx.save_for_backward(*inputs[:2], *output[5:])


def _of_part(gradient: Tensor, ctx: Any) -> Tensor:
    """The gradient of the mean over the images here, from that of their share of the batch's."""
    return gradient if ctx.share == 1 else gradient * ctx.share


class _ClippedLoss(torch.autograd.Function):
    """`_forward` with its gradient, launched without the registry of operators in between."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        """With `ctx`, because binding arguments without it takes longer than a launch."""
        output = _forward(*inputs)
        _keep_inputs(ctx, inputs, output)
        return output

    @staticmethod
    @once_differentiable  # whose stub loses the signature
    def backward(ctx: Any, gradient: Tensor | None, *_: Any) -> Any:  # type: ignore[override]
        if gradient is None:
            return (None,) * 6
        return logits_gradient(_of_part(gradient, ctx), *ctx.saved_tensors), *(None,) * 5


#: The same as an operator, which torch.compile takes as a whole.
clipped_loss = torch.library.custom_op("weaktr::clipped_loss", _forward, mutates_args=())


@clipped_loss.register_fake
def _(logits: Tensor, labels: Tensor, patch_size: int, *_: Any) -> tuple[Tensor, ...]:
    losses = logits.new_empty(labels.shape, dtype=wide(logits))
    loss, mean_loss = losses.new_empty(()), losses.new_empty(())
    clipped = losses.new_empty((), dtype=torch.bool)
    thresholds = losses.new_empty(tiles_of(losses, patch_size)[1])
    scaled, lse = empty_scaled(logits), torch.empty_like(losses)
    return loss, mean_loss, losses, clipped, thresholds, scaled, lse


@torch.library.custom_op("weaktr::clipped_loss_backward", mutates_args=())
def clipped_loss_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, scaled: Tensor, lse: Tensor
) -> Tensor:
    """`logits_gradient` as an operator."""
    return logits_gradient(gradient, logits, labels, scaled, lse)


@clipped_loss_backward.register_fake
def _(gradient: Tensor, logits: Tensor, *_: Tensor) -> Tensor:
    return torch.empty_like(logits)


def _backward(ctx: Any, gradient: Tensor, *_: Any) -> Any:
    return clipped_loss_backward(_of_part(gradient, ctx), *ctx.saved_tensors), *(None,) * 5


clipped_loss.register_autograd(_backward, setup_context=_keep_inputs)
