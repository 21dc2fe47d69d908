"""`dense_crf` beside pydensecrf, on a photograph."""

import numpy as np
import pytest
import torch
from PIL import Image

from weaktr.backends import REGISTRY, report
from weaktr.crf import PRESETS
from weaktr.ops import unary_from_probabilities
from weaktr.ops.dense_crf import dense_crf

#: preset, labels
WORK = [("voc_cam", 4), ("voc_seg", 21)]
BACKENDS = list(REGISTRY["dense_crf"])


def problem(data, num_labels):
    """A photograph and smooth random label probabilities: (uint8 [H, W, 3], float32 [L, H, W])."""
    image = np.load(data / "crf" / "large_b_coco_cam_L3.npz")["image"]
    rng = np.random.default_rng(0)
    coarse = rng.normal(size=(num_labels, 12, 16)).astype(np.float32) * 2
    scores = [
        Image.fromarray(c).resize(image.shape[1::-1], Image.Resampling.BICUBIC) for c in coarse
    ]
    probs = torch.from_numpy(np.stack([np.asarray(s) for s in scores])).softmax(0)
    return image, unary_from_probabilities(probs.numpy())


def pydensecrf_inference(module, image, unary, settings):
    num_labels, height, width = unary.shape
    crf = module.DenseCRF2D(width, height, num_labels)
    crf.setUnaryEnergy(unary.reshape(num_labels, -1))
    crf.addPairwiseGaussian(sxy=settings.gaussian[0], compat=settings.gaussian[1])
    sxy, srgb, compat = settings.bilateral
    crf.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=image, compat=compat)
    return np.array(crf.inference(settings.iterations)).reshape(unary.shape)


def ours(image, unary, settings, backend):
    return dense_crf(
        image,
        unary,
        gaussian=settings.gaussian,
        bilateral=settings.bilateral,
        iterations=settings.iterations,
        backend=backend,
    )


@pytest.mark.parametrize(("preset", "num_labels"), WORK)
@pytest.mark.parametrize("row", [*BACKENDS, "pydensecrf"])
def bench_dense_crf(measure, data, row, preset, num_labels):
    image, unary = problem(data, num_labels)
    settings = PRESETS[preset]
    expected = ours(image, unary, settings, "torch")
    if row == "pydensecrf":
        module = pytest.importorskip("pydensecrf.densecrf", reason="pip install pydensecrf2")
        image, unary = np.ascontiguousarray(image), np.ascontiguousarray(unary)

        def call():
            return pydensecrf_inference(module, image, unary, settings)
    else:
        (status,) = (s for s in report() if (s.op, s.backend) == ("dense_crf", row))
        if not status.available:
            pytest.skip(status.reason)

        def call():
            return ours(image, unary, settings, row)

    height, width = image.shape[:2]
    measure(
        call,
        group=f"dense_crf {preset} {width}x{height} L{num_labels}",
        row=row,
        baseline=row == "pydensecrf",
        expected=torch.from_numpy(expected),
        within=1e-4,
        iterations=settings.iterations,
        dtype="float32",
    )
