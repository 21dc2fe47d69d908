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
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from weaktr import processes
from weaktr.kernels.launching import launch
from weaktr.kernels.tuning import Config, best_config, bucket
from weaktr.ops.clipped_cross_entropy import ClippedLoss, ClippedLossInputs
from weaktr.ops.registry import takes

MOST_LABELS = 256
MOST_ENLARGING = 64
#: Threads of a warp.
WARP = 32
#: Labels that are loaded at a time; quads of a program in the backward pass, at most.
QUAD, QUADS_BACK = 4, 8
#: Rows of a tile that a program clips; columns and pixels of them that it holds, at most.
PIECE_ROWS, PIECE_ACROSS, PIECE_PIXELS = 32, 128, 1024
#: Logits of a program that scales them, or adds up their corners.
FLAT_BLOCK = 512

#: ROWS of a strip; COLUMNS of each cell in one thread's registers.
FORWARD_CONFIGS: tuple[Config, ...] = tuple(
    {"ROWS": rows, "COLUMNS": columns, "num_warps": 1} for rows, columns in ((16, 1), (8, 1))
)
BACKWARD_CONFIGS: tuple[Config, ...] = tuple(
    {"ROWS": rows, "COLUMNS": columns, "num_warps": 1}
    for rows, columns in ((8, 2), (16, 2), (16, 1), (8, 4))
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
    losses = logits.new_empty(labels.shape, dtype=_wide(logits))
    loss, mean_loss = losses.new_empty(()), losses.new_empty(())
    clipped = losses.new_empty((), dtype=torch.bool)
    thresholds = losses.new_empty(_tiles(losses, patch_size)[1])
    scaled, lse = _empty_scaled(logits), torch.empty_like(losses)
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


# ---- launches -----------------------------------------------------------------------------------


def scale_logits(logits: Tensor) -> Tensor:
    """Logits [B, L, h, w] times log2(e), [B, h, w, L and what fills up its last quad]."""
    scaled = _empty_scaled(logits)
    batch, height, width, labels = scaled.shape
    launch(
        scale_kernel,
        (_parts(scaled[0].numel(), FLAT_BLOCK), batch),
        *(logits, scaled, *logits.stride(), logits.shape[1], labels // QUAD, height, width),
        BLOCK=FLAT_BLOCK,
    )
    return scaled


def pixel_losses(
    scaled: Tensor, labels: Tensor, num_labels: int, ignore_index: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of every pixel, and log2 Σ exp(logits), infinite where ignored; [B, H, W]."""
    losses = torch.empty(labels.shape, dtype=scaled.dtype, device=scaled.device)
    lse = torch.empty_like(losses)
    cells = _cells_of(scaled, labels)
    _, height, width, padded = scaled.shape
    sizes = (num_labels, height, width, *labels.shape[1:], padded // QUAD)

    def run(config: Config) -> None:
        tile = _tile(cells, config)
        launch(
            losses_kernel,
            (tile.across, tile.down, len(labels)),
            *(scaled, labels, losses, lse, cells.starts, cells.fractions, *labels.stride()),
            *(*sizes, tile.strips, ignore_index),
            **tile.constants,
        )

    run(best_config(losses_kernel, _key(scaled, labels), FORWARD_CONFIGS, run, scaled.device))
    return losses, lse


def clip_losses(
    losses: Tensor, lse: Tensor, patch_size: int, start_value: float, batch: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`definition.clip_losses` -> (loss, mean loss, clipped, thresholds).

    `lse` becomes infinite where a pixel is held at its threshold.
    """
    images, height, width = losses.shape
    tile, tiles = _tiles(losses, patch_size)
    across = min(bucket(tile[1]), PIECE_ACROSS)
    down = min(bucket(tile[0]), PIECE_ROWS, PIECE_PIXELS // across)
    grid = (tiles[0] * tiles[1], _parts(tile[0], PIECE_ROWS), images)
    sizes = (height, width, *tile)
    blocks = {"ROWS": PIECE_ROWS, "DOWN": down, "ACROSS": across}
    sums, held = losses.new_empty(2, *grid)
    launch(tile_sums_kernel, grid, losses, sums, *sizes, **blocks)
    of_tiles = sums.sum((1, 2))
    if batch != images:
        of_tiles = processes.total(of_tiles)
    scalars = losses.new_empty((), dtype=torch.bool), losses.new_empty(())
    results = (held, *scalars, thresholds := losses.new_empty(tiles))
    launch(
        clip_kernel,
        grid,
        *(losses, lse, of_tiles, *results, float(start_value), batch, *sizes),
        **blocks,
    )
    clipped, mean_loss = scalars
    return held.sum(), mean_loss, clipped, thresholds


def _tiles(losses: Tensor, patch_size: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """(H, W) of a whole tile of [B, H, W], and how many there are down and across."""
    _, height, width = losses.shape
    tile = (min(patch_size, height), min(patch_size, width))
    return tile, (_parts(height, tile[0]), _parts(width, tile[1]))


def logits_gradient(
    gradient: Tensor, logits: Tensor, labels: Tensor, scaled: Tensor, lse: Tensor
) -> Tensor:
    """Gradient in the logits, [B, L, h, w] in their dtype, for `gradient` [] of the loss."""
    result = torch.empty_like(logits)
    cells = _cells_of(scaled, labels)
    batch, height, width, padded = scaled.shape
    quads = padded // QUAD
    blocks = _parts(quads, QUADS_BACK)
    sizes = (height, width, *labels.shape[1:])

    def sum_corners(config: Config) -> tuple[Tensor, int]:
        """What `gradient_kernel` adds up, and the strips of a cell."""
        tile = _tile(cells, config)
        sums = lse.new_empty(batch, tile.down, cells.across, 4, padded)
        launch(
            corners_kernel,
            (tile.across * blocks, tile.down, batch),
            *(scaled, labels, lse, sums, cells.starts, cells.fractions, *labels.stride()),
            *(*sizes, quads, tile.strips, _parts(quads, blocks)),
            **tile.constants,
        )
        return sums, tile.strips

    with torch.cuda.device_of(logits):
        key = _key(scaled, labels)
        config = best_config(corners_kernel, key, BACKWARD_CONFIGS, sum_corners, logits.device)
        launch(
            gradient_kernel,
            (_parts(scaled[0].numel(), FLAT_BLOCK), batch),
            *(gradient, *sum_corners(config), result, *result.stride()),
            *(logits.shape[1], quads, *sizes),
            BLOCK=FLAT_BLOCK,
        )
    return result


# ---- geometry -----------------------------------------------------------------------------------


class _Axis(NamedTuple):
    """How an axis of n logits is enlarged to N pixels: cell c lies between logits c - 1 and c."""

    first: Tensor  #: int32 [n + 2], first pixel of each cell
    fraction: Tensor  #: [N] weight of logit c in the pixels of cell c; of c - 1 the rest
    widest: int  #: pixels of the largest cell


class _Cells(NamedTuple):
    """All cells of an image, on the device."""

    starts: Tensor  #: int32 [h + 2 + w + 2], `_Axis.first` of rows, then of columns
    fractions: Tensor  #: [H + W], `_Axis.fraction` likewise
    down: int  #: h + 1
    across: int  #: w + 1
    tallest: int  #: rows of the tallest cell
    widest: int  #: columns of the widest cell


class _Tile(NamedTuple):
    """What a program has of the image."""

    strips: int  #: of each cell
    down: int  #: strips of the image
    across: int  #: programs beside each other
    constants: dict[str, int]  #: sides of the tile and warps, as the kernels take them


def _axis(logits: int, pixels: int, dtype: torch.dtype) -> _Axis:
    """The positions of PyTorch's bilinear interpolation, as exact as there."""
    ratio = torch.tensor(logits / pixels, dtype=dtype)
    position = (torch.arange(pixels, dtype=dtype) + 0.5) * ratio - 0.5
    cell = (position.floor() + 1).clamp_(0, logits)
    fraction = position - (cell - 1)
    fraction[cell == 0] = 1  # before the first logit, and behind the last: that logit alone
    fraction[cell == logits] = 0
    first = torch.searchsorted(cell, torch.arange(logits + 2, dtype=dtype))
    return _Axis(first.int(), fraction, int(first.diff().max()))


@lru_cache(maxsize=64)
def _cells(
    height: int, width: int, rows: int, columns: int, dtype: torch.dtype, device: torch.device
) -> _Cells:
    """Of height × width logits, enlarged to rows × columns pixels."""
    y, x = _axis(height, rows, dtype), _axis(width, columns, dtype)
    starts = torch.cat([y.first, x.first]).to(device)
    fractions = torch.cat([y.fraction, x.fraction]).to(device)
    return _Cells(starts, fractions, height + 1, width + 1, y.widest, x.widest)


def _cells_of(scaled: Tensor, labels: Tensor) -> _Cells:
    """Of logits [B, h, w, ...], enlarged to labels [B, H, W]."""
    return _cells(*scaled.shape[1:3], *labels.shape[1:], scaled.dtype, scaled.device)


def _tile(cells: _Cells, config: Config) -> _Tile:
    """As the configuration has it, where cells are large enough for that."""
    warps, columns = config["num_warps"], min(config["COLUMNS"], bucket(cells.widest))
    registers = cells.fractions.itemsize // 4  # of a number
    rows = min(config["ROWS"] // registers, bucket(cells.tallest))
    strips = _parts(cells.tallest, rows)
    lanes_a_cell = bucket(cells.widest) // columns
    lanes = max(WARP * warps, lanes_a_cell)
    abreast = lanes // lanes_a_cell
    constants = {"ROWS": rows, "COLUMNS": columns, "CELLS": abreast, "LANES": lanes}
    return _Tile(
        strips=strips,
        down=cells.down * strips,
        across=_parts(cells.across, abreast),
        constants={**constants, "num_warps": warps},
    )


def _parts(size: int, most: int) -> int:
    """How many parts of at most `most` make up `size`; Triton's own function is slow on a host."""
    return -(-size // most)


def _wide(logits: Tensor) -> torch.dtype:
    """What the kernels compute in."""
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _empty_scaled(logits: Tensor) -> Tensor:
    """Where `scale_logits` puts its result."""
    batch, num_labels, height, width = logits.shape
    padded = QUAD * _parts(num_labels, QUAD)
    return logits.new_empty(batch, height, width, padded, dtype=_wide(logits))


def _key(scaled: Tensor, labels: Tensor) -> tuple[int | str, ...]:
    """What the fastest configuration depends on."""
    batch, height, _, padded = scaled.shape
    sizes = (batch, padded, height, *labels.shape[1:])
    return (str(scaled.dtype), *map(bucket, sizes))


# ---- kernels of the cross-entropy ---------------------------------------------------------------
#
# Arguments that several take: tensors, sizes L, h, w, H, W, and of a tile strips of a cell, and
# `starts` and `fractions` of `_Cells`. `scaled` are logits times log2(e), [B, h, w, 4 · quads].
# Tiles are [ROWS, COLUMNS, LANES]: rows of a strip, columns of a cell in one thread, and the
# threads, of which WIDEST / COLUMNS have a cell; what varies along x alone lacks the first.

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
#: A logit whose exponential is 0, of labels that fill up a quad.
NO_LABEL = tl.constexpr(-1e30)
#: A sum of exponentials below this share of its bound may have lost some of them.
LEAST_TOTAL = tl.constexpr(2.0**-60)


@triton.jit
def scale_kernel(
    logits,
    scaled,
    image_stride,
    label_stride,
    row_stride,
    column_stride,
    num_labels,
    quads,
    height,
    width,
    BLOCK: tl.constexpr,
):
    """Logits of any strides -> `scaled`."""
    image = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = index % (4 * quads)
    place = index // (4 * quads)
    y, x = place // width, place % width
    source = image * image_stride + label * label_stride + y * row_stride + x * column_stride
    values = tl.load(logits + source, mask=(label < num_labels) & (y < height), other=0.0)
    values = tl.where(label < num_labels, values.to(scaled.dtype.element_ty) * LOG2_E, NO_LABEL)
    image *= height * width * quads * 4
    tl.store(scaled + image + index, values, mask=y < height)


@triton.jit
def _pixels_of(starts, fractions, cell, offset, logits, pixels):
    """Pixels of cells along an axis of so many logits, enlarged to so many pixels.

    Returns where they are, whether there are such, the weight of the second logit in them, and
    both logits of their cell, which are the same at the image's borders.
    """
    known = cell <= logits
    position = tl.load(starts + cell, mask=known, other=0) + offset
    inside = known & (position < tl.load(starts + cell + 1, mask=known, other=0))
    weight = tl.load(fractions + position, mask=inside, other=0.0)
    first = tl.minimum(tl.maximum(cell - 1, 0), logits - 1)
    second = tl.where(pixels == logits, first, tl.minimum(cell, logits - 1))
    return position, inside, weight, first, second


@triton.jit
def _tile_of(
    starts,
    fractions,
    block,
    strip,
    strips,
    height,
    width,
    label_height,
    label_width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    LANES: tl.constexpr,
):
    """`_pixels_of` of a strip's rows, then of the columns of a block of cells."""
    offset = (strip % strips) * ROWS + tl.arange(0, ROWS)[:, None, None]
    rows = _pixels_of(starts, fractions, strip // strips, offset, height, label_height)
    lane = tl.arange(0, LANES)[None, :]
    cell = block * CELLS + lane // (LANES // CELLS)
    offset = tl.arange(0, COLUMNS)[:, None] * (LANES // CELLS) + lane % (LANES // CELLS)
    starts += height + 2
    fractions += label_height
    return rows, _pixels_of(starts, fractions, cell, offset, width, label_width)


@triton.jit
def _corners_of(scaled, image, above, below, left, right, height, width, quads):
    """Pointers to the four logits of label 0 around some columns of a row of cells."""
    upper = scaled + (image * height + above) * width * quads * 4
    lower = scaled + (image * height + below) * width * quads * 4
    left = left * quads * 4
    right = right * quads * 4
    return upper + left, upper + right, lower + left, lower + right


@triton.jit
def _along_rows(corners, first, across):
    """A quad of labels interpolated along x above and below; [COLUMNS, LANES, 4] each."""
    upper_left, upper_right, lower_left, lower_right = corners
    label = first + tl.arange(0, 4)[None, None, :]
    left = tl.load(upper_left[:, :, None] + label)
    right = tl.load(upper_right[:, :, None] + label)
    top = left + across[:, :, None] * (right - left)
    left = tl.load(lower_left[:, :, None] + label)
    right = tl.load(lower_right[:, :, None] + label)
    return top, left + across[:, :, None] * (right - left)


@triton.jit
def _four(quad, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """[COLUMNS, LANES, 4] -> four of [COLUMNS, LANES]."""
    even, odd = tl.split(tl.reshape(quad, [COLUMNS, LANES, 2, 2]))
    first, third = tl.split(even)
    second, fourth = tl.split(odd)
    return first, second, third, fourth


@triton.jit
def losses_kernel(
    scaled,
    labels,
    losses,
    lse,
    starts,
    fractions,
    labels_image,
    labels_row,
    labels_column,
    num_labels,
    height,
    width,
    label_height,
    label_width,
    quads,
    strips,
    ignore_index,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Loss and log-sum-exp of a tile.

    No label exceeds the largest logits above and below a pixel, interpolated: exponentials are
    taken under that bound, which costs nothing a pixel. Only where the true maximum is far below it
    is it looked for.
    """
    WIDE: tl.constexpr = lse.dtype.element_ty
    block, strip, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, columns = _tile_of(
        *(starts, fractions, block, strip, strips, height, width, label_height, label_width),
        *(ROWS, COLUMNS, CELLS, LANES),
    )
    y, in_rows, down, above, below = rows
    x, in_columns, across, left, right = columns
    corners = _corners_of(scaled, image, above, below, left, right, height, width, quads)

    inside = in_rows & in_columns
    place = image * labels_image + tl.cast(y, tl.int64) * labels_row + x * labels_column
    own = tl.load(labels + place, mask=inside, other=0)
    kept = inside & (own != ignore_index)
    own = own.to(tl.int32)

    highest = tl.full([COLUMNS, LANES, 4], float("-inf"), WIDE)
    lowest = highest
    for quad in range(quads):
        top, bottom = _along_rows(corners, quad * 4, across)
        highest = tl.maximum(highest, top)
        lowest = tl.maximum(lowest, bottom)
    top_bound, bottom_bound = tl.max(highest, 2), tl.max(lowest, 2)
    bound = top_bound + down * (bottom_bound - top_bound)

    total = tl.zeros([ROWS, COLUMNS, LANES], WIDE)
    picked = tl.full([ROWS, COLUMNS, LANES], float("nan"), WIDE)
    for quad in range(quads):
        top, bottom = _along_rows(corners, quad * 4, across)
        top -= top_bound[:, :, None]
        slope = bottom - bottom_bound[:, :, None] - top
        top0, top1, top2, top3 = _four(top, COLUMNS, LANES)
        slope0, slope1, slope2, slope3 = _four(slope, COLUMNS, LANES)
        label = quad * 4
        total, picked = _add(total, picked, top0 + down * slope0, own == label)
        total, picked = _add(total, picked, top1 + down * slope1, own == label + 1)
        total, picked = _add(total, picked, top2 + down * slope2, own == label + 2)
        total, picked = _add(total, picked, top3 + down * slope3, own == label + 3)

    if tl.min(total) < LEAST_TOTAL:
        bound = tl.full([ROWS, COLUMNS, LANES], float("-inf"), WIDE)
        for label in range(num_labels):
            bound = tl.maximum(bound, _logits_of(corners, label, across, down))
        total = tl.zeros([ROWS, COLUMNS, LANES], WIDE)
        for label in range(num_labels):
            below_bound = _logits_of(corners, label, across, down) - bound
            total, picked = _add(total, picked, below_bound, own == label)

    total = tl.log2(total)
    place = (image * label_height + y) * label_width + x
    tl.store(losses + place, tl.where(kept, (total - picked) * LN_2, 0.0), mask=inside)
    tl.store(lse + place, tl.where(kept, total + bound, float("inf")), mask=inside)


@triton.jit
def _add(total, picked, logit, is_own):
    """A label's logit, below the bound, to the sum of exponentials; picked where it is the own."""
    return total + tl.exp2(logit), tl.where(is_own, logit, picked)


@triton.jit
def _logits_of(corners, label, across, down):
    """A label's logits of all pixels."""
    upper_left, upper_right, lower_left, lower_right = corners
    left, right = tl.load(upper_left + label), tl.load(upper_right + label)
    top = left + across * (right - left)
    left, right = tl.load(lower_left + label), tl.load(lower_right + label)
    return top + down * (left + across * (right - left) - top)


@triton.jit
def corners_kernel(
    scaled,
    labels,
    lse,
    sums,
    starts,
    fractions,
    labels_image,
    labels_row,
    labels_column,
    height,
    width,
    label_height,
    label_width,
    quads,
    strips,
    quads_a_program,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CELLS: tl.constexpr,
    LANES: tl.constexpr,
):
    """Σ (softmax − one-hot) of a tile's pixels, by their weights in the corners of their cells.

    Of some quads; sums are [B, strips of an image, w + 1, 4 corners, 4 · quads], in the order above
    left, above right, below left, below right. Pixels with an infinite log-sum-exp do not count.
    """
    blocks = tl.cdiv(width + 1, CELLS)
    block, strip, image = tl.program_id(0) % blocks, tl.program_id(1), tl.program_id(2).to(tl.int64)
    rows, columns = _tile_of(
        *(starts, fractions, block, strip, strips, height, width, label_height, label_width),
        *(ROWS, COLUMNS, CELLS, LANES),
    )
    y, in_rows, down, above, below = rows
    x, in_columns, across, left, right = columns
    corners = _corners_of(scaled, image, above, below, left, right, height, width, quads)

    inside = in_rows & in_columns
    place = (image * label_height + y) * label_width + x
    pixel_lse = tl.load(lse + place, mask=inside, other=float("inf"))
    place = image * labels_image + tl.cast(y, tl.int64) * labels_row + x * labels_column
    own = tl.load(labels + place, mask=inside, other=0).to(tl.int32)
    own = tl.where(pixel_lse == float("inf"), -1, own)

    cell = block * CELLS + tl.arange(0, CELLS)
    known = cell <= width
    sums += ((image * tl.num_programs(1) + strip) * (width + 1) + cell) * 16 * quads
    first = tl.program_id(0) // blocks * quads_a_program
    for quad in range(first, tl.minimum(first + quads_a_program, quads)):
        top, bottom = _along_rows(corners, quad * 4, across)
        top0, top1, top2, top3 = _four(top, COLUMNS, LANES)
        slope0, slope1, slope2, slope3 = _four(bottom - top, COLUMNS, LANES)
        label = quad * 4
        target = sums + label
        pixels = (pixel_lse, own, down, across)
        _store_corners(target, known, quads, top0, slope0, label, *pixels, CELLS)
        _store_corners(target + 1, known, quads, top1, slope1, label + 1, *pixels, CELLS)
        _store_corners(target + 2, known, quads, top2, slope2, label + 2, *pixels, CELLS)
        _store_corners(target + 3, known, quads, top3, slope3, label + 3, *pixels, CELLS)


@triton.jit
def _store_corners(
    target, known, quads, top, slope, label, pixel_lse, own, down, across, CELLS: tl.constexpr
):
    """Store one label's sums."""
    share = tl.exp2(top + down * slope - pixel_lse)
    share = tl.where(own == label, share - 1, share)
    lower = tl.sum(share * down, 0)
    upper = tl.sum(share, 0) - lower
    upper_right = upper * across
    lower_right = lower * across
    tl.store(target, _sum_of_cells(upper - upper_right, CELLS), mask=known)
    tl.store(target + 4 * quads, _sum_of_cells(upper_right, CELLS), mask=known)
    tl.store(target + 8 * quads, _sum_of_cells(lower - lower_right, CELLS), mask=known)
    tl.store(target + 12 * quads, _sum_of_cells(lower_right, CELLS), mask=known)


@triton.jit
def _sum_of_cells(values, CELLS: tl.constexpr):
    """[COLUMNS, LANES] -> [CELLS]."""
    values = tl.sum(values, 0)
    return tl.sum(tl.reshape(values, [CELLS, values.shape[0] // CELLS]), 1)


@triton.jit
def gradient_kernel(
    gradient,
    sums,
    strips,
    result,
    image_stride,
    label_stride,
    row_stride,
    column_stride,
    num_labels,
    quads,
    height,
    width,
    label_height,
    label_width,
    BLOCK: tl.constexpr,
):
    """Gradient of the mean loss in some logits of an image, times that in the loss."""
    WIDE: tl.constexpr = sums.dtype.element_ty
    image = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    label = index % (4 * quads)
    place = index // (4 * quads)
    y, x = place // width, place % width
    inside = (y < height) & (label < num_labels)

    corner = 4 * quads
    cell = 4 * corner
    strip = (width + 1) * cell
    upper = sums + ((image * (height + 1) + y) * strips * (width + 1) + x) * cell + label
    lower = upper + strips * strip
    total = tl.zeros([BLOCK], WIDE)
    for _ in range(strips):  # a logit lies below and right of the cell of its own number
        total += tl.load(upper + 3 * corner, mask=inside, other=0.0)
        total += tl.load(upper + cell + 2 * corner, mask=inside, other=0.0)
        total += tl.load(lower + corner, mask=inside, other=0.0)
        total += tl.load(lower + cell, mask=inside, other=0.0)
        upper += strip
        lower += strip
    pixels = tl.num_programs(1).to(WIDE) * label_height * label_width
    total *= tl.load(gradient).to(WIDE) / pixels
    target = image * image_stride + label * label_stride + y * row_stride + x * column_stride
    tl.store(result + target, total.to(result.dtype.element_ty), mask=inside)


# ---- kernels of the clipping --------------------------------------------------------------------
#
# A program clips ROWS rows of a tile of an image, in blocks of DOWN × ACROSS pixels. Sizes are
# H, W and those of a tile; what a program sums lies in [tiles, programs of a tile, B].


@triton.jit
def _piece_of(height, width, tile_height, tile_width, ROWS: tl.constexpr):
    """This program's rows and columns: the first ones, and those behind the last."""
    tiles_across = tl.cdiv(width, tile_width)
    top = tl.program_id(0) // tiles_across * tile_height
    left = tl.program_id(0) % tiles_across * tile_width
    first = top + tl.program_id(1) * ROWS
    bottom = tl.minimum(top + tile_height, height)
    return first, tl.minimum(first + ROWS, bottom), left, tl.minimum(left + tile_width, width)


@triton.jit
def _block_of(y, x, last, right, height, width, DOWN: tl.constexpr, ACROSS: tl.constexpr):
    """Places of the pixels from (y, x) on in a map [B, H, W], and whether they are its own."""
    y += tl.arange(0, DOWN)[:, None]
    x += tl.arange(0, ACROSS)[None, :]
    return (tl.program_id(2).to(tl.int64) * height + y) * width + x, (y < last) & (x < right)


@triton.jit
def _place_of_sum():
    """Where this program's sum lies."""
    tile_piece = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    return tile_piece * tl.num_programs(2) + tl.program_id(2)


@triton.jit
def tile_sums_kernel(
    losses,
    sums,
    height,
    width,
    tile_height,
    tile_width,
    ROWS: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Sums of the losses of every program's pixels."""
    first, last, left, right = _piece_of(height, width, tile_height, tile_width, ROWS)
    total = tl.zeros([DOWN, ACROSS], losses.dtype.element_ty)
    for y in range(first, last, DOWN):
        for x in range(left, right, ACROSS):
            place, inside = _block_of(y, x, last, right, height, width, DOWN, ACROSS)
            total += tl.load(losses + place, mask=inside, other=0.0)
    tl.store(sums + _place_of_sum(), tl.sum(total))


@triton.jit
def clip_kernel(
    losses,
    lse,
    tile_sums,
    held,
    clipped,
    mean_loss,
    thresholds,
    start_value,
    batch,
    height,
    width,
    tile_height,
    tile_width,
    ROWS: tl.constexpr,
    DOWN: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """Losses held at their threshold, summed and divided by the number of all pixels.

    `lse` becomes infinite where a loss is held. `tile_sums` are the losses of every tile, summed
    over a whole batch of `batch` images. The first program stores the mean loss and whether
    clipping is active, the first of a tile its threshold.
    """
    WIDE: tl.constexpr = losses.dtype.element_ty
    first, last, left, right = _piece_of(height, width, tile_height, tile_width, ROWS)
    images = tl.zeros([], WIDE) + batch
    pixels = images * height * width
    parts = tl.zeros([DOWN * ACROSS], WIDE)
    for start in range(0, tl.num_programs(0), DOWN * ACROSS):
        tile = start + tl.arange(0, DOWN * ACROSS)
        parts += tl.load(tile_sums + tile, mask=tile < tl.num_programs(0), other=0.0)
    mean = tl.sum(parts) / pixels
    is_active = mean <= start_value

    top = first - tl.program_id(1) * ROWS
    rows = tl.minimum(top + tile_height, height) - top
    tile_mean = tl.load(tile_sums + tl.program_id(0)) / (images * rows * (right - left))
    limit = tl.maximum(tile_mean, mean)
    threshold = tl.where(is_active, limit, float("inf"))

    kept = tl.zeros([DOWN, ACROSS], WIDE)
    for y in range(first, last, DOWN):
        for x in range(left, right, ACROSS):
            place, inside = _block_of(y, x, last, right, height, width, DOWN, ACROSS)
            loss = tl.load(losses + place, mask=inside, other=0.0)
            is_held = loss > threshold
            kept += tl.where(is_held, threshold, loss)
            tl.store(lse + place, float("inf"), mask=inside & is_held)
    tl.store(held + _place_of_sum(), tl.sum(kept) / pixels)
    if (tl.program_id(1) + tl.program_id(2)) == 0:
        tl.store(thresholds + tl.program_id(0), limit)
        if tl.program_id(0) == 0:
            tl.store(mean_loss, mean)
            tl.store(clipped, is_active)
