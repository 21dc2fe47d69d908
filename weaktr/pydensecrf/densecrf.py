"""`pydensecrf.densecrf`: models that are built call by call.

    d = DenseCRF2D(width, height, nlabels)
    d.setUnaryEnergy(U)                                   # float32 [L, H · W]
    d.addPairwiseGaussian(sxy=3, compat=3)
    d.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    Q = d.inference(5)                                    # float32 [L, H · W]

Source: pydensecrf 1.0, densecrf.pyx and densecrf/src.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from numbers import Number
from operator import index
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weaktr.ops.dense_crf import OP
from weaktr.ops.dense_crf.checks import (
    check_energies,
    checked_iterations,
    kernel_settings,
    pairwise,
)
from weaktr.ops.dense_crf.definition import initial_scores, kernel_message, softmax_
from weaktr.ops.dense_crf.problem import (
    MOST_LABELS,
    Normalization,
    Pairwise,
    Problem,
    image_features,
)
from weaktr.pydensecrf.eigen import Float32, float32


class NormalizationType(IntEnum):
    """Where a kernel is divided by its norm n, see `weaktr.ops.dense_crf`."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


class KernelType(IntEnum):
    """Which parameters of a kernel could be learned; nothing is, they stay the identity."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


NO_NORMALIZATION = NormalizationType.NO_NORMALIZATION
NORMALIZE_BEFORE = NormalizationType.NORMALIZE_BEFORE
NORMALIZE_AFTER = NormalizationType.NORMALIZE_AFTER
NORMALIZE_SYMMETRIC = NormalizationType.NORMALIZE_SYMMETRIC
CONST_KERNEL = KernelType.CONST_KERNEL
DIAG_KERNEL = KernelType.DIAG_KERNEL
FULL_KERNEL = KernelType.FULL_KERNEL

NORMALIZATIONS: dict[NormalizationType, Normalization] = {
    NO_NORMALIZATION: "none",
    NORMALIZE_BEFORE: "before",
    NORMALIZE_AFTER: "after",
    NORMALIZE_SYMMETRIC: "symmetric",
}


class Unary:
    """Energies float32 [L, N]."""

    def __init__(self, energies: Float32) -> None:
        self.energies = energies


class ConstUnary(Unary):
    """The energies themselves: float32 [L, N]."""

    def __init__(self, u: Any) -> None:
        super().__init__(float32("u", u, 2))


class LogisticUnary(Unary):
    """Energies L f of float32 weights [L, F] and features [F, N]."""

    def __init__(self, L: Any, f: Any) -> None:
        weights, features = float32("L", L, 2), float32("f", f, 2)
        if weights.shape[1] != len(features):
            raise ValueError(
                f"f: expected [{weights.shape[1]}, N] to fit L {weights.shape}, got "
                f"{features.shape}"
            )
        super().__init__(weights @ features)


class DenseCRF:
    """A model of `nvar` points, `nlabels` labels."""

    def __init__(self, nvar: int, nlabels: int, *_: Any, **__: Any) -> None:
        if index(nvar) < 1:
            raise ValueError(f"nvar: expected at least one point, got {nvar}")
        if not 1 <= index(nlabels) <= MOST_LABELS:
            raise ValueError(f"nlabels: expected 1..{MOST_LABELS}, got {nlabels}")
        self._shape: tuple[int, ...] = (int(nvar),)
        self._num_labels = int(nlabels)
        self._energies: Tensor | None = None
        self._image: Tensor | None = None
        self._kernels: list[Pairwise] = []
        self._messages: list[Callable[[Tensor], Tensor]] = []

    # ---- the model --------------------------------------------------------------------------

    def setUnary(self, u: Unary) -> None:
        """Set the energies of every point; they replace those set before.

        Raises:
            ValueError: not for this many labels and points, or NaN or infinity.
        """
        needed = (self._num_labels, self._num_points)
        if u.energies.shape != needed:
            raise ValueError(
                f"Bad shape for unary energy (Need {needed}, got {u.energies.shape}): labels come "
                "first, then the points in one axis, row by row: U.reshape(nlabels, -1)"
            )
        energies = torch.from_numpy(u.energies).view(-1, *self._shape)
        check_energies([energies], energies)
        self._energies = energies

    def setUnaryEnergy(self, u: Any, f: Any = None) -> None:
        """Set energies float32 [L, N]; with features f [F, N], `u` is their weights [L, F].

        Raises:
            ValueError: see `setUnary`, or another dtype than float32.
        """
        self.setUnary(ConstUnary(u) if f is None else LogisticUnary(u, f))

    def addPairwiseEnergy(
        self,
        features: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a kernel over given features.

        Args:
            features: float32 [d, N], d = 1..8, divided by their standard deviations.
            compat: a number w (Potts, attracts where positive), or float32 [L] or [L, L] (attracts
                where negative).
            kernel: one of CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL, which all give the same: they
                would differ only in learning, which pydensecrf does not offer either.
            normalization: one of NO_NORMALIZATION, NORMALIZE_BEFORE, ...

        Raises:
            ValueError: an argument of the wrong shape, dtype or range.
        """
        points = float32("features", features, 2)
        if points.shape[1] != self._num_points:
            raise ValueError(
                f"Bad shape for pairwise energy (Need (?, {self._num_points}), got {points.shape})"
            )
        points = points.reshape(-1, *self._shape)
        self._add("features", (points, _compat(compat)), kernel, normalization)

    def _add(
        self,
        kind: str,
        parts: tuple[Any, ...],
        kernel: int,
        normalization: int,
        image: Tensor | None = None,
    ) -> None:
        """Add a kernel; `image` gives its colours."""
        KernelType(kernel)  # raises ValueError for an unknown one
        where = NORMALIZATIONS[NormalizationType(normalization)]
        (settings,) = kernel_settings(kind, (*parts, where), where)
        added = pairwise(settings, self._problem()._replace(image=image))
        if image is not None and self._image is None:
            self._image = image
        elif image is not None and self._image is not None and not torch.equal(image, self._image):
            assert added.deviations is not None  # a problem has one image: others become features
            features = image_features(image, added.deviations)
            added = added._replace(deviations=None, features=features)
        self._kernels.append(added)

    @property
    def _num_points(self) -> int:
        return int(np.prod(self._shape))

    def _problem(self) -> Problem:
        energies = self._energies
        if energies is None:
            shape = (self._num_labels, *self._shape)
            energies = torch.zeros(shape, dtype=torch.float32, device="cpu")
        return Problem(self._shape, self._image, energies, self._kernels)

    # ---- inference --------------------------------------------------------------------------

    def inference(self, niter: int) -> Float32:
        """Marginals after `niter` mean-field steps: float32 [L, N]."""
        run = OP.pick("cpu")
        with torch.no_grad():
            ((marginals,),) = run(
                [self._problem()],
                iterations=checked_iterations(niter),
                num_threads=torch.get_num_threads(),
                output="marginals",
            )
        return marginals.numpy().reshape(self._num_labels, -1)

    def startInference(self) -> tuple[Float32, Float32, Float32]:
        """Marginals before the first step, float32 [L, N]; the other two arrays are empty.

        Without energies the marginals are zeros, as in pydensecrf.
        """
        marginals = np.zeros((self._num_labels, self._num_points), np.float32)
        if self._energies is not None:
            marginals[:] = softmax_(initial_scores(self._problem())).T.numpy()
        return marginals, np.empty((0, 0), np.float32), np.empty((0, 0), np.float32)

    def stepInference(self, Q: Float32, tmp1: Float32, tmp2: Float32) -> None:
        """One mean-field step, in place on `Q`; `tmp1` and `tmp2` are not used."""
        logits = initial_scores(self._problem())
        marginals = self._by_point(Q)
        for message in self._kernel_messages():
            logits -= message(marginals)
        Q[:] = softmax_(logits).T.numpy()

    def klDivergence(self, Q: Any) -> float:
        """Divergence of `Q` from the CRF's distribution, up to a constant.

        Σ Q log max(Q, 1e-20) + Σ U Q + Σ_kernels Σ Q compat(K̃ Q)
        """
        marginals = self._by_point(Q)
        scores = initial_scores(self._problem())
        total = (marginals * marginals.clamp(min=1e-20).log()).sum(dtype=torch.float64)
        total -= (scores * marginals).sum(dtype=torch.float64)
        for message in self._kernel_messages():
            total += (marginals * message(marginals)).sum(dtype=torch.float64)
        return float(total)

    def _by_point(self, Q: Any) -> Tensor:
        """Marginals [L, N] -> [N, L]."""
        marginals = float32("Q", Q, 2)
        expected = (self._num_labels, self._num_points)
        if marginals.shape != expected:
            raise ValueError(f"Q: expected {expected}, got {marginals.shape}")
        return torch.from_numpy(marginals.T.copy())

    def _kernel_messages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """One function for each kernel, whose lattice is built once."""
        problem = self._problem()
        for kernel in self._kernels[len(self._messages) :]:
            self._messages.append(kernel_message(problem, kernel))
        return self._messages


class DenseCRF2D(DenseCRF):
    """A model of an image, `w` pixels wide and `h` high: point y * w + x is pixel (x, y)."""

    def __init__(self, w: int, h: int, nlabels: int, *_: Any, **__: Any) -> None:
        super().__init__(index(w) * index(h), nlabels)
        self._shape = (int(h), int(w))

    def addPairwiseGaussian(
        self,
        sxy: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add the kernel of positions.

        Args:
            sxy: standard deviation in pixels, one number or (x, y).
            compat, kernel, normalization: see `addPairwiseEnergy`.

        Raises:
            ValueError: an argument of the wrong shape, dtype or range.
        """
        self._add("gaussian", (sxy, _compat(compat)), kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: Any,
        srgb: Any,
        rgbim: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add the kernel of positions and colours.

        Args:
            sxy: standard deviation in pixels, one number or (x, y).
            srgb: standard deviation in grey levels, one number or one a channel.
            rgbim: uint8 [h, w, 3].
            compat, kernel, normalization: see `addPairwiseEnergy`.

        Raises:
            ValueError: an argument of the wrong shape, dtype or range.
        """
        pixels = np.array(rgbim, order="C")
        needed = (*self._shape, 3)
        if pixels.ndim == 3 and pixels.shape[2] != 3:
            raise ValueError(
                f"rgbim: expected three channels, got {pixels.shape[2]}; for others build features "
                "with utils.create_pairwise_bilateral and add them with addPairwiseEnergy"
            )
        if pixels.shape != needed or pixels.dtype != np.uint8:
            raise ValueError(
                f"Bad shape for pairwise bilateral (Need {needed} uint8, got {pixels.shape} "
                f"{pixels.dtype}): DenseCRF2D takes the width first, images have the height first"
            )
        image = torch.from_numpy(pixels)
        self._add("bilateral", (sxy, srgb, _compat(compat)), kernel, normalization, image)


def _compat(compat: Any) -> Any:
    """A number, or float32 with one or two axes.

    Raises:
        ValueError: of another dtype or number of axes.
    """
    if isinstance(compat, Number):
        return compat
    axes = np.ndim(compat)
    if axes not in (1, 2):
        raise ValueError(f"compat: expected a number, [L] or [L, L], got shape {np.shape(compat)}")
    return float32("compat", compat, axes)
