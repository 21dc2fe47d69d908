"""What the kernels on attention maps share: tiles of attention, inputs they take, block sizes.

A packed batch is packed along the tokens; a table (`packing_table`) tells where each image lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate

import torch
import triton
import triton.language as tl
from torch import Tensor

from weaktr.kernels import INTERPRETED
from weaktr.kernels.tuning import Config, bucket
from weaktr.ops.upload import upload_table

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
#: Triton's interpreter multiplies the bits of bfloat16, not the numbers.
WIDEN_BEFORE_DOT = tl.constexpr(INTERPRETED)
#: It cuts off the bits that bfloat16 lacks, where hardware rounds.
ROUND_BEFORE_CAST = tl.constexpr(INTERPRETED)
#: Least side of a block that the tensor cores take.
LEAST_BLOCK = 16
MOST_HEAD_DIM = 128
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
LIMITS_OF_ATTENTION = f"float16, bfloat16, float32; head width up to {MOST_HEAD_DIM}"


def configurations(*sizes: tuple[int, ...]) -> tuple[Config, ...]:
    """(queries, keys) of a block of attention, warps, stages of the pipeline, most registers."""
    names = ("BLOCK_I", "BLOCK_J", "num_warps", "num_stages", "maxnreg")
    return tuple(dict(zip(names, size, strict=False)) for size in sizes)


#: The fastest on an H200, of those that do not spill; the first one fits into any GPU.
CONFIGS = configurations(
    (32, 32, 4, 1), (64, 32, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3), (128, 64, 8, 2)
)


@triton.jit
def load_rows(pointer, rows, valid, stride_row, stride_dim, dim, BLOCK_D: tl.constexpr):
    """Rows of a matrix [n, dim] -> [len(rows), BLOCK_D], zeros where not valid or past dim."""
    dims = tl.arange(0, BLOCK_D)
    offsets = rows.to(tl.int64)[:, None] * stride_row + dims[None, :] * stride_dim
    return tl.load(pointer + offsets, mask=valid[:, None] & (dims[None, :] < dim), other=0.0)


@triton.jit
def take_rows(
    pointer, rows, strides, FIRST: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Rows of a matrix [.., .., n, DIM], all of which exist, from column FIRST on.

    [len(rows), BLOCK_D], zeros past DIM.
    """
    dims = FIRST + tl.arange(0, BLOCK_D)
    pointers = pointer + rows.to(tl.int64)[:, None] * strides[2] + dims[None, :] * strides[3]
    if FIRST + BLOCK_D <= DIM:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=dims[None, :] < DIM, other=0.0)


@triton.jit
def take_lse(pointer, rows):
    """log-sum-exp of rows, all of which exist, base 2."""
    return tl.load(pointer + rows).to(tl.float32) * LOG2_E


@triton.jit
def share_of(count, part, parts):
    """The numbers 0..count-1 in equal shares: the first one of a part and the one past its last."""
    share = tl.cdiv(count, parts)
    return part * share, tl.minimum((part + 1) * share, count)


@triton.jit
def product(x, y, PRECISION: tl.constexpr):
    """x y of one dtype, in float32; [R, S], [S, C] -> [R, C]."""
    return add_product(tl.zeros([x.shape[0], y.shape[1]], tl.float32), x, y, PRECISION)


@triton.jit
def add_product(total, x, y, PRECISION: tl.constexpr):
    """total + x y, in float32; [R, C], [R, S], [S, C] -> [R, C]."""
    if WIDEN_BEFORE_DOT:
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    return tl.dot(x, y, total, input_precision=PRECISION)


@triton.jit
def dots(
    x,
    y,
    x_map,
    x_strides,
    x_rows,
    y_map,
    y_strides,
    y_rows,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """x_r · y_c of rows of two matrices, of which x and y have the first BLOCK_D columns.

    Columns beyond these are read here, as many at a time: wide rows in float32 would not fit into
    the registers. float32 [len(x_rows), len(y_rows)].
    """
    total = product(x, tl.trans(y), PRECISION)
    for first in tl.static_range(BLOCK_D, DIM, BLOCK_D):
        left = take_rows(x_map, x_rows, x_strides, first, DIM, BLOCK_D)
        right = take_rows(y_map, y_rows, y_strides, first, DIM, BLOCK_D)
        total = add_product(total, left, tl.trans(right), PRECISION)
    return total


@triton.jit
def entries(
    x,
    y,
    x_map,
    x_strides,
    x_rows,
    y_map,
    y_strides,
    y_rows,
    scale,
    sums,
    DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Entries exp(x_r · y_c · scale - log-sum-exp) of a map, from what `dots` takes.

    sums [R, 1] or [1, C] are the log-sum-exps, base 2. float32 [len(x_rows), len(y_rows)].
    """
    products = dots(
        *(x, y, x_map, x_strides, x_rows, y_map, y_strides, y_rows), *(DIM, BLOCK_D, PRECISION)
    )
    return tl.exp2(products * (scale * LOG2_E) - sums)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """float32 x to the nearest numbers of another dtype, ties to even."""
    if ROUND_BEFORE_CAST and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -0x10000).to(tl.float32, bitcast=True)
    return x.to(dtype)


@triton.jit
def softmax_step(logits, valid, largest, total):
    """A further block of columns of a softmax, base 2, whose rows are not known as a whole yet.

    logits [R, C], of which the columns `valid` [C] count; largest and total [R], of the columns so
    far. Returns the exponentials under the new maximum [R, C], the factor [R] that brings what was
    summed so far under it, and the new largest and total.
    """
    logits = tl.where(valid[None, :], logits, float("-inf"))
    new = tl.maximum(largest, tl.max(logits, 1))
    shrink = tl.exp2(largest - new)
    weights = tl.exp2(logits - new[:, None])
    return weights, shrink, new, total * shrink + tl.sum(weights, 1)


@triton.jit
def block_of_map(length, heads, BLOCK: tl.constexpr):
    """What is this program's, of all blocks of all maps: its block, and its map, image and head.

    Every map has cdiv(length, BLOCK) blocks; maps are counted image by image, int64.
    """
    blocks = tl.cdiv(length, BLOCK)
    index = (tl.program_id(0) // blocks).to(tl.int64)
    return tl.program_id(0) % blocks, index, index // heads, index % heads


@triton.jit
def image_of(x, strides, image, head, first, PACKED: tl.constexpr):
    """Where the tokens of one image and head begin in x [B, H, N, d] or, packed, [1, H, ΣN, d]."""
    x += head * strides[1]
    if PACKED:
        x += first.to(tl.int64) * strides[2]
    else:
        x += image * strides[0]
    return x


@triton.jit
def place(table, image, tokens, patches, PACKED: tl.constexpr):
    """Of an image: its first token, its tokens, its patches, the patches of images before it."""
    if PACKED:
        first = tl.load(table + 4 * image).to(tl.int32)
        tokens = tl.load(table + 4 * image + 1).to(tl.int32)
        patches = tl.load(table + 4 * image + 2).to(tl.int32)
        before = tl.load(table + 4 * image + 3)
    else:
        first = tl.full([], 0, tl.int32)
        before = image * patches
    return first, tokens, patches, before


def side_by_side(lse: Tensor) -> Tensor:
    """[B, M, N] with the numbers of a map side by side, as `take_lse` reads them."""
    return lse if lse.stride(2) == 1 else lse.contiguous()


def packing_table(tokens: Sequence[int], patches: Sequence[int], device: torch.device) -> Tensor:
    """int64 [B, 4], an image a row: what `place` reads."""
    rows = [
        (stop - own, own, count, last - count)
        for stop, own, count, last in zip(
            accumulate(tokens), tokens, patches, accumulate(patches), strict=True
        )
    ]
    return upload_table(rows, 4, device)


def refusal_of_attention(dtypes: Sequence[torch.dtype], head_dim: int) -> str:
    """Why the kernels do not take attention inputs, "" where they do.

    Args:
        dtypes: of all tensors.
        head_dim: d.
    """
    for dtype in dtypes:
        if dtype not in DTYPES:
            return f"its kernels take float16, bfloat16 and float32, got {dtype}"
    if head_dim > MOST_HEAD_DIM:
        return f"its kernels take a head width d of at most {MOST_HEAD_DIM}, got {head_dim}"
    return ""


def block_of(size: int, most: int | None = None) -> int:
    """Side of a block that holds `size`: a power of two, at least 16 and at most `most`."""
    block = max(LEAST_BLOCK, 1 << (size - 1).bit_length())
    return block if most is None else min(block, most)


def is_wide(q: Tensor) -> bool:
    """Whether q's rows [.., d] are wider than those of a usual ViT's heads."""
    return q.shape[-1] > 64


@cache
def part_of(dim: int, dtype: torch.dtype, most_float32: int = 64) -> int:
    """How many of the d columns of q and k are multiplied at once, see `dots`: a power of two.

    All of them in half precision. In float32, whose products are made of three, at most
    `most_float32`: a block of more than 64 columns spills.
    """
    return block_of(dim, most_float32 if dtype == torch.float32 else None)


def blocks_of(size: int, block: int) -> int:
    """How many blocks hold `size`; `triton.cdiv` on the host takes as long as a launch."""
    return -(-size // block)


def dot_precision(dtype: torch.dtype) -> str:
    """How numbers of a dtype are multiplied on the tensor cores; of half precision it says nothing.

    float32 in tf32 where torch's own products may be; its 11 bits leave the fused map an error of
    2.8e-3 of the largest entry. Else in tf32x3, the products of what tf32 keeps and of the rest
    with what it keeps, which leaves 9e-7, as float32 itself does (7e-7).
    """
    if dtype != torch.float32:
        return "tf32"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


def configs() -> tuple[Config, ...]:
    """Candidates of all kernels that have no list of their own."""
    return CONFIGS


def key_of_attention(q: Tensor, most_tokens: int, images: int) -> tuple[int | str, ...]:
    """What the best configuration for maps of q [B, H, N, d] depends on, as `best_config` takes it.

    Args:
        q: of all images.
        most_tokens: N of the largest image.
        images: their number, also where they are packed into a B of 1.
    """
    _, heads, _, dim = q.shape
    return _key(q.dtype, dot_precision(q.dtype), dim, most_tokens, images * heads)


@lru_cache(maxsize=4096)
def _key(
    dtype: torch.dtype, precision: str, dim: int, most_tokens: int, maps: int
) -> tuple[int | str, ...]:
    """`key_of_attention` of what it depends on; asked for at every launch, so that it is kept."""
    return str(dtype), precision, dim, bucket(most_tokens), bucket(maps)


def processors(tensor: Tensor) -> int:
    """How many programs run side by side, at least: the device's multiprocessors."""
    return _processors(tensor.device) if tensor.is_cuda else 4  # interpreted: split all the same


@cache
def _processors(device: torch.device) -> int:
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count
