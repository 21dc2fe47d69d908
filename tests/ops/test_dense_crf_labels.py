"""`dense_crf_labels` against `dense_crf` on the energies it does not store; those energies."""

import math

import numpy as np
import pytest
import torch

from tests.ops.crf_reference import (
    KERNELS,
    _fitting_device,  # noqa: F401
    random_problem,
)
from tests.tolerances import CRF_LABEL_AGREEMENT, assert_close
from weaktr.ops import dense_crf, dense_crf_labels, unary_from_labels, unary_from_probabilities
from weaktr.ops.dense_crf.presets import DenseCRF

OP = "dense_crf"
SIZES = [(6, 9, 3), (1, 1, 1), (17, 5, 2), (33, 40, 4), (1, 23, 21), (9, 8, 255)]


def label_problem(height, width, n_labels, zero_unsure=False, seed=0):
    """uint8 [H, W, 3] with blocks of colour, and uint8 [H, W] that follow them roughly."""
    rng = np.random.default_rng(seed)
    image, _ = random_problem(-(-height // 4), -(-width // 4), 1, seed)
    image = image.repeat(4, 0).repeat(4, 1)[:height, :width]
    labels = image[..., 0].astype(int) % n_labels + zero_unsure
    noisy = rng.integers(0, n_labels + zero_unsure, labels.shape)
    return image, np.where(rng.uniform(size=labels.shape) < 0.3, noisy, labels).astype(np.uint8)


def expected_labels(image, labels, n_labels, **settings):
    """What `dense_crf_labels` means: (labels, their marginals)."""
    unary = unary_from_labels(labels, n_labels, settings.pop("gt_prob", 0.7),
                              settings.pop("zero_unsure", False))  # fmt: skip
    marginals = torch.from_numpy(dense_crf(image, unary, **settings, backend="torch"))
    return marginals.argmax(0).to(torch.uint8), marginals.amax(0)


@pytest.mark.parametrize("zero_unsure", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_labels_and_confidence(backend, device, size, zero_unsure):
    height, width, n_labels = size
    image, labels = label_problem(height, width, n_labels, zero_unsure)
    settings = KERNELS | {"zero_unsure": zero_unsure, "gt_prob": 0.6}
    wanted, marginals = expected_labels(image, labels, n_labels, **settings)
    where = torch.from_numpy(labels).to(device)
    actual, confidence = dense_crf_labels(
        torch.from_numpy(image).to(device), where, n_labels, **settings, confidence=True,
        backend=backend,
    )  # fmt: skip
    assert actual.dtype == torch.uint8
    assert confidence.dtype == torch.float32
    assert actual.device == confidence.device == where.device
    assert (actual.cpu() == wanted).float().mean() >= CRF_LABEL_AGREEMENT
    assert_close(confidence.cpu(), marginals, "crf_marginals")
    only = dense_crf_labels(image, where, n_labels, **settings, backend=backend)
    assert torch.equal(only, actual)


def test_something_was_redrawn(backend):
    image, labels = label_problem(33, 40, 4)
    clean = image[..., 0] % 4
    redrawn = dense_crf_labels(image, labels, 4, bilateral=(20, 5, 5), backend=backend)
    assert (labels != clean).mean() > 0.2
    assert (redrawn != clean).mean() < 0.02


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", ">i2", "i4", "u4", "i8", "u8", "?"])
def test_integers_of_any_kind_and_stride(backend, dtype):
    image, labels = label_problem(12, 10, 2)
    expected = dense_crf_labels(image[::-1].copy(), labels[::-1].copy(), 2, **KERNELS)
    given = labels.astype(dtype)
    given.flags.writeable = False
    actual = dense_crf_labels(image[::-1], given[::-1], 2, **KERNELS, backend=backend)
    assert isinstance(actual, np.ndarray)
    assert actual.dtype == np.uint8
    assert np.array_equal(actual, expected)


def test_of_equal_labels_the_first_wins(backend):
    labels = np.zeros((5, 6), np.uint8)
    winners, confidence = dense_crf_labels(
        None, labels, 4, zero_unsure=True, confidence=True, backend=backend
    )
    assert not winners.any()
    assert_close(torch.from_numpy(confidence), torch.full((5, 6), 0.25), "float32")


def test_volumes_and_features(backend):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 5, 6))
    features = (rng.normal(size=(2, 4, 5, 6)), 2)
    settings = {"gaussian": (1.5, 3), "features": features}
    wanted, _ = expected_labels(None, labels, 3, **settings)
    actual = dense_crf_labels(None, labels, 3, **settings, backend=backend)
    assert np.array_equal(actual, wanted.numpy())


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_lists_of_mixed_sizes_and_label_counts(backend, device, threads):
    problems = [label_problem(*size, seed=i) for i, size in enumerate(SIZES)]
    images = [torch.from_numpy(image).to(device) for image, _ in problems]
    labels = [torch.from_numpy(labels).to(device) for _, labels in problems]
    counts = [count for _, _, count in SIZES]
    settings = KERNELS | {"backend": backend, "num_threads": threads}
    label_maps, confidences = dense_crf_labels(images, labels, counts, **settings, confidence=True)
    assert isinstance(label_maps, list)
    only = dense_crf_labels(images, labels, counts, **settings)
    for i, count in enumerate(counts):
        alone, sure = dense_crf_labels(
            images[i], labels[i], count, **KERNELS, confidence=True, backend=backend
        )
        assert torch.equal(label_maps[i], alone)
        assert torch.equal(only[i], alone)
        assert_close(confidences[i], sure, "float32")


def test_one_label_count_for_all(backend):
    image, labels = label_problem(6, 9, 3)
    both = dense_crf_labels([image] * 2, [labels, labels[:, ::-1]], 3, **KERNELS, backend=backend)
    assert np.array_equal(both[0], dense_crf_labels(image, labels, 3, **KERNELS, backend=backend))


@pytest.mark.parametrize("confidence", [False, True])
def test_an_empty_list(backend, confidence):
    actual = dense_crf_labels([], [], 3, confidence=confidence, backend=backend)
    assert actual == (([], []) if confidence else [])


IMAGE, LABELS = label_problem(6, 9, 3)


@pytest.mark.parametrize(
    ("image", "labels", "arguments", "message"),
    [
        (IMAGE, LABELS, {"n_labels": 2}, r"labels: expected 0..1, got values from 0 to 2"),
        (IMAGE, LABELS, {"n_labels": 256}, r"n_labels: expected 1..255, got 256"),
        (IMAGE, LABELS, {"n_labels": 2.0}, r"n_labels: expected at least 1, got 2.0"),
        (IMAGE, LABELS, {"gt_prob": 0}, r"gt_prob: expected a probability in \(0, 1\), got 0"),
        (IMAGE, LABELS[1:], {}, r"labels: expected \[6, 9\] to fit image, got \(5, 9\)"),
        (IMAGE, LABELS[None], {}, r"labels: expected \[6, 9\] to fit image, got \(1, 6, 9\)"),
        (IMAGE, LABELS.astype(float), {}, r"labels: expected integers \[\*spatial\], .*float64"),
        (None, LABELS[:0], {"bilateral": None}, r"labels: expected at least one pixel.*\(0, 9\)"),
        ([IMAGE], [LABELS], {"n_labels": [3, 3]}, r"n_labels: expected a list of 1, .*2 of them"),
        ([IMAGE] * 2, [LABELS, LABELS + 3], {}, r"image 1 of 2: labels: expected 0..2"),
        ([IMAGE] * 2, [LABELS] * 2, {"n_labels": [3, 0]}, r"image 1 of 2: n_labels: expected"),
    ],
)
def test_bad_arguments_are_named(image, labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        dense_crf_labels(image, labels, **({"n_labels": 3} | KERNELS | arguments))


# ---- unaries ------------------------------------------------------------------------------------


def test_unary_from_labels():
    labels = np.array([[0, 2], [1, 2]], dtype=np.uint8)
    energies = unary_from_labels(labels, 3, gt_prob=0.6)
    assert energies.shape == (3, 2, 2)
    assert energies.dtype == np.float32
    own = np.arange(3)[:, None, None] == labels
    expected = np.where(own, -math.log(0.6), -math.log(0.2))
    assert_close(torch.from_numpy(energies), torch.from_numpy(expected), "float32")
    as_tensor = unary_from_labels(torch.from_numpy(labels), 3, gt_prob=0.6)
    assert torch.equal(as_tensor, torch.from_numpy(energies))
    volume = unary_from_labels(labels[None], 3, gt_prob=0.6)
    assert np.array_equal(volume, energies[:, None])


def test_unary_from_labels_with_unknown_pixels():
    labels = torch.tensor([[0, 1], [4, 3]])
    energies = unary_from_labels(labels, 4, zero_unsure=True)
    assert_close(energies[:, 0, 0], torch.full((4,), math.log(4)), "float32")
    known = unary_from_labels(labels[1:] - 1, 4)
    assert torch.equal(energies[:, 1:], known)


def test_unary_from_labels_of_one_label():
    energies = unary_from_labels(torch.zeros(2, 2, dtype=torch.uint8), 1)
    assert_close(energies, torch.full((1, 2, 2), -math.log(0.7)), "float32")


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (LABELS * 0 + 3, {}, r"labels: expected 0..2, got values from 3 to 3.*zero_unsure"),
        (LABELS * 0 + 4, {"zero_unsure": True}, r"labels: expected 0..3, .* 4 to 4$"),
        (LABELS.astype(int) * 0 - 1, {}, r"labels: expected 0..2, got values from -1"),
        (LABELS.astype("f4"), {}, r"labels: expected integers \[\*spatial\], got torch.float32"),
        (np.array(2), {}, r"labels: expected integers \[\*spatial\], .*\(\)"),
        (LABELS, {"n_labels": 0}, r"n_labels: expected at least 1"),
        (LABELS, {"gt_prob": 1.0}, r"gt_prob: expected a probability in \(0, 1\), got 1.0"),
    ],
)
def test_bad_labels_are_named(labels, arguments, message):
    with pytest.raises(ValueError, match=message):
        unary_from_labels(labels, **({"n_labels": 3} | arguments))


def test_unary_from_probabilities():
    probs = torch.tensor([0.0, 1e-9, 0.25, 1.8]).view(4, 1, 1)
    expected = torch.tensor([-math.log(1e-5)] * 2 + [math.log(4), 0.0])
    assert_close(unary_from_probabilities(probs).flatten(), expected, "float32")
    assert isinstance(unary_from_probabilities(probs.double().numpy()), np.ndarray)
    with pytest.raises(
        ValueError, match=r"probs: expected numbers, got NaN or infinity in 1 places"
    ):
        unary_from_probabilities(probs * torch.tensor([math.nan, 1, 1, 1]).view(4, 1, 1))
    with pytest.raises(ValueError, match=r"probs: expected floating point \[L, \*spatial\]"):
        unary_from_probabilities(probs[:, 0, 0])


@pytest.mark.parametrize(
    ("probs", "message"),
    [
        ([[[-2.0]], [[3.0]]], "got values from -2 to 3; of logits take softmax"),
        ([[[-0.01]], [[0.5]]], "got values from -0.01 to 0.5"),
        ([[[12.0]], [[243.0]]], "got values from 12 to 243; .* divide bytes by 255"),
        ([[[math.inf]], [[0.5]]], "expected numbers, got NaN or infinity in 1 places"),
        ([[[math.nan]], [[5.0]]], "expected numbers, got NaN or infinity in 1 places"),
    ],
)
def test_what_is_no_probability_is_refused(probs, message):
    """Clipped, it would give a result that looks right."""
    array = np.array(probs, np.float32)
    image = np.zeros((1, 1, 3), np.uint8)
    calls = {
        "one": lambda: DenseCRF().refine_probabilities(image, array),
        "batch": lambda: DenseCRF().refine_probabilities(image[None], array[None]),
        "list": lambda: DenseCRF().refine_probabilities(
            [torch.from_numpy(image)] * 2, [torch.full((2, 1, 1), 0.5), torch.from_numpy(array)]
        ),
        "unary": lambda: unary_from_probabilities(array),
    }
    for call in calls.values():
        with pytest.raises(ValueError, match=f"probs: .*{message}"):
            call()


def test_probabilities_may_be_rounded_or_summed():
    rounded = torch.tensor([-1e-6, 1 + 1e-6, 1.8]).view(3, 1, 1)
    assert unary_from_probabilities(rounded).flatten().tolist() == pytest.approx(
        [-math.log(1e-5), 0.0, 0.0]
    )
