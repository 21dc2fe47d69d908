"""The mean score of each label's pixels, by hand."""

from __future__ import annotations

import numpy as np
import torch

from weaktr.inference.results import mean_scores


def test_the_mean_is_over_the_pixels_of_a_label():
    labels = torch.tensor([[0, 0, 2], [2, 2, 255]], dtype=torch.uint8)
    scores = torch.zeros(4, 2, 3)
    scores[0, 0, :2] = torch.tensor([0.5, 0.75])
    scores[2] = torch.tensor([[0.9, 0.9, 0.1], [0.2, 0.6, 0.9]])  # 0.9 of pixels of other labels
    means = mean_scores(labels, scores).numpy()
    np.testing.assert_allclose(means[[0, 2]], [0.625, 0.3], rtol=1e-6)
    assert np.isnan(means[[1, 3]]).all()


def test_undecided_pixels_alone_have_no_mean():
    means = mean_scores(torch.full((2, 2), 255, dtype=torch.uint8), torch.ones(2, 2, 2))
    assert means.shape == (2,) and means.isnan().all()


def test_means_of_many_pixels_do_not_drift():
    labels, scores = torch.zeros(2000, 2000, dtype=torch.uint8), torch.full((1, 2000, 2000), 0.1)
    assert abs(float(mean_scores(labels, scores)) - 0.1) < 1e-7
