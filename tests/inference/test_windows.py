"""Windows and the way back from them, against the published code."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F

from tests.inference.published import FACT, RATIOS, E, settings_of
from tests.tolerances import assert_close
from weaktr.inference import windows as module
from weaktr.inference.windows import (
    anchors,
    merge,
    on_device,
    pixels_of,
    scaled_images,
    views,
    windows,
)


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
    view, mirrored = views(scaled, settings)
    logits = torch.randn(len(view.tops) * len(view.lefts), 2, 3, 3, 3)
    total = torch.zeros(2, 3, *view.size)
    count = torch.zeros(view.size)
    places = [(top, left) for top in view.tops for left in view.lefts]
    for (top, left), one in zip(places, logits, strict=True):
        full = F.interpolate(one, size=(24, 24), mode="bilinear")[..., :window, :window]
        total[..., top : top + window, left : left + window] += full
        count[top : top + window, left : left + window] += 1
    expected = F.interpolate(total / count, size=size, mode="bilinear")
    assert len(places) > 4
    assert_close(merge(view, logits, patch, window, size), expected, "float32")
    assert_close(merge(mirrored, logits, patch, window, size), expected.flip(-1), "float32")


def test_one_view_is_held_at_a_time(monkeypatch):
    """A strip has a dozen of them, each many windows long."""
    made = []

    def noted(view, *more):
        made.append(weakref.ref(pixels := pixels_of(view, *more)))
        return pixels

    monkeypatch.setattr(module, "pixels_of", noted)
    settings = settings_of(short_side=36, ratios=(1.0, 1.5), window=20, stride=7)
    chosen = views([torch.from_numpy(one) for one in scaled_images(E["image"], settings)], settings)
    half = on_device(((0.5,) * 3, (0.5,) * 3), torch.device("cpu"))
    shapes = set()
    for crop in windows(chosen, half, settings.window):
        shapes.add(tuple(crop.shape))
        assert sum(one() is not None for one in made) <= 2  # the crop's, and the next
    assert len(made) == len(chosen) == 4
    assert shapes == {(3, 20, 20)}
