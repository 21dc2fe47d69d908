"""Soft labels against their formula, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from weaktr.inference.labels import scores_from_cams
from weaktr.inference.soft_labels import Softening, soft_labels
from weaktr.refine import Maps
from weaktr.refine.maps import best_labels

THRESHOLD, STRIDE = 0.4, 4
SIZE, CELLS = (8, 12), (2, 3)


def drawn(classes: int = 2) -> tuple[torch.Tensor, Maps]:
    """CAMs, and the maps before refiners."""
    cams = torch.rand(classes, *SIZE)
    scores = scores_from_cams(cams, THRESHOLD)
    labels, best = best_labels(scores)
    return cams, Maps(labels, classes + 1, scores, best)


def by_cell(label_of_pixel) -> np.ndarray:
    """255 · the mean over each cell of what a pixel (y, x) has, rounded."""
    cells = [
        [
            np.mean(
                [
                    label_of_pixel(y, x)
                    for y in range(STRIDE * row, STRIDE * (row + 1))
                    for x in range(STRIDE * column, STRIDE * (column + 1))
                ],
                axis=0,
            )
            for column in range(CELLS[1])
        ]
        for row in range(CELLS[0])
    ]
    return np.round(255 * np.array(cells)).transpose(2, 0, 1)


def assert_shares(actual: torch.Tensor, expected: np.ndarray) -> None:
    """Equal but for rounding: by one of 255 at most."""
    assert actual.dtype == torch.uint8
    assert actual.shape == expected.shape
    assert np.abs(actual.numpy().astype(int) - expected).max() <= 1
    assert (actual.sum(0) == 255).all()


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_cams_alone(temperature):
    cams, plain = drawn()

    def softmax(y, x):
        powers = [math.exp(score / temperature) for score in (THRESHOLD, *cams[:, y, x].tolist())]
        return [power / sum(powers) for power in powers]

    soft = soft_labels(Softening(temperature, STRIDE), plain, plain._replace())
    assert_shares(soft, by_cell(softmax))


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_scores_of_the_last_refiner(temperature):
    _, plain = drawn()
    scores = torch.rand(3, *SIZE)
    scores[:, :4, :4] = 0  # the first cell
    refined = Maps(best_labels(scores)[0], 3, scores)

    def shares(y, x):
        own = scores[:, y, x].double() ** (1 / temperature)
        return (own / own.sum()).tolist() if own.any() else [1 / 3] * 3

    soft = soft_labels(Softening(temperature, STRIDE), plain, refined)
    assert_shares(soft, by_cell(shares))


def test_a_refiner_that_changes_no_score_changes_no_soft_label():
    """Such as proposals that agree with the labels: the temperature counts after them, too."""
    _, plain = drawn()
    refined = Maps(plain.labels.clone(), 3, plain.scores.clone())
    softening = Softening(0.05, STRIDE)
    before = soft_labels(softening, plain, plain)
    after = soft_labels(softening, plain, refined)
    assert (before.int() - after.int()).abs().max() <= 1


@pytest.mark.parametrize("with_confidence", [True, False])
def test_labels_of_the_last_refiner(with_confidence):
    _, plain = drawn()
    labels = torch.randint(0, 3, SIZE, dtype=torch.uint8)
    confidence = 0.4 + 0.6 * torch.rand(SIZE)
    refined = Maps(labels, 3, None, confidence if with_confidence else None)

    def shares(y, x):
        sure = confidence[y, x].item() if with_confidence else 1
        return [sure if label == labels[y, x] else (1 - sure) / 2 for label in range(3)]

    soft = soft_labels(Softening(0.05, STRIDE), plain, refined)
    assert_shares(soft, by_cell(shares))


def test_many_small_shares_take_nothing_from_a_large_one():
    """Each rounded by itself, 99 times 0.6 / 99 would be 2 of 255, and 0.4 but 0.34 of the sum."""
    labels = torch.zeros(SIZE, dtype=torch.uint8)
    refined = Maps(labels, 100, None, torch.full(SIZE, 0.4))
    soft = soft_labels(Softening(0.05, STRIDE), drawn(99)[1], refined)
    assert (soft[0] == 102).all()
    assert set(soft[1:].unique().tolist()) == {1, 2}
    assert (soft.sum(0) == 255).all()


def test_an_image_without_class_is_background():
    _, plain = drawn(0)
    assert (soft_labels(Softening(0.05, STRIDE), plain, plain) == 255).all()
    by_labels = Maps(torch.zeros(SIZE, dtype=torch.uint8), 1, None, torch.ones(SIZE))
    assert (soft_labels(Softening(0.05, STRIDE), plain, by_labels) == 255).all()


def test_cells_divide_any_size_evenly():
    cams = torch.rand(1, 10, 13)
    scores = scores_from_cams(cams, THRESHOLD)
    plain = Maps(best_labels(scores)[0], 2, scores)
    assert soft_labels(Softening(0.05, 4), plain, plain).shape == (2, 3, 4)
    assert soft_labels(Softening(0.05, 99), plain, plain).shape == (2, 1, 1)
