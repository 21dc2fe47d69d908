"""Checks of the arguments of `weaktr.ops.dense_crf`: out come `Problem`s, or a ValueError."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weaktr.ops.dense_crf.problem import (
    MOST_DIMENSIONS,
    MOST_LABELS,
    NORMALIZATIONS,
    Array,
    Compat,
    Deviation,
    Kernels,
    LabelMap,
    Normalization,
    Pairwise,
    Problem,
    as_tensor,
    divided,
    grid_positions,
)
from weaktr.ops.dense_crf.unaries import require_range

#: Mean-field steps: far more than it takes to settle.
MOST_ITERATIONS = 10_000
#: Parts of a kernel's tuple before its normalization.
PARTS = {
    "gaussian": ("sxy", "compat"),
    "bilateral": ("sxy", "srgb", "compat"),
    "features": ("features", "compat"),
}


class KernelSettings(NamedTuple):
    """One kernel as the caller gave it, its parts told apart."""

    name: str  #: "gaussian", "bilateral[1]", ...
    parts: dict[str, Any]  #: by the names in `PARTS`
    normalization: Normalization


def make_problems(
    maps: Any,
    energies: Callable[..., Tensor | LabelMap],
    shared: Sequence[KernelSettings],
    normalization: str,
    *,
    image: Any,
    features: Any,
    **more: Any,
) -> list[Problem]:
    """Check every image.

    Args:
        maps: the caller's energies or labels, one or a list.
        energies: called with one of them and its value in each of `more`.
        shared: the kernels that all images have.
        normalization: of `features` that say nothing about it.
        image, features, more: one or a list, like `maps`.
    """
    problems = []
    made: dict[tuple[Any, ...], list[Pairwise]] = {}
    images = _by_image(maps, image=image, features=features, **more)
    for index, (given, pixels, own, *rest) in enumerate(images):
        with _naming(index, maps):
            problem = _problem(energies(given, *rest), pixels)
            kernels = _shared_pairwise(shared, problem, made)
            for settings in kernel_settings("features", own, normalization):
                kernels = [*kernels, pairwise(settings, problem)]
            problems.append(problem._replace(kernels=kernels))
    return problems


def shared_kernels(
    gaussian: Kernels, bilateral: Kernels, normalization: str
) -> list[KernelSettings]:
    """The kernels that all images have, their numbers checked but for how many there are.

    Raises:
        ValueError: see `kernel_settings`.
    """
    checked_normalization(normalization)
    return [
        *kernel_settings("gaussian", gaussian, normalization),
        *kernel_settings("bilateral", bilateral, normalization),
    ]


def kernel_settings(kind: str, value: Kernels, normalization: str) -> list[KernelSettings]:
    """Take one kernel (a tuple) or several (a list) apart.

    Args:
        kind: a key of `PARTS`.
        value: what the caller gave.
        normalization: of kernels that say nothing about it.

    Raises:
        ValueError: neither tuple, list nor None; too few or too many parts; an unknown
            normalization; a deviation that is not positive.
    """
    if value is None:
        return []
    if isinstance(value, list):
        named = [(f"{kind}[{i}]", kernel) for i, kernel in enumerate(value)]
    else:
        named = [(kind, value)]
    names = PARTS[kind]
    settings = []
    for name, kernel in named:
        if not isinstance(kernel, tuple) or not 0 <= len(kernel) - len(names) <= 1:
            raise ValueError(
                f"{name}: expected a tuple ({', '.join(names)}) or ({', '.join(names)}, "
                f"normalization), a list of such tuples, or None, got {kernel!r}"
            )
        where = kernel[len(names)] if len(kernel) > len(names) else normalization
        parts = dict(zip(names, kernel, strict=False))
        for part in ("sxy", "srgb"):
            if part in parts:
                _positive(name, part, parts[part])
        settings.append(KernelSettings(name, parts, checked_normalization(where, name)))
    return settings


def pairwise(settings: KernelSettings, problem: Problem) -> Pairwise:
    """One kernel over the pixels of one image.

    Raises:
        ValueError: a part of the wrong shape, dtype or range, or colours that are not there.
    """
    name, parts, normalization = settings
    compat = _compat_multiplier(name, parts["compat"], problem.num_labels)
    if "features" in parts:
        features = _checked_features(name, parts["features"], problem.shape, problem.device)
        return Pairwise(None, features, compat, normalization)
    deviations = _broadcast(name, "sxy", parts["sxy"], len(problem.shape))
    if "srgb" in parts:
        if problem.image is None:
            raise ValueError(
                f"{name}: needs image, uint8 [H, W, 3]; give volumes and other channels as features"
            )
        deviations += _broadcast(name, "srgb", parts["srgb"], 3)
    elif len(problem.shape) != 2:
        positions = divided(grid_positions(problem.shape, problem.device), deviations)
        return Pairwise(None, positions, compat, normalization)
    return Pairwise(deviations, None, compat, normalization)


def checked_normalization(value: Any, kernel: str = "") -> Normalization:
    """`value`, which must be one of `NORMALIZATIONS`."""
    for normalization in NORMALIZATIONS:
        if isinstance(value, str) and value == normalization:
            return normalization
    name = f"{kernel}: normalization" if kernel else "normalization"
    raise ValueError(f"{name}: expected one of {NORMALIZATIONS}, got {value!r}")


def checked_iterations(iterations: int) -> int:
    """`iterations`, which must be an integer 0..`MOST_ITERATIONS`."""
    is_whole = isinstance(iterations, (int, np.integer)) and not isinstance(iterations, bool)
    if not is_whole or iterations < 0:
        raise ValueError(f"iterations: expected 0 or more, got {iterations!r}")
    if iterations > MOST_ITERATIONS:
        raise ValueError(f"iterations: expected at most {MOST_ITERATIONS}, got {iterations}")
    return int(iterations)


def checked_unary(value: Array) -> Tensor:
    """The energies of a problem, float32 [L, *spatial]; their values are not looked at.

    Raises:
        ValueError: of the wrong shape or dtype, or empty.
    """
    unary = as_tensor("unary", value)
    if unary.ndim < 2 or not 1 <= len(unary) <= MOST_LABELS or 0 in unary.shape:
        raise ValueError(
            f"unary: expected [L, *spatial] with L = 1..{MOST_LABELS} and at least one pixel, got "
            f"{tuple(unary.shape)}"
        )
    if not unary.is_floating_point():
        raise ValueError(f"unary: expected floating point energies, got {unary.dtype}")
    return unary.float()


def check_energies(unaries: Sequence[Tensor | LabelMap], given: object) -> None:
    """Refuse labels out of range and energies that are not finite; waits for the device twice.

    Args:
        unaries: of all images.
        given: the caller's energies or labels, one or a list.

    Raises:
        ValueError: names the image.
    """
    maps = [(i, unary) for i, unary in enumerate(unaries) if isinstance(unary, LabelMap)]
    highest = torch.stack([own.labels.amax() for _, own in maps]).tolist() if maps else []
    for (index, own), high in zip(maps, highest, strict=True):
        values, labels = own.table.shape
        if high >= values:
            with _naming(index, given):
                require_range(own.labels, values, zero_unsure=values > labels)
    stored = [(i, unary) for i, unary in enumerate(unaries) if isinstance(unary, Tensor)]
    wrong = wrong_numbers([unary for _, unary in stored])
    if wrong is not None:
        index, unary = stored[wrong[0]]
        with _naming(index, given):
            raise ValueError(
                f"unary: expected finite energies, got NaN or infinity in {wrong[1]} of "
                f"{unary.numel()} places; clip probabilities before the logarithm as "
                "unary_from_probabilities does"
            )


def wrong_numbers(values: Sequence[Tensor]) -> tuple[int, int] | None:
    """The first of `values` that has NaN or infinity, and how many; None: all are finite.

    One look at the sums settles nearly every case: NaN and infinity stay what they are in a sum.
    """
    if not values:
        return None
    sums = torch.stack([value.sum() for value in values]).tolist()
    for i, total in enumerate(sums):
        wrong = 0 if np.isfinite(total) else int((~values[i].isfinite()).sum())
        if wrong:
            return i, wrong
    return None


def _by_image(leading: Any, **others: Any) -> list[tuple[Any, ...]]:
    """One tuple for each image: from lists of equal length, or of the only one.

    Numbers and None stand for all images.
    """
    if not isinstance(leading, list):
        return [(leading, *others.values())]
    columns: list[list[Any]] = [leading]
    for name, value in others.items():
        if value is None or isinstance(value, (int, np.integer)):
            columns.append([value] * len(leading))
        elif isinstance(value, list) and len(value) == len(leading):
            columns.append(value)
        else:
            got = f"{len(value)} of them" if isinstance(value, list) else type(value).__name__
            raise ValueError(f"{name}: expected a list of {len(leading)}, one an image, got {got}")
    return list(zip(*columns, strict=True))


@contextmanager
def _naming(index: int, given: object) -> Iterator[None]:
    """Say which image of a list an error is about."""
    try:
        yield
    except ValueError as error:
        if not isinstance(given, list):
            raise
        raise ValueError(f"image {index} of {len(given)}: {error}") from error


def _shared_pairwise(
    shared: Sequence[KernelSettings], problem: Problem, made: dict[tuple[Any, ...], list[Pairwise]]
) -> list[Pairwise]:
    """The kernels that all images have; `made`: those of other images, by all they depend on."""
    grid = None if len(problem.shape) == 2 else (problem.shape, problem.device)
    alike = (problem.num_labels, problem.image is None, grid)
    if alike not in made:
        made[alike] = [pairwise(settings, problem) for settings in shared]
    return made[alike]


def _problem(unary: Tensor | LabelMap, image: Array | None) -> Problem:
    """One image, yet without kernels.

    Raises:
        ValueError: an image of the wrong shape, dtype or range.
    """
    is_map = isinstance(unary, LabelMap)
    given = tuple((unary.labels if isinstance(unary, LabelMap) else unary).shape)
    problem = Problem(given if is_map else given[1:], None, unary, [])
    if image is not None:
        pixels = _checked_image(image, problem.device)
        height, width, _ = pixels.shape
        if problem.shape != (height, width):
            name, axes = ("labels", "") if is_map else ("unary", "L, ")
            raise ValueError(
                f"{name}: expected [{axes}{height}, {width}] to fit image, got {given}"
            )
        problem = problem._replace(image=pixels)
    return problem


def _checked_image(value: Array, device: torch.device) -> Tensor:
    """The colours of a problem, on its device: uint8 [H, W, 3].

    Raises:
        ValueError: of the wrong shape or dtype, empty, or a tensor on another device.
    """
    image = as_tensor("image", value)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != torch.uint8 or 0 in image.shape:
        raise ValueError(
            f"image: expected uint8 [H, W, 3] with at least one pixel, got {image.dtype} "
            f"{tuple(image.shape)}; convert values 0..255 by astype(np.uint8), give other data as "
            "features"
        )
    if isinstance(value, np.ndarray):
        image = image.to(device)
    if image.device != device:
        raise ValueError(f"image: expected on {device}, where the energies are, got {image.device}")
    return image


def _checked_features(
    name: str, value: Array, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    given = as_tensor(name, value)
    if given.ndim != 1 + len(shape) or given.shape[1:] != shape:
        raise ValueError(
            f"{name}: expected features [d, {', '.join(map(str, shape))}], got {tuple(given.shape)}"
        )
    if not 1 <= len(given) <= MOST_DIMENSIONS or not given.is_floating_point():
        raise ValueError(
            f"{name}: expected floating point features of d = 1..{MOST_DIMENSIONS} dimensions, got "
            f"{given.dtype} {tuple(given.shape)}"
        )
    features = given.to(device, torch.float32).flatten(1).contiguous()
    wrong = wrong_numbers([features])
    if wrong is not None:
        raise ValueError(
            f"{name}: expected finite features, got NaN or infinity in {wrong[1]} of "
            f"{features.numel()} places"
        )
    return features


def _compat_multiplier(name: str, compat: Compat, num_labels: int) -> Tensor:
    """What messages are multiplied with, see `Pairwise.compat`."""
    matrix = checked_compat(name, compat)
    if matrix.shape not in ((), (num_labels,), (num_labels, num_labels)):
        raise ValueError(
            f"{name}: expected compat as a number, [{num_labels}] or [{num_labels}, {num_labels}], "
            f"got shape {tuple(matrix.shape)}"
        )
    if matrix.ndim == 0:  # Potts
        return -matrix.expand(num_labels)
    return matrix if matrix.ndim == 1 else (matrix + matrix.T) / 2


def checked_compat(name: str, compat: Compat) -> Tensor:
    """The compatibility of a kernel as float32, of any shape.

    Raises:
        ValueError: no numbers, or numbers that are not finite.
    """
    if isinstance(compat, Tensor):
        matrix = compat.detach().float()
    elif (numbers := _numbers(compat)) is not None:
        matrix = torch.from_numpy(numbers).float()
    else:
        raise ValueError(f"{name}: expected compat as numbers, got {compat!r}")
    if not matrix.isfinite().all():
        raise ValueError(f"{name}: expected a finite compat, got {compat!r}")
    return matrix


def _numbers(value: Any) -> NDArray[np.float64] | None:
    """Numbers of any shape; None where `value` is something else, text and booleans included."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # rows of different lengths
        return None
    return array.astype(np.float64) if array.dtype.kind in "fiu" else None


def _broadcast(name: str, part: str, value: Deviation, count: int) -> tuple[float, ...]:
    """One number for all or `count` of them."""
    numbers = _positive(name, part, value)
    if numbers.size not in (1, count):
        raise ValueError(
            f"{name}: expected {part} as one positive number or {count}, got {value!r}"
        )
    return tuple(np.broadcast_to(numbers, count).tolist())


def _positive(name: str, part: str, value: Deviation) -> NDArray[np.float64]:
    """`value` as a vector of numbers that are positive in single precision too."""
    given = _numbers(value)
    numbers = np.array([np.nan]) if given is None else given.reshape(-1)
    with np.errstate(over="ignore", under="ignore"):
        single = numbers.astype(np.float32)
    if not numbers.size or not np.isfinite(single).all() or single.min() <= 0:
        raise ValueError(
            f"{name}: expected {part} as one positive number or one an axis, got {value!r}"
        )
    return numbers
