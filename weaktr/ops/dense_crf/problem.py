"""What `weaktr.ops.dense_crf` hands to its backends: images, energies and kernels.

Backends are functions ``(problems, *, iterations, num_threads, output)``; the definition is
`weaktr.ops.dense_crf.definition.dense_crf_torch`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

Normalization = Literal["symmetric", "before", "after", "none"]
NORMALIZATIONS: tuple[Normalization, ...] = ("symmetric", "before", "after", "none")
#: What a backend returns for each problem: (Q,), (labels,) or (labels, largest Q).
Output = Literal["marginals", "labels", "labels+confidence"]

Array = NDArray[Any] | Tensor
ArrayOrTensor = TypeVar("ArrayOrTensor", NDArray[Any], Tensor)
#: One array or tensor, or a list of them.
Maps = TypeVar("Maps", NDArray[Any], Tensor, list[NDArray[Any]], list[Tensor])
#: An image or a list of them; None where no kernel looks at colours.
Images = Array | Sequence[Array | None] | None
#: A standard deviation for all axes or one each, (x, y); for all colours or (R, G, B).
Deviation = float | Sequence[float]
#: Potts weight, or label weights [L], or label compatibility [L, L].
Compat = float | ArrayLike | Tensor
#: (sxy, compat), (sxy, srgb, compat) or (features, compat), then perhaps a `Normalization`.
Kernel = tuple[Any, ...]
#: A tuple is one kernel, a list holds any number of them.
Kernels = Kernel | list[Kernel] | None

#: So that label maps are uint8.
MOST_LABELS = 255
#: Dimensions of a kernel's features.
MOST_DIMENSIONS = 8


class Pairwise(NamedTuple):
    """One Gaussian kernel. Exactly one of `deviations` and `features` is given."""

    deviations: tuple[float, ...] | None  #: of an image: (x, y) in pixels, or (x, y, R, G, B)
    features: Tensor | None  #: float32 [d, P], d = 1 ... 8, divided by the deviations
    compat: Tensor  #: float32 [L] or symmetric [L, L]; the message is this times K̃Q
    normalization: Normalization


class LabelMap(NamedTuple):
    """Energies that depend on a label alone: those of pixel p are table[labels[p]]."""

    labels: Tensor  #: uint8 [*shape], 0 ... V - 1
    table: Tensor  #: float32 [V, L], on the labels' device


class Problem(NamedTuple):
    """One image, volume or signal."""

    shape: tuple[int, ...]  #: spatial: (H, W), (D, H, W), (P,), ...
    image: Tensor | None  #: uint8 [H, W, 3], where a kernel has colours
    unary: Tensor | LabelMap  #: float32 [L, *shape], energies in nats, or labels
    kernels: list[Pairwise]

    @property
    def num_labels(self) -> int:
        return self.unary.table.shape[1] if isinstance(self.unary, LabelMap) else len(self.unary)

    @property
    def device(self) -> torch.device:
        return (self.unary.labels if isinstance(self.unary, LabelMap) else self.unary).device


def as_dict(problem: Problem, memory: Callable[[Tensor], Any]) -> dict[str, Any]:
    """What `weaktr._native` takes for a problem.

    Args:
        problem: checked.
        memory: how a tensor on the problem's device is handed over: as an array, or as an address
            and a shape. It sees to it that the memory is contiguous.

    Returns:
        ``shape``, ``image``, ``unary`` or else ``labels`` and ``table``, and ``kernels``; None for
        what is not there. The compat of a kernel is an array in any case.
    """
    tensors = {"image": problem.image, "unary": None, "labels": None, "table": None}
    if isinstance(problem.unary, LabelMap):
        tensors |= problem.unary._asdict()
    else:
        tensors["unary"] = problem.unary
    kernels = [
        {
            "deviations": kernel.deviations,
            "features": None if kernel.features is None else memory(kernel.features),
            "compat": kernel.compat.cpu().contiguous().numpy(),
            "normalization": kernel.normalization,
        }
        for kernel in problem.kernels
    ]
    handed = {name: None if x is None else memory(x) for name, x in tensors.items()}
    return {"shape": problem.shape, **handed, "kernels": kernels}


def as_tensor(name: str, value: Array) -> Tensor:
    """A tensor of any array, without gradient; where torch cannot share the memory it is copied.

    Raises:
        ValueError: not an array, sparse, or of a dtype that torch does not have.
    """
    if isinstance(value, Tensor):
        if value.layout != torch.strided:
            raise ValueError(f"{name}: expected a dense tensor, got {value.layout}; use to_dense()")
        return value.detach()
    if not isinstance(value, np.ndarray):
        raise ValueError(f"{name}: expected a NumPy array or a tensor, got {type(value).__name__}")
    if value.dtype.kind not in "bifu":
        raise ValueError(f"{name}: expected an array of numbers, got dtype {value.dtype}")
    dtype = np.dtype(np.float64) if value.dtype == np.longdouble else value.dtype.newbyteorder("=")
    array = np.require(value, dtype, requirements=["C", "W", "A"])
    if min(array.strides, default=0) < 0:  # an axis of length 1, which NumPy takes for contiguous
        array = array.copy()
    return torch.from_numpy(array)


def grid_positions(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Where each pixel is: float32 [d, P], x (the last axis) first; pixels row by row."""
    axes = [torch.arange(side, dtype=torch.float32, device=device) for side in shape]
    grids = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([grid.flatten() for grid in reversed(grids)])


def divided(features: Tensor, deviations: tuple[float, ...]) -> Tensor:
    """float32 [d, P] features in units of their standard deviations [d]."""
    # by a tensor, because CUDA multiplies by the reciprocal where the divisor is a Python number
    divisors = torch.tensor(deviations, dtype=torch.float32, device=features.device)
    return features / divisors[:, None]


def image_features(image: Tensor, deviations: tuple[float, ...]) -> Tensor:
    """float32 [5, P]: x, y, R, G, B of a uint8 [H, W, 3] image, divided by their deviations."""
    height, width, _ = image.shape
    colours = image.reshape(-1, 3).T.float()
    return divided(torch.cat([grid_positions((height, width), image.device), colours]), deviations)
