"""`dense_crf` against pydensecrf's outputs and against explicit matrices built from the paper."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.ops.crf_reference import (
    KERNELS,
    _fitting_device,  # noqa: F401
    filter_matrix,
    mean_field,
    normalized,
    positions,
    random_problem,
)
from tests.tolerances import CRF_LABEL_AGREEMENT, assert_close
from weaktr.ops import dense_crf, unary_from_labels, unary_from_probabilities
from weaktr.ops.dense_crf.presets import PRESETS
from weaktr.ops.dense_crf.problem import NORMALIZATIONS

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
def test_published_refinement_of_probabilities(golden, backend, device, preset, stored):
    arrays = load_file(golden / "E_crf.safetensors", device)
    marginals = PRESETS[preset].refine_probabilities(
        arrays["image"], arrays["prob"], backend=backend
    )
    assert_close(marginals, arrays[f"{stored}.Q"], "crf_marginals")
    assert torch.equal(arrays["keys"][marginals.argmax(0)], arrays[f"{stored}.label"].long())


@pytest.mark.parametrize(("preset", "stored"), [("voc_cam", "voc"), ("coco_cam", "coco")])
def test_published_refinement_of_labels(golden, backend, device, preset, stored):
    arrays = load_file(golden / "E_crf.safetensors", device)
    image = load_file(golden / "E_crf_china.safetensors", device)["image"]
    labels = PRESETS[preset].refine_labels(image, arrays["label_in"], 4, backend=backend)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, arrays[f"label_{stored}.out"])
    classes = arrays["label_key"][labels.long()]
    assert torch.equal(classes, arrays[f"label_{stored}.classes"])


# ---- the maths, as explicit matrices in float64 -------------------------------------------------


def compat_of_kind(kind, strength, num_labels, rng):
    """(compat as it is given to the op, [L, L] that multiplies messages)"""
    if kind == "potts":
        return strength, -strength * np.eye(num_labels)
    if kind == "vector":
        vector = -strength * rng.uniform(0.5, 2, num_labels)
        return vector, np.diag(vector)
    matrix = -strength * rng.uniform(size=(num_labels, num_labels))
    return matrix, (matrix + matrix.T) / 2


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("kind", ["potts", "vector", "matrix"])
def test_mean_field_with_explicit_matrices(backend, device, normalization, kind):
    height, width, num_labels = 5, 7, 3
    rng = np.random.default_rng(3)
    image, unary = random_problem(height, width, num_labels)
    strength = 0.3 if normalization == "none" else 2.0
    compat, full = compat_of_kind(kind, strength, num_labels, rng)
    x, y = positions(height, width)
    colours = image.reshape(-1, 3).T / np.array([[61.0], [73], [59]])
    features = [np.stack([x / 2.3, y / 1.7]), np.stack([x / 3.1, y / 4.3, *colours])]
    matrices = [normalized(filter_matrix(f.T), normalization) for f in features]
    expected = mean_field(matrices, unary.reshape(num_labels, -1), [full, full], 3)

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


def test_many_kernels_each_with_its_normalization(backend, device):
    height, width, num_labels = 6, 6, 4
    rng = np.random.default_rng(4)
    image, unary = random_problem(height, width, num_labels)
    own = rng.normal(size=(3, height, width)) * 2
    x, y = positions(height, width)
    colours = image.reshape(-1, 3).T.astype(float)
    features = [
        np.stack([x / 2.1, y / 2.1]),
        np.stack([x / 5.3, y / 1.7]),
        np.stack([x / 4.1, y / 4.1, *(colours / 71)]),
        np.stack([x / 9.3, y / 9.3, *(colours / 31)]),
        own.reshape(3, -1),
        own[:1].reshape(1, -1),
    ]
    where = ["before", "after", "symmetric", "none", "after", "before"]
    compats = [compat_of_kind(kind, 0.5, num_labels, rng) for kind in ["potts", "matrix"] * 3]
    matrices = [normalized(filter_matrix(f.T), w) for f, w in zip(features, where, strict=True)]
    expected = mean_field(matrices, unary.reshape(num_labels, -1), [c[1] for c in compats], 4)

    given = [compat for compat, _ in compats]
    marginals = dense_crf(
        torch.from_numpy(image).to(device),
        torch.from_numpy(unary).to(device),
        gaussian=[(2.1, given[0], "before"), ((5.3, 1.7), given[1])],
        bilateral=[(4.1, 71, given[2], "symmetric"), (9.3, 31, given[3], "none")],
        features=[(torch.from_numpy(own), given[4]), (own[:1], given[5], "before")],
        normalization="after",
        iterations=4,
        backend=backend,
    )
    assert_close(marginals.flatten(1).cpu(), torch.from_numpy(expected), "crf_marginals")


@pytest.mark.parametrize(
    ("shape", "dimensions"),
    [((41,), 1), ((6, 7), 2), ((3, 4, 5), 3), ((2, 3, 2, 4), 4), ((9, 5), 6), ((37,), 8)],
)
def test_features_of_any_dimension(backend, device, shape, dimensions):
    rng = np.random.default_rng(dimensions)
    features = (rng.normal(size=(dimensions, *shape)) * 1.5).astype(np.float32)
    unary = rng.normal(size=(3, *shape)).astype(np.float32)
    matrix = normalized(
        filter_matrix(features.reshape(dimensions, -1).T.astype(float)), "symmetric"
    )
    expected = mean_field([matrix], unary.reshape(3, -1), [-3 * np.eye(3)], 5)
    marginals = dense_crf(
        None,
        torch.from_numpy(unary).to(device),
        features=(torch.from_numpy(features).to(device), 3),
        iterations=5,
        backend=backend,
    )
    assert marginals.shape == unary.shape
    assert_close(marginals.flatten(1).cpu(), torch.from_numpy(expected), "crf_marginals")


@pytest.mark.parametrize(
    ("shape", "sxy"),
    [((40,), 2.5), ((40,), (2.5,)), ((4, 5, 6), 2), ((4, 5, 6), (1.5, 2, 3)), ((6, 7), (1, 3))],
)
def test_gaussian_over_signals_and_volumes(backend, device, shape, sxy):
    """x is the last axis, also where there are one or three."""
    unary = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    scale = np.broadcast_to(np.asarray(sxy, dtype=float), len(shape))
    matrix = normalized(filter_matrix(positions(*shape).T / scale), "symmetric")
    expected = mean_field([matrix], unary.reshape(2, -1), [-4 * np.eye(2)], 5)
    energies = torch.from_numpy(unary).to(device)
    marginals = dense_crf(None, energies, gaussian=(sxy, 4), iterations=5, backend=backend)
    assert_close(marginals.flatten(1).cpu(), torch.from_numpy(expected), "crf_marginals")


@pytest.mark.parametrize("num_labels", [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 24, 33, 64, 65, 255])
@pytest.mark.parametrize("spread", [1, 40])  # of energies; with 40 their exponentials overflow
def test_label_counts(backend, device, num_labels, spread):
    image, unary = random_problem(5, 6, num_labels)
    unary = spread * unary
    x, y = positions(5, 6)
    colours = image.reshape(-1, 3).T.astype(float)
    features = [np.stack([x / 3, y / 3]), np.stack([x / 30, y / 30, *(colours / 20)])]
    matrices = [normalized(filter_matrix(f.T), "symmetric") for f in features]
    compats = [-3 * np.eye(num_labels), -4 * np.eye(num_labels)]
    expected = mean_field(matrices, unary.reshape(num_labels, -1), compats, 4)
    energies = torch.from_numpy(unary).to(device)
    marginals = dense_crf(image, energies, **KERNELS, iterations=4, backend=backend).cpu()
    assert_close(marginals.flatten(1), torch.from_numpy(expected), "crf_marginals")


def test_deviations_so_small_that_every_pixel_is_alone(backend, device):
    """pydensecrf's 16-bit keys overflow here; K̃ is the identity."""
    image, unary = random_problem(20, 30)
    expected = mean_field([np.eye(600)], unary.reshape(3, -1), [-2 * np.eye(3)], 5)
    marginals = dense_crf(
        image,
        torch.from_numpy(unary).to(device),
        bilateral=(1e-3, 2e-3, 2),
        iterations=5,
        backend=backend,
    )
    assert_close(marginals.flatten(1).cpu(), torch.from_numpy(expected), "crf_marginals")


# ---- lists and threads --------------------------------------------------------------------------

SIZES = [(6, 9, 3), (1, 1, 1), (17, 5, 2), (6, 9, 4), (33, 40, 3), (1, 23, 21)]


def mixed_problems(device="cpu"):
    problems = [random_problem(*size, seed=i) for i, size in enumerate(SIZES)]
    return tuple(
        [torch.from_numpy(maps).to(device) for maps in column]
        for column in zip(*problems, strict=True)
    )


def test_lists_of_mixed_sizes_and_label_counts(backend, device):
    images, unaries = mixed_problems(device)
    together = dense_crf(images, unaries, **KERNELS, backend=backend)
    assert isinstance(together, list)
    for image, unary, marginals in zip(images, unaries, together, strict=True):
        assert marginals.shape == unary.shape
        alone = dense_crf(image, unary, **KERNELS, backend=backend)
        assert_close(marginals, alone, "float32")


def test_lists_with_images_left_out_and_features_of_their_own(backend, device):
    images, unaries = mixed_problems(device)
    features: list = [None] * len(SIZES)
    features[2] = (torch.ones(8, 17, 5), 2)
    features[4] = [(np.ones((1, 33, 40)), 2), (np.zeros((3, 33, 40)), 1, "before")]
    some = [image if i % 2 else None for i, image in enumerate(images)]
    together = dense_crf(some, unaries, gaussian=(3, 3), features=features, backend=backend)
    none = dense_crf(None, unaries, gaussian=(3, 3), features=features, backend=backend)
    for i, unary in enumerate(unaries):
        alone = dense_crf(None, unary, gaussian=(3, 3), features=features[i], backend=backend)
        assert_close(together[i], alone, "float32")
        assert_close(none[i], alone, "float32")


def test_an_empty_list(backend):
    assert dense_crf([], [], **KERNELS, backend=backend) == []


def test_a_lattice_beyond_the_caches(backend):
    """One thread of the cpu backend blurs it in rounds of all axes, two threads axis after axis."""
    image, unary = random_problem(230, 230, 17)  # noise: 5 to 6 vertices a pixel, 64 bytes each
    kernels = {"bilateral": (83, 5, 3), "iterations": 2, "backend": backend}
    one, two = (dense_crf(image, unary, **kernels, num_threads=threads) for threads in (1, 2))
    assert np.array_equal(one, two)
    assert_close(one, dense_crf(image, unary, **kernels | {"backend": "torch"}), "float32")


@pytest.mark.parametrize("width", [129, 130, 131, 132, 133])
def test_what_another_strip_left_does_not_matter(backend, width):
    """Scores far apart are computed in another way, in whole groups of pixels: the last group of a
    strip must not see what an earlier strip of the same thread has left behind its own."""
    image = np.zeros((1, width, 3), np.uint8)
    unary = random_problem(1, width, 13)[1]
    unary[0, :, :128] += 150
    given = {"features": (np.zeros((1, 1, width), np.float32), 1.0), "iterations": 0}
    one, three = (
        dense_crf(image, unary, **given, num_threads=threads, backend=backend) for threads in (1, 3)
    )
    assert np.array_equal(one, three)


@pytest.mark.parametrize("threads", [1, 2, 3, 7, None])
def test_any_number_of_threads_gives_the_same_bits(backend, threads):
    images, unaries = mixed_problems()
    image, unary = random_problem(70, 61, 5)
    images, unaries = [*images, torch.from_numpy(image)], [*unaries, torch.from_numpy(unary)]
    expected = dense_crf(images, unaries, **KERNELS, num_threads=1, backend=backend)
    got = dense_crf(images, unaries, **KERNELS, num_threads=threads, backend=backend)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    alone = dense_crf(image, unary, **KERNELS, num_threads=threads, backend=backend)
    assert np.array_equal(alone, expected[-1].numpy())
