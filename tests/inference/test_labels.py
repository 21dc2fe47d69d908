"""Labels from CAMs against the published code."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.stored import arrays
from weaktr.inference.labels import labels_from_cams

C = arrays("C_labels_miou")
THRESHOLDS = (0.3, 0.42, 0.43, 0.45, 0.6)
SAMPLES = range(6)


@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize("dataset", ["voc", "coco"])
def test_labels_are_the_published_ones(dataset, threshold):
    for index in SAMPLES:
        key = f"{dataset}.{index}"
        values = np.array([0, *(C[f"{key}.keys"] + 1)], np.uint8)
        labels = values[labels_from_cams(torch.from_numpy(C[f"{key}.cam"]), threshold)]
        np.testing.assert_array_equal(labels, C[f"{key}.label_t{threshold}"])


def test_softmax_ties_go_to_the_background():
    labels = labels_from_cams(torch.from_numpy(C["tie.cam"]), 0.43).numpy()
    np.testing.assert_array_equal(labels, C["tie.label"])
    assert (labels != C["tie.raw_argmax"]).any()
