"""`dense_crf`: mean-field inference in a fully connected CRF with Gaussian edge potentials.

Every pixel is tied to every other one through kernels, commonly two: position (x/sx, y/sy), and
position with colour (x/sx, y/sy, R/sr, G/sg, B/sb). With K the Gaussian of those features (filtered
on the permutohedral lattice), n = K 1 and U the unary energies:

    K̃ = diag(n)^-½ K diag(n)^-½                          (normalization "symmetric")
    Q ← softmax(-U)
    repeat:  Q ← softmax(-U - Σ_kernels compat(K̃ Q))

Results are those of pydensecrf to within 1e-4: the message of a pixel to itself is kept, nothing
is damped and no iteration is skipped.

Source: Krähenbühl, Koltun: "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, algorithm 1.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Literal, overload

import numpy as np
import torch
from torch import Tensor

from weaktr.ops.dense_crf.checks import (
    check_energies,
    checked_iterations,
    checked_unary,
    make_problems,
    shared_kernels,
)
from weaktr.ops.dense_crf.problem import Images, Kernels, Maps, Normalization, Output, Problem
from weaktr.ops.dense_crf.unaries import label_map
from weaktr.ops.registry import Backend, Op, register

log = logging.getLogger("weaktr")

OP = register(
    Op(
        "dense_crf",
        backends=(
            Backend("cuda", "weaktr.ops.dense_crf.cuda", devices=("cuda",)),
            Backend("cpu", "weaktr.ops.dense_crf.cpu", devices=("cpu",)),
            Backend("torch", "weaktr.ops.dense_crf.definition"),
        ),
    )
)


def device_of_crf(device: torch.device) -> torch.device:
    """Where to solve images that are on a device: there if compiled code runs there, else on a CPU.

    On a GPU without the CUDA code the definition would be slower than C++ on the host.
    """
    if device.type == "cpu" or OP.asked_for() != "auto":
        return device
    here, reasons = OP.choice(device.type, "auto", {})
    host, _ = OP.choice("cpu", "auto", {})
    if here is None or here.name != "torch" or host is None or host.name == "torch":
        return device
    _log_host(device.type, "; ".join(f"{name}: {reason}" for name, reason in reasons.items()))
    return torch.device("cpu")


@cache
def _log_host(device: str, reasons: str) -> None:
    log.warning("dense_crf of images on %s runs on the CPU in C++ (%s)", device, reasons)


def dense_crf(
    image: Images,
    unary: Maps,
    *,
    gaussian: Kernels = None,
    bilateral: Kernels = None,
    features: Kernels | Sequence[Kernels] = None,
    iterations: int = 10,
    normalization: Normalization = "symmetric",
    num_threads: int | None = None,
    backend: str = "auto",
) -> Maps:
    """Label marginals of a dense CRF (formula above), without gradient.

    One image, or lists of equal length: images of any sizes and label counts in one call.

    Args:
        image: uint8 [H, W, 3], RGB 0..255. None where no kernel looks at colours.
        unary: floating point [L, H, W], or [L, *spatial] of a volume or signal; L = 1..255. Finite
            energies: negative log probabilities in nats. See `unary_from_labels`,
            `unary_from_probabilities`.
        gaussian: (sxy, compat) of the position kernel. sxy: standard deviation in pixels, one
            number or (x, y).
        bilateral: (sxy, srgb, compat) of the position and colour kernel. srgb: standard deviation
            in grey levels, one number or (R, G, B).
        features: (features, compat) of a kernel of one's own. features: floating point
            [d, *spatial], d = 1..8, already divided by the standard deviations. With lists of
            images a list: the kernels of each.
            In all three a tuple is one kernel, a list holds any number of them, None is none. A
            tuple may end in a normalization of its own: (3, 3, "before").
            compat: a number w > 0 rewards equal labels (Potts, message -w·K̃Q); a vector [L] is
            the same per label with the sign as given (+w·K̃Q, so attraction is negative); a matrix
            [L, L] is symmetrised and multiplied, sign as given.
        iterations: mean-field steps, >= 0.
        normalization: where 1/n goes: "symmetric" 1/√n on both sides of K, "before" or "after" 1/n
            on one, "none" nowhere.
        num_threads: CPU threads of backend "cpu"; None = `torch.get_num_threads()`, which is what
            backend "torch" runs on in any case. Results do not depend on it.
        backend: see `weaktr.ops.registry.Op.pick`.

    Returns:
        Q float32, of the shape of `unary`, sums to 1 over L. NumPy array or tensor like `unary`,
        on its device; a list where `unary` is one.

    Raises:
        ValueError: an argument of the wrong shape, dtype or range; in lists the image is named.
        BackendUnavailable: `backend` was named and cannot run.

    Source: see above; the defaults are pydensecrf's.
    """
    shared = shared_kernels(gaussian, bilateral, normalization)
    problems = make_problems(
        unary, checked_unary, shared, normalization, image=image, features=features
    )
    solved = _solve(problems, unary, "marginals", iterations, num_threads, backend)
    marginals: Any = _like([solution[0] for solution in solved], unary)
    return marginals


@overload
def dense_crf_labels(
    image: Images, labels: Maps, n_labels: int | Sequence[int], *,
    gaussian: Kernels = None, bilateral: Kernels = None,
    features: Kernels | Sequence[Kernels] = None, gt_prob: float = 0.7, zero_unsure: bool = False,
    confidence: Literal[False] = False, iterations: int = 10,
    normalization: Normalization = "symmetric", num_threads: int | None = None,
    backend: str = "auto",
) -> Maps: ...  # fmt: skip


@overload
def dense_crf_labels(
    image: Images, labels: Maps, n_labels: int | Sequence[int], *,
    confidence: Literal[True], gaussian: Kernels = None, bilateral: Kernels = None,
    features: Kernels | Sequence[Kernels] = None, gt_prob: float = 0.7, zero_unsure: bool = False,
    iterations: int = 10, normalization: Normalization = "symmetric",
    num_threads: int | None = None, backend: str = "auto",
) -> tuple[Maps, Maps]: ...  # fmt: skip


def dense_crf_labels(
    image: Images,
    labels: Maps,
    n_labels: int | Sequence[int],
    *,
    gaussian: Kernels = None,
    bilateral: Kernels = None,
    features: Kernels | Sequence[Kernels] = None,
    gt_prob: float = 0.7,
    zero_unsure: bool = False,
    confidence: bool = False,
    iterations: int = 10,
    normalization: Normalization = "symmetric",
    num_threads: int | None = None,
    backend: str = "auto",
) -> Maps | tuple[Maps, Maps]:
    """Redraw label maps along the edges of their images.

        argmax over L of dense_crf(image, unary_from_labels(labels, n_labels, gt_prob, zero_unsure))

    The energies are looked up label by label, they are not stored per pixel.

    Args:
        image, gaussian, bilateral, features, iterations, normalization, num_threads, backend: see
            `dense_crf`.
        labels: integers [*spatial], 0..L-1; with `zero_unsure` 0 = unknown and 1..L. A list of
            them where there are several images. Compact, so that only labels of this image occur.
        n_labels: L = 1..255 without the unknown; for several images also a list.
        gt_prob: trust in `labels`, in (0, 1).
        zero_unsure: whether label 0 of the input says nothing.
        confidence: also return the probability of each pixel's new label.

    Returns:
        The most probable labels, uint8 [*spatial], 0..L-1 (with `zero_unsure` these are the input's
        labels 1..L); of equally probable ones the first. With `confidence` also their marginals,
        float32 [*spatial]. NumPy arrays or tensors like `labels`; lists where `labels` is one.

    Raises:
        ValueError: an argument of the wrong shape, dtype or range; in lists the image is named.
        BackendUnavailable: `backend` was named and cannot run.
    """
    shared = shared_kernels(gaussian, bilateral, normalization)
    energies = partial(label_map, gt_prob=gt_prob, zero_unsure=zero_unsure, tables={})
    problems = make_problems(
        labels, energies, shared, normalization, image=image, features=features, n_labels=n_labels
    )
    output: Output = "labels+confidence" if confidence else "labels"
    solved = _solve(problems, labels, output, iterations, num_threads, backend)
    results: Any = [_like(list(maps), labels) for maps in zip(*solved, strict=True)]
    if not solved:
        results = [[], []]
    return (results[0], results[1]) if confidence else results[0]


def release_memory() -> None:
    """Free what is kept from call to call: position lattices, work space of the cpu backend."""
    from weaktr.ops.dense_crf import definition

    definition.position_lattice.cache_clear()
    try:
        from weaktr.ops.dense_crf import cpu
    except ImportError:
        return
    cpu.release_memory()


def _solve(
    problems: Sequence[Problem],
    given: object,
    output: Output,
    iterations: int,
    num_threads: int | None,
    backend: str,
) -> list[tuple[Tensor, ...]]:
    """Run the backend; `given`: the caller's energies or labels, one or a list."""
    iterations = checked_iterations(iterations)
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"num_threads: expected None, 1 or more, got {num_threads}")
    if not problems:
        return []
    device = problems[0].device
    for index, problem in enumerate(problems):
        if problem.device != device:
            raise ValueError(f"image {index}: expected on {device}, got {problem.device}")
    check_energies([problem.unary for problem in problems], given)
    run = OP.pick(device, backend)
    threads = num_threads or torch.get_num_threads()
    with torch.no_grad():
        solved: list[tuple[Tensor, ...]] = run(
            problems, iterations=iterations, num_threads=threads, output=output
        )
    return solved


def _like(maps: list[Tensor], given: object) -> Any:
    """Arrays where arrays were given, a list where a list was given."""
    listed = given if isinstance(given, list) else [given]
    results = [
        tensor.numpy() if isinstance(one, np.ndarray) else tensor
        for tensor, one in zip(maps, listed, strict=True)
    ]
    return results if isinstance(given, list) else results[0]
