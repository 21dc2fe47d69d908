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


@pytest.mark.parametrize(
    ("length", "window", "stride", "message"),
    [
        (100, 0, 1, "window: expected at least 1 pixel, got 0"),
        (100, -3, 1, "window: expected at least 1 pixel, got -3"),
        (100, 20, 0, "stride: expected 1 to 20 pixels, the window, got 0"),
        (100, 20, -1, "stride: expected 1 to 20 pixels, the window, got -1"),
        (100, 20, 21, "stride: expected 1 to 20 pixels, the window, got 21"),
        (19, 20, 10, "length: expected at least a window, 20 pixels, got 19"),
    ],
)
def test_windows_that_leave_pixels_out_are_refused(length, window, stride, message):
    with pytest.raises(ValueError, match=message):
        anchors(length, window, stride)


@pytest.mark.parametrize(("length", "window", "stride"), [(20, 20, 20), (99, 20, 20), (41, 20, 7)])
def test_windows_leave_no_pixel_out(length, window, stride):
    covered = {p for start in anchors(length, window, stride) for p in range(start, start + window)}
    assert covered == set(range(length))


@pytest.mark.parametrize(
    ("size", "enlarged"),
    [
        ((260, 533), (480, 983)),
        ((533, 260), (983, 480)),
        ((97, 97), (480, 480)),
        ((375, 500), (480, 640)),
        ((480, 533), (480, 533)),
    ],
)
def test_small_images_are_enlarged_as_published(size, enlarged):
    settings = settings_of(window=480, stride=320, flip=False)
    (view,) = views([torch.empty(*size, 3, dtype=torch.uint8)], settings)
    assert view.size == enlarged


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


def test_the_smallest_view_has_a_pixel():
    for image in (E["image"], E["image"][:1]):
        (scaled,) = scaled_images(image, settings_of(short_side=16, ratios=(0.01,)))
        assert min(scaled.shape) == 1
