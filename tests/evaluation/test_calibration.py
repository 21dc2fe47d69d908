"""Reliability of a confidence, by its definition."""

from __future__ import annotations

import numpy as np
import pytest

from weaktr.evaluation.calibration import BINS, Calibration


def test_bins_and_error_are_those_of_the_definition():
    rng = np.random.default_rng(0)
    calibration, rows = Calibration(), []
    for _ in range(3):
        confidence, labels, truth = (rng.integers(0, n, (9, 11), np.uint8) for n in (256, 3, 3))
        truth[0, :5] = 255
        calibration.add(confidence, labels, truth)
        rows += [
            (int(c), bool(a == b))
            for c, a, b in zip(confidence.flat, labels.flat, truth.flat, strict=True)
            if b != 255
        ]
    assert calibration.pixels == len(rows) and calibration.images == 3
    error = 0.0
    for index, part in enumerate(calibration.bins()):
        low, high = index / BINS, (index + 1) / BINS
        last = index == BINS - 1
        own = [
            (c / 255, right) for c, right in rows if low <= c / 255 < high or (last and c == 255)
        ]
        assert (part.low, part.high, part.pixels) == (low, high, len(own))
        confidence, right = np.mean(own, 0)
        assert (part.confidence, part.right) == pytest.approx((confidence, right))
        error += len(own) / len(rows) * abs(confidence - right)
    assert calibration.error() == pytest.approx(error)
    assert calibration.as_json()["expected_calibration_error"] == calibration.error()


def test_a_confidence_that_means_what_it_says_has_no_error():
    calibration = Calibration()
    labels = np.zeros((1, 255), np.uint8)
    truth = (np.arange(255) >= 51 * 4).astype(np.uint8)[None]  # 80 % right
    calibration.add(np.full((1, 255), 51 * 4, np.uint8), labels, truth)
    assert calibration.error() == pytest.approx(0)
    (row,) = calibration.as_json()["bins"]
    assert (row["confidence"], row["right"]) == pytest.approx((0.8, 0.8))
