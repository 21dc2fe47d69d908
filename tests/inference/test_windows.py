"""Windows and the way back from them, against the published code."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.inference.published import FACT, RATIOS, E, settings_of
from tests.tolerances import assert_close
from weaktr.inference.windows import anchors, merge, scaled_images, views


@pytest.mark.parametrize("ratio", RATIOS)
def test_windows_stand_where_published(ratio):
    facts = FACT["windows"][str(ratio)]
    height, width = facts["resized"]
    corners = [[y, x] for y in anchors(height, 48, 32) for x in anchors(width, 48, 32)]
    assert corners == facts["anchors"]


def test_merging_is_upsampling_averaging_and_resizing():
    """`merge` against the steps that it joins, on a window that cuts its last patches."""
    patch, window, size = 8, 20, (33, 47)
    settings = settings_of(short_side=36, ratios=(1.0,), window=window, stride=7)
    scaled = [torch.from_numpy(one) for one in scaled_images(E["image"], settings)]
    view, mirrored = views(scaled, ((0.5,) * 3, (0.5,) * 3), settings, torch.device("cpu"))
    logits = torch.randn(len(view.tops) * len(view.lefts), 2, 3, 3, 3)
    total = torch.zeros(2, 3, *view.pixels.shape[1:])
    count = torch.zeros(view.pixels.shape[1:])
    places = [(top, left) for top in view.tops for left in view.lefts]
    for (top, left), one in zip(places, logits, strict=True):
        full = F.interpolate(one, size=(24, 24), mode="bilinear")[..., :window, :window]
        total[..., top : top + window, left : left + window] += full
        count[top : top + window, left : left + window] += 1
    expected = F.interpolate(total / count, size=size, mode="bilinear")
    assert len(places) > 4
    assert_close(merge(view, logits, patch, window, size), expected, "float32")
    assert_close(merge(mirrored, logits, patch, window, size), expected.flip(-1), "float32")
