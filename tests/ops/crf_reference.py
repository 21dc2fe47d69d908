"""The dense CRF once more, from the paper: explicit matrices in float64; and problems to solve."""

import math

import numpy as np
import pytest

from weaktr.ops.dense_crf.permutohedral import PADDING

KERNELS = {"gaussian": (3, 3), "bilateral": (30, 20, 4)}


@pytest.fixture(autouse=True)
def _fitting_device(request):
    """Skip what a backend does not take: "cpu" runs on CPU tensors, "cuda" on CUDA's."""
    given = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    wanted = {"cpu": "cpu", "cuda": "cuda"}.get(given.get("backend"))
    if wanted and wanted != given.get("device", "cpu"):
        pytest.skip(f"backend {given['backend']} takes {wanted} tensors")


def random_problem(height=6, width=9, num_labels=3, seed=0):
    """uint8 [H, W, 3] and float32 [L, H, W]."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    unary = rng.normal(size=(num_labels, height, width)).astype(np.float32)
    return image, unary


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


def normalized(matrix, normalization):
    norm = matrix.sum(1)
    root = np.diag(norm**-0.5)
    return {
        "symmetric": root @ matrix @ root,
        "before": matrix @ np.diag(1 / norm),
        "after": np.diag(1 / norm) @ matrix,
        "none": matrix,
    }[normalization]


def mean_field(matrices, unary, compats, iterations):
    """Mean field with explicit [P, P] kernels; unary [L, P]; compats: one [L, L] per kernel."""

    def softmax(z):
        e = np.exp(z - z.max(0))
        return e / e.sum(0)

    marginals = softmax(-unary)
    for _ in range(iterations):
        messages = [c @ marginals @ k.T for k, c in zip(matrices, compats, strict=True)]
        marginals = softmax(-unary - sum(messages))
    return marginals


def positions(*shape):
    """float64 [d, P]: x first, as the op counts axes."""
    return np.stack([axis.ravel() for axis in reversed(np.indices(shape))]).astype(np.float64)
