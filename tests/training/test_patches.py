"""How a classifier of patches is fitted: each step against its definition, and planted scenes."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.models.small import patch_model
from weaktr.config import TrainPatchesConfig
from weaktr.models.patches import with_least_shares
from weaktr.training.patches import (
    Discriminants,
    Patches,
    fit_patches,
    fit_saliency,
    gather,
    least_shares,
)

CLASSES, SALIENCY = 32, 16  # features of two blocks of width 16, and of the last one
FEATURES = CLASSES + SALIENCY
SETTINGS = TrainPatchesConfig(folds=4)


def planted(shown, size=10, seed=0):
    """Photographs of labels with means of their own: objects inside a border of background.

    Args:
        shown: of each photograph its classes.
        size: patches of a side.
        seed: of the means and the noise.

    Returns:
        Of each photograph its features [h, w, F + D] and its classes [3]; the label of each patch.
    """
    rng = np.random.default_rng(seed)
    # objects have something in common, in which they differ from the background
    means = 2.0 * rng.standard_normal((4, FEATURES)) + np.r_[[-1], [1] * 3][:, None] * 1.5
    photographs, truth = [], []
    for classes in shown:
        labels = np.zeros((size, size), np.int64)
        columns = np.array_split(np.arange(1, size - 1), max(1, len(classes)))
        for own, index in zip(columns, classes, strict=False):
            labels[2 : size - 2, own[0] : own[-1]] = index + 1
        features = means[labels] + rng.standard_normal((size, size, FEATURES))
        row = torch.zeros(3)
        row[list(classes)] = 1
        photographs.append((torch.tensor(features, dtype=torch.float16), row))
        truth.append(torch.from_numpy(labels))
    return photographs, truth


SHOWN = [(index % 3,) if index % 4 else (index % 3, (index + 1) % 3) for index in range(24)]


def fitted(photographs, settings=SETTINGS, seed=0, **patches):
    model = patch_model(3, **patches)
    fit_patches(model, gather(model, photographs, len(photographs), settings, seed), settings)
    return model


def right(model, photographs, truth):
    """The share of all patches that get their label, among those that their photograph shows."""
    agree = []
    for (maps, own), labels in zip(photographs, truth, strict=True):
        classes = own.nonzero().flatten().tolist()
        values = torch.tensor([0, *(index + 1 for index in classes)])
        best = values[model.shares(maps.flatten(0, 1), classes).argmax(1)]
        agree.append(best == labels.flatten())
    return torch.cat(agree).float().mean().item()


def discriminant(x, shares, settings=SETTINGS):
    """w and b in float64, from residuals; every label has a patch."""
    x, shares = x.double().numpy(), shares.double().numpy()
    means = [np.average(x, 0, own) for own in shares.T]
    within = sum(
        (x - mean).T @ ((x - mean) * own[:, None])
        for mean, own in zip(means, shares.T, strict=True)
    ) / len(x)
    within += settings.shrinkage * np.trace(within) / len(within) * np.eye(len(within))
    inverse = np.linalg.inv(within)
    weight = np.stack([inverse @ mean for mean in means]) / settings.temperature
    bias = [-mean @ inverse @ mean / 2 / settings.temperature for mean in means]
    return torch.tensor(weight).float(), torch.tensor(np.array(bias)).float()


@pytest.fixture
def gathered():
    photographs, _ = planted(SHOWN[:7])
    return gather(patch_model(3), photographs, 7, SETTINGS, 0)


def test_the_discriminant_is_that_of_the_definition(gathered):
    shares = torch.rand(len(gathered.x), 4).softmax(1)
    weight, bias = Discriminants(gathered, SETTINGS).of_all(shares)
    expected = discriminant(gathered.x, shares)
    assert_close(weight, expected[0], atol=1e-3, rtol=1e-3)
    assert_close(bias, expected[1], atol=1e-3, rtol=1e-3)


def test_patches_are_judged_by_the_other_folds(gathered):
    shares = torch.rand(len(gathered.x), 4).softmax(1)
    scores = Discriminants(gathered, SETTINGS).scores_of_folds(shares)
    assert len(gathered.folds) == 4
    assert [fold.start for fold in gathered.folds[1:]] == [
        fold.stop for fold in gathered.folds[:-1]
    ]
    for fold in gathered.folds:
        others = torch.ones(len(gathered.x), dtype=torch.bool)
        others[fold] = False
        assert not set(gathered.photograph[fold].tolist()) & set(
            gathered.photograph[others].tolist()
        )
        weight, bias = discriminant(gathered.x[others], shares[others])
        expected = gathered.x[fold] @ weight.T + bias
        assert_close(scores[fold], expected, atol=5e-3, rtol=1e-3)


def test_one_fold_is_no_fold():
    photographs, _ = planted(SHOWN[:7])
    settings = TrainPatchesConfig(folds=1)
    patches = gather(patch_model(3), photographs, 7, settings, 0)
    shares = torch.rand(len(patches.x), 4).softmax(1)
    scores = Discriminants(patches, settings).scores_of_folds(shares)
    weight, bias = discriminant(patches.x, shares, settings)
    assert_close(scores, patches.x @ weight.T + bias, atol=5e-3, rtol=1e-3)


def test_a_label_without_a_patch_is_as_likely_as_the_mean_of_all(gathered):
    shares = torch.rand(len(gathered.x), 4).softmax(1)
    shares[:, 2] = 0
    weight, bias = Discriminants(gathered, SETTINGS).of_all(shares)
    mean = (shares.sum(1, keepdim=True) * gathered.x).sum(0) / shares.sum()
    assert bias[2].item() == pytest.approx(-0.5 * (weight[2] @ mean).item(), rel=1e-3)
    assert weight.isfinite().all() and bias.isfinite().all()


def test_gathered_patches_are_standardised_and_keep_their_photographs():
    photographs, _ = planted(SHOWN[:5])
    model = patch_model(3)
    patches = gather(model, photographs, 5, SETTINGS, 0)
    assert patches.x.shape[1] == CLASSES and patches.y.shape[1] == SALIENCY
    values = torch.cat([patches.x, patches.y], 1)
    assert_close(values.mean(0), torch.zeros(FEATURES), atol=1e-4, rtol=0)
    assert_close(values.std(0), torch.ones(FEATURES), atol=1e-4, rtol=0)
    back = values * model.scale + model.center
    order = [patches.photograph.eq(number).nonzero().flatten() for number in range(5)]
    for maps, own in photographs:
        (same,) = [
            number
            for number, rows in enumerate(order)
            if torch.allclose(back[rows], maps.flatten(0, 1).float(), atol=1e-2)
        ]
        assert torch.equal(patches.shown[same], own)
        assert patches.border[order[same]].unflatten(0, (10, 10))[1:-1, 1:-1].sum() == 0
        assert patches.border[order[same]].sum() == 36


def test_of_many_photographs_no_more_patches_are_kept_than_may_be():
    """Each gives its part, whatever its size, and what is not taken is let go while reading."""
    photographs, _ = planted(SHOWN[:20])
    alive = []

    def read():
        for maps, own in photographs:
            large = maps.repeat(3, 3, 1)
            alive.append(weakref.ref(large))
            assert sum(one() is not None for one in alive) <= 2  # this one and the one before
            yield large, own

    settings = TrainPatchesConfig(most_patches=1000, folds=4)
    patches = gather(patch_model(3), read(), 20, settings, 0)
    assert torch.bincount(patches.photograph).tolist() == [50] * 20
    assert len(patches.x) == 1000 and patches.border.any()
    again = gather(patch_model(3), read(), 20, settings, 0)
    assert torch.equal(patches.x, again.x)
    other = gather(patch_model(3), read(), 20, settings, 1)
    assert not torch.equal(patches.x, other.x)
    at_least_one = gather(patch_model(3), photographs, 5000, settings, 0)
    assert torch.bincount(at_least_one.photograph).tolist() == [1] * 20


def test_a_classifier_of_drawn_patches_is_as_good():
    photographs, truth = planted(SHOWN, size=14)
    settings = TrainPatchesConfig(most_patches=1000)
    assert right(fitted(photographs, settings), photographs, truth) > 0.95


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("folds", [1, 4, 10])
def test_planted_objects_are_found(seed, folds):
    photographs, truth = planted(SHOWN, seed=seed)
    model = fitted(photographs, TrainPatchesConfig(folds=folds), seed)
    assert right(model, photographs, truth) > 0.95
    others, labels = planted(SHOWN[1:6], seed=seed)
    assert right(model, others, labels) > 0.95
    for maps, own in photographs:
        likely = model.class_probabilities(maps.flatten(0, 1))
        assert (likely[own == 1] > 0.5).all() and (likely[own == 0] < 0.5).all()


def test_saliency_is_low_at_the_borders_whatever_the_sign(monkeypatch):
    photographs, truth = planted(SHOWN)
    values, eigh = [], torch.linalg.eigh
    for sign in (1, -1):
        monkeypatch.setattr(
            torch.linalg, "eigh", lambda x, sign=sign: (eigh(x)[0], sign * eigh(x)[1])
        )
        model = patch_model(3)
        patches = gather(model, photographs, len(SHOWN), SETTINGS, 0)
        fit_saliency(model, patches)
        values.append(model.saliencies(patches.y))
        assert values[-1][patches.border].mean() < 0.4
        assert values[-1].max() == 1
        assert values[-1][patches.border].median() == 0
    assert_close(values[0], values[1])
    inside = torch.cat([x.flatten() for x in truth]) > 0
    salient = torch.cat(
        [model.saliencies(model.standardised(maps.flatten(0, 1))[1]) for maps, _ in photographs]
    )
    assert salient[inside].mean() > 0.9


def test_the_order_of_photographs_changes_no_saliency():
    photographs, _ = planted(SHOWN)
    maps = photographs[0][0].flatten(0, 1)
    values = []
    for given in (photographs, photographs[::-1]):
        model = patch_model(3)
        fit_saliency(model, gather(model, given, len(SHOWN), SETTINGS, 0))
        values.append(model.saliencies(model.standardised(maps)[1]))
    assert_close(values[0], values[1], atol=1e-4, rtol=0)


def test_least_shares_of_photographs():
    model = patch_model(3, least_share=0.1, least_background=0.3)
    shown = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([[0.3, 0.0, 0.1, 0.1], [0.3, 0.0, 0.0, 0.0]])
    assert torch.equal(least_shares(model, shown), expected)


def test_every_round_gives_each_class_its_share(monkeypatch):
    photographs, _ = planted(SHOWN)
    rounds, told = [], []

    def recorded(likely, photograph, least):
        rounds.append((with_least_shares(likely, photograph, least), photograph, least))
        return rounds[-1][0]

    monkeypatch.setattr("weaktr.training.patches.with_least_shares", recorded)
    model = patch_model(3)
    patches = gather(model, photographs, len(SHOWN), SETTINGS, 0)
    fit_patches(model, patches, SETTINGS, lambda *facts: told.append(facts))
    assert [number for number, _ in told] == [1, 2, 3, 4, 5, 6]
    for (shares, photograph, least), (_, facts) in zip(rounds, told, strict=True):
        for number, own in enumerate(least):
            rows = shares[photograph == number]
            assert (rows.mean(0) >= 0.9 * own).all()
            assert (rows[:, 1:][:, patches.shown[number] == 0] == 0).all()
        assert facts["background"] == pytest.approx(shares[:, 0].mean().item(), rel=1e-4)
    assert told[0][1]["changed"] > told[-1][1]["changed"] < 0.02


def test_photographs_without_a_class_are_background():
    shown = [*SHOWN, *[()] * 6]
    photographs, truth = planted(shown)
    model = fitted(photographs)
    assert right(model, photographs, truth) > 0.95
    empty = fitted(planted([()] * 4)[0])
    assert all(value.isfinite().all() for value in empty.state_dict().values())
    assert (empty.class_probabilities(photographs[0][0].flatten(0, 1)) == 0).all()


def test_a_class_that_no_photograph_shows_is_never_found():
    photographs, truth = planted([tuple(c for c in own if c != 1) for own in SHOWN])
    model = fitted(photographs)
    assert right(model, photographs, truth) > 0.95
    for maps, _ in photographs:
        assert model.class_probabilities(maps.flatten(0, 1))[1] == 0
        assert (model.shares(maps.flatten(0, 1), [0, 1])[:, 2] == 0).all()


def test_one_class_in_all_photographs():
    photographs, truth = planted([(2,)] * 8)
    assert right(fitted(photographs), photographs, truth) > 0.95


@pytest.mark.parametrize("shown", [[(0,), (0,)], [(0,), (1,)], [(0, 1), (1,)], [(2,), ()]])
def test_two_photographs(shown):
    photographs, truth = planted(shown)
    model = fitted(photographs)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    assert right(model, photographs, truth) > (0.95 if shown[0] == shown[1] else 0.7)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_photographs(count):
    photographs, _ = planted(SHOWN[:count])
    with pytest.raises(ValueError, match=f"at least 2 photographs to learn from, got {count}"):
        gather(patch_model(3), photographs, 5, SETTINGS, 0)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_features_that_are_not_finite(value):
    photographs, _ = planted(SHOWN[:3])
    photographs[1][0][2, 3, 4] = value
    with pytest.raises(ValueError, match="features: expected finite numbers"):
        gather(patch_model(3), photographs, 3, SETTINGS, 0)


def test_features_that_never_vary():
    """One of them has no effect on what is found; all of them leave a model without knowledge."""
    photographs, truth = planted(SHOWN)
    for maps, _ in photographs:
        maps[..., 5] = 3
    model = fitted(photographs)
    assert right(model, photographs, truth) > 0.95
    maps = photographs[0][0].flatten(0, 1).clone()
    before = model.shares(maps, [0])
    maps[:, 5] = 4
    assert_close(model.shares(maps, [0]), before, atol=1e-3, rtol=0)
    same = fitted([(torch.ones(4, 4, FEATURES).half(), own) for _, own in photographs])
    assert all(value.isfinite().all() for value in same.state_dict().values())
    assert same.shares(torch.ones(16, FEATURES), [0]).isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 2)])
def test_photographs_that_are_all_border(size):
    photographs = [(torch.randn(*size, FEATURES).half(), own) for _, own in planted(SHOWN)[0]]
    model = fitted(photographs)
    assert all(value.isfinite().all() for value in model.state_dict().values())


def test_photographs_of_many_sizes():
    photographs, truth = planted(SHOWN)
    photographs = [
        (maps[: 10 - number % 3, : 10 - number % 4], own)
        for number, (maps, own) in enumerate(photographs)
    ]
    truth = [x[: 10 - n % 3, : 10 - n % 4] for n, x in enumerate(truth)]
    assert right(fitted(photographs), photographs, truth) > 0.95


def test_patches_are_of_their_photographs_only():
    """`Patches` of two folds by hand: what is learned of one does not reach its own scores."""
    x, y = torch.randn(40, CLASSES), torch.randn(40, SALIENCY)
    photograph = torch.arange(40) // 10
    patches = Patches(
        x, y, photograph, torch.zeros(40) > 0, torch.eye(4)[:, :3], [slice(0, 20), slice(20, 40)]
    )
    shares = torch.rand(40, 4).softmax(1)
    other = shares.clone()
    other[:20] = torch.rand(20, 4).softmax(1)
    discriminants = Discriminants(patches, SETTINGS)
    before, after = discriminants.scores_of_folds(shares), discriminants.scores_of_folds(other)
    assert_close(before[:20], after[:20], atol=1e-3, rtol=1e-3)
    assert (before[20:] - after[20:]).abs().max() > 0.1
