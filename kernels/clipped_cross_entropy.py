"""`weaktr.ops.clipped_cross_entropy` on a GPU: no enlarged logits in memory, no atomic additions.

Rows of the labels between the same two rows of logits are a *cell*. Forwards, a program
interpolates a cell's two rows of logits along x once, keeps them in registers, and walks down the
rows of labels between them; every pixel's loss and log-sum-exp are stored. Backwards, a program
owns a block of logits and walks down all rows of labels that they reach into, so that every
gradient is summed in one place and in a fixed order. The price are pixels at the border of blocks,
which two programs compute: a share of about 1/SEGMENT + 1/(cells - 1).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from weaktr.kernels import INTERPRETED
from weaktr.kernels.clipped_cross_entropy_kernels import gradient_kernel, losses_kernel
from weaktr.kernels.tuning import Config, best_config, bucket
from weaktr.ops.clipped_cross_entropy import ClippedLoss
from weaktr.ops.clipped_cross_entropy.definition import clip_losses

MOST_LABELS = 256
MOST_ENLARGING = 64
LIMITS = f"up to {MOST_LABELS} labels; width enlarged up to {MOST_ENLARGING} times"
#: Labels side by side in a warp; the others of a pixel lie in one thread's registers.
LABELS_ACROSS = 8
#: Labels of a program in the backward pass.
LABELS_BACK = 32

#: ELEMENTS: labels × columns that a program holds at a time.
FORWARD_CONFIGS: tuple[Config, ...] = (
    {"ELEMENTS": 2048, "num_warps": 4},
    {"ELEMENTS": 4096, "num_warps": 4},
    {"ELEMENTS": 4096, "num_warps": 8},
    {"ELEMENTS": 8192, "num_warps": 8},
)
#: SEGMENT: rows of logits that a program owns.
BACKWARD_CONFIGS: tuple[Config, ...] = tuple(
    {"ELEMENTS": elements, "SEGMENT": segment, "num_warps": warps}
    for elements, warps in ((2048, 8), (2048, 4), (4096, 16), (4096, 8))
    for segment in (4, 8)
)


def refusal(device_type: str, num_labels: int, enlarging: float) -> str:
    """Why the kernels do not take such inputs, "" where they do.

    Args:
        device_type: of the tensors.
        num_labels: L.
        enlarging: W / w, labels' width by that of the logits.
    """
    if device_type != "cuda" and not INTERPRETED:
        return (
            f"its kernels run on CUDA tensors, got {device_type}; set TRITON_INTERPRET=1 before "
            "Python starts to run them on the CPU, slowly"
        )
    if num_labels > MOST_LABELS:
        return f"its kernels take at most {MOST_LABELS} labels, got {num_labels}"
    if enlarging > MOST_ENLARGING:
        return f"its kernels enlarge the width at most {MOST_ENLARGING} times, got {enlarging:g}"
    return ""


def clipped_cross_entropy_triton(
    logits: Tensor, labels: Tensor, *, patch_size: int, start_value: float, ignore_index: int
) -> ClippedLoss:
    """Like `weaktr.ops.clipped_cross_entropy.definition.clipped_cross_entropy_torch`, for any strides.

    A label out of range gives its pixel, and thereby the loss, NaN.
    """
    losses, _ = pixel_losses(logits, labels, ignore_index)
    return clip_losses(losses, patch_size, start_value)


# ---- operators ----------------------------------------------------------------------------------


@torch.library.custom_op("weaktr::pixel_losses", mutates_args=())
def pixel_losses(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every pixel, and log2 Σ exp(logits); [B, H, W], float32 or float64."""
    losses = torch.empty(labels.shape, dtype=_wide(logits), device=logits.device)
    lse = torch.empty_like(losses)
    across, high = _label_block(logits.shape[1])

    def launch(config: Config) -> None:
        columns = max(1, config["ELEMENTS"] // (across * high))
        grid = (triton.cdiv(labels.shape[2], columns), logits.shape[2] + 1, len(labels))
        losses_kernel[grid](
            *(logits, logits.stride(), labels, labels.stride(), losses, lse),
            *_geometry(logits, labels),
            ignore_index,
            COLUMNS=columns,
            HIGH=high,
            ACROSS=across,
            num_warps=config["num_warps"],
        )

    with torch.cuda.device_of(logits):
        key = _key(logits, labels)
        launch(best_config(losses_kernel, key, FORWARD_CONFIGS, launch, logits.device))
    return losses, lse


@pixel_losses.register_fake
def _(logits: Tensor, labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    losses = logits.new_empty(labels.shape, dtype=_wide(logits))
    return losses, torch.empty_like(losses)


@torch.library.custom_op("weaktr::pixel_losses_backward", mutates_args=())
def pixel_losses_backward(
    gradient: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, ignore_index: int
) -> Tensor:
    """Gradient in the logits, [B, L, h, w] in their dtype, for `gradient` [B, H, W]."""
    result = torch.empty_like(logits)
    batch, num_labels, height, width = logits.shape
    block = min(LABELS_BACK, bucket(num_labels))
    per_cell = bucket(_columns(logits, labels).widest)

    def launch(config: Config) -> None:
        cells = max(2, config["ELEMENTS"] // (block * per_cell))
        segment = config["SEGMENT"]
        blocks = triton.cdiv(num_labels, block)
        grid = (triton.cdiv(width, cells - 1) * blocks, triton.cdiv(height, segment), batch)
        gradient_kernel[grid](
            *(logits, logits.stride(), labels, labels.stride(), lse),
            *(gradient, gradient.stride(), result, result.stride()),
            *_geometry(logits, labels),
            ignore_index,
            SEGMENT=segment,
            CELLS=cells,
            PER_CELL=per_cell,
            LABELS=block,
            num_warps=config["num_warps"],
        )

    with torch.cuda.device_of(logits):
        key = (*_key(logits, labels), per_cell)
        launch(best_config(gradient_kernel, key, BACKWARD_CONFIGS, launch, logits.device))
    return result


@pixel_losses_backward.register_fake
def _(gradient: Tensor, logits: Tensor, labels: Tensor, lse: Tensor, ignore_index: int) -> Tensor:
    return torch.empty_like(logits)


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, ctx.ignore_index = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(logits, labels, output[1])


def _backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
    return pixel_losses_backward(gradient, *ctx.saved_tensors, ctx.ignore_index), None, None


pixel_losses.register_autograd(_backward, setup_context=_keep_inputs)


# ---- geometry -----------------------------------------------------------------------------------


class _Axis(NamedTuple):
    """How an axis of n logits is enlarged to N pixels: cell c lies between logits c - 1 and c."""

    first: Tensor  #: int32 [n + 2], first pixel of each cell
    fraction: Tensor  #: [N] weight of logit c in the pixels of cell c; of c - 1 the rest
    cell: Tensor  #: int32 [N], cell of each pixel
    widest: int  #: pixels of the largest cell


@lru_cache(maxsize=64)
def _axis(logits: int, pixels: int, dtype: torch.dtype, device: torch.device) -> _Axis:
    """The positions of PyTorch's bilinear interpolation, as exact as there."""
    ratio = torch.tensor(logits / pixels, dtype=dtype)
    position = (torch.arange(pixels, dtype=dtype) + 0.5) * ratio - 0.5
    cell = (position.floor() + 1).clamp_(0, logits)
    fraction = position - (cell - 1)
    fraction[cell == 0] = 1  # before the first logit, and behind the last: that logit alone
    fraction[cell == logits] = 0
    first = torch.searchsorted(cell, torch.arange(logits + 2, dtype=dtype))
    widest = int(first.diff().max())
    return _Axis(first.int().to(device), fraction.to(device), cell.int().to(device), widest)


def _columns(logits: Tensor, labels: Tensor) -> _Axis:
    return _axis(logits.shape[3], labels.shape[2], _wide(logits), logits.device)


def _geometry(logits: Tensor, labels: Tensor) -> tuple[Any, ...]:
    """What both kernels take: sizes, rows, columns."""
    num_labels, height, width = logits.shape[1:]
    rows = _axis(height, labels.shape[1], _wide(logits), logits.device)
    columns = _columns(logits, labels)
    sizes = (num_labels, height, width, *labels.shape[1:])
    enlarges = (int(height != labels.shape[1]), int(width != labels.shape[2]))
    return sizes, (*rows[:3], enlarges[0]), (*columns[:3], enlarges[1])


def _wide(logits: Tensor) -> torch.dtype:
    """What the kernels compute in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _label_block(num_labels: int) -> tuple[int, int]:
    """(across, high), both powers of two, whose product holds all labels."""
    padded = bucket(num_labels)
    across = min(LABELS_ACROSS, padded)
    return across, padded // across


def _key(logits: Tensor, labels: Tensor) -> tuple[int | str, ...]:
    """What the fastest configuration depends on."""
    batch, num_labels, height, _ = logits.shape
    return (str(logits.dtype), *map(bucket, (batch, num_labels, height, labels.shape[2])))
