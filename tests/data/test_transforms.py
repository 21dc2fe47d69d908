"""Training and validation transforms of both stages."""

from __future__ import annotations

import colorsys
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import tv_tensors

from tests.tolerances import assert_close
from weaktr.config import PredictConfig
from weaktr.data.classes import IGNORE
from weaktr.data.transforms import (
    IMAGENET,
    PadTo,
    PhotometricDistortion,
    RandomKeepRatioResize,
    RandomLabelCrop,
    cam_train_transform,
    seg_train_transform,
)
from weaktr.inference.windows import on_device, pixels_of, views

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def noise(height: int, width: int) -> tv_tensors.Image:
    return tv_tensors.Image(torch.randint(0, 256, (3, height, width), dtype=torch.uint8))


def smooth(height: int, width: int) -> tv_tensors.Image:
    """Red grows to the right, green downwards."""
    across = torch.linspace(0, 255, width).expand(height, width)
    down = torch.linspace(0, 255, height)[:, None].expand(height, width)
    return tv_tensors.Image(torch.stack([across, down, 0 * down]).round().to(torch.uint8))


def halves(height: int, width: int, left: int = 1, right: int = 2) -> tv_tensors.Mask:
    mask = torch.full((height, width), left, dtype=torch.uint8)
    mask[:, width // 2 :] = right
    return tv_tensors.Mask(mask)


@pytest.mark.parametrize("size", [224, 64, (32, 48)])
@pytest.mark.parametrize("randaugment", [True, False])
def test_cam_train_shape_and_kind(size: int | tuple[int, int], randaugment: bool) -> None:
    transform = cam_train_transform(size, randaugment=randaugment, erasing=1.0)
    image = transform(noise(50, 70))
    assert type(image) is torch.Tensor
    assert image.dtype == torch.float32
    assert image.shape == (3, *((size, size) if isinstance(size, int) else size))
    assert image.isfinite().all()


def test_cam_train_without_randomness_is_a_bicubic_resize() -> None:
    transform = cam_train_transform(
        32, scale=(1, 1), ratio=(1, 1), flip=0, randaugment=False, erasing=0
    )
    image = noise(64, 64)
    with_pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((32, 32), Image.BICUBIC)
    expected = torch.from_numpy(np.array(with_pillow)).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    difference = (transform(image) * std + mean - expected).abs() * 255
    assert difference.max() < 1.01  # one step of 8 bits: Pillow rounds between the two axes


def test_cam_train_crops_and_flips() -> None:
    transform = cam_train_transform(
        16, normalization=PLAIN, scale=(0.2, 0.3), randaugment=False, erasing=0
    )
    views = [transform(smooth(40, 40)) for _ in range(200)]
    slopes = torch.stack([(view[0, :, -1] - view[0, :, 0]).mean() for view in views])
    assert 70 <= int((slopes < 0).sum()) <= 130  # half of them are mirrored
    shares = slopes.abs() * torch.stack([(v[1, -1] - v[1, 0]).mean() for v in views])
    assert 0.15 < float(shares.mean()) < 0.3  # area of the crops


def test_random_erasing_is_normal_noise_of_the_published_areas() -> None:
    transform = cam_train_transform(64, scale=(1, 1), flip=0, randaugment=False, erasing=0.25)
    white = tv_tensors.Image(torch.full((3, 64, 64), 255, dtype=torch.uint8))
    clean = cam_train_transform(64, scale=(1, 1), flip=0, randaugment=False, erasing=0)(white)
    erased = [(view != clean).any(0) for view in (transform(white) for _ in range(400))]
    areas = torch.tensor([float(mask.float().mean()) for mask in erased])
    assert 70 <= int((areas > 0).sum()) <= 130
    assert float(areas[areas > 0].min()) > 0.01
    assert float(areas.max()) < 0.36
    always = cam_train_transform(64, scale=(1, 1), flip=0, randaugment=False, erasing=1.0)
    values = torch.cat([view[view != clean] for view in (always(white) for _ in range(50))])
    assert abs(float(values.mean())) < 0.05
    assert abs(float(values.std()) - 1) < 0.05


def resized(height: int, width: int, factor: float, **options: Any) -> tuple[int, int]:
    resize = RandomKeepRatioResize(ratio=(factor, factor), **options)
    image, mask = resize(noise(height, width), halves(height, width))
    assert image.shape[-2:] == mask.shape
    return tuple(mask.shape)


def test_resize_follows_the_short_side() -> None:
    assert resized(375, 500, 1.0) == (520, 693)
    assert resized(500, 375, 0.5) == (347, 260)
    assert resized(375, 500, 1.3) == (676, 901)
    # the long side is bounded by max_ratio * short_side * factor
    assert resized(10, 300, 0.5, short_side=20, max_ratio=8.0) == (3, 80)
    assert resized(64, 64, 1.5, short_side=64) == (96, 96)
    assert resized(9, 9, 0.5, short_side=4, max_ratio=1.0) == (2, 2)


def test_resize_draws_evenly() -> None:
    resize = RandomKeepRatioResize(100, (0.5, 2.0))
    sides = torch.tensor([resize.make_params([noise(10, 20)])["size"][0] for _ in range(500)])
    assert 50 <= int(sides.min()) <= 55
    assert 195 <= int(sides.max()) <= 200
    assert abs(float(sides.float().mean()) - 125) < 6


def test_resize_mask_is_nearest_and_image_not_antialiased() -> None:
    resize = RandomKeepRatioResize(8, (1, 1))
    _, mask = resize(noise(16, 16), halves(16, 16, 0, 200))
    assert set(mask.unique().tolist()) == {0, 200}
    whole = noise(16, 16)
    small, _ = resize(whole, halves(16, 16))
    pairs = whole.float().unfold(1, 2, 2).unfold(2, 2, 2).mean((-1, -2))
    assert (small.float() - pairs).abs().max() <= 1  # half of the size: mean of 2 x 2
    third = RandomKeepRatioResize(4, (1, 1))(tv_tensors.Image(whole[:, :12, :12]), halves(12, 12))
    assert torch.equal(third[0], whole[:, 1:12:3, 1:12:3])  # a third: the middle pixel alone


def test_crop_prefers_mixed_places() -> None:
    mask = torch.ones(64, 64, dtype=torch.uint8)
    mask[:, 32:] = 2
    image = noise(64, 64)
    crop = RandomLabelCrop((32, 32), 0.75)
    shares = []
    for _ in range(100):
        part, labels = crop(image, tv_tensors.Mask(mask))
        assert part.shape[-2:] == labels.shape == (32, 32)
        shares.append(max(float((labels == k).float().mean()) for k in (1, 2)))
    assert np.mean(np.array(shares) < 0.75) > 0.95  # by chance it would be about a half


def test_crop_of_one_label_comes_as_it_is() -> None:
    crop = RandomLabelCrop((8, 8))
    image = noise(20, 30)
    same = torch.ones(20, 30, dtype=torch.uint8)
    starts = {tuple(crop.make_params([image, tv_tensors.Mask(same)]).values()) for _ in range(60)}
    assert len(starts) > 30
    assert {height for _, _, height, _ in starts} == {8}


@pytest.mark.parametrize(
    ("counts", "mixed"),
    [
        ({1: 60, 2: 40}, True),
        ({1: 75, 2: 25}, False),
        ({1: 74, 2: 26}, True),
        ({1: 100}, False),
        ({1: 60, 255: 40}, False),
        ({1: 30, 2: 20, 255: 50}, True),
        ({255: 100}, False),
        ({0: 50, 1: 50}, True),
    ],
)
def test_what_counts_as_mixed(counts: dict[int, int], mixed: bool) -> None:
    values = [label for label, count in counts.items() for _ in range(count)]
    mask = torch.tensor(values, dtype=torch.uint8).view(10, 10)
    box = {"top": 0, "left": 0, "height": 10, "width": 10}
    assert RandomLabelCrop((10, 10), 0.75)._is_mixed(mask, box) is mixed


def test_crop_reaches_every_place() -> None:
    crop = RandomLabelCrop((8, 8), 1.0)
    mask = halves(10, 11)
    starts = {
        (box["top"], box["left"])
        for box in (crop.make_params([noise(10, 11), mask]) for _ in range(300))
    }
    assert starts == {(top, left) for top in range(3) for left in range(4)}


def hsv(pixel: torch.Tensor) -> tuple[float, float, float]:
    return colorsys.rgb_to_hsv(*(pixel.float() / 255).tolist())


def distorted(pixel: tuple[int, int, int], **params: Any) -> torch.Tensor:
    neutral = {"brightness": 0.0, "contrast": 1.0, "contrast_first": True}
    neutral |= {"saturation": 1.0, "hue": 0.0}
    image = tv_tensors.Image(torch.tensor(pixel, dtype=torch.uint8).view(3, 1, 1))
    return PhotometricDistortion().transform(image, neutral | params)[:, 0, 0]


def test_photometric_steps() -> None:
    pixel = (200, 100, 40)
    assert distorted(pixel).tolist() == list(pixel)
    assert distorted(pixel, brightness=20.0).tolist() == [220, 120, 60]
    assert distorted(pixel, brightness=-50.0).tolist() == [150, 50, 0]
    assert distorted(pixel, contrast=1.2).tolist() == [240, 120, 48]
    hue, saturation, value = hsv(torch.tensor(pixel))
    for factor in (0.5, 1.1):
        h, s, v = hsv(distorted(pixel, saturation=factor))
        assert (h, v) == (pytest.approx(hue, abs=0.01), pytest.approx(value, abs=0.01))
        assert s == pytest.approx(saturation * factor, abs=0.01)
    assert hsv(distorted(pixel, saturation=1.5))[1] == pytest.approx(1.0, abs=0.01)
    h, s, v = hsv(distorted(pixel, hue=0.1))
    assert (h, s) == (pytest.approx(hue + 0.1, abs=0.01), pytest.approx(saturation, abs=0.01))
    assert distorted((77, 77, 77), saturation=1.5, hue=0.1).tolist() == [77, 77, 77]


def test_contrast_before_or_after_saturation() -> None:
    first = distorted((200, 100, 40), contrast=1.4, saturation=0.5, contrast_first=True)
    last = distorted((200, 100, 40), contrast=1.4, saturation=0.5, contrast_first=False)
    # first: (280 -> 255, 140, 56), then towards 255; last: (200, 150, 120), then times 1.4
    assert first.tolist() == pytest.approx([255, 198, 156], abs=1)
    assert last.tolist() == pytest.approx([255, 210, 168], abs=1)


def test_photometric_draws() -> None:
    distortion = PhotometricDistortion()
    draws = [distortion.make_params([]) for _ in range(2000)]
    for key, neutral, low, high in [
        ("brightness", 0.0, -32, 32),
        ("contrast", 1.0, 0.5, 1.5),
        ("saturation", 1.0, 0.5, 1.5),
        ("hue", 0.0, -0.1, 17 / 180),
    ]:
        values = np.array([draw[key] for draw in draws])
        changed = values[values != neutral]
        assert 0.45 < len(changed) / len(values) < 0.55
        span = high - low
        assert low <= changed.min() < low + 0.03 * span
        assert high - 0.03 * span < changed.max() <= high + 1e-9
    assert 0.45 < np.mean([draw["contrast_first"] for draw in draws]) < 0.55


def test_photometric_leaves_masks_alone() -> None:
    mask = halves(6, 6)
    image, same = PhotometricDistortion()(noise(6, 6), mask)
    assert torch.equal(same, mask)
    assert image.dtype == torch.uint8


def test_padding() -> None:
    image, mask = PadTo((6, 8))(tv_tensors.Image(torch.ones(3, 4, 9)), halves(4, 9))
    assert image.shape == (3, 6, 9)
    assert mask.shape == (6, 9)
    assert image[:, :4].eq(1).all()
    assert image[:, 4:].eq(0).all()
    assert mask[4:].eq(IGNORE).all()
    assert mask[:4].ne(IGNORE).all()


@pytest.mark.parametrize(("height", "width"), [(64, 64), (375, 500), (20, 90)])
@pytest.mark.parametrize("crop", [64, (48, 80)])
def test_seg_train(height: int, width: int, crop: int | tuple[int, int]) -> None:
    transform = seg_train_transform(crop, short_side=70)
    for _ in range(5):
        image, mask = transform(noise(height, width), halves(height, width))
        assert type(image) is torch.Tensor
        assert type(mask) is torch.Tensor
        assert (image.dtype, mask.dtype) == (torch.float32, torch.uint8)
        assert image.shape[-2:] == mask.shape == ((crop, crop) if isinstance(crop, int) else crop)
        assert set(mask.unique().tolist()) <= {1, 2, IGNORE}
        assert image[:, mask == IGNORE].eq(0).all()  # padding is 0 after normalisation


def test_seg_train_normalises_as_published_and_as_predictions_do() -> None:
    """Means and deviations of 0..255, to two decimals: of green 116.28 and 57.12."""
    image = noise(40, 40)
    transform = seg_train_transform(
        40, short_side=40, ratio=(1, 1), flip=0, photometric=False, cat_max_ratio=1.0
    )
    trained, _ = transform(image, halves(40, 40))
    assert_close(trained[1], (image[1].float() - 116.28) / 57.12, "float32")
    settings = PredictConfig(short_side=40, ratios=(1.0,), flip=False, window=40, stride=40)
    (view,) = views([image.permute(1, 2, 0).contiguous()], settings)
    predicted = pixels_of(view, on_device(IMAGENET, torch.device("cpu")))
    assert_close(trained, predicted, "float32")


def test_seg_train_keeps_image_and_mask_together() -> None:
    """Red is 255 exactly where the mask is 2, through resize, crop, flip and padding."""
    mask = halves(60, 80)
    red = (mask == 2).to(torch.uint8) * 255
    image = tv_tensors.Image(torch.stack([red, red, red]))
    transform = seg_train_transform(
        48, short_side=50, photometric=False, normalization=PLAIN, cat_max_ratio=1.0
    )
    flipped = 0
    for _ in range(40):
        out, labels = transform(image, mask)
        inside = labels != IGNORE
        agree = ((out[0] > 0.5) == (labels == 2))[inside].float().mean()
        assert float(agree) > 0.97  # up to rounding at the edge
        columns = labels.float().masked_fill(~inside, math.nan)[0]
        flipped += bool((labels[0, 0] == 2) and (columns == 1).any())
    assert flipped > 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: cam_train_transform(0), "size"),
        (lambda: cam_train_transform((4, 4, 4)), "size: expected pixels >= 1, one number or"),
        (lambda: cam_train_transform(4.5), "size: expected pixels >= 1, one number or"),
        (lambda: cam_train_transform(scale=(1, 0.1)), "scale: expected 0 < from <= to <= 1"),
        (lambda: cam_train_transform(scale=(0.5, 2)), "scale: expected 0 < from <= to <= 1"),
        (lambda: cam_train_transform(ratio=(0, 1)), "ratio: expected 0 < from <= to, got"),
        (lambda: cam_train_transform(flip=7), r"flip: expected 0..1, got 7"),
        (lambda: cam_train_transform(erasing=3), r"erasing: expected 0..1, got 3"),
        (lambda: cam_train_transform(erasing=float("nan")), r"erasing: expected 0..1, got nan"),
        (lambda: seg_train_transform(4, flip=-1), "flip: expected 0..1, got -1"),
        (lambda: seg_train_transform((4, -1)), "size"),
        (lambda: seg_train_transform(4, short_side=0), "short_side"),
        (lambda: seg_train_transform(4, short_side=3), r"expected at least 2 pixels .* 3 \* 0.5"),
        (lambda: seg_train_transform(4, ratio=(2.0, 1.0)), "ratio"),
        (lambda: seg_train_transform(4, max_ratio=0.5), "max_ratio"),
        (lambda: seg_train_transform(4, cat_max_ratio=0.0), "cat_max_ratio"),
        (lambda: RandomLabelCrop((4, 4))(noise(8, 8)), "one mask, got 0"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
