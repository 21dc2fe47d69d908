"""`dense_crf`: mean-field inference in a fully connected CRF with Gaussian edge potentials.

Every pixel is tied to every other one through up to two kernels, position (x/sx, y/sy) and position
with colour (x/sx, y/sy, R/sr, G/sg, B/sb). With K the Gaussian of those features (filtered on the
permutohedral lattice), n = K 1 and U the unary energies:

    K̃ = diag(n)^-½ K diag(n)^-½                          (normalization "symmetric")
    Q ← softmax(-U)
    repeat:  Q ← softmax(-U - Σ_kernels compat(K̃ Q))

Results are those of pydensecrf to within 1e-4: the message of a pixel to itself is kept, nothing
is damped and no iteration is skipped.

Source: Krähenbühl, Koltun: "Efficient Inference in Fully Connected CRFs with Gaussian Edge
Potentials", NeurIPS 2011, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from weaktr.backends import pick
from weaktr.ops.permutohedral import Lattice, build_lattice

Normalization = Literal["symmetric", "before", "after", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = ("symmetric", "before", "after", "none")
#: A standard deviation for both axes or (x, y); for all colours or (R, G, B).
Deviation = float | Sequence[float]
#: Potts weight, or label weights [L], or label compatibility [L, L].
Compat = float | ArrayLike | Tensor
ArrayOrTensor = TypeVar("ArrayOrTensor", NDArray[np.generic], Tensor)

#: Keeps the logarithm of a probability of 0 finite.
SMALLEST_PROBABILITY = 1e-5


class Pairwise(NamedTuple):
    """One kernel, checked: what the backends get."""

    deviations: tuple[float, ...]  #: (sx, sy) in pixels, or (sx, sy, sr, sg, sb)
    compat: Tensor  #: float32 [L] or symmetric [L, L]; the message is this times K̃Q


def dense_crf(
    image: ArrayOrTensor,
    unary: ArrayOrTensor,
    *,
    gaussian: tuple[Deviation, Compat] | None = None,
    bilateral: tuple[Deviation, Deviation, Compat] | None = None,
    iterations: int = 10,
    normalization: Normalization = "symmetric",
    backend: str = "auto",
) -> ArrayOrTensor:
    """Label marginals of a dense CRF (formula above), without gradient.

    Args:
        image: uint8 [H, W, 3], RGB 0..255.
        unary: floating point [L, H, W], finite energies: negative log probabilities in nats. See
            `unary_from_labels`, `unary_from_probabilities`.
        gaussian: (sxy, compat) of the position kernel, None to leave it out. sxy: standard
            deviation in pixels, one number or (x, y).
        bilateral: (sxy, srgb, compat) of the position and colour kernel, None to leave it out.
            srgb: standard deviation in grey levels, one number or (R, G, B).
            compat, in both: a number w > 0 rewards equal labels (Potts, message -w·K̃Q); a vector
            [L] is the same per label with the sign as given (+w·K̃Q, so attraction is negative);
            a matrix [L, L] is symmetrised and multiplied, sign as given.
        iterations: mean-field steps, >= 0.
        normalization: where 1/n goes: "symmetric" 1/√n on both sides of K, "before" or "after" 1/n
            on one, "none" nowhere.
        backend: see `weaktr.backends.pick`.

    Returns:
        Q float32 [L, H, W], sums to 1 over L. NumPy array or tensor like `unary`, on its device.

    Raises:
        ValueError: an argument of the wrong shape, dtype or range.
        BackendUnavailable: `backend` was named and cannot run.

    Source: see above; the defaults are pydensecrf's.
    """
    energies = _as_tensor("unary", unary)
    pixels = _as_tensor("image", image)
    if isinstance(image, np.ndarray):
        pixels = pixels.to(energies.device)
    _check_maps(pixels, energies)
    if iterations < 0:
        raise ValueError(f"iterations: expected 0 or more, got {iterations}")
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"normalization: expected one of {NORMALIZATIONS}, got {normalization!r}")
    num_labels = len(energies)
    kernels = []
    if gaussian is not None:
        sxy, compat = _unpack("gaussian", gaussian, ("sxy", "compat"))
        kernels.append(_pairwise("gaussian", (("sxy", sxy, 2),), compat, num_labels))
    if bilateral is not None:
        sxy, srgb, compat = _unpack("bilateral", bilateral, ("sxy", "srgb", "compat"))
        deviations = (("sxy", sxy, 2), ("srgb", srgb, 3))
        kernels.append(_pairwise("bilateral", deviations, compat, num_labels))
    run = pick("dense_crf", energies.device, backend)
    with torch.no_grad():
        marginals: Tensor = run(
            pixels,
            energies.detach().float(),
            kernels,
            iterations=iterations,
            normalization=normalization,
        )
    return marginals.numpy() if isinstance(unary, np.ndarray) else marginals


def dense_crf_torch(
    image: Tensor,
    unary: Tensor,
    kernels: Sequence[Pairwise],
    *,
    iterations: int,
    normalization: Normalization,
) -> Tensor:
    """The definition, as table look-ups over pixels in rows: [P, L] with P = H · W."""
    num_labels, height, width = unary.shape
    scores = -unary.flatten(1).T.contiguous()
    messages = [_message(image, kernel, normalization) for kernel in kernels]
    marginals = _softmax(scores.clone())
    for _ in range(iterations):
        logits = scores.clone()
        for message in messages:
            logits -= message(marginals)
        marginals = _softmax(logits)
    return marginals.T.reshape(num_labels, height, width)


def _message(
    image: Tensor, kernel: Pairwise, normalization: Normalization
) -> Callable[[Tensor], Tensor]:
    """Q -> compat(K̃ Q), both [P, L]."""
    height, width, _ = image.shape
    if len(kernel.deviations) == 2:
        lattice = _position_lattice(height, width, kernel.deviations, normalization, image.device)
    else:
        colours = image.reshape(-1, 3).T.float()
        features = torch.cat([_positions(height, width, image.device), colours])
        lattice = _normalized_lattice(features, kernel.deviations, normalization)
    compat = kernel.compat.to(image.device)
    if compat.ndim == 1:
        return lambda marginals: lattice.filter(marginals).mul_(compat)
    return lambda marginals: lattice.filter(marginals) @ compat


@lru_cache(maxsize=4)
def _position_lattice(
    height: int,
    width: int,
    deviations: tuple[float, ...],
    normalization: Normalization,
    device: torch.device,
) -> Lattice:
    """The position kernel does not depend on the image: images of one size share it."""
    return _normalized_lattice(_positions(height, width, device), deviations, normalization)


def _positions(height: int, width: int, device: torch.device) -> Tensor:
    """float32 [2, H · W]: x and y of every pixel, row by row."""
    y = torch.arange(height, dtype=torch.float32, device=device)
    x = torch.arange(width, dtype=torch.float32, device=device)
    return torch.stack([x.repeat(height), y.repeat_interleave(width)])


def _normalized_lattice(
    features: Tensor, deviations: tuple[float, ...], normalization: Normalization
) -> Lattice:
    # a tensor, because CUDA multiplies by the reciprocal where the divisor is a Python number
    divisors = torch.tensor(deviations, dtype=torch.float32, device=features.device)
    lattice = build_lattice(features / divisors[:, None])
    if normalization == "none":
        return lattice
    norm = lattice.filter(torch.ones_like(features[0])[:, None])[:, 0] + 1e-20
    unit = torch.ones_like(norm)
    if normalization == "symmetric":
        return lattice.scaled(before=norm.rsqrt(), after=norm.rsqrt())
    if normalization == "before":
        return lattice.scaled(before=1 / norm, after=unit)
    return lattice.scaled(before=unit, after=1 / norm)


def _softmax(logits: Tensor) -> Tensor:
    """In place over the last axis; several times faster than `torch.softmax` for few labels."""
    logits -= logits.amax(1, keepdim=True)
    logits.exp_()
    return logits.div_(logits.sum(1, keepdim=True))


def unary_from_labels(
    labels: ArrayOrTensor, n_labels: int, gt_prob: float = 0.7, zero_unsure: bool = False
) -> ArrayOrTensor:
    """Energies of a label map that is right with probability `gt_prob`.

        U[l] = -log(gt_prob) for the pixel's own label, -log((1 - gt_prob) / (L - 1)) for others

    Args:
        labels: integers [H, W], 0..L-1; with `zero_unsure` 0 = unknown and 1..L.
        n_labels: L >= 1, without the unknown.
        gt_prob: in (0, 1).
        zero_unsure: unknown pixels get -log(1/L) for every label, the other labels count from 1.

    Returns:
        float32 [L, H, W]; NumPy array or tensor like `labels`.

    Raises:
        ValueError: an argument of the wrong shape, dtype or range.

    Source: pydensecrf, `unary_from_labels`.
    """
    indices = _as_tensor("labels", labels)
    if indices.ndim != 2 or indices.is_floating_point():
        raise ValueError(
            f"labels: expected integers [H, W], got {indices.dtype} {tuple(indices.shape)}"
        )
    if n_labels < 1:
        raise ValueError(f"n_labels: expected at least 1, got {n_labels}")
    if not 0 < gt_prob < 1:
        raise ValueError(f"gt_prob: expected a probability in (0, 1), got {gt_prob}")
    indices = indices.long() - int(zero_unsure)
    lowest = -int(zero_unsure)
    if indices.numel() and (indices.min() < lowest or indices.max() >= n_labels):
        low, high = (int(bound) - lowest for bound in indices.aminmax())
        raise ValueError(
            f"labels: expected 0..{n_labels - 1 - lowest}, got values from {low} to {high}; "
            "map unknown pixels (255) to 0, the others to 1..L, and use zero_unsure"
        )
    own = torch.arange(n_labels, device=indices.device)[:, None, None] == indices
    other = -math.log((1 - gt_prob) / max(n_labels - 1, 1))
    energies = torch.where(own, -math.log(gt_prob), other)
    energies = energies.masked_fill(indices < 0, math.log(n_labels)).float()
    return energies.numpy() if isinstance(labels, np.ndarray) else energies


def unary_from_probabilities(probs: ArrayOrTensor) -> ArrayOrTensor:
    """Energies -log(clip(p, 1e-5, 1)) of label probabilities.

    Args:
        probs: floating point [L, H, W]; need not sum to 1.

    Returns:
        float32 [L, H, W]; NumPy array or tensor like `probs`.

    Raises:
        ValueError: an argument of the wrong shape or dtype, or NaN.

    Source: pydensecrf, `unary_from_softmax`.
    """
    values = _as_tensor("probs", probs)
    if values.ndim != 3 or not values.is_floating_point():
        raise ValueError(
            f"probs: expected floating point [L, H, W], got {values.dtype} {tuple(values.shape)}"
        )
    if values.isnan().any():
        raise ValueError(f"probs: expected numbers, got NaN in {int(values.isnan().sum())} places")
    energies = -values.float().clamp(SMALLEST_PROBABILITY, 1.0).log()
    return energies.numpy() if isinstance(probs, np.ndarray) else energies


def _as_tensor(name: str, value: NDArray[np.generic] | Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    if isinstance(value, np.ndarray):  # read-only and negatively strided arrays are copied
        return torch.from_numpy(np.require(value, requirements=["C", "W"]))
    raise ValueError(f"{name}: expected a NumPy array or a tensor, got {type(value).__name__}")


def _check_maps(image: Tensor, unary: Tensor) -> None:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8 or 0 in image.shape:
        raise ValueError(
            f"image: expected uint8 [H, W, 3] with at least one pixel, got {image.dtype} "
            f"{tuple(image.shape)}"
        )
    height, width, _ = image.shape
    if unary.ndim != 3 or unary.shape[1:] != (height, width) or len(unary) == 0:
        raise ValueError(
            f"unary: expected [L, {height}, {width}] with L >= 1 to fit image, "
            f"got {tuple(unary.shape)}"
        )
    if not unary.is_floating_point():
        raise ValueError(f"unary: expected floating point energies, got {unary.dtype}")
    if unary.device != image.device:
        raise ValueError(f"image: expected on {unary.device} like unary, got {image.device}")
    if not unary.isfinite().all():
        wrong = int((~unary.isfinite()).sum())
        raise ValueError(
            f"unary: expected finite energies, got NaN or infinity in {wrong} of {unary.numel()} "
            "places; clip probabilities before the logarithm as unary_from_probabilities does"
        )


def _unpack(name: str, value: tuple[Any, ...], parts: tuple[str, ...]) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) or len(value) != len(parts):
        raise ValueError(f"{name}: expected ({', '.join(parts)}) or None, got {value!r}")
    return tuple(value)


def _pairwise(
    name: str, deviations: Sequence[tuple[str, Deviation, int]], compat: Compat, num_labels: int
) -> Pairwise:
    """Check one kernel. `deviations`: (part's name, value, how many numbers it stands for)."""
    numbers: list[float] = []
    for part, value, count in deviations:
        given = np.asarray(value, dtype=np.float64).reshape(-1)
        if given.size not in (1, count) or not np.isfinite(given).all() or given.min() <= 0:
            raise ValueError(
                f"{name}: expected {part} as one positive number or {count}, got {value!r}"
            )
        numbers += np.broadcast_to(given, count).tolist()
    matrix = torch.as_tensor(compat, dtype=torch.float32)
    if matrix.shape not in ((), (num_labels,), (num_labels, num_labels)):
        raise ValueError(
            f"{name}: expected compat as a number, [{num_labels}] or [{num_labels}, {num_labels}], "
            f"got shape {tuple(matrix.shape)}"
        )
    if not matrix.isfinite().all():
        raise ValueError(f"{name}: expected a finite compat, got {compat!r}")
    if matrix.ndim == 0:  # Potts
        return Pairwise(tuple(numbers), -matrix.expand(num_labels))
    return Pairwise(tuple(numbers), matrix if matrix.ndim == 1 else (matrix + matrix.T) / 2)
