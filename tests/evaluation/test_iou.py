"""Scores against the published evaluation and mmseg."""

from __future__ import annotations

import numpy as np
import pytest

from tests.evaluation.pairs import score_pairs
from tests.stored import FACTS, arrays
from weaktr.evaluation.iou import ConfusionSum, ThresholdCurve, scored, scores, thresholds_of

C = arrays("C_labels_miou")
LABELS = {"voc": 21, "coco": 91, "vocnoise": 21}
THRESHOLDS = (0.3, 0.42, 0.43, 0.45, 0.6)
SAMPLES = range(6)


def stored(dataset, index, what):
    twin = f"voc.{index}.{what}"
    return C.get(f"{dataset}.{index}.{what}", C.get(twin))


def curve_of(dataset, first, last):
    curve = ThresholdCurve(np.arange(first, last) / 100, LABELS[dataset])
    for index in SAMPLES:
        curve.add(curve.counts(*(stored(dataset, index, what) for what in ("cam", "keys", "gt"))))
    return curve


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_published_summary(dataset, threshold):
    pairs = [(C[f"{dataset}.{i}.label_t{threshold}"], C[f"{dataset}.{i}.gt"]) for i in SAMPLES]
    score = score_pairs(pairs, LABELS[dataset])
    np.testing.assert_allclose(score.iou, C[f"{dataset}.iou_t{threshold}"], rtol=1e-12)
    summary = [
        score.miou, score.false_positive, score.false_negative, score.precision, score.recall
    ]  # fmt: skip
    np.testing.assert_allclose(summary, C[f"{dataset}.summary_t{threshold}"], rtol=1e-12)


@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_mmseg_numbers(dataset):
    pairs = [(C[f"{dataset}.{i}.label_t0.43"], C[f"{dataset}.{i}.gt"]) for i in SAMPLES]
    score = score_pairs(pairs, LABELS[dataset])
    np.testing.assert_allclose(score.iou / 100, C[f"{dataset}.mmseg_cat_iou"], rtol=1e-6)
    rounded = [round(v, 2) for v in (score.pixel_accuracy, score.recall, score.miou)]
    np.testing.assert_allclose(rounded, C[f"{dataset}.mmseg_paccmacc_miou"], atol=0.0101)


@pytest.mark.parametrize(
    ("dataset", "name"),
    [("voc", "curve_0_80"), ("coco", "curve_0_80"), ("vocnoise", "curve_0_60")],
)
def test_threshold_curve(dataset, name):
    expected = C[f"{dataset}.{name}"]
    mious = [s.miou for s in curve_of(dataset, 0, len(expected)).scores()]
    np.testing.assert_allclose(mious, expected, rtol=1e-9)


@pytest.mark.parametrize("dataset", LABELS)
def test_best_threshold_is_the_best_of_all(dataset):
    best, threshold = FACTS["C_labels_miou"]["datasets"][dataset]["exhaustive_best_of_0_60"]
    best_threshold, best_score = curve_of(dataset, 0, 60).best()
    assert best_threshold == threshold
    assert best_score.miou == pytest.approx(best, rel=1e-9)


def test_absent_classes_are_left_out_and_false_ones_count_as_zero():
    prediction, truth = np.array([[0, 2]], np.uint8), np.array([[0, 0]], np.uint8)
    score = score_pairs([(prediction, truth)], 4)
    np.testing.assert_array_equal(score.iou, [50.0, np.nan, 0.0, np.nan])
    assert score.miou == 25.0


def test_ignored_truth_does_not_count():
    prediction, truth = np.array([[1, 1]], np.uint8), np.array([[1, 255]], np.uint8)
    assert score_pairs([(prediction, truth)], 2).miou == 100.0


@pytest.mark.parametrize("label", [0, 1])
def test_undecided_predictions_are_wrong_whatever_the_truth(label):
    prediction, truth = np.array([[255, label]], np.uint8), np.full((1, 2), label, np.uint8)
    score = score_pairs([(prediction, truth)], 2)
    assert score.recall == score.iou[label] == score.pixel_accuracy == 50.0
    assert score.precision == 100.0


def test_undecided_pixels_that_do_not_count():
    prediction, truth = np.array([[255, 1]], np.uint8), np.array([[255, 1]], np.uint8)
    assert score_pairs([(prediction, truth)], 2).iou[1] == 100.0


def test_masks_without_a_label_are_not_scored(caplog):
    prediction, truth = np.full((1, 2), 255, np.uint8), np.zeros((1, 2), np.uint8)
    assert scored(lambda: score_pairs([(prediction, truth)], 2), "mine") is None
    assert "mine: not scored: expected a label at one known pixel at least" in caplog.text


def test_labels_outside_are_refused():
    inside, outside = np.array([[0, 1]], np.uint8), np.array([[0, 2]], np.uint8)
    for prediction, truth in ((inside, outside), (outside, inside)):
        with pytest.raises(ValueError, match="expected labels"):
            ConfusionSum(2).add(prediction, truth)


def test_nothing_to_score_is_an_error():
    with pytest.raises(ValueError, match="at least one pixel"):
        scores(ConfusionSum(3))


@pytest.mark.parametrize(
    ("span", "expected"),
    [
        ((0.5, 1.0, 0.3), [0.5, 0.8]),
        ((0.0, 0.8, 0.3), [0.0, 0.3, 0.6]),
        ((0.0, 0.3, 0.1), [0.0, 0.1, 0.2, 0.3]),
        ((0.43, 0.43, 1.0), [0.43]),
    ],
)
def test_no_threshold_lies_behind_the_last(span, expected):
    found = thresholds_of(*span)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert found.max() <= span[1]


def test_the_default_thresholds_are_81():
    assert len(thresholds_of(0, 0.8, 0.01)) == 81


@pytest.mark.parametrize("threshold", [1e-8, 0.1234567, 0.43])
def test_a_single_threshold_is_said_as_it_is(threshold):
    curve = ThresholdCurve(np.array([threshold]), 2)
    curve.add(curve.counts(np.ones((1, 2, 2), np.float32), [0], np.ones((2, 2), np.uint8)))
    assert curve.best()[0] == threshold
