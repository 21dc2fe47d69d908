"""The kernels that clip.

A program clips ROWS rows of a tile of an image, in blocks of DOWN × ACROSS pixels. Sizes are
H, W and those of a tile; what a program sums lies in [tiles, programs of a tile, B].
"""

import triton
import triton.language as tl


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
