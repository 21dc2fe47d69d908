"""The permutohedral lattice against explicit matrices built from the paper."""

import math

import numpy as np
import pytest
import torch

from tests.ops.crf_reference import filter_matrix
from tests.tolerances import assert_close
from weaktr.ops.dense_crf import permutohedral
from weaktr.ops.dense_crf.permutohedral import build_lattice


@pytest.mark.parametrize("points", [1, 6, 8, 41])
@pytest.mark.parametrize("dimensions", [1, 2, 3, 5, 8])
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


def test_vertices_of_more_than_63_bits():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(3, 8)) * 300
    points = centres.repeat(20, 0) + rng.normal(size=(60, 8))
    features = torch.from_numpy(points.astype(np.float32)).T
    digits = permutohedral._vertex_digits(permutohedral._enclosing_simplices(features))
    assert not permutohedral._vertex_keys(digits)[2]
    expected = torch.from_numpy(filter_matrix(features.T.double().numpy()))
    matrix = build_lattice(features).filter(torch.eye(60))
    assert_close(matrix, expected, "lattice")
    assert (matrix > 0).sum() > 60  # neighbours were found


def test_hashed_keys_give_the_same_as_packed_ones(monkeypatch):
    features = torch.randn(5, 300) * 2
    packed = build_lattice(features).filter(torch.eye(300))
    monkeypatch.setattr(permutohedral, "KEY_BITS", 0)
    assert torch.equal(build_lattice(features).filter(torch.eye(300)), packed)


@pytest.mark.parametrize("base", [0, 1])
def test_a_hash_that_confuses_vertices_is_refused(monkeypatch, base):
    monkeypatch.setattr(permutohedral, "KEY_BITS", 0)
    monkeypatch.setattr(permutohedral, "HASH_BASE", base)
    with pytest.raises(ValueError, match=r"features: .*hash tells apart.*slightly different"):
        build_lattice(torch.randn(5, 300) * 2)


@pytest.mark.parametrize("value", [1e7, math.inf, math.nan])
def test_coordinates_that_float32_does_not_count_are_refused(value):
    features = torch.zeros(2, 5)
    features[1, 3] = value
    with pytest.raises(ValueError, match=r"features: expected lattice coordinates below 4194304"):
        build_lattice(features)
