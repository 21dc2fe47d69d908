"""`weaktr.pydensecrf` beside pydensecrf itself."""

import numpy as np
import pytest

from tests.tolerances import CRF_LABEL_AGREEMENT, TOLERANCES
from weaktr.pydensecrf import densecrf, utils

MARGINALS = TOLERANCES["crf_marginals"].atol
H, W = 21, 34


@pytest.fixture
def original():
    reason = "pip install pydensecrf2 (extra bench) for results to compare with"
    return pytest.importorskip("pydensecrf.densecrf", reason=reason)


@pytest.fixture
def original_utils():
    return pytest.importorskip("pydensecrf.utils", reason="pip install pydensecrf2 (extra bench)")


def scene(num_labels, height=H, width=W):
    """uint8 [H, W, 3] of blocks with some noise, float32 energies [L, N]."""
    rng = np.random.default_rng(num_labels)
    blocks = rng.integers(0, 256, (-(-height // 7), -(-width // 7), 3))
    image = blocks.repeat(7, 0).repeat(7, 1)[:height, :width]
    image = np.clip(image + rng.integers(-20, 20, image.shape), 0, 255).astype(np.uint8)
    probs = rng.dirichlet(np.ones(num_labels), height * width).T
    return image, np.ascontiguousarray(utils.unary_from_softmax(probs))


def both(original, build):
    """The same model on pydensecrf and on ours."""
    return build(original), build(densecrf)


def compats(num_labels):
    rng = np.random.default_rng(0)
    return {
        "number": 2,
        "vector": rng.uniform(-3, 0, num_labels).astype(np.float32),
        "matrix": rng.uniform(-3, 0, (num_labels, num_labels)).astype(np.float32),
    }


@pytest.mark.parametrize("kind", ["number", "vector", "matrix"])
@pytest.mark.parametrize("normalization", range(4))
@pytest.mark.parametrize("num_labels", [1, 2, 5])
def test_images(original, num_labels, normalization, kind):
    image, unary = scene(num_labels)
    compat = compats(num_labels)[kind]
    if normalization == densecrf.NO_NORMALIZATION:
        compat = compat * np.float32(0.05)

    def build(module):
        d = module.DenseCRF2D(W, H, num_labels)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian(3, compat, normalization=normalization)
        d.addPairwiseBilateral((10, 12), (20, 30, 40), image, compat, module.DIAG_KERNEL,
                               normalization)  # fmt: skip
        return d

    for iterations in (0, 1, 5):
        theirs, ours = (d.inference(iterations) for d in both(original, build))
        assert ours.shape == (num_labels, H * W)
        np.testing.assert_allclose(ours, np.array(theirs), rtol=0, atol=MARGINALS)


@pytest.mark.parametrize("kernel", range(3))
def test_kernel_types_are_one(original, kernel):
    """Their parameters start as the identity, and nothing can change them."""
    image, unary = scene(3)

    def build(module, kind=kernel):
        d = module.DenseCRF2D(W, H, 3)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian(sxy=(2, 5), compat=3, kernel=kind)
        d.addPairwiseBilateral(sxy=10, srgb=13, rgbim=image, compat=4, kernel=kind)
        return d

    theirs, ours = both(original, build)
    np.testing.assert_allclose(ours.inference(5), theirs.inference(5), rtol=0, atol=MARGINALS)
    assert np.array_equal(theirs.inference(5), build(original, 0).inference(5))
    assert np.array_equal(ours.inference(5), build(densecrf, 0).inference(5))


def everything(module, num_labels=4):
    """Five kernels, two of them with images of their own."""
    image, unary = scene(num_labels)
    blurred = image // 32 * 32
    compat = compats(num_labels)
    d = module.DenseCRF2D(W, H, num_labels)
    d.setUnaryEnergy(unary)
    d.addPairwiseGaussian((2, 5), compat["vector"], normalization=module.NORMALIZE_BEFORE)
    d.addPairwiseBilateral(10, 13, image, 2)
    d.addPairwiseBilateral(12, (20, 30, 40), blurred, compat["matrix"], module.FULL_KERNEL,
                           module.NORMALIZE_AFTER)  # fmt: skip
    grey = utils.create_pairwise_bilateral((5, 5), 7, image[..., 0])
    d.addPairwiseEnergy(grey, compat=0.05, normalization=module.NO_NORMALIZATION)
    d.addPairwiseEnergy(utils.create_pairwise_gaussian((3, 3), (H, W)), compat=1)
    return d


def test_many_kernels_and_images(original):
    theirs, ours = both(original, everything)
    np.testing.assert_allclose(ours.inference(5), theirs.inference(5), rtol=0, atol=MARGINALS)


def test_steps_and_divergence(original):
    theirs, ours = both(original, everything)
    q_theirs, *rest_theirs = theirs.startInference()
    q_ours, *rest_ours = ours.startInference()
    for step in range(5):
        np.testing.assert_allclose(q_ours, q_theirs, rtol=0, atol=MARGINALS)
        np.testing.assert_allclose(q_ours, ours.inference(step), rtol=0, atol=MARGINALS)
        assert ours.klDivergence(q_ours) == pytest.approx(theirs.klDivergence(q_theirs), rel=1e-4)
        theirs.stepInference(q_theirs, *rest_theirs)
        ours.stepInference(q_ours, *rest_ours)


@pytest.mark.parametrize(("dimensions", "points"), [(1, 50), (3, 203), (6, 100), (8, 77)])
def test_features_of_any_dimension(original, dimensions, points):
    rng = np.random.default_rng(dimensions)
    features = rng.normal(size=(dimensions, points)).astype(np.float32)
    unary = rng.normal(size=(3, points)).astype(np.float32)

    def build(module):
        d = module.DenseCRF(points, 3)
        d.setUnaryEnergy(unary)
        d.addPairwiseEnergy(features, compat=3)
        return d

    theirs, ours = both(original, build)
    np.testing.assert_allclose(ours.inference(5), theirs.inference(5), rtol=0, atol=MARGINALS)
    q_theirs, q_ours = theirs.startInference()[0], ours.startInference()[0]
    assert ours.klDivergence(q_ours) == pytest.approx(theirs.klDivergence(q_theirs), rel=1e-4)


def test_volume(original, original_utils):
    shape = (7, 9, 11)
    rng = np.random.default_rng(1)
    volume = rng.integers(0, 200, (3, 3, 4)).repeat(3, 0).repeat(3, 1).repeat(3, 2)[:7, :9, :11]
    unary = rng.normal(size=(3, volume.size)).astype(np.float32)

    def build(module, tools):
        d = module.DenseCRF(volume.size, 3)
        d.setUnaryEnergy(unary)
        d.addPairwiseEnergy(tools.create_pairwise_gaussian((1, 2, 3), shape), compat=3)
        d.addPairwiseEnergy(tools.create_pairwise_bilateral((3, 3, 3), 20, volume), compat=2)
        return d.inference(5)

    theirs, ours = build(original, original_utils), build(densecrf, utils)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=MARGINALS)


def test_models_without_energies(original):
    def build(module):
        d = module.DenseCRF2D(W, H, 3)
        d.addPairwiseGaussian(3, 3)
        return d

    theirs, ours = both(original, build)
    np.testing.assert_allclose(ours.inference(3), theirs.inference(3), rtol=0, atol=MARGINALS)
    q_theirs, *rest_theirs = theirs.startInference()
    q_ours, *rest_ours = ours.startInference()
    assert np.array_equal(q_ours, np.array(q_theirs))
    theirs.stepInference(q_theirs, *rest_theirs)
    ours.stepInference(q_ours, *rest_ours)
    np.testing.assert_allclose(q_ours, q_theirs, rtol=0, atol=MARGINALS)


def test_kinds_of_unaries(original):
    _, unary = scene(3)
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 4)).astype(np.float32)
    features = rng.normal(size=(4, H * W)).astype(np.float32)

    def build(module, energies):
        d = module.DenseCRF2D(W, H, 3)
        d.setUnary(energies)
        d.addPairwiseGaussian(3, 3)
        return d.inference(2)

    for kind, arguments in [("ConstUnary", (unary,)), ("LogisticUnary", (weights, features))]:
        theirs, ours = (build(m, getattr(m, kind)(*arguments)) for m in (original, densecrf))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=MARGINALS)


def test_constants_have_the_same_values(original):
    for name in ("NO_NORMALIZATION", "NORMALIZE_BEFORE", "NORMALIZE_AFTER", "NORMALIZE_SYMMETRIC",
                 "CONST_KERNEL", "DIAG_KERNEL", "FULL_KERNEL"):  # fmt: skip
        assert getattr(densecrf, name) == getattr(original, name)


@pytest.mark.parametrize("zero_unsure", [True, False])
@pytest.mark.parametrize("shape", [(30,), (5, 6), (2, 3, 5)])
def test_unary_from_labels(original_utils, shape, zero_unsure):
    labels = np.random.default_rng(0).integers(0, 4 + zero_unsure, shape)
    unary = utils.unary_from_labels(labels, 4, 0.6, zero_unsure)
    expected = original_utils.unary_from_labels(labels, 4, 0.6, zero_unsure)
    np.testing.assert_allclose(unary, expected, rtol=1e-6)
    assert unary.shape == (4, 30)
    assert np.array_equal(utils.unary_from_labels(labels + 1 - zero_unsure, 4, 0.6), unary)
    np.testing.assert_allclose(
        utils.compute_unary(labels + 1 - zero_unsure, 4),
        original_utils.compute_unary(labels + 1 - zero_unsure, 4), rtol=1e-6,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [None, 0.4, 1])
@pytest.mark.parametrize("clip", [1e-5, 1e-2, None])
def test_unary_from_softmax(original_utils, clip, scale, dtype):
    probs = np.random.default_rng(0).dirichlet(np.full(3, 0.3), (4, 5)).transpose(2, 0, 1)
    probs = np.maximum(probs, 1e-9).astype(dtype)
    unary = utils.unary_from_softmax(probs, scale, clip)
    expected = original_utils.unary_from_softmax(probs, scale, clip)
    assert unary.shape == (3, 20)
    assert unary.dtype == np.float32
    np.testing.assert_allclose(unary, expected, rtol=1e-5, atol=1e-6)
    trust = 1 if scale is None else scale
    np.testing.assert_allclose(
        utils.softmax_to_unary(probs, trust), original_utils.softmax_to_unary(probs, trust),
        rtol=1e-5, atol=1e-6,
    )  # fmt: skip


def test_features_are_theirs(original_utils):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    volume = rng.normal(size=(4, 5, 6))
    for name, arguments in [
        ("create_pairwise_gaussian", ((3, 4), (5, 6))),
        ("create_pairwise_gaussian", ((3, 4, 1.5), (5, 6, 7))),
        ("create_pairwise_bilateral", ((3, 4), (10, 11, 12), image, 2)),
        ("create_pairwise_bilateral", ((3, 4), 13, image, 2)),
        ("create_pairwise_bilateral", ((3, 4), 13, image.transpose(2, 0, 1), 0)),
        ("create_pairwise_bilateral", ((3, 4, 5), 0.1, volume)),
    ]:
        features = getattr(utils, name)(*arguments)
        assert features.dtype == np.float32
        assert np.array_equal(features, getattr(original_utils, name)(*arguments))


def test_argmax_of_a_photograph_sized_scene(original):
    image, unary = scene(4, 120, 161)

    def build(module):
        d = module.DenseCRF2D(161, 120, 4)
        d.setUnaryEnergy(unary)
        d.addPairwiseGaussian(sxy=4, compat=3)
        d.addPairwiseBilateral(sxy=83, srgb=5, rgbim=image, compat=3)
        return np.argmax(d.inference(10), axis=0)

    theirs, ours = both(original, build)
    assert (theirs == ours).mean() >= CRF_LABEL_AGREEMENT
