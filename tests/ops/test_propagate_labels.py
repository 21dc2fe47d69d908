"""`propagate_labels` against a float64 solution of its equations, and by hand."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tolerances import assert_close, solution_error
from weaktr.ops import propagate_labels
from weaktr.ops.propagate_labels import definition

OP = "propagate_labels"


def problem(patches, labels=3, dim=8):
    """Features in clusters, so that many cosines are positive; positions on a grid of 14 pixels."""
    centres = torch.randn(4, dim)
    features = 3 * (centres[torch.randint(4, (patches,))] + 0.7 * torch.randn(patches, dim))
    width = max(1, math.isqrt(patches))
    index = torch.arange(patches)
    positions = 14.0 * torch.stack([index // width, index % width], 1)
    return features, positions, torch.rand(patches, labels).softmax(1)


def solved(features, positions, scores, gamma=3.0, sigma=0.01, neighbours=400, alpha=0.95):
    """The formulas entry by entry, and a direct solution."""
    features, positions, scores = (x.double().cpu() for x in (features, positions, scores))
    patches = len(features)
    weights = torch.zeros(patches, patches, dtype=torch.float64)
    for i in range(patches):
        for j in range(patches):
            lengths = features[i].norm() * features[j].norm()
            if i == j or lengths == 0:
                continue
            cosine = float(features[i] @ features[j] / lengths)
            distance = float((positions[i] - positions[j]).norm())
            weights[i, j] = max(0.0, cosine) ** gamma * math.exp(-sigma * distance)
    for row in weights:
        row[row.argsort(descending=True)[neighbours:]] = 0
    both = weights + weights.T
    degrees = both.sum(1)
    scale = torch.where(degrees > 0, degrees.rsqrt(), 0.0)
    system = torch.eye(patches, dtype=torch.float64) - alpha * scale[:, None] * both * scale
    return torch.linalg.solve(system, scores)


@pytest.mark.parametrize("patches", [1, 2, 3, 35, 60])
@pytest.mark.parametrize("options", [
    {},
    {"neighbours": 4},
    {"neighbours": 1, "alpha": 0.5},
    {"gamma": 1.0, "sigma": 0.0},
    {"gamma": 0.5, "sigma": 0.3, "neighbours": 7, "alpha": 0.999},
    {"alpha": 0.0},
], ids=str)  # fmt: skip
def test_it_solves_the_equations(backend, device, patches, options):
    given = problem(patches)
    spread = propagate_labels(*(x.to(device) for x in given), **options, backend=backend)
    assert spread.dtype == torch.float32 and spread.device.type == device
    expected = solved(*given, **options)
    alpha = options.get("alpha", 0.95)
    bound = solution_error((1 + alpha) / (1 - alpha)) * expected.abs().max()
    assert (spread.cpu() - expected).abs().max() <= bound


def test_float64_is_computed_in_float64(backend):
    features, positions, scores = problem(50)
    spread = propagate_labels(
        features.double(), positions.double(), scores.double(), neighbours=9, backend=backend
    )
    expected = solved(features, positions, scores, neighbours=9)
    assert spread.dtype == torch.float64
    assert_close(spread, expected, "float64")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(backend, dtype):
    """So the only error is that of the rounded features and scores."""
    features, positions, scores = (x.to(dtype) for x in problem(50))
    spread = propagate_labels(features, positions, scores, neighbours=50, backend=backend)
    assert spread.dtype == torch.float32
    assert_close(spread.double(), solved(features, positions, scores), "crf_marginals")


def test_pieces_of_w_make_no_difference(backend, monkeypatch):
    given = problem(61)
    whole = propagate_labels(*given, neighbours=5, backend=backend)
    monkeypatch.setattr(definition, "PIECE", 4 * 61 * 10)  # ten rows
    assert_close(propagate_labels(*given, neighbours=5, backend=backend), whole, "float32")


def test_two_equal_patches_by_hand(backend):
    """S = [[0, 1], [1, 0]] whatever the weight, so Z = (1, α) / (1 - α²)."""
    features = torch.tensor([[2.0, 0.0], [0.1, 0.0]])
    positions = torch.tensor([[0.0, 0.0], [0.0, 30.0]])
    scores = torch.tensor([[1.0], [0.0]])
    spread = propagate_labels(features, positions, scores, alpha=0.5, backend=backend)
    assert_close(spread.flatten(), torch.tensor([1.0, 0.5]) / 0.75, "float32")


def test_what_resembles_nothing_keeps_its_scores(backend):
    features, positions, scores = problem(20)
    features[3] = 0
    features[:, 0], features[7] = 0, 0  # nothing else has a first component
    features[7, 0] = 5
    spread = propagate_labels(features, positions, scores, backend=backend)
    assert torch.equal(spread[[3, 7]], scores[[3, 7]])
    assert_close(spread, solved(features, positions, scores), "lattice")
    nothing = torch.zeros_like(features)
    assert torch.equal(propagate_labels(nothing, positions, scores, backend=backend), scores)


def test_scores_that_are_not_negative_stay_so_and_a_label_without_scores_gets_none(backend):
    features, positions, scores = problem(80)
    scores[:, 1] = 0
    spread = propagate_labels(features, positions, scores, backend=backend)
    assert spread.min() >= 0 and not spread[:, 1].any()
    assert (spread[:, 0] >= scores[:, 0] - 1e-6).all()


def test_labels_do_not_depend_on_each_other(backend):
    features, positions, scores = problem(40, labels=4)
    together = propagate_labels(features, positions, scores, backend=backend)
    alone = [
        propagate_labels(features, positions, scores[:, i : i + 1], backend=backend)
        for i in range(4)
    ]
    assert_close(together, torch.cat(alone, 1), "lattice")


@pytest.mark.parametrize(("name", "wrong", "message"), [
    ("features", torch.ones(3, 2), "positions: expected 3 rows"),
    ("features", torch.ones(0, 2), "features: expected floating point"),
    ("features", torch.ones(4, 2, dtype=torch.int64), "features: expected floating point"),
    ("features", torch.tensor([[1.0, float("nan")]] * 4), "features: expected finite"),
    ("positions", torch.ones(4, 3), "positions: expected .P, 2."),
    ("scores", torch.ones(4), "scores: expected floating point .P, L."),
    ("scores", torch.full((4, 2), float("inf")), "scores: expected finite"),
    ("gamma", 0, "gamma: expected a number above 0, got 0"),
    ("sigma", -0.1, "sigma: expected"),
    ("neighbours", 0, "neighbours: expected"),
    ("alpha", 1.0, "alpha: expected a number from 0 to 0.999, got 1.0"),
    ("alpha", float("nan"), "alpha: expected"),
])  # fmt: skip
def test_wrong_inputs(name, wrong, message):
    given = {"features": torch.ones(4, 2), "positions": torch.ones(4, 2)}
    given |= {"scores": torch.ones(4, 2), name: wrong}
    with pytest.raises(ValueError, match=message):
        propagate_labels(**given)
