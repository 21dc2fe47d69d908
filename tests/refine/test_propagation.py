"""Propagation as a refinement: from pixels to patches and back, and what it does not depend on."""

from __future__ import annotations

import math

import pytest
import torch

from tests.tolerances import assert_close
from weaktr.config import LabelConfig, PredictConfig, PropagationConfig
from weaktr.ops import propagate_labels
from weaktr.ops.dense_crf.presets import DenseCRF
from weaktr.refine import Maps, choose_refiners, propagation, refine
from weaktr.refine.crf import CrfRefiner
from weaktr.refine.maps import scores_of_labels
from weaktr.refine.propagation import PropagationRefiner, patch_centres, propagation_refiner

CRF = DenseCRF(gaussian=(3, 3), bilateral=(20, 10, 5), iterations=3)


def refined(maps, confidence=False, **settings):
    """One image after propagation; its pixels do not matter."""
    refiner = PropagationRefiner(PropagationConfig(**settings), gt_prob=0.7)
    image = torch.zeros(*maps.labels.shape, 3, dtype=torch.uint8)
    return refiner([image], [maps], confidence=confidence)[0]


def random_maps(height=24, width=32, labels=3, grid=(3, 4), dim=5):
    scores = torch.rand(labels, height, width).softmax(0)
    features = torch.randn(dim, *grid)
    return Maps(scores.argmax(0).to(torch.uint8), labels, scores, features=features)


@pytest.mark.parametrize("center", [False, True])
def test_scores_are_averaged_over_patches_spread_and_interpolated(center):
    maps = random_maps()
    new = refined(maps, neighbours=6, alpha=0.9, center=center, confidence=True)
    features = torch.stack([maps.features[:, r, c] for r in range(3) for c in range(4)])
    if center:
        features = features - sum(features) / 12
    means = [
        maps.scores[:, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] for r in range(3) for c in range(4)
    ]
    means = torch.stack([mean.mean((1, 2)) for mean in means])
    unit = 448 / 24
    centres = [((8 * r + 4) * unit, (8 * c + 4) * unit) for r in range(3) for c in range(4)]
    spread = propagate_labels(features, torch.tensor(centres), means, neighbours=6, alpha=0.9)
    shares = spread / spread.sum(1, keepdim=True)
    for (row, column), patch in (((0, 0), 0), ((0, 31), 3), ((23, 31), 11)):  # held at the corners
        assert_close(new.scores[:, row, column], shares[patch], "float32")
    between = (shares[0] + shares[1] + shares[4] + shares[5]) / 4  # bilinear: half a pixel from it
    four = new.scores[:, 7:9, 7:9].mean((1, 2))
    assert_close(four, between, "float32")
    assert_close(new.scores.sum(0), torch.ones(24, 32), "float32")
    assert torch.equal(new.labels.long(), new.scores.argmax(0))
    assert torch.equal(new.confidence, new.scores.amax(0))
    assert refined(maps).confidence is None


def test_patches_that_look_alike_agree():
    """Half of an object has scores of its class; its other half looks the same, nothing else."""
    is_object = torch.zeros(6, 8, dtype=torch.bool)
    is_object[1:5, 2:6] = True
    features = torch.where(is_object, torch.tensor([1.0, 0.1])[:, None, None], 0)
    features = features + torch.where(is_object, 0, torch.tensor([0.1, 1.0])[:, None, None])
    seen = is_object.clone()
    seen[:, 4:] = False
    large = seen.repeat_interleave(10, 0).repeat_interleave(10, 1).float()
    scores = torch.stack([0.75 - 0.7 * large, 0.25 + 0.7 * large])
    new = refined(Maps(large.to(torch.uint8), 2, scores, features=features), alpha=0.95)
    centres = new.labels[5::10, 5::10].bool()
    assert torch.equal(centres, is_object)


@pytest.mark.parametrize("scale", [2, 3])
def test_distances_do_not_depend_on_the_resolution(scale):
    maps = random_maps()
    large = Maps(
        maps.labels.repeat_interleave(scale, 0).repeat_interleave(scale, 1),
        maps.num_labels,
        maps.scores.repeat_interleave(scale, 1).repeat_interleave(scale, 2),
        features=maps.features,
    )
    one, other = (refined(given, sigma=0.02, neighbours=5) for given in (maps, large))
    small = other.scores.unflatten(1, (-1, scale)).unflatten(3, (-1, scale)).mean((2, 4))
    inner = (
        slice(None),
        slice(4, 20),
        slice(4, 28),
    )  # bilinear interpolation has corners elsewhere
    assert_close(small[inner], one.scores[inner], "float32")


@pytest.mark.parametrize(
    ("grid", "size"), [((3, 4), (24, 32)), ((2, 9), (50, 13)), ((1, 1), (7, 5))]
)
def test_centres_of_patches(grid, size):
    expected = [
        ((r + 0.5) * size[0] / grid[0], (c + 0.5) * size[1] / grid[1])
        for r in range(grid[0])
        for c in range(grid[1])
    ]
    centres = patch_centres(grid, size, torch.device("cpu"))
    assert_close(centres, torch.tensor(expected) * 448 / min(size), "float32")


@pytest.mark.parametrize(("size", "grid"), [((1, 1), (1, 1)), ((1, 40), (1, 3)), ((2, 3), (4, 5))])
def test_odd_sizes(size, grid):
    maps = random_maps(*size, grid=grid)
    new = refined(maps)
    assert new.labels.shape == size and torch.isfinite(new.scores).all()
    if grid == (1, 1):
        assert_close(new.scores, maps.scores, "float32")  # the only patch has no neighbours


def test_labels_without_scores_have_those_of_gt_prob():
    maps = random_maps()
    one_hot = torch.stack([torch.where(maps.labels == k, 0.7, 0.15) for k in range(3)])
    assert_close(scores_of_labels(maps.labels, 3, 0.7), one_hot, "float32")
    expected = refined(maps._replace(scores=one_hot))
    assert_close(refined(maps._replace(scores=None)).scores, expected.scores, "float32")


def test_scores_of_any_sum_and_patches_without_any():
    maps = random_maps()
    expected = refined(maps).scores
    assert_close(refined(maps._replace(scores=1.8 * maps.scores)).scores, expected, "float32")
    nothing = refined(maps._replace(scores=torch.zeros_like(maps.scores)))
    assert_close(nothing.scores, torch.full((3, 24, 32), 1 / 3), "float32")


def test_the_features_of_large_images_are_averaged(monkeypatch):
    monkeypatch.setattr(propagation, "MOST_PATCHES", 12)
    maps = random_maps(grid=(6, 8))
    pooled = maps.features.unflatten(1, (3, 2)).unflatten(3, (4, 2)).mean((2, 4))
    assert_close(refined(maps).scores, refined(maps._replace(features=pooled)).scores, "float32")
    for grid in ((1, 500), (500, 1), (7, 90), (12, 13)):
        height, width = propagation._bounded(torch.zeros(2, *grid)).shape[1:]
        assert 1 <= height <= grid[0] and 1 <= width <= grid[1] and height * width <= 12


def test_before_and_after_a_crf():
    image = torch.randint(256, (24, 32, 3), dtype=torch.uint8)
    maps, spread = random_maps(), PropagationRefiner(PropagationConfig(), 0.7)
    after = refine([CrfRefiner(CRF, 0.7), spread], [image], [maps])[0]
    labels = CRF.refine_labels(image, maps.labels, 3, gt_prob=0.7)
    expected = refined(maps._replace(labels=labels, scores=scores_of_labels(labels, 3, 0.7)))
    assert torch.equal(after.scores, expected.scores)
    before = refine([spread, CrfRefiner(CRF)], [image], [maps])[0]
    assert torch.equal(before.scores, CRF.refine_probabilities(image, refined(maps).scores))
    from_labels = refine([spread, CrfRefiner(CRF, 0.7)], [image], [maps])[0]
    assert torch.equal(
        from_labels.labels, CRF.refine_labels(image, refined(maps).labels, 3, gt_prob=0.7)
    )


def test_one_label_is_not_changed_and_needs_no_features():
    maps = Maps(torch.zeros(4, 4, dtype=torch.uint8), 1, torch.ones(1, 4, 4))
    assert refined(maps) is maps


def test_without_features():
    with pytest.raises(ValueError, match="expected patch features for propagation, got none"):
        refined(random_maps()._replace(features=None))
    broken = random_maps()
    broken.features[0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="features: expected finite numbers"):
        refined(broken)


def test_recipes_choose_it():
    given = LabelConfig(refiners=({"propagation": {"alpha": 0.9}}, "propagation"), gt_prob=0.6)
    assert choose_refiners(given) == [
        PropagationRefiner(PropagationConfig(alpha=0.9), 0.6),
        PropagationRefiner(PropagationConfig(), 0.6),
    ]
    assert propagation_refiner({}, PredictConfig()).gt_prob == LabelConfig().gt_prob
    for wrong, message in (
        ({"alfa": 0.9}, r"propagation: unknown key 'alfa' - did you mean 'alpha'"),
        ({"alpha": 1}, r"propagation: alpha: expected a number from 0 to 0.999, got 1$"),
        (
            0.9,
            r"propagation: expected a mapping of gamma, sigma, neighbours, alpha, center; got 0.9",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            propagation_refiner(wrong, LabelConfig())
