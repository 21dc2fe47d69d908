"""`weaktr.pydensecrf` by itself: the paper's matrices, inputs of all kinds, what errors say."""

import math

import numpy as np
import pytest

from tests.ops.crf_reference import filter_matrix, mean_field, normalized, positions
from tests.pydensecrf.test_pydensecrf import MARGINALS, H, W, compats, scene
from weaktr.pydensecrf import densecrf, eigen, utils


def test_inference_steps_and_divergence_by_the_paper():
    """`klDivergence` is the mean-field objective, which steps bring down here."""
    height, width = 5, 6
    image, unary = scene(3, height, width)
    x, y = positions(height, width)
    colours = image.reshape(-1, 3).T / 40
    features = [np.stack([x / 2.1, y / 2.1]), np.stack([x / 5.3, y / 5.3, *colours])]
    matrices = [normalized(filter_matrix(f.T), "symmetric") for f in features]
    d = densecrf.DenseCRF2D(width, height, 3)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(2.1, 2)
    d.addPairwiseBilateral(5.3, 40, image, 3)

    marginals, *rest = d.startInference()
    values = []
    for step in range(4):
        expected = mean_field(matrices, unary, [-2 * np.eye(3), -3 * np.eye(3)], step)
        np.testing.assert_allclose(marginals, expected, rtol=0, atol=MARGINALS)
        np.testing.assert_allclose(d.inference(step), expected, rtol=0, atol=MARGINALS)
        entropy = (expected * np.log(np.maximum(expected, 1e-20))).sum()
        sums = [(expected * (expected @ kernel.T)).sum() for kernel in matrices]
        pairs = -2 * sums[0] - 3 * sums[1]
        values.append(entropy + (unary * expected).sum() + pairs)
        assert d.klDivergence(marginals) == pytest.approx(values[-1], rel=1e-4)
        d.stepInference(marginals, *rest)
    assert values == sorted(values, reverse=True)


def test_kernels_and_energies_may_change_between_steps():
    image, unary = scene(3)
    d = densecrf.DenseCRF2D(W, H, 3)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(3, 3)
    d.klDivergence(d.startInference()[0])
    d.addPairwiseBilateral(10, 20, image, 3)
    d.setUnaryEnergy(unary * 2)
    marginals, *rest = d.startInference()
    d.stepInference(marginals, *rest)
    np.testing.assert_allclose(marginals, d.inference(1), rtol=0, atol=MARGINALS)


def test_strides_and_read_only_arrays_are_fine():
    image, unary = scene(4)

    def build(energies, pixels, compat, features):
        d = densecrf.DenseCRF2D(W, H, 4)
        d.setUnaryEnergy(energies)
        d.addPairwiseBilateral(10, 20, pixels, compat)
        d.addPairwiseEnergy(features, compat[0])
        return d.inference(3)

    compat = compats(4)["matrix"]
    features = utils.create_pairwise_gaussian((3, 3), (H, W))
    expected = build(unary, image, compat, features)
    odd = [np.asfortranarray(unary), image[:, ::-1].copy()[:, ::-1], compat.T.copy().T,
           np.asfortranarray(features)]  # fmt: skip
    for array in odd:
        array.flags.writeable = False
        assert not array.flags.c_contiguous
    np.testing.assert_allclose(build(*odd), expected, rtol=0, atol=1e-6)


def test_what_is_given_may_change_afterwards():
    image, unary = scene(3)
    d = densecrf.DenseCRF2D(W, H, 3)
    d.setUnaryEnergy(unary)
    d.addPairwiseBilateral(10, 20, image, 3)
    expected = d.inference(3)
    image[:], unary[:] = 0, 0
    assert np.array_equal(d.inference(3), expected)


def test_points_are_row_by_row():
    """Width first in the constructor, and yet y * w + x."""
    unary = np.zeros((2, H * W), np.float32)
    unary[1].reshape(H, W)[4, 7] = -9
    d = densecrf.DenseCRF2D(W, H, 2)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian(sxy=(5, 0.5), compat=1)
    spread = d.inference(1)[1].reshape(H, W)
    assert spread[4, 9] > spread[6, 7] + 1e-3


U = np.zeros((2, 6), np.float32)
IMAGE = np.zeros((3, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("method", "arguments", "message"),
    [
        ("setUnaryEnergy", (U.astype(float),), r"u: expected float32, got float64.*astype"),
        ("setUnaryEnergy", (U.reshape(2, 3, 2),), r"u: expected 2 axes.*reshape\(len\(u\), -1\)"),
        ("setUnaryEnergy", (U.T.copy(),), r"Need \(2, 6\), got \(6, 2\).*labels come first"),
        ("setUnaryEnergy", (U + np.inf,), r"unary: expected finite energies, .* 12 of 12"),
        ("setUnaryEnergy", (U[:, :4], U), r"f: expected \[4, N\] to fit L \(2, 4\), got \(2, 6\)"),
        ("addPairwiseGaussian", (0, 3), r"gaussian: expected sxy"),
        ("addPairwiseGaussian", (3, np.array([1.0, 2])), r"compat: expected float32, got float64"),
        ("addPairwiseGaussian", (3, U[0, :3]), r"gaussian: expected compat .*\[2\].*\(3,\)"),
        (
            "addPairwiseGaussian",
            (3, np.float32([[[1]]])),
            r"compat: expected a number.*1, 1, 1",
        ),
        ("addPairwiseGaussian", (3, 3, 9), r"9 is not a valid KernelType"),
        ("addPairwiseGaussian", (3, 3, 1, 9), r"9 is not a valid NormalizationType"),
        ("addPairwiseBilateral", (3, 3, IMAGE.transpose(1, 0, 2), 3), r"\(3, 2, 3\).*width first"),
        ("addPairwiseBilateral", (3, 3, IMAGE[..., :1], 3), r"three channels, got 1.*utils"),
        ("addPairwiseBilateral", (3, 3, IMAGE * 1.0, 3), r"uint8, got \(3, 2, 3\) float64"),
        ("addPairwiseEnergy", (U[:, :5], 3), r"Need \(\?, 6\), got \(2, 5\)"),
        ("addPairwiseEnergy", (np.zeros((9, 6), np.float32), 3), r"d = 1..8 dimensions"),
        ("inference", (-1,), r"iterations: expected 0 or more, got -1"),
        ("klDivergence", (U[:, :5],), r"Q: expected \(2, 6\), got \(2, 5\)"),
    ],
)
def test_bad_arguments_are_named(method, arguments, message):
    with pytest.raises(ValueError, match=message):
        getattr(densecrf.DenseCRF2D(2, 3, 2), method)(*arguments)


def test_bad_models_are_named():
    for arguments in [(0, 2), (6, 0), (6, 256)]:
        with pytest.raises(ValueError, match=r"(nvar|nlabels): expected"):
            densecrf.DenseCRF(*arguments)
    with pytest.raises(TypeError):
        densecrf.DenseCRF2D(2.5, 3, 2)
    with pytest.raises(TypeError, match=r"u: expected a float32 array.*None"):
        densecrf.DenseCRF(6, 2).setUnaryEnergy(None)


def test_bad_arguments_of_utils_are_named():
    with pytest.raises(ValueError, match=r"scale: expected a number in \(0, 1\], got 2"):
        utils.unary_from_softmax(U, scale=2)
    with pytest.raises(ValueError, match=r"sdims: expected 2 numbers, one an axis"):
        utils.create_pairwise_gaussian((3,), (4, 5))
    with pytest.raises(ValueError, match=r"schan: expected one number or 3"):
        utils.create_pairwise_bilateral((3, 3), (1, 2), IMAGE, 2)
    assert utils.unary_from_softmax(np.array([[0.0], [1]]), clip=None)[0, 0] == math.inf


def test_eigen_copies_arrays():
    vector, matrix = np.arange(3, dtype=np.float32), U.T
    copy = eigen.vectorXf(vector)
    copy[:] = 7
    assert vector.tolist() == [0, 1, 2]
    assert eigen.matrixXf(matrix).flags.c_contiguous
    with pytest.raises(ValueError, match=r"arr: expected 1 axes, got shape \(6, 2\)"):
        eigen.vectorXf(matrix)
