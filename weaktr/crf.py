"""The CRF settings that published WeakTr labels and scores were made with, ready to use."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from weaktr.ops.dense_crf import (
    ArrayOrTensor,
    dense_crf,
    unary_from_labels,
    unary_from_probabilities,
)


@dataclass(frozen=True)
class CrfSettings:
    """Kernels and number of steps of `weaktr.ops.dense_crf`, Potts compatibility."""

    gaussian: tuple[float, float] | None  #: (sxy in pixels, compat)
    bilateral: tuple[float, float, float] | None  #: (sxy in pixels, srgb in grey levels, compat)
    iterations: int = 10

    def refine_labels(
        self,
        image: ArrayOrTensor,
        labels: ArrayOrTensor,
        n_labels: int,
        gt_prob: float = 0.7,
        backend: str = "auto",
    ) -> ArrayOrTensor:
        """Redraw a label map along the edges of its image.

        Args:
            image: uint8 [H, W, 3], RGB.
            labels: integers [H, W], 0..L-1; compact, so that only labels of this image occur.
            n_labels: L >= 1.
            gt_prob: trust in `labels`, in (0, 1).
            backend: see `weaktr.backends.pick`.

        Returns:
            the most probable labels [H, W], of the same type and dtype as `labels`.

        Raises:
            ValueError: an argument of the wrong shape, dtype or range.
        """
        unary = unary_from_labels(labels, n_labels, gt_prob)
        marginals = self._run(image, unary, backend)
        if isinstance(marginals, Tensor):
            return marginals.argmax(0).to(labels.dtype)
        return np.argmax(marginals, axis=0).astype(labels.dtype)

    def refine_probabilities(
        self, image: ArrayOrTensor, probs: ArrayOrTensor, backend: str = "auto"
    ) -> ArrayOrTensor:
        """Marginals under label probabilities.

        Args:
            image: uint8 [H, W, 3], RGB.
            probs: floating point [L, H, W]; clipped to [1e-5, 1], need not sum to 1.
            backend: see `weaktr.backends.pick`.

        Returns:
            Q float32 [L, H, W], sums to 1 over L.

        Raises:
            ValueError: an argument of the wrong shape, dtype or range.
        """
        return self._run(image, unary_from_probabilities(probs), backend)

    def _run(self, image: ArrayOrTensor, unary: ArrayOrTensor, backend: str) -> ArrayOrTensor:
        return dense_crf(
            image,
            unary,
            gaussian=self.gaussian,
            bilateral=self.bilateral,
            iterations=self.iterations,
            backend=backend,
        )


#: data set and use -> settings. "cam": on labels from CAMs; "seg": on stage-2 probabilities.
#: Source: the published code, hustvl/WeakTr 3457ad3 (tool/imutils.py, segm/eval/densecrf.py).
PRESETS = {
    "voc_cam": CrfSettings(gaussian=(4, 3), bilateral=(83, 5, 3)),
    "coco_cam": CrfSettings(gaussian=(3, 3), bilateral=(50, 5, 10)),
    "voc_seg": CrfSettings(gaussian=(3, 3), bilateral=(83, 5, 3)),
    "coco_seg": CrfSettings(gaussian=(1, 3), bilateral=(67, 3, 4)),
}
