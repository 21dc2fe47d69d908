"""What `dense_crf` takes, and what it says about the rest."""

import math

import numpy as np
import pytest
import torch

from tests.ops.crf_reference import (
    KERNELS,
    _fitting_device,  # noqa: F401
    random_problem,
)
from tests.tolerances import assert_close
from weaktr.ops import dense_crf
from weaktr.ops.registry import OPS, BackendUnavailable

OP = "dense_crf"
IMAGE, UNARY = random_problem()


def test_arrays_and_tensors_give_their_own_kind(backend, device):
    from_arrays = dense_crf(IMAGE, UNARY, **KERNELS, backend="torch")
    energies = torch.from_numpy(UNARY).to(device)
    pixels = torch.from_numpy(IMAGE).to(device)
    from_tensors = dense_crf(pixels, energies, **KERNELS, backend=backend)
    mixed = dense_crf(IMAGE, energies, **KERNELS, backend=backend)
    lists = dense_crf([IMAGE, pixels], [energies, energies], **KERNELS, backend=backend)
    assert isinstance(from_arrays, np.ndarray)
    assert from_arrays.dtype == np.float32
    assert from_tensors.device.type == device
    assert_close(from_tensors.cpu(), torch.from_numpy(from_arrays), "crf_marginals")
    for other in (mixed, *lists):
        assert_close(other, from_tensors, "float32")


def test_a_list_may_mix_arrays_and_tensors(backend):
    array, tensor = dense_crf(
        [IMAGE, IMAGE], [UNARY, torch.from_numpy(UNARY)], **KERNELS, backend=backend
    )
    assert isinstance(array, np.ndarray)
    assert torch.equal(torch.from_numpy(array), tensor)


def test_inputs_stay_as_they_are(backend):
    copies = IMAGE.copy(), UNARY.copy()
    first = dense_crf(IMAGE, UNARY, **KERNELS, backend=backend)
    second = dense_crf(IMAGE, UNARY, **KERNELS, backend=backend)
    assert np.array_equal(first, second)
    assert not np.shares_memory(first, second)
    assert np.array_equal(IMAGE, copies[0])
    assert np.array_equal(UNARY, copies[1])


def test_read_only_and_strided_inputs(backend):
    image, unary = IMAGE.copy(), UNARY.copy()
    features = np.random.default_rng(0).normal(size=(3, 6, 9))
    own = (features[::-1, ::-1, ::2], 2)
    expected = dense_crf(
        image[::-1, ::2].copy(), unary[:, ::-1, ::2].copy(), **KERNELS,
        features=(own[0].copy(), 2), backend=backend,
    )  # fmt: skip
    image.flags.writeable = unary.flags.writeable = features.flags.writeable = False
    got = dense_crf(image[::-1, ::2], unary[:, ::-1, ::2], **KERNELS, features=own, backend=backend)
    assert np.array_equal(got, expected)
    channels_first = torch.from_numpy(IMAGE).permute(2, 0, 1).contiguous()
    labels_last = torch.from_numpy(UNARY).permute(1, 2, 0).contiguous()
    got = dense_crf(
        channels_first.permute(1, 2, 0), labels_last.permute(2, 0, 1), **KERNELS, backend=backend
    )
    expected = dense_crf(IMAGE, UNARY, **KERNELS, backend=backend)
    assert_close(got, torch.from_numpy(expected), "float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_tensors_are_computed_in_float32(backend, device, dtype):
    energies = torch.from_numpy(UNARY).to(device, dtype)
    got = dense_crf(IMAGE, energies, **KERNELS, backend=backend)
    assert got.dtype == torch.float32
    assert_close(got, dense_crf(IMAGE, energies.float(), **KERNELS, backend=backend), "float32")


@pytest.mark.parametrize("dtype", ["<f2", "<f8", ">f4", ">f8", "g"])
def test_other_float_arrays_are_computed_in_float32(backend, dtype):
    unary = np.round(UNARY, 2).astype(dtype)
    features = np.round(np.random.default_rng(0).normal(size=(2, 6, 9)), 2)
    got = dense_crf(None, unary, features=(features.astype(dtype), 2), backend=backend)
    native = features.astype(dtype).astype(np.float32)
    expected = dense_crf(None, unary.astype(np.float32), features=(native, 2), backend=backend)
    assert got.dtype == np.float32
    assert np.array_equal(got, expected)


def test_no_gradient_is_kept(backend):
    energies = torch.from_numpy(UNARY).requires_grad_()
    compat = torch.eye(3, requires_grad=True)
    assert not dense_crf(IMAGE, energies, gaussian=(3, compat), backend=backend).requires_grad


@pytest.mark.parametrize("nothing", [None, []])
def test_without_kernels_or_iterations_it_is_the_softmax(backend, nothing):
    softmax = torch.from_numpy(UNARY).neg().softmax(0)
    none = {"gaussian": nothing, "bilateral": nothing, "features": nothing}
    got = dense_crf(IMAGE, UNARY, **none, backend=backend)
    assert_close(torch.from_numpy(got), softmax, "float32")
    got = dense_crf(IMAGE, UNARY, **KERNELS, iterations=0, backend=backend)
    assert_close(torch.from_numpy(got), softmax, "float32")


@pytest.mark.parametrize("only", KERNELS)
def test_one_kernel_equals_the_other_with_weight_zero(backend, only):
    silent = {name: (*kernel[:-1], 0.0) for name, kernel in KERNELS.items()}
    alone = dense_crf(IMAGE, UNARY, **{only: KERNELS[only]}, backend=backend)
    both = dense_crf(IMAGE, UNARY, **(silent | {only: KERNELS[only]}), backend=backend)
    assert_close(torch.from_numpy(alone), torch.from_numpy(both), "float32")


def test_a_list_of_one_kernel_is_that_kernel(backend):
    expected = dense_crf(IMAGE, UNARY, **KERNELS, backend=backend)
    listed = {name: [kernel] for name, kernel in KERNELS.items()}
    assert np.array_equal(dense_crf(IMAGE, UNARY, **listed, backend=backend), expected)


def test_forms_of_the_same_compat(backend):
    expected = torch.from_numpy(dense_crf(IMAGE, UNARY, gaussian=(3, 2.5), backend=backend))
    for compat in (np.full(3, -2.5), [-2.5] * 3, torch.eye(3) * -2.5, (-2.5 * np.eye(3)).tolist()):
        got = dense_crf(IMAGE, UNARY, gaussian=((3, 3), compat), backend=backend)
        assert_close(torch.from_numpy(got), expected, "float32")


def test_one_label_is_certain(backend):
    image, unary = random_problem(num_labels=1)
    assert (dense_crf(image, unary, **KERNELS, backend=backend) == 1).all()


def test_marginals_sum_to_one_for_extreme_energies(backend):
    got = torch.from_numpy(dense_crf(IMAGE, UNARY * 1e4, **KERNELS, backend=backend))
    assert_close(got.sum(0), torch.ones(6, 9), "float32")


def test_energies_whose_sum_overflows_are_finite(backend):
    unary = np.full((2, 3, 4), 2e38, np.float32)
    unary[1] = 1e38
    got = torch.from_numpy(dense_crf(None, unary, gaussian=(3, 3), backend=backend))
    assert_close(got[1], torch.ones(3, 4), "float32")  # AVX2's reciprocals round
    assert (got[0] < 1e-30).all()


NAN = UNARY.copy()
NAN[0, 0, 0] = math.nan
INFINITE = UNARY.copy()
INFINITE[1, 2, 3] = math.inf
TOO_LARGE = UNARY.astype(np.float64)
TOO_LARGE[1, 2, 3] = 1e300


@pytest.mark.parametrize(
    ("image", "unary", "message"),
    [
        (IMAGE.astype(np.float32), UNARY, r"image: expected uint8 \[H, W, 3\].*torch.float32"),
        (IMAGE.astype(np.int64), UNARY, r"image: .*torch.int64.*convert.* astype\(np.uint8\)"),
        (IMAGE[..., :1], UNARY, r"image: expected uint8 \[H, W, 3\].*\(6, 9, 1\).*features"),
        (IMAGE[:0], UNARY, r"image: .*at least one pixel.*\(0, 9, 3\)"),
        (IMAGE.tolist(), UNARY, r"image: expected a NumPy array or a tensor, got list"),
        (IMAGE[None], UNARY, r"image: expected uint8 \[H, W, 3\].*\(1, 6, 9, 3\)"),
        (IMAGE, UNARY.reshape(3, -1), r"unary: expected \[L, 6, 9\].*got \(3, 54\)"),
        (IMAGE, UNARY.transpose(0, 2, 1), r"unary: expected \[L, 6, 9\].*got \(3, 9, 6\)"),
        (IMAGE, UNARY[:, None], r"unary: expected \[L, 6, 9\].*got \(3, 1, 6, 9\)"),
        (IMAGE, UNARY[:0], r"unary: expected .*L = 1..255.*got \(0, 6, 9\)"),
        (IMAGE, UNARY[:, :0], r"unary: .*at least one pixel.*got \(3, 0, 9\)"),
        (IMAGE, np.zeros((256, 6, 9)), r"unary: .*L = 1..255.*got \(256, 6, 9\)"),
        (IMAGE, UNARY.astype(np.int64), r"unary: expected floating point energies.*int64"),
        (IMAGE, UNARY.astype(object), r"unary: expected an array of numbers, got dtype object"),
        (IMAGE, UNARY.astype(complex), r"unary: expected an array of numbers, got dtype complex"),
        (IMAGE, "unary", r"unary: expected a NumPy array or a tensor, got str"),
        (IMAGE, NAN, r"unary: expected finite energies, got NaN or infinity in 1 of 162"),
        (IMAGE, INFINITE, r"unary: expected finite .*unary_from_probabilities"),
        (IMAGE, TOO_LARGE, r"unary: expected finite energies.* 1 of 162"),
        (torch.from_numpy(IMAGE).to("meta"), UNARY, r"image: expected on cpu, .*got meta"),
        (None, UNARY, r"bilateral: needs image, uint8 \[H, W, 3\]; give volumes .*as features"),
        (IMAGE, [UNARY], r"image: expected a list of 1, one an image, got ndarray"),
        ([IMAGE], [UNARY, UNARY], r"image: expected a list of 2, one an image, got 1 of them"),
        ([IMAGE] * 3, [UNARY, NAN, UNARY], r"image 1 of 3: unary: expected finite.* 1 of 162"),
        ([IMAGE] * 2, [UNARY, UNARY[..., 1:]], r"image 1 of 2: unary: expected \[L, 6, 9\]"),
        ([IMAGE, None], [UNARY] * 2, r"image 1 of 2: bilateral: needs image"),
    ],
)
def test_bad_maps_are_named(image, unary, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(image, unary, **KERNELS)


OWN = np.zeros((2, 6, 9))
NAN_FEATURES = OWN + math.nan


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gaussian": (0, 3)}, r"gaussian: expected sxy as one positive number or .*, got 0"),
        ({"gaussian": ((1, 2, 3), 3)}, r"gaussian: expected sxy .* or 2, got \(1, 2, 3\)"),
        ({"gaussian": (math.nan, 3)}, r"gaussian: expected sxy"),
        ({"gaussian": ("wide", 3)}, r"gaussian: expected sxy .*, got 'wide'"),
        ({"gaussian": 3}, r"gaussian: expected a tuple \(sxy, compat\) or .*, got 3"),
        ({"gaussian": [3, 3]}, r"gaussian\[0\]: expected a tuple .* a list of such tuples.* got 3"),
        ({"gaussian": [(3, 3), (-1, 3)]}, r"gaussian\[1\]: expected sxy .*, got -1"),
        ({"gaussian": (3, 3, "both")}, r"gaussian: normalization: expected one of .*'both'"),
        ({"bilateral": (3, 3)}, r"bilateral: expected a tuple \(sxy, srgb, compat\)"),
        ({"bilateral": (3, (1, 2), 3)}, r"bilateral: expected srgb .* or 3, got \(1, 2\)"),
        ({"bilateral": (3, 3, [1, 2])}, r"bilateral: expected compat .*\[3\] or \[3, 3\].*\(2,\)"),
        ({"gaussian": (3, math.inf)}, r"gaussian: expected a finite compat"),
        ({"gaussian": (3, "strong")}, r"gaussian: expected compat as numbers, got 'strong'"),
        ({"gaussian": (3, [[1], [1, 2]])}, r"gaussian: expected compat as numbers"),
        ({"features": (OWN[:, 1:], 3)}, r"features: expected features \[d, 6, 9\], .*\(2, 5, 9\)"),
        ({"features": (np.zeros((9, 6, 9)), 3)}, r"features: .*d = 1..8 dimensions.*\(9, 6, 9\)"),
        ({"features": (OWN[:0], 3)}, r"features: .*d = 1..8 dimensions"),
        ({"features": (OWN.astype(int), 3)}, r"features: expected floating point.*int64"),
        (
            {"features": [(OWN, 3), (NAN_FEATURES, 3)]},
            r"features\[1\]: expected finite.*108 of 108",
        ),
        ({"iterations": -1}, r"iterations: expected 0 or more, got -1"),
        ({"iterations": 2.5}, r"iterations: expected 0 or more, got 2.5"),
        ({"normalization": "both"}, r"normalization: expected one of .*got 'both'"),
        ({"num_threads": 0}, r"num_threads: expected None, 1 or more, got 0"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(IMAGE, UNARY, **arguments)


def test_compat_that_fits_some_images_only():
    unaries = [UNARY, UNARY[:2]]
    with pytest.raises(ValueError, match=r"image 1 of 2: gaussian: expected compat .*\[2\]"):
        dense_crf(None, unaries, gaussian=(3, [-1, -2, -3]))


def test_coordinates_that_float32_does_not_count(backend):
    with pytest.raises(ValueError, match=r"use larger standard deviations"):
        dense_crf(IMAGE, UNARY, gaussian=(1e-7, 3), backend=backend)


def test_cpu_backend_refuses_other_devices():
    pytest.importorskip("weaktr.ops.dense_crf.cpu", exc_type=ImportError)
    with pytest.raises(BackendUnavailable, match=r"backend .cpu. of dense_crf .* got meta"):
        OPS[OP].pick("meta", "cpu")
