"""The kernels of the stage-2 loss; `weaktr.kernels.clipped_cross_entropy` says how they work.

Arguments that both take: tensors, each followed by its strides where they are free; `sizes`
(L, h, w, H, W); `rows` and `columns`, for each axis (first pixel of each cell, weight of the cell's
second logit in each pixel, cell of each pixel, whether the axis is enlarged).
"""

from __future__ import annotations

import triton
import triton.language as tl

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
