"""The definition of `dense_crf` in PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from weaktr.ops.dense_crf.permutohedral import Lattice, build_lattice
from weaktr.ops.dense_crf.problem import (
    LabelMap,
    Normalization,
    Output,
    Pairwise,
    Problem,
    divided,
    grid_positions,
    image_features,
)


def dense_crf_torch(
    problems: Sequence[Problem], *, iterations: int, num_threads: int, output: Output = "marginals"
) -> list[tuple[Tensor, ...]]:
    """The definition, as table look-ups over pixels in rows: [P, L].

    Args:
        problems: checked, on one device.
        iterations: mean-field steps.
        num_threads: not used; torch's own number is what runs.
        output: what to return for each problem.

    Returns:
        For each problem (Q float32 [L, *shape],), or (labels uint8 [*shape],), or with
        "labels+confidence" also the largest Q, float32 [*shape].
    """
    solved: list[tuple[Tensor, ...]] = []
    for problem in problems:
        marginals = _mean_field(problem, iterations)
        if output == "marginals":
            solved.append((marginals.T.reshape(-1, *problem.shape).contiguous(),))
            continue
        labels = marginals.argmax(1).to(torch.uint8).view(problem.shape)
        largest = marginals.amax(1).view(problem.shape)
        solved.append((labels, largest) if output == "labels+confidence" else (labels,))
    return solved


def _mean_field(problem: Problem, iterations: int) -> Tensor:
    """Q [P, L] after the last step."""
    scores = initial_scores(problem)
    messages = [kernel_message(problem, kernel) for kernel in problem.kernels]
    marginals = softmax_(scores.clone())
    for _ in range(iterations):
        logits = scores.clone()
        for message in messages:
            logits -= message(marginals)
        marginals = softmax_(logits)
    return marginals


def initial_scores(problem: Problem) -> Tensor:
    """-U, float32 [P, L]."""
    if isinstance(problem.unary, LabelMap):
        return -problem.unary.table[problem.unary.labels.flatten().long()]
    return problem.unary.flatten(1).neg().T.contiguous()


def kernel_message(problem: Problem, kernel: Pairwise) -> Callable[[Tensor], Tensor]:
    """Q -> compat(K̃ Q), both [P, L]."""
    lattice = _kernel_lattice(problem, kernel)
    compat = kernel.compat.to(problem.device)
    if compat.ndim == 1:
        return lambda marginals: lattice.filter(marginals).mul_(compat)
    return lambda marginals: lattice.filter(marginals) @ compat


def softmax_(logits: Tensor) -> Tensor:
    """In place over the last axis; several times faster than `torch.softmax` for few labels."""
    logits -= logits.amax(1, keepdim=True)
    logits.exp_()
    return logits.div_(logits.sum(1, keepdim=True))


def _kernel_lattice(problem: Problem, kernel: Pairwise) -> Lattice:
    """The lattice of one kernel, normalization included."""
    if kernel.features is not None:
        return _normalized_lattice(kernel.features, kernel.normalization)
    assert kernel.deviations is not None
    if len(kernel.deviations) == 2:
        height, width = problem.shape
        return position_lattice(
            height, width, kernel.deviations, kernel.normalization, problem.device
        )
    assert problem.image is not None
    features = image_features(problem.image, kernel.deviations)
    return _normalized_lattice(features, kernel.normalization)


@lru_cache(maxsize=4)
def position_lattice(
    height: int,
    width: int,
    deviations: tuple[float, ...],
    normalization: Normalization,
    device: torch.device,
) -> Lattice:
    """The position kernel does not depend on the image: images of one size share it."""
    positions = grid_positions((height, width), device)
    return _normalized_lattice(divided(positions, deviations), normalization)


def _normalized_lattice(features: Tensor, normalization: Normalization) -> Lattice:
    """K̃ of float32 [d, P] features."""
    lattice = build_lattice(features)
    if normalization == "none":
        return lattice
    norm = lattice.filter(torch.ones_like(features[0])[:, None])[:, 0] + 1e-20
    unit = torch.ones_like(norm)
    if normalization == "symmetric":
        return lattice.scaled(before=norm**-0.5, after=norm**-0.5)
    if normalization == "before":
        return lattice.scaled(before=1 / norm, after=unit)
    return lattice.scaled(before=unit, after=1 / norm)
