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
import triton.language as tl
from torch import Tensor

from weaktr.kernels.tuning import Config, best_config, bucket
from weaktr.ops.clipped_cross_entropy import ClippedLoss, ClippedLossInputs
from weaktr.ops.clipped_cross_entropy.definition import clip_losses
from weaktr.ops.registry import takes

MOST_LABELS = 256
MOST_ENLARGING = 64
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
    logits, labels, patch_size, start_value, ignore_index = inputs
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
def _(logits: Tensor, labels: Tensor, _: int) -> tuple[Tensor, Tensor]:
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
def _(gradient: Tensor, logits: Tensor, *_: Any) -> Tensor:
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


# ---- kernels ------------------------------------------------------------------------------------
#
# Arguments that both take: tensors, each followed by its strides where they are free; `sizes`
# (L, h, w, H, W); `rows` and `columns`, for each axis (first pixel of each cell, weight of the
# cell's second logit in each pixel, cell of each pixel, whether the axis is enlarged).

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _along_row(
    row, label, valid, stride_label, left, right, stride_x, fraction, WIDE: tl.constexpr
):
    """Logits of a row times log2(e), interpolated along x; 0 where not valid."""
    row += label * stride_label
    low = tl.load(row + left * stride_x, mask=valid, other=0.0).to(WIDE) * LOG2_E
    high = tl.load(row + right * stride_x, mask=valid, other=0.0).to(WIDE) * LOG2_E
    return low + fraction * (high - low)


@triton.jit
def _rows_of(logits, cell, height, enlarges_rows, stride):
    """The rows of logits above and below a cell; one and the same at the image's borders."""
    above = tl.maximum(cell - 1, 0)
    below = tl.maximum(above, tl.minimum(cell - 1 + enlarges_rows, height - 1))
    return logits + above.to(tl.int64) * stride, logits + below.to(tl.int64) * stride


@triton.jit
def losses_kernel(
    logits,
    logits_strides,
    labels,
    labels_strides,
    losses,
    lse,
    sizes,
    rows,
    columns,
    ignore_index,
    COLUMNS: tl.constexpr,
    HIGH: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Some columns of one cell: tiles [HIGH, COLUMNS, ACROSS], labels along the first and last."""
    WIDE: tl.constexpr = lse.dtype.element_ty
    num_labels, height, width, label_height, label_width = sizes
    first_row, row_fraction, _, enlarges_rows = rows
    _, column_fraction, column_cell, enlarges_columns = columns
    cell = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    x = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = x < label_width
    column = tl.load(column_cell + x, mask=inside, other=0)
    left = tl.maximum(column - 1, 0)
    right = tl.minimum(column - 1 + enlarges_columns, width - 1)
    right = tl.maximum(left, right)
    across = tl.load(column_fraction + x, mask=inside, other=0.0)
    logits += image * logits_strides[0]
    labels += image * labels_strides[0]
    upper, lower = _rows_of(logits, cell, height, enlarges_rows, logits_strides[2])

    label = tl.arange(0, HIGH)[:, None, None] * ACROSS + tl.arange(0, ACROSS)[None, None, :]
    valid = label < num_labels
    places = (left[None, :, None], right[None, :, None], logits_strides[3], across[None, :, None])
    top = _along_row(upper, label, valid, logits_strides[1], *places, WIDE)
    bottom = _along_row(lower, label, valid, logits_strides[1], *places, WIDE)
    slope = bottom - top
    top = tl.where(valid, top, float("-inf"))

    for y in range(tl.load(first_row + cell), tl.load(first_row + cell + 1)):
        down = tl.load(row_fraction + y)
        values = top + down * slope
        largest = tl.max(tl.max(values, 2), 0)
        total = tl.sum(tl.sum(tl.exp2(values - largest[None, :, None]), 2), 0)

        row = labels + tl.cast(y, tl.int64) * labels_strides[1]
        own = tl.load(row + x * labels_strides[2], mask=inside, other=0)
        kept = inside & (own != ignore_index)
        known = kept & (own >= 0) & (own < num_labels)
        own = tl.where(known, own, 0).to(tl.int32)
        own_places = (left, right, logits_strides[3], across)
        own_top = _along_row(upper, own, known, logits_strides[1], *own_places, WIDE)
        own_bottom = _along_row(lower, own, known, logits_strides[1], *own_places, WIDE)
        picked = tl.where(known, own_top + down * (own_bottom - own_top), float("nan"))

        result = tl.where(kept, (tl.log2(total) + (largest - picked)) * LN_2, 0.0)
        target = (image * label_height + y) * label_width
        tl.store(losses + target + x, result, mask=inside)
        tl.store(lse + target + x, tl.log2(total) + largest, mask=inside)


@triton.jit
def _to_logits(part, fraction, CELLS: tl.constexpr, PER_CELL: tl.constexpr, LABELS: tl.constexpr):
    """Sum [CELLS · PER_CELL, LABELS] over columns: row k, logit right of cell k; the last: junk."""
    right = part * fraction[:, None]
    left = tl.sum(tl.reshape(part - right, [CELLS, PER_CELL, LABELS]), 1)
    right = tl.sum(tl.reshape(right, [CELLS, PER_CELL, LABELS]), 1)
    following = tl.minimum(tl.arange(0, CELLS) + 1, CELLS - 1)
    following = tl.broadcast_to(following[:, None], [CELLS, LABELS])
    return right + tl.gather(left, following, 0)


@triton.jit
def gradient_kernel(
    logits,
    logits_strides,
    labels,
    labels_strides,
    lse,
    gradient,
    gradient_strides,
    result,
    result_strides,
    sizes,
    rows,
    columns,
    ignore_index,
    SEGMENT: tl.constexpr,
    CELLS: tl.constexpr,
    PER_CELL: tl.constexpr,
    LABELS: tl.constexpr,
):
    """SEGMENT × (CELLS - 1) logits of LABELS labels: tiles [CELLS · PER_CELL, LABELS]."""
    WIDE: tl.constexpr = lse.dtype.element_ty
    num_labels, height, width, label_height, label_width = sizes
    first_row, row_fraction, _, enlarges_rows = rows
    first_column, column_fraction, _, enlarges_columns = columns
    blocks = tl.cdiv(num_labels, LABELS)
    start = (tl.program_id(0) // blocks) * (CELLS - 1)
    label = (tl.program_id(0) % blocks) * LABELS + tl.arange(0, LABELS)[None, :]
    valid = label < num_labels
    first = tl.program_id(1) * SEGMENT
    image = tl.program_id(2).to(tl.int64)

    lane = tl.arange(0, CELLS * PER_CELL)
    column = start + lane // PER_CELL
    x = tl.load(first_column + column, mask=column <= width, other=0) + lane % PER_CELL
    inside = (column <= width) & (
        x < tl.load(first_column + column + 1, mask=column <= width, other=0)
    )
    left = tl.minimum(tl.maximum(column - 1, 0), width - 1)
    right = tl.maximum(left, tl.minimum(column - 1 + enlarges_columns, width - 1))
    across = tl.load(column_fraction + x, mask=inside, other=0.0)
    places = (left[:, None], right[:, None], logits_strides[3], across[:, None])
    logits += image * logits_strides[0]
    labels += image * labels_strides[0]
    gradient += image * gradient_strides[0]

    owned = start + tl.arange(0, CELLS)[:, None]
    target = result + image * result_strides[0] + label * result_strides[1]
    target += owned * result_strides[3]
    owns = (tl.arange(0, CELLS)[:, None] < CELLS - 1) & (owned < width) & valid

    carried = tl.zeros([CELLS, LABELS], WIDE)
    for cell in range(first, tl.minimum(first + SEGMENT, height) + 1):
        upper, lower = _rows_of(logits, cell, height, enlarges_rows, logits_strides[2])
        top = _along_row(upper, label, valid, logits_strides[1], *places, WIDE)
        bottom = _along_row(lower, label, valid, logits_strides[1], *places, WIDE)
        slope = bottom - top
        top = tl.where(valid, top, float("-inf"))
        both = tl.zeros([CELLS * PER_CELL, LABELS], WIDE)
        below = tl.zeros([CELLS * PER_CELL, LABELS], WIDE)
        for y in range(tl.load(first_row + cell), tl.load(first_row + cell + 1)):
            down = tl.load(row_fraction + y)
            row = labels + tl.cast(y, tl.int64) * labels_strides[1]
            own = tl.load(row + x * labels_strides[2], mask=inside, other=0)
            row = gradient + tl.cast(y, tl.int64) * gradient_strides[1]
            kept = inside & (own != ignore_index)
            weight = tl.load(row + x * gradient_strides[2], mask=kept, other=0.0).to(WIDE)
            row = lse + (image * label_height + y) * label_width
            row_lse = tl.load(row + x, mask=inside, other=float("inf"))
            share = tl.exp2(top + down * slope - row_lse[:, None])
            change = (share - (label == own.to(tl.int32)[:, None]).to(WIDE)) * weight[:, None]
            both += change
            below += change * down
        above = _to_logits(both - below, across, CELLS, PER_CELL, LABELS)
        total = (carried + above).to(result.dtype.element_ty)
        tl.store(target + (cell - 1) * result_strides[2], total, mask=owns & (cell > first))
        carried = _to_logits(below, across, CELLS, PER_CELL, LABELS)
