"""Cross-entropy of enlarged logits on the CPU, a cache-sized tile of the image at a time.

The eager way (enlarge, log-softmax, pick) spends its time on moving [B, L, H, W] between memory and
the cores, a dozen times in a training step. Here a tile is enlarged, used and forgotten while it is
in the cache, and enlarged again in the backward pass. Enlarging bilinearly is two small matrix
products, one per axis; their transposes bring the gradient back. Logits are kept times log2(e),
because powers of two are cheaper than powers of e.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from threading import Barrier
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

#: Elements of a tile: 1 MiB in float32, about what a core has for a cache.
TILE_ELEMENTS = 2**18
#: Pixels of the logits that a tile spans along an axis: bounds the matrix products.
TILE_SOURCE = 32
#: Fewest columns of a tile, for the sake of long vectors.
TILE_COLUMNS = 64
#: Tiles are for areas enlarged at least so much, and for so many labels times that.
LEAST_ENLARGING, LEAST_WORK = 4, 64
LOG2_E = math.log2(math.e)

Result = TypeVar("Result")


def worth_tiling(logits: Tensor, labels: Tensor) -> bool:
    """Whether tiles are faster than the eager way (measured on two cores)."""
    enlarging = labels[0].numel() / logits[0, 0].numel()
    return enlarging >= LEAST_ENLARGING and logits.shape[1] * enlarging >= LEAST_WORK


class Band(NamedTuple):
    """A stretch of an axis of the labels, and the stretch of the logits that it is made from."""

    output: slice
    source: slice
    weights: Tensor | None  #: [output, source] of linear interpolation; None: the same pixels


class Tile(NamedTuple):
    """A part of one image."""

    image: int
    rows: Band
    columns: Band

    @property
    def pixels(self) -> tuple[int, slice, slice]:
        """Index of the tile in [B, H, W]."""
        return self.image, self.rows.output, self.columns.output

    @property
    def source(self) -> tuple[int, slice, slice, slice]:
        """Index in [B, h, L, w] of what the tile is made from."""
        return self.image, self.rows.source, slice(None), self.columns.source


class TiledCrossEntropy(torch.autograd.Function):
    """Cross-entropy of every pixel: logits [B, L, h, w], labels [B, H, W] -> [B, H, W]."""

    @staticmethod
    @torch.autocast("cpu", enabled=False)
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignore_index: int) -> Tensor:
        """Losses in the dtype of `logits`, float32 or float64; 0 where ignored."""
        losses = logits.new_empty(labels.shape)
        lse = torch.empty_like(losses)  # base 2
        scaled = scaled_rows(logits)

        def fill(tile: Tile) -> None:
            values = enlarge(scaled, tile)
            kept, index = kept_labels(labels[tile.pixels], ignore_index)
            picked = values.gather(1, index).squeeze(1)
            largest = values.amax(1, keepdim=True)
            total = values.sub_(largest).exp2_().sum(1)
            total = total.log2_().add_(largest.squeeze(1))
            lse[tile.pixels] = total
            losses[tile.pixels] = torch.where(kept, (total - picked) / LOG2_E, 0)

        side_by_side(fill, tiles(scaled, labels))
        ctx.save_for_backward(logits, labels, lse)
        ctx.ignore_index = ignore_index
        return losses

    @staticmethod
    @once_differentiable  # whose stub loses the signature
    @torch.autocast("cpu", enabled=False)
    def backward(ctx: Any, *gradients: Any) -> Any:  # type: ignore[override]
        """Σ over pixels of (softmax − one-hot) · gradient, through the transposed enlarging."""
        logits, labels, lse = ctx.saved_tensors
        scaled = scaled_rows(logits)

        def share(tile: Tile) -> Tensor:
            kept, index = kept_labels(labels[tile.pixels], ctx.ignore_index)
            weight = torch.where(kept, gradients[0][tile.pixels], 0)[:, None]
            values = enlarge(scaled, tile).sub_(lse[tile.pixels][:, None]).exp2_().mul_(weight)
            values.scatter_add_(1, index, -weight)
            return gather_back(values, tile)

        gathered = torch.zeros_like(scaled)
        parts = tiles(scaled, labels)
        for tile, part in zip(parts, side_by_side(share, parts), strict=True):
            gathered[tile.source] += part  # one after the other, so the sum is always the same
        return gathered.transpose(1, 2), None, None


def side_by_side(work: Callable[[Tile], Result], parts: Sequence[Tile]) -> list[Result]:
    """`work` on every tile, in as many threads as torch may use; results in the tiles' order.

    A tile's operations are too short to be divided: threads that wait for each other after every
    one of them stand still when other programs keep one of the cores busy.
    """
    threads = torch.get_num_threads()
    if threads == 1 or len(parts) == 1:
        return [work(part) for part in parts]
    return list(workers(threads).map(torch.no_grad()(work), parts))


@cache
def workers(threads: int) -> ThreadPoolExecutor:
    """Threads in each of which torch computes alone."""
    pool = ThreadPoolExecutor(threads, thread_name_prefix="weaktr-tiles")
    ready = Barrier(threads)

    def start() -> None:
        torch.get_num_threads()  # a thread's number is initialised on its first use
        torch.set_num_threads(1)  # of this thread, and of threads to come
        ready.wait()

    wait([pool.submit(start) for _ in range(threads)])
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):  # a child has no threads
    os.register_at_fork(after_in_child=workers.cache_clear)


def scaled_rows(logits: Tensor) -> Tensor:
    """log2(e) · logits, [B, L, h, w] -> contiguous [B, h, L, w]."""
    return logits.transpose(1, 2).contiguous().mul(LOG2_E)


def kept_labels(labels: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """[rows, columns] -> (which count, [rows, 1, columns] int64 with 0 where ignored)."""
    kept = labels != ignore_index
    return kept, torch.where(kept, labels, 0).long()[:, None]


def tiles(scaled: Tensor, labels: Tensor) -> list[Tile]:
    """Every tile of a batch, image by image, from the top to the bottom."""
    batch, height, num_labels, width = scaled.shape
    axes = [(height, labels.shape[1]), (width, labels.shape[2])]
    steps = tile_shape(axes, max(1, TILE_ELEMENTS // num_labels))
    rows, columns = (
        bands(*axis, step, scaled.dtype) for axis, step in zip(axes, steps, strict=True)
    )
    return [Tile(*place) for place in itertools.product(range(batch), rows, columns)]


def tile_shape(axes: list[tuple[int, int]], pixels: int) -> tuple[int, int]:
    """(rows, columns) of a tile of at most `pixels`; axes as (size of logits, of labels)."""
    height, width = (max(1, TILE_SOURCE * output // source) for source, output in axes)
    width = min(axes[1][1], max(width, TILE_COLUMNS), pixels)
    return min(axes[0][1], height, max(1, pixels // width)), width


def bands(source: int, output: int, step: int, dtype: torch.dtype) -> list[Band]:
    """Cut an axis of `output` pixels, enlarged from `source`, into bands of `step` pixels."""
    parts = [slice(start, min(start + step, output)) for start in range(0, output, step)]
    if source == output:
        return [Band(part, part, None) for part in parts]
    basis = torch.eye(source, dtype=dtype, device="cpu")[None]
    weights = F.interpolate(basis, output, mode="linear", align_corners=False)[0].T
    cut = []
    for part in parts:
        used = weights[part].any(0).nonzero()
        window = slice(int(used[0]), int(used[-1]) + 1)
        cut.append(Band(part, window, weights[part, window].contiguous()))
    return cut


def enlarge(scaled: Tensor, tile: Tile) -> Tensor:
    """The tile's part of [B, h, L, w] as [rows, L, columns], in memory of its own."""
    wide = scaled[tile.source]
    if tile.columns.weights is not None:
        wide = wide @ tile.columns.weights.T
    if tile.rows.weights is None:
        return wide.clone() if tile.columns.weights is None else wide
    return (tile.rows.weights @ wide.flatten(1)).view(-1, *wide.shape[1:])


def gather_back(values: Tensor, tile: Tile) -> Tensor:
    """The transpose of `enlarge`: [rows, L, columns] -> its share of [h, L, w]."""
    if tile.rows.weights is not None:
        values = (tile.rows.weights.T @ values.flatten(1)).view(-1, *values.shape[1:])
    if tile.columns.weights is not None:
        values = values @ tile.columns.weights
    return values
