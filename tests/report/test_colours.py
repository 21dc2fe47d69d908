"""Colours of labels: seen on anything, and not mistaken for each other."""

from __future__ import annotations

import numpy as np
import pytest

from weaktr.data import palette
from weaktr.report.colours import UNDECIDED, colours, oklab


def least_distance(found, labels):
    places = oklab(found[list(labels)])
    apart = np.linalg.norm(places[:, None] - places[None], axis=2)
    return apart[~np.eye(len(places), dtype=bool)].min()


def test_oklab_of_known_colours():
    found = oklab(np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0]], np.uint8))
    np.testing.assert_allclose(
        found, [[1, 0, 0], [0, 0, 0], [0.62796, 0.22486, 0.12585]], atol=2e-4
    )


@pytest.mark.parametrize("count", [10, 20, 59, 254])
def test_they_differ_more_than_those_of_voc_and_none_is_dark_or_pale(count):
    labels = range(1, count + 1)
    found = colours()
    assert least_distance(found, labels) > 2 * least_distance(palette(), labels)
    lightness = oklab(found[list(labels)])[:, 0]
    assert lightness.min() >= 0.55 and lightness.max() <= 0.9
    assert tuple(found[0]) == (0, 0, 0) and tuple(found[255]) == UNDECIDED


def test_labels_of_one_photograph_differ_most():
    rng = np.random.default_rng(0)
    together = [rng.choice(np.arange(1, 60), 5, replace=False) for _ in range(40)]
    found, plain = colours(together), colours()
    apart = [least_distance(found, own) for own in together]
    assert min(apart) > 1.5 * min(least_distance(plain, own) for own in together)
    assert np.array_equal(found, colours(together))
    assert len(np.unique(found, axis=0)) == 256
