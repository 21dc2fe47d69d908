"""Boundary F-score, bootstrap and confusions against their definitions by brute force."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.evaluation.pairs import score_pairs
from weaktr.evaluation.bootstrap import interval, resampled_miou
from weaktr.evaluation.boundary import boundary, boundary_f, dilate
from weaktr.evaluation.iou import ConfusionSum, confused_pairs, scores
from weaktr.evaluation.pairs import evaluate_pairs


def maps(seed, shape=(13, 17), labels=4, ignored=0.15):
    """A random prediction with 255 in places, and a random blocky truth with ignored pixels."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(labels, size=(5, 6))
    truth = np.kron(coarse, np.ones((3, 3), int))[: shape[0], : shape[1]].astype(np.uint8)
    prediction = np.roll(truth, rng.integers(-1, 2, 2), (0, 1))
    noise = rng.random(shape)
    prediction = np.where(noise < 0.1, rng.integers(labels, size=shape), prediction)
    prediction = np.where(noise > 0.97, 255, prediction).astype(np.uint8)
    truth[rng.random(shape) < ignored] = 255
    return prediction, truth


def neighbours(place, shape):
    y, x = place
    around = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
    return [(i, j) for i, j in around if 0 <= i < shape[0] and 0 <= j < shape[1]]


def slow_boundary(region):
    places = zip(*np.nonzero(region), strict=True)
    return [p for p in places if any(not region[q] for q in neighbours(p, region.shape))]


def slow_boundary_f(prediction, truth, label, distance):
    """The definition, pixel by pixel."""
    mine, true = slow_boundary(prediction == label), slow_boundary(truth == label)

    def near(place, others):
        return any(math.dist(place, other) <= distance for other in others)

    counted = [p for p in mine if truth[p] != 255 or near(p, true)]
    if not counted and not true:
        return math.nan
    precision = sum(near(p, true) for p in counted) / len(counted) if counted else 0.0
    recall = sum(near(p, mine) for p in true) / len(true) if true else 0.0
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("tolerance", [0.0, 0.05, 0.1, 0.31])
@pytest.mark.parametrize("seed", range(4))
def test_boundary_f_is_its_definition(seed, tolerance):
    prediction, truth = maps(seed)
    prediction[prediction == 255] = 0
    per_class = boundary_f(prediction, truth, 6, tolerance)
    distance = tolerance * math.hypot(13, 17)
    expected = [slow_boundary_f(prediction, truth, label, distance) for label in range(6)]
    np.testing.assert_allclose(per_class, expected, rtol=1e-12)
    assert np.isnan(per_class[5])


@pytest.mark.parametrize("distance", [0.0, 1.0, 1.5, 2.0, 3.7, 50.0])
def test_dilation_is_euclidean(distance):
    pixels = np.random.default_rng(0).random((9, 14)) < 0.04
    there = list(zip(*np.nonzero(pixels), strict=True))
    places = itertools.product(range(9), range(14))
    expected = [any(math.dist(p, q) <= distance for q in there) for p in places]
    np.testing.assert_array_equal(dilate(pixels, distance).ravel(), expected)


def test_the_edge_of_the_image_is_no_boundary():
    assert not boundary(np.ones((4, 5), bool)).any()
    region = np.zeros((4, 5), bool)
    region[:, :2] = True
    np.testing.assert_array_equal(np.nonzero(boundary(region))[1], [1, 1, 1, 1])


def test_boundary_of_right_missed_and_invented_regions():
    truth = np.zeros((40, 40), np.uint8)
    truth[5:20, 5:20] = 1
    truth[25:35, 25:35] = 2
    wrong = truth.copy()
    wrong[truth == 2] = 3
    assert np.array_equal(boundary_f(truth, truth, 5)[:3], [1, 1, 1])
    per_class = boundary_f(wrong, truth, 5)
    np.testing.assert_array_equal(per_class[1:], [1, 0, 0, np.nan])


def test_boundaries_in_ignored_places():
    """Around the object truth is silent: an outline in the band is right, elsewhere unknown."""
    truth = np.zeros((60, 60), np.uint8)
    truth[17:43, 17:43] = 255
    truth[20:40, 20:40] = 1
    truth[2:14, 2:14] = 255
    prediction = np.zeros_like(truth)
    prediction[19:41, 19:41] = 1
    prediction[5:10, 5:10] = 1
    assert boundary_f(prediction, truth, 2, tolerance=2.5 / math.hypot(60, 60))[1] == 1.0


def slow_miou(pairs, labels):
    ious = []
    for label in range(labels):
        both = either = 0
        for prediction, truth in pairs:
            mine, true = (prediction == label) & (truth != 255), truth == label
            both += (mine & true).sum()
            either += (mine | true).sum()
        if either:
            ious.append(both / either)
    return 100 * np.mean(ious)


def many(count=7):
    pairs = [maps(seed) for seed in range(count)]
    for prediction, _ in pairs:
        prediction[prediction == 255] = 0
    return pairs


def test_every_summary_is_its_definition():
    pairs, labels = many(), 6
    score = score_pairs(pairs, labels)
    prediction = np.concatenate([p.ravel() for p, _ in pairs])
    truth = np.concatenate([t.ravel() for _, t in pairs])
    prediction, truth = prediction[truth != 255], truth[truth != 255]
    for label in range(labels):
        mine, true = prediction == label, truth == label
        hit, either = (mine & true).sum(), (mine | true).sum()
        if not either:
            assert all(np.isnan(x[label]) for x in (score.iou, score.precisions, score.recalls))
            continue
        assert score.iou[label] == pytest.approx(100 * hit / either)
        assert score.false_positives[label] == pytest.approx(100 * (mine & ~true).sum() / either)
        assert score.false_negatives[label] == pytest.approx(100 * (true & ~mine).sum() / either)
        assert score.precisions[label] == pytest.approx(100 * hit / mine.sum())
        assert score.recalls[label] == pytest.approx(100 * hit / true.sum())
        total = score.iou[label] + score.false_positives[label] + score.false_negatives[label]
        assert total == pytest.approx(100)
    assert score.pixel_accuracy == pytest.approx(100 * (prediction == truth).mean())
    for mean, each in (
        (score.miou, score.iou),
        (score.false_positive, score.false_positives),
        (score.false_negative, score.false_negatives),
        (score.precision, score.precisions),
        (score.recall, score.recalls),
    ):
        assert mean == pytest.approx(np.nanmean(each))


def test_confused_pairs():
    matrix = np.array([[50, 3, 0, 0], [7, 10, 3, 80], [0, 0, 0, 0]])
    undecided = (1, 3, 80, 80.0)
    pairs = [undecided, (1, 0, 7, 7.0), (0, 1, 3, 300 / 53), (1, 2, 3, 3.0)]
    assert confused_pairs(matrix, 5) == pairs
    assert len(confused_pairs(matrix, 2)) == 2
    assert confused_pairs(np.eye(3, 4, dtype=np.int64), 5) == []


def test_resamples_are_scores_of_drawn_images():
    pairs = many(5)
    evaluation = evaluate_pairs(range(5), pairs.__getitem__, 6)
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(5, np.full(5, 1 / 5), size=50)
    for counts, miou in zip(drawn, evaluation.resampled[:50], strict=True):
        chosen = [pairs[i] for i, times in enumerate(counts) for _ in range(times)]
        assert miou == pytest.approx(slow_miou(chosen, 6))
    assert len(evaluation.resampled) == 1000
    low, high = evaluation.interval
    assert low <= np.median(evaluation.resampled) <= high
    assert 0 < (evaluation.resampled < low).mean() <= 0.025
    assert 0 < (evaluation.resampled > high).mean() <= 0.025


def test_equal_images_leave_no_doubt():
    counts = np.tile([[[4, 3], [5, 4], [6, 3]]], (9, 1, 1))
    drawn = resampled_miou(counts)
    np.testing.assert_allclose(drawn, 100 * (4 / 7 + 3 / 4) / 2)
    assert interval(drawn).low == pytest.approx(interval(drawn).high)


def test_resamples_without_a_known_pixel_are_left_out():
    counts = np.zeros((2, 3, 2), int)
    counts[0] = 5
    drawn = resampled_miou(counts)
    assert np.isnan(drawn).any()
    assert interval(drawn) == (100.0, 100.0)


def test_evaluation_of_pairs():
    pairs = [maps(seed) for seed in range(6)]
    evaluation = evaluate_pairs(range(6), pairs.__getitem__, 6)
    assert evaluation.scores.miou == score_pairs(pairs, 6).miou
    assert evaluation.scores.images == 6
    each = [boundary_f(p, t, 6) for p, t in pairs]
    with np.errstate(invalid="ignore"):
        seen = ~np.isnan(each).all(0)
    np.testing.assert_allclose(
        evaluation.boundary[seen], 100 * np.nanmean(np.array(each)[:, seen], 0)
    )
    assert np.isnan(evaluation.boundary[~seen]).all() and not seen.all()
    assert evaluation.boundary_f == pytest.approx(np.nanmean(evaluation.boundary))
    total = ConfusionSum(6)
    for prediction, truth in pairs:
        total.add(prediction, truth)
    assert evaluation.confused == confused_pairs(total.matrix, 20)
    assert scores(total).miou == evaluation.scores.miou


def test_gain_is_taken_image_by_image():
    """A gain in every image is certain, however much the images differ."""
    pairs = many()
    plain = evaluate_pairs(range(7), pairs.__getitem__, 4)
    better = evaluate_pairs(
        range(7), lambda i: (np.where(pairs[i][1] == 255, 0, pairs[i][1]), pairs[i][1]), 4
    )
    low, high = better.gain_over(plain)
    assert 0 < low <= better.scores.miou - plain.scores.miou <= high


def test_one_image_has_no_interval():
    assert evaluate_pairs([0], lambda _: maps(0), 4).interval is None


def test_a_constant_picture_has_no_boundary():
    flat = np.zeros((5, 5), np.uint8)
    evaluation = evaluate_pairs([0, 1], lambda _: (flat, flat), 3)
    assert math.isnan(evaluation.boundary_f)
    assert evaluation.scores.miou == 100.0


@pytest.mark.parametrize(
    ("foreground", "extra", "is_told"),
    [(255, 0, True), (255, 1, True), (1, 0, False), (2, 0, False)],
    ids=["0 and 255", "a class beside", "classes", "another class alone"],
)
def test_truth_of_0_and_255_is_told(caplog, foreground, extra, is_told):
    """As tools write binary masks: 255 is not counted, so every pixel of the class is wrong."""
    prediction, truth = np.zeros((2, 20, 20), np.uint8)
    prediction[5:15, 5:15] = 1
    truth[8:18, 5:15] = foreground
    truth[0, :3] = 2 * extra
    evaluate_pairs(range(2), lambda _: (prediction, truth), 3)
    told = (
        "no true mask shows label 1, which the predictions do, and of the true masks' pixels more "
        "are 255 than of all classes together (255 = ignored; a class has its number from 1 on)"
    )
    assert (told in caplog.messages) == is_told
