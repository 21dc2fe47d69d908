"""`dense_crf` against pydensecrf's outputs and against explicit matrices built from the paper."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.tolerances import CRF_LABEL_AGREEMENT, assert_close
from weaktr.crf import PRESETS, CrfSettings
from weaktr.ops import dense_crf, unary_from_labels, unary_from_probabilities
from weaktr.ops.dense_crf import NORMALIZATIONS
from weaktr.ops.permutohedral import PADDING, build_lattice

OP = "dense_crf"
GOLDEN = Path(__file__).parents[1] / "golden" / "crf"
#: The largest outputs are not carried along; they are used where this folder lies beside ours.
MORE = Path(__file__).parents[2].parent / "shared" / "golden" / "crf"
CASES = [case["file"] for case in json.loads((GOLDEN / "manifest.json").read_text())["cases"]]
HALF_ULP_FLOAT16 = 2.0**-12  # one stored Q is float16


def stored_case(name):
    path = GOLDEN / name
    if not path.exists():
        path = MORE / name
    if not path.exists():
        pytest.skip(f"{name} is too large to be carried along, and ../shared is not there")
    arrays = np.load(path, allow_pickle=False)
    settings = json.loads(str(arrays["settings"]))
    (gaussian,), (bilateral,) = settings["gaussian"], settings["bilateral"]
    num_labels = settings["n_labels"]
    if settings["unary"] == "labels":
        unary = unary_from_labels(arrays["labels"], num_labels, **settings["unary_args"])
    else:
        unary = unary_from_probabilities(arrays["probs"])
        stored = torch.from_numpy(arrays["unary"]).view(unary.shape)
        assert_close(torch.from_numpy(unary), stored, "float32")
    kernels = {
        "gaussian": (gaussian["sxy"], gaussian["compat"]),
        "bilateral": (bilateral["sxy"], bilateral["srgb"], bilateral["compat"]),
        "normalization": gaussian.get("normalization", "symmetric"),
    }
    return arrays, unary, kernels


@pytest.mark.parametrize("iterations", [1, 5, 10])
@pytest.mark.parametrize("name", CASES)
def test_pydensecrf(backend, device, name, iterations):
    arrays, unary, kernels = stored_case(name)
    image = torch.from_numpy(arrays["image"]).to(device)
    energies = torch.from_numpy(unary).to(device)
    marginals = dense_crf(image, energies, **kernels, iterations=iterations, backend=backend).cpu()
    agreement = (marginals.argmax(0).numpy() == arrays[f"argmax{iterations}"]).mean()
    assert agreement >= CRF_LABEL_AGREEMENT
    if f"Q{iterations}" in arrays:
        expected = torch.from_numpy(arrays[f"Q{iterations}"])
        rounding = HALF_ULP_FLOAT16 if expected.dtype == torch.float16 else 0.0
        excess = ((marginals.flatten(1) - expected.float()).abs() - rounding).clamp(min=0)
        assert_close(excess, torch.zeros_like(excess), "crf_marginals")


@pytest.mark.parametrize(("preset", "stored"), [("voc_seg", "voc12"), ("coco_seg", "coco")])
def test_published_refinement_of_probabilities(golden, backend, preset, stored):
    arrays = load_file(golden / "E_crf.safetensors")
    marginals = PRESETS[preset].refine_probabilities(arrays["image"], arrays["prob"], backend)
    assert_close(marginals, arrays[f"{stored}.Q"], "crf_marginals")
    assert torch.equal(arrays["keys"][marginals.argmax(0)], arrays[f"{stored}.label"].long())


@pytest.mark.parametrize(("preset", "stored"), [("voc_cam", "voc"), ("coco_cam", "coco")])
def test_published_refinement_of_labels(golden, backend, preset, stored):
    arrays = load_file(golden / "E_crf.safetensors")
    image = load_file(golden / "E_crf_china.safetensors")["image"]
    labels = PRESETS[preset].refine_labels(image, arrays["label_in"], 4, backend=backend)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, arrays[f"label_{stored}.out"])
    classes = arrays["label_key"][labels.long()]
    assert torch.equal(classes, arrays[f"label_{stored}.classes"])


# ---- the maths, from the paper, as explicit matrices in float64 ---------------------------------


def simplex_by_definition(feature):
    """[(vertex, barycentric weight)] of one point, the weights from a linear system."""
    size = len(feature) + 1
    basis = np.zeros((size, size - 1))
    for j in range(size - 1):
        basis[: j + 1, j] = 1.0
        basis[j + 1, j] = -(j + 1.0)
        basis[:, j] *= math.sqrt(2 / 3) * size / math.sqrt((j + 1) * (j + 2))
    elevated = basis @ feature
    corner = np.round(elevated / size) * size
    # bring the corner back into the plane, moving the coordinates with the largest error
    excess = round(corner.sum() / size)
    by_error = np.argsort(-(elevated - corner), kind="stable")
    if excess > 0:
        corner[by_error[-excess:]] -= size
    elif excess < 0:
        corner[by_error[:-excess]] += size
    by_error = np.argsort(-(elevated - corner), kind="stable")
    vertices = []
    for r in range(size):
        vertex = corner + r
        vertex[by_error[size - r :]] -= size
        vertices.append(vertex)
    equations = np.vstack([np.array(vertices).T, np.ones(size)])
    weights = np.linalg.lstsq(equations, np.append(elevated, 1.0), rcond=None)[0]
    return [(tuple(v.astype(int)), w) for v, w in zip(vertices, weights, strict=True)]


def filter_matrix(features):
    """Splat, blur and slice of [P, d] points as one float64 [P, P] matrix."""
    points, dimensions = features.shape
    padding = np.zeros((-points % PADDING, dimensions))
    simplices = [simplex_by_definition(f) for f in np.concatenate([features, padding])]
    ids = {}
    for vertex, _ in (pair for simplex in simplices for pair in simplex):
        ids.setdefault(vertex, len(ids))
    splat = np.zeros((len(ids), points))
    for p, simplex in enumerate(simplices[:points]):
        for vertex, weight in simplex:
            splat[ids[vertex], p] += weight
    values = splat
    for axis in range(dimensions + 1):
        step = -np.ones(dimensions + 1, dtype=int)
        step[axis] = dimensions
        blur = np.eye(len(ids))
        for vertex, row in ids.items():
            for sign in (1, -1):
                neighbour = ids.get(tuple(np.array(vertex) + sign * step))
                if neighbour is not None:
                    blur[row, neighbour] = 0.5
        values = blur @ values
    return splat.T @ values / (1 + 2.0**-dimensions)


def mean_field(matrices, unary, compats, iterations):
    """Mean field with explicit [P, P] kernels; compats: one [L, L] per kernel."""

    def softmax(z):
        e = np.exp(z - z.max(0))
        return e / e.sum(0)

    marginals = softmax(-unary)
    for _ in range(iterations):
        messages = [c @ marginals @ k.T for k, c in zip(matrices, compats, strict=True)]
        marginals = softmax(-unary - sum(messages))
    return marginals


def normalized(matrix, normalization):
    norm = matrix.sum(1)
    root = np.diag(norm**-0.5)
    return {
        "symmetric": root @ matrix @ root,
        "before": matrix @ np.diag(1 / norm),
        "after": np.diag(1 / norm) @ matrix,
        "none": matrix,
    }[normalization]


@pytest.mark.parametrize("points", [1, 6, 8, 41])
@pytest.mark.parametrize("dimensions", [1, 2, 3, 5])
def test_lattice_filter_is_the_papers(device, points, dimensions):
    rng = np.random.default_rng(points)
    features = rng.normal(size=(points, dimensions)).astype(np.float32) * 1.5
    expected = torch.from_numpy(filter_matrix(features.astype(np.float64)))
    lattice = build_lattice(torch.from_numpy(features).T.to(device))
    assert_close(lattice.filter(torch.eye(points, device=device)).cpu(), expected, "lattice")


def test_padding_vertices_pass_values_on():
    """Points left and right of the origin meet through the vertex there, which is padding."""
    features = np.array([[-1.3], [1.3], [-1.4]], dtype=np.float32)
    matrix = build_lattice(torch.from_numpy(features).T).filter(torch.eye(3))
    four_points = np.concatenate([features, [[9.0]]]).astype(np.float32)
    unpadded = build_lattice(torch.from_numpy(four_points).T).filter(torch.eye(4))[:3, :3]
    assert_close(matrix, torch.from_numpy(filter_matrix(features.astype(float))), "lattice")
    assert matrix[0, 1] > unpadded[0, 1] == 0


def test_lattice_approximates_the_gaussian():
    rng = np.random.default_rng(1)
    features = torch.from_numpy(rng.uniform(0, 3, size=(2, 400)).astype(np.float32))
    lattice = build_lattice(features)
    x = features[0, :, None]
    ones = torch.ones_like(x)
    got = lattice.filter(x) / lattice.filter(ones)
    exact = torch.exp(-0.5 * torch.cdist(features.T, features.T) ** 2)
    expected = (exact @ x) / exact.sum(1, keepdim=True)
    assert_close(got, expected, "gaussian_approximation")
    assert expected.max() - expected.min() > 1  # else the line above would show little


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["potts", "vector", "matrix"])
def test_mean_field_with_explicit_matrices(backend, device, normalization, kind):
    height, width, num_labels = 5, 7, 3
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    probs = rng.dirichlet(np.ones(num_labels), (height, width)).transpose(2, 0, 1)
    strength = 0.3 if normalization == "none" else 2.0
    full = {
        "potts": -strength * np.eye(num_labels),
        "vector": -strength * np.diag([1.0, 0.5, 2.0]),
        "matrix": -strength * rng.uniform(size=(num_labels, num_labels)),
    }[kind]
    compat = {"potts": strength, "vector": np.diag(full).copy(), "matrix": full}[kind]
    y, x = np.mgrid[:height, :width].reshape(2, -1).astype(np.float64)
    colours = image.reshape(-1, 3).T.astype(np.float64)
    features = [
        np.stack([x / 2.3, y / 1.7]),
        np.stack([x / 3.1, y / 4.3, *(c / s for c, s in zip(colours, (61, 73, 59), strict=True))]),
    ]
    unary = -np.log(probs)
    matrices = [normalized(filter_matrix(f.T), normalization) for f in features]
    expected = mean_field(matrices, unary.reshape(num_labels, -1), [(full + full.T) / 2] * 2, 3)

    marginals = dense_crf(
        torch.from_numpy(image).to(device),
        torch.from_numpy(unary).to(device),
        gaussian=((2.3, 1.7), compat),
        bilateral=((3.1, 4.3), (61, 73, 59), compat),
        iterations=3,
        normalization=normalization,
        backend=backend,
    )
    assert_close(marginals.flatten(1).cpu(), torch.from_numpy(expected), "crf_marginals")


# ---- behaviour ----------------------------------------------------------------------------------


def random_problem(height=6, width=9, num_labels=3):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    unary = rng.normal(size=(num_labels, height, width)).astype(np.float32)
    return image, unary


KERNELS = {"gaussian": (3, 3), "bilateral": (30, 20, 4)}


def test_arrays_and_tensors_give_their_own_kind(backend, device):
    image, unary = random_problem()
    from_arrays = dense_crf(image, unary, **KERNELS, backend=backend)
    energies = torch.from_numpy(unary).to(device)
    from_tensors = dense_crf(torch.from_numpy(image).to(device), energies, **KERNELS)
    mixed = dense_crf(image, energies, **KERNELS, backend=backend)
    assert isinstance(from_arrays, np.ndarray)
    assert from_arrays.dtype == np.float32
    assert from_tensors.device.type == device
    assert_close(from_tensors.cpu(), torch.from_numpy(from_arrays), "float32")
    assert_close(mixed, from_tensors, "float32")


def test_inputs_stay_as_they_are(backend):
    image, unary = random_problem()
    copies = image.copy(), unary.copy()
    first = dense_crf(image, unary, **KERNELS, backend=backend)
    second = dense_crf(image, unary, **KERNELS, backend=backend)
    assert np.array_equal(first, second)
    assert np.array_equal(image, copies[0])
    assert np.array_equal(unary, copies[1])


def test_read_only_and_strided_inputs(backend):
    image, unary = random_problem()
    expected = dense_crf(image[::-1, ::2].copy(), unary[:, ::-1, ::2].copy(), **KERNELS)
    image.flags.writeable = unary.flags.writeable = False
    got = dense_crf(image[::-1, ::2], unary[:, ::-1, ::2], **KERNELS, backend=backend)
    assert np.array_equal(got, expected)
    channels_first = torch.from_numpy(image.copy()).permute(2, 0, 1).contiguous()
    got = dense_crf(channels_first.permute(1, 2, 0), torch.from_numpy(unary.copy()), **KERNELS)
    assert_close(got, torch.from_numpy(dense_crf(image, unary, **KERNELS)), "float32")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_unaries_are_computed_in_float32(backend, device, dtype):
    image, unary = random_problem()
    energies = torch.from_numpy(unary).to(device, dtype)
    got = dense_crf(image, energies, **KERNELS, backend=backend)
    assert got.dtype == torch.float32
    assert_close(got, dense_crf(image, energies.float(), **KERNELS, backend=backend), "float32")


def test_no_gradient_is_kept(backend):
    image, unary = random_problem()
    energies = torch.from_numpy(unary).requires_grad_()
    assert not dense_crf(image, energies, **KERNELS, backend=backend).requires_grad


@pytest.mark.parametrize("kernels", [{}, {"gaussian": None, "bilateral": None}])
def test_without_kernels_or_iterations_it_is_the_softmax(backend, kernels):
    image, unary = random_problem()
    softmax = torch.from_numpy(unary).neg().softmax(0)
    got = dense_crf(image, unary, **kernels, backend=backend)
    assert_close(torch.from_numpy(got), softmax, "float32")
    got = dense_crf(image, unary, **KERNELS, iterations=0, backend=backend)
    assert_close(torch.from_numpy(got), softmax, "float32")


@pytest.mark.parametrize("only", KERNELS)
def test_one_kernel_equals_the_other_with_weight_zero(backend, only):
    image, unary = random_problem()
    silent = {name: (*kernel[:-1], 0.0) for name, kernel in KERNELS.items()}
    alone = dense_crf(image, unary, **{only: KERNELS[only]}, backend=backend)
    both = dense_crf(image, unary, **(silent | {only: KERNELS[only]}), backend=backend)
    assert_close(torch.from_numpy(alone), torch.from_numpy(both), "float32")


def test_forms_of_the_same_compat(backend):
    image, unary = random_problem()
    expected = torch.from_numpy(dense_crf(image, unary, gaussian=(3, 2.5), backend=backend))
    for compat in (np.full(3, -2.5), [-2.5] * 3, torch.eye(3) * -2.5, (-2.5 * np.eye(3)).tolist()):
        got = dense_crf(image, unary, gaussian=((3, 3), compat), backend=backend)
        assert_close(torch.from_numpy(got), expected, "float32")


def test_one_label_is_certain(backend):
    image, unary = random_problem(num_labels=1)
    assert (dense_crf(image, unary, **KERNELS, backend=backend) == 1).all()


def test_marginals_sum_to_one_for_extreme_energies(backend):
    image, unary = random_problem()
    got = torch.from_numpy(dense_crf(image, unary * 1e4, **KERNELS, backend=backend))
    assert_close(got.sum(0), torch.ones(6, 9), "float32")


IMAGE, UNARY = random_problem()
NAN = UNARY.copy()
NAN[0, 0, 0] = math.nan
INFINITE = UNARY.copy()
INFINITE[1, 2, 3] = math.inf


@pytest.mark.parametrize(
    ("image", "unary", "message"),
    [
        (IMAGE.astype(np.float32), UNARY, r"image: expected uint8 \[H, W, 3\].*torch.float32"),
        (IMAGE[..., :1], UNARY, r"image: expected uint8 \[H, W, 3\].*\(6, 9, 1\)"),
        (IMAGE[:0], UNARY[:, :0], r"image: .*at least one pixel.*\(0, 9, 3\)"),
        (IMAGE.tolist(), UNARY, r"image: expected a NumPy array or a tensor, got list"),
        (IMAGE, UNARY.reshape(3, -1), r"unary: expected \[L, 6, 9\].*got \(3, 54\)"),
        (IMAGE, UNARY.transpose(0, 2, 1), r"unary: expected \[L, 6, 9\].*got \(3, 9, 6\)"),
        (IMAGE, UNARY[:0], r"unary: .*L >= 1"),
        (IMAGE, UNARY.astype(np.int64), r"unary: expected floating point energies.*int64"),
        (IMAGE, NAN, r"unary: expected finite energies, got NaN or infinity in 1 of 162"),
        (IMAGE, INFINITE, r"unary: expected finite .*unary_from_probabilities"),
        (torch.from_numpy(IMAGE).to("meta"), UNARY, r"image: expected on cpu like unary, got meta"),
    ],
)
def test_bad_maps_are_named(image, unary, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(image, unary, **KERNELS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gaussian": (0, 3)}, r"gaussian: expected sxy as one positive number or 2, got 0"),
        ({"gaussian": ((1, 2, 3), 3)}, r"gaussian: expected sxy .*got \(1, 2, 3\)"),
        ({"gaussian": (math.nan, 3)}, r"gaussian: expected sxy"),
        ({"gaussian": 3}, r"gaussian: expected \(sxy, compat\) or None, got 3"),
        ({"bilateral": (3, 3)}, r"bilateral: expected \(sxy, srgb, compat\) or None"),
        ({"bilateral": (3, (1, 2), 3)}, r"bilateral: expected srgb .* or 3, got \(1, 2\)"),
        ({"bilateral": (3, 3, [1, 2])}, r"bilateral: expected compat .*\[3\] or \[3, 3\].*\(2,\)"),
        ({"gaussian": (3, math.inf)}, r"gaussian: expected a finite compat"),
        ({"iterations": -1}, r"iterations: expected 0 or more, got -1"),
        ({"normalization": "both"}, r"normalization: expected one of .*got 'both'"),
        ({"gaussian": (1e-7, 3)}, r"features: .*use larger standard deviations"),
        ({"bilateral": (1e-3, 1e-3, 3)}, r"features: .*63 bits.*use larger standard deviations"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        dense_crf(IMAGE, UNARY, **arguments)


# ---- unaries and settings -----------------------------------------------------------------------


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
        (IMAGE[..., 0] * 0 + 3, {}, r"labels: expected 0..2, got values from 3 to 3.*zero_unsure"),
        (IMAGE[..., 0] * 0 + 4, {"zero_unsure": True}, r"labels: expected 0..3, .* 4 to 4"),
        (IMAGE[..., 0].astype(int) * 0 - 1, {}, r"labels: expected 0..2, got values from -1"),
        (UNARY[0], {}, r"labels: expected integers \[H, W\], got torch.float32"),
        (IMAGE, {}, r"labels: expected integers \[H, W\], .*\(6, 9, 3\)"),
        (IMAGE[..., 0], {"n_labels": 0}, r"n_labels: expected at least 1"),
        (IMAGE[..., 0], {"gt_prob": 1.0}, r"gt_prob: expected a probability in \(0, 1\), got 1.0"),
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
    with pytest.raises(ValueError, match=r"probs: expected numbers, got NaN in 1 places"):
        unary_from_probabilities(probs * torch.tensor([math.nan, 1, 1, 1]).view(4, 1, 1))
    with pytest.raises(ValueError, match=r"probs: expected floating point \[L, H, W\]"):
        unary_from_probabilities(probs[0])


def test_settings_refine_arrays_too():
    settings = CrfSettings(gaussian=(2, 3), bilateral=None, iterations=2)
    labels = np.zeros((6, 9), dtype=np.int32)
    labels[3, 4] = 1  # alone among zeros
    refined = settings.refine_labels(IMAGE, labels, 2)
    assert refined.dtype == np.int32
    assert not refined.any()
    unary = unary_from_labels(labels, 2)
    expected = dense_crf(IMAGE, unary, gaussian=(2, 3), iterations=2)
    got = settings.refine_probabilities(IMAGE, np.exp(-unary))
    assert_close(torch.from_numpy(got), torch.from_numpy(expected), "float32")
