"""The kernels of the losses and of their gradient.

Arguments that several take: tensors, sizes L, h, w, H, W, and of a tile strips of a cell, and
`starts` and `fractions` of `Cells`. `scaled` are logits times log2(e), [B, h, w, 4 · quads].
Tiles are [ROWS, COLUMNS, LANES]: rows of a strip, columns of a cell in one thread, and the
threads, of which WIDEST / COLUMNS have a cell; what varies along x alone lacks the first.
"""

import triton
import triton.language as tl

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
