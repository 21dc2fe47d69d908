"""The permutohedral lattice: Gaussian filtering of P points in d dimensions, in O(P · d²).

The points are projected onto the plane Σ el = 0 in d + 1 dimensions, which a lattice tiles with
simplices of d + 1 vertices. A vertex is a point with integer coordinates k_i that are all equal
modulo d + 1 and sum to 0. Filtering is three weighted sums:

    splat   V[v]  = Σ over points p in a simplex with vertex v   b[p, v] · x[p]
    blur    V[v] += ½ (V[v - step_j] + V[v + step_j])            for axis j = 0, 1, …, d in turn
    slice   y[p]  = α Σ_v b[p, v] · V[v],                        α = 1 / (1 + 2^-d)

with barycentric weights b; a vertex that no point touches is absent and counts as 0. Every one of
the three runs as `torch.nn.functional.embedding_bag`, on any device, without atomics on the CPU.

The arithmetic up to the barycentric weights is float32 without fused multiply-add, so that every
implementation finds the same simplices.

Source: Adams, Baek, Davis: "Fast High-Dimensional Filtering Using the Permutohedral Lattice",
Eurographics 2010, sections 3.1 to 3.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

#: Points are padded with zero features to a multiple of this, as pydensecrf does. The padding
#: puts nothing on the lattice, but its vertices exist and pass on what reaches them.
PADDING = 4
#: Of vertices' keys.
KEY_BITS = 63
#: Odd; 2^64 over the golden ratio. Its powers are the multipliers of the vertices' hash.
HASH_BASE = 0x9E3779B97F4A7C15
#: float32 counts the lattice's cells exactly up to here.
LARGEST_COORDINATE = 2.0**22


@dataclass(frozen=True)
class Lattice:
    """Splat, blur and slice as index and weight tables (P points, V vertices, d dimensions)."""

    splat_points: Tensor  #: int [P' · (d + 1)], points sorted by the vertex they touch
    splat_starts: Tensor  #: int [V], where each vertex begins in `splat_points`
    splat_weights: Tensor  #: float32, like `splat_points`
    blur_vertices: Tensor  #: int [d + 1, V, 3], per axis: the vertex and its two neighbours
    blur_weights: Tensor  #: float32, like `blur_vertices`: 1, ½, ½, and 0 where one is missing
    slice_vertices: Tensor  #: int [P, d + 1], the vertices around each point
    slice_weights: Tensor  #: float32 [P, d + 1], α included

    def filter(self, x: Tensor) -> Tensor:
        """Splat, blur, slice: float32 [P, L] -> [P, L]."""
        values = embedding_bag(
            self.splat_points,
            x,
            self.splat_starts,
            mode="sum",
            per_sample_weights=self.splat_weights,
        )
        for vertices, weights in zip(self.blur_vertices, self.blur_weights, strict=True):
            values = embedding_bag(vertices, values, mode="sum", per_sample_weights=weights)
        return embedding_bag(
            self.slice_vertices, values, mode="sum", per_sample_weights=self.slice_weights
        )

    def scaled(self, before: Tensor, after: Tensor) -> Lattice:
        """The lattice whose filter is ``after · filter(before · x)``; both factors [P]."""
        return replace(
            self,
            splat_weights=self.splat_weights * before[self.splat_points.long()],
            slice_weights=self.slice_weights * after[:, None],
        )


class _Simplices(NamedTuple):
    """The enclosing simplex of every point, coordinate i = 0..d."""

    cells: Tensor  #: int64 [d + 1, P], corner 0 of the simplex divided by d + 1
    ranks: Tensor  #: int64 [d + 1, P], rank of each coordinate's distance from that corner
    weights: Tensor  #: float32 [d + 1, P], barycentric, of corner 0..d


def build_lattice(features: Tensor) -> Lattice:
    """The lattice of P points.

    Args:
        features: float32 [d, P], positions in units of the standard deviation.

    Raises:
        ValueError: the features spread so wide that float32 cannot tell the vertices apart.
    """
    dimensions, points = features.shape
    if points % PADDING:
        features = torch.cat([features, features.new_zeros(dimensions, 1)], dim=1)
    simplices = _enclosing_simplices(features)
    digits = _vertex_digits(simplices)
    keys, steps, certain = _vertex_keys(digits)
    corners = dimensions + 1

    ordered, order = keys.flatten().sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    vertex_of_corner = torch.empty_like(order)
    vertex_of_corner[order] = first.cumsum(0) - 1
    blur_vertices, blur_weights = _neighbours(ordered[first], steps)
    if not certain:
        _check_hash(digits.permute(2, 0, 1).flatten(0, 1), vertex_of_corner, blur_vertices)

    weights = simplices.weights.T.contiguous()
    splat_points = order.div(corners, rounding_mode="floor")
    splat_weights = weights.flatten()[order]
    padding = splat_points == points
    alpha = 1 / (1 + 2.0**-dimensions)
    index = torch.int32 if order.numel() < 2**31 else torch.int64  # int32 halves the traffic
    return Lattice(
        splat_points=splat_points.masked_fill_(padding, 0).to(index),
        splat_starts=first.nonzero()[:, 0].to(index),
        splat_weights=splat_weights.masked_fill_(padding, 0.0),
        blur_vertices=blur_vertices.to(index),
        blur_weights=blur_weights,
        slice_vertices=vertex_of_corner.view(-1, corners)[:points].to(index),
        slice_weights=weights[:points] * alpha,
    )


def _enclosing_simplices(features: Tensor) -> _Simplices:
    """Adams et al., section 3.1 and 3.2: embed, round to the nearest corner 0, rank, weigh."""
    dimensions = features.shape[0]
    size = dimensions + 1
    elevated = _embed(features)
    largest = float(elevated.abs().max())
    if not largest < LARGEST_COORDINATE:
        raise ValueError(
            f"features: expected lattice coordinates below {LARGEST_COORDINATE:.0f}, got "
            f"{largest:.3g}; use larger standard deviations (sxy, srgb) or a smaller image"
        )
    inverse = _float32(1 / size)
    cells = torch.round(elevated * inverse)
    difference = elevated - cells * size
    ranks = _descending_ranks(difference) + cells.sum(0).long()
    carry = (ranks < 0).long() - (ranks > dimensions).long()
    ranks += carry * size
    cells += carry
    distance = (elevated - cells * size) * inverse
    by_rank = torch.empty_like(distance).scatter_(0, ranks, distance)
    first = by_rank[-1:] + (1 - by_rank[:1])
    weights = torch.cat([first, (by_rank[:-1] - by_rank[1:]).flip(0)])
    return _Simplices(cells.long(), ranks, weights)


def _embed(features: Tensor) -> Tensor:
    """[d, P] -> [d + 1, P] in the plane Σ = 0, scaled so that the blur has unit deviation."""
    dimensions = features.shape[0]
    deviation = _float32(math.sqrt(2 / 3) * (dimensions + 1))
    elevated = []
    total = torch.zeros_like(features[0])
    for j in range(dimensions, 0, -1):
        scaled = features[j - 1] * _float32(deviation / math.sqrt(j * (j + 1)))
        elevated.append(total - scaled * j)
        total = total + scaled
    elevated.append(total)
    return torch.stack(elevated[::-1])


def _float32(value: float) -> float:
    """`value` rounded to float32."""
    return torch.tensor(value, dtype=torch.float32, device="cpu").item()


def _descending_ranks(x: Tensor) -> Tensor:
    """Rank along axis 0, 0 = largest; of equal entries the first comes first. int64 [d + 1, P]."""
    ranks = torch.zeros_like(x, dtype=torch.int64)
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            less = x[i] < x[j]
            ranks[i] += less
            ranks[j] += ~less
    return ranks


def _vertex_digits(simplices: _Simplices) -> Tensor:
    """What a vertex is known by: k_0, and (k_i - k_0) / (d + 1) for i = 1 … d - 1.

    Returns:
        int64 [d + 1, d, P], for each corner of each point's simplex.
    """
    cells, ranks, _ = simplices
    dimensions = cells.shape[0] - 1
    size = dimensions + 1
    corner = torch.arange(size, device=cells.device)[:, None, None]  # [d + 1, 1, 1]
    shifted = cells[:dimensions] - (ranks[:dimensions] > dimensions - corner).long()
    digits = shifted - shifted[:, :1]
    digits[:, 0] = shifted[:, 0] * size + corner[:, 0]
    return digits


def _digit_steps(dimensions: int) -> list[list[int]]:
    """For each axis, the difference in digits between a vertex and its neighbour."""
    away = [[dimensions] + [-1] * (dimensions - 1)]
    across = [[-1] + [int(i == j) for i in range(1, dimensions)] for j in range(1, dimensions)]
    return [*away, *across, [-1] + [0] * (dimensions - 1)]


def _vertex_keys(digits: Tensor) -> tuple[Tensor, list[int], bool]:
    """One integer per vertex.

    The digits are packed as those of one number, each with room for a step to the neighbours.
    Where that takes more than 63 bits they are hashed: Σ digit · multiplier modulo 2^64.

    Returns:
        keys int64 [P, d + 1]; for each axis, the difference of the keys of two neighbours; whether
        different vertices have different keys for certain.
    """
    corners, dimensions, _ = digits.shape
    lowest, highest = digits.amin((0, 2)), digits.amax((0, 2))
    spans = (highest - lowest + 2 * corners + 1).tolist()
    packed = math.prod(spans) < 2**KEY_BITS
    if packed:
        multipliers = [math.prod(spans[i + 1 :]) for i in range(dimensions)]
    else:
        multipliers = [_signed(HASH_BASE**i) for i in range(dimensions)]
    keys = torch.zeros_like(digits[:, 0])
    for i, multiplier in enumerate(multipliers):
        keys += (digits[:, i] - lowest[i] + corners) * multiplier
    steps = [
        _signed(sum(s * m for s, m in zip(step, multipliers, strict=True)))
        for step in _digit_steps(dimensions)
    ]
    return keys.T.contiguous(), steps, packed


def _signed(value: int) -> int:
    """`value` modulo 2^64, as int64 has it."""
    return (value + 2**63) % 2**64 - 2**63


def _check_hash(digits: Tensor, vertex_of_corner: Tensor, blur_vertices: Tensor) -> None:
    """Make sure that no two vertices share a key, nor a vertex and an absent neighbour.

    Args:
        digits: int64 [P · (d + 1), d].
        vertex_of_corner: int64 [P · (d + 1)].
        blur_vertices: see `Lattice`.
    """
    own = digits.new_zeros(blur_vertices.shape[1], digits.shape[1])
    own[vertex_of_corner] = digits
    confused = (own[vertex_of_corner] != digits).any()
    for vertices, step in zip(blur_vertices, _digit_steps(digits.shape[1]), strict=True):
        right = own[vertices[:, 1]] - own == torch.tensor(step, device=own.device)
        absent = vertices[:, 1] == vertices[:, 0]
        confused |= ~(right.all(1) | absent).all()
    if confused:
        raise ValueError(
            "features: expected vertices that a 64-bit hash tells apart, got two of one key; "
            "use slightly different standard deviations"
        )


def _neighbours(keys: Tensor, steps: list[int]) -> tuple[Tensor, Tensor]:
    """Blur tables (`Lattice.blur_vertices`, `Lattice.blur_weights`) of ascending keys [V]."""
    own = torch.arange(len(keys), device=keys.device)
    vertices = own[None, :, None].repeat(len(steps), 1, 3)
    weights = torch.zeros(vertices.shape, dtype=torch.float32, device=keys.device)
    weights[..., 0] = 1.0
    for axis, step in enumerate(steps):
        wanted = keys + step
        nearest = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
        present = keys[nearest] == wanted
        source, target = own[present], nearest[present]
        vertices[axis, source, 1] = target
        vertices[axis, target, 2] = source
        weights[axis, source, 1] = 0.5
        weights[axis, target, 2] = 0.5
    return vertices, weights
