"""Dense CRF with settings that are kept, among them those of the published WeakTr results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weaktr.ops.dense_crf import dense_crf, dense_crf_labels, release_memory
from weaktr.ops.dense_crf.checks import (
    checked_compat,
    checked_iterations,
    shared_kernels,
)
from weaktr.ops.dense_crf.problem import Images, Kernels, Maps, Normalization
from weaktr.ops.dense_crf.unaries import are_probabilities, energies_of, unary_from_probabilities

__all__ = ["PRESETS", "DenseCRF", "release_memory"]


@dataclass(frozen=True)
class DenseCRF:
    """`weaktr.ops.dense_crf` with its settings.

    Every method takes one image [H, W, 3], a list of images of any sizes, or a batch of one size
    [B, H, W, 3], and gives back the same: one array, a list, or a batch.

        crf = DenseCRF(gaussian=(4, 3), bilateral=(83, 5, 3))     # or DenseCRF.preset("voc_cam")
        marginals = crf(image, unary)
        labels = crf.refine_labels(image, labels, n_labels=4)

    Args:
        gaussian, bilateral, iterations, normalization: see `weaktr.ops.dense_crf`.

    Raises:
        ValueError: an argument of the wrong form or out of its range.
    """

    gaussian: Kernels = None
    bilateral: Kernels = None
    iterations: int = 10
    normalization: Normalization = "symmetric"

    def __post_init__(self) -> None:
        for kernel in shared_kernels(self.gaussian, self.bilateral, self.normalization):
            checked_compat(kernel.name, kernel.parts["compat"])
        checked_iterations(self.iterations)

    @classmethod
    def preset(cls, name: str) -> DenseCRF:
        """One of `PRESETS` by name.

        Raises:
            ValueError: there is none of that name.
        """
        if name not in PRESETS:
            raise ValueError(f"crf: expected one of {', '.join(sorted(PRESETS))}; got {name!r}")
        return PRESETS[name]

    def __call__(
        self, image: Images, unary: Maps, *, num_threads: int | None = None, backend: str = "auto"
    ) -> Maps:
        """Label marginals.

        Args:
            image: uint8 [H, W, 3], RGB; a list; or [B, H, W, 3].
            unary: floating point [L, H, W], energies in nats; a list; or [B, L, H, W].
            num_threads, backend: see `weaktr.ops.dense_crf`.

        Returns:
            Q float32 like `unary`, sums to 1 over L.

        Raises:
            ValueError: an argument of the wrong shape, dtype or range.
        """
        marginals: Maps = self._run(
            dense_crf, image, unary, num_threads=num_threads, backend=backend
        )
        return marginals

    def refine_probabilities(
        self, image: Images, probs: Maps, *, num_threads: int | None = None, backend: str = "auto"
    ) -> Maps:
        """Marginals under label probabilities.

        Args:
            image: uint8 [H, W, 3], RGB; a list; or [B, H, W, 3].
            probs: floating point [L, H, W]; a list; or [B, L, H, W]. Need not sum to 1; see
                `weaktr.ops.unary_from_probabilities`.
            num_threads, backend: see `weaktr.ops.dense_crf`.

        Returns:
            Q float32 like `probs`, sums to 1 over L.

        Raises:
            ValueError: an argument of the wrong shape, dtype or range, such as logits.
        """
        if isinstance(probs, list):
            unary: Any = _energies(probs)
        else:
            unary = unary_from_probabilities(probs)
        return self(image, unary, num_threads=num_threads, backend=backend)

    def refine_labels(
        self,
        image: Images,
        labels: Maps,
        n_labels: int | list[int],
        *,
        gt_prob: float = 0.7,
        zero_unsure: bool = False,
        confidence: bool = False,
        num_threads: int | None = None,
        backend: str = "auto",
    ) -> Any:
        """Redraw a label map along the edges of its image.

        Args:
            image: uint8 [H, W, 3], RGB; a list; or [B, H, W, 3].
            labels: integers [H, W], 0..L-1; a list; or [B, H, W]. Compact, so that only labels of
                this image occur.
            n_labels: L = 1..255; for several images also a list.
            gt_prob, zero_unsure, confidence, num_threads, backend: see
                `weaktr.ops.dense_crf_labels`.

        Returns:
            The most probable labels, uint8 like `labels`; with `confidence` and their marginals.

        Raises:
            ValueError: an argument of the wrong shape, dtype or range.
        """
        return self._run(
            dense_crf_labels,
            image,
            labels,
            n_labels=n_labels,
            gt_prob=gt_prob,
            zero_unsure=zero_unsure,
            confidence=confidence,
            num_threads=num_threads,
            backend=backend,
        )

    def _run(self, op: Callable[..., Any], image: Images, maps: Maps, **asked: Any) -> Any:
        """`op` with these settings; the images of a batch are handed over one by one."""
        names = ("gaussian", "bilateral", "iterations", "normalization")
        settings = {name: getattr(self, name) for name in names} | asked
        if not isinstance(image, (np.ndarray, Tensor)) or image.ndim != 4:
            return op(image, maps, **settings)
        if min(len(image), len(maps)) == 0:
            raise ValueError("image: expected a batch of at least one image, got none")
        results = op(list(image), list(maps), **settings)
        return tuple(map(_stacked, results)) if isinstance(results, tuple) else _stacked(results)


def _stacked(maps: list[Any]) -> Any:
    return np.stack(maps) if isinstance(maps[0], np.ndarray) else torch.stack(maps)


#: data set and use -> settings. "cam": on labels from CAMs; "seg": on stage-2 probabilities.
#: Source: the published code, hustvl/WeakTr 3457ad3 (tool/imutils.py, segm/eval/densecrf.py).
PRESETS = {
    "voc_cam": DenseCRF(gaussian=(4, 3), bilateral=(83, 5, 3)),
    "coco_cam": DenseCRF(gaussian=(3, 3), bilateral=(50, 5, 10)),
    "voc_seg": DenseCRF(gaussian=(3, 3), bilateral=(83, 5, 3)),
    "coco_seg": DenseCRF(gaussian=(1, 3), bilateral=(67, 3, 4)),
}


def _energies(probs: Sequence[Any]) -> list[Any]:
    """`unary_from_probabilities` of each image; on a GPU the host waits once for all of them."""
    tensors = [
        one
        for one in probs
        if isinstance(one, Tensor) and one.is_floating_point() and one.ndim >= 2
    ]
    if len(tensors) == len(probs) and are_probabilities(tensors):
        return [energies_of(one) for one in tensors]
    return [unary_from_probabilities(one) for one in probs]
