"""Resizing against OpenCV."""

from __future__ import annotations

import numpy as np
import pytest

from tests.inference.published import RATIOS, E
from weaktr.inference.resize import resize_bilinear


@pytest.mark.parametrize("ratio", RATIOS)
def test_resizing_is_opencvs_to_the_bit(ratio):
    expected = E[f"ms_im_u8.{ratio}"]
    image = resize_bilinear(E["image"], *expected.shape[:2])
    np.testing.assert_array_equal(image, expected)


def test_resizing_to_the_same_size_changes_nothing():
    np.testing.assert_array_equal(resize_bilinear(E["image"], 75, 100), E["image"])


def test_resizing_refuses_other_types():
    with pytest.raises(ValueError, match=r"image: expected uint8 \[H, W, C\], got float64"):
        resize_bilinear(np.zeros((4, 4, 3)), 2, 2)
