"""What transforms compute in their own way is what the libraries compute."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from weaktr.data.transforms import (
    IMAGENET,
    Normalise,
    PhotometricDistortion,
    RandomKeepRatioResize,
    RandomLabelCrop,
    cam_train_transform,
    seg_train_transform,
)
from weaktr.data.transforms import _label_counts as label_counts


def noise(height: int, width: int, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)


def interleaved(image: torch.Tensor) -> tv_tensors.Image:
    """The same image with the colours of a pixel side by side, as decoders give it."""
    return tv_tensors.Image(image.permute(1, 2, 0).contiguous().permute(2, 0, 1))


@pytest.mark.parametrize("size", [(5, 7), (1, 1), (64, 96)])
def test_normalise_is_torchvisions_to_the_bit(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image = noise(*size)
    mean, std = map(list, IMAGENET)
    theirs = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)])
    for own in (tv_tensors.Image(image), interleaved(image)):
        actual = Normalise(IMAGENET)(own)
        assert isinstance(actual, tv_tensors.Image) and actual.is_contiguous()
        assert torch.equal(actual, theirs(tv_tensors.Image(image)))


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.0, 1.3, 1.999])
@pytest.mark.parametrize("shape", [(37, 53), (1, 37, 53)])
def test_masks_are_resized_as_by_torchvision(factor: float, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mask = tv_tensors.Mask(torch.randint(0, 256, shape, dtype=torch.uint8))
    resize = RandomKeepRatioResize(40, (factor, factor))
    actual = resize(mask)
    expected = F.resize(mask, [*actual.shape[-2:]], interpolation=v2.InterpolationMode.NEAREST)
    assert isinstance(actual, tv_tensors.Mask)
    assert torch.equal(actual, expected)


def test_labels_are_counted_also_where_few_pixels_have_one() -> None:
    rng = np.random.default_rng(0)
    large = np.zeros((70, 90), np.uint8)
    large[3, 5] = 7  # not among the pixels that are looked at first
    large[40:, 20:] = 255
    for labels in (large, rng.integers(0, 256, (33, 20), np.uint8), large[:1, :1], large[:, ::3]):
        assert label_counts(labels).tolist() == np.bincount(labels.ravel(), minlength=256).tolist()


@pytest.mark.parametrize("hue", [-0.5, -0.3, -0.1, 0.05, 17 / 180, 0.25, 0.5])
@pytest.mark.parametrize("saturation", [0.5, 1.0, 1.4])
def test_colours_change_as_by_torchvision(hue: float, saturation: float) -> None:
    """To one of 255, in the few places that lie half-way between two values."""
    torch.manual_seed(0)
    image = tv_tensors.Image(noise(150, 40))
    image[:, :10] = image[:1, :10]  # greys
    image[1:, 10:20] = 0  # of full saturation
    params = {"brightness": 9.0, "contrast": 1.2, "contrast_first": False}
    actual = PhotometricDistortion().transform(
        image, params | {"saturation": saturation, "hue": hue}
    )
    expected = (image.float() / 255 + 9 / 255).clamp(0, 1)
    value = expected.amax(0)
    spread = value - expected.amin(0)
    most = torch.where(spread > 0, value / spread.clamp(min=1e-12), 1.0)
    expected = value - (value - expected) * most.clamp(max=saturation)
    expected = (F.adjust_hue(expected, hue) * 1.2).clamp(0, 1) * 255
    difference = (actual.float() - expected.round()).abs()
    assert difference.max() <= 1
    is_half_way = ((expected - expected.floor()) - 0.5).abs() < 1e-3
    assert not difference[~is_half_way].any()
    assert torch.equal(actual[:, :10], actual[:1, :10].expand_as(actual[:, :10]))  # stay grey


@pytest.mark.parametrize("size", [(60, 90), (200, 130)])
def test_how_colours_lie_in_memory_changes_no_pixel(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    image, mask = noise(*size), tv_tensors.Mask(noise(*size, channels=1)[0] // 64)
    for seed in range(6):
        for transform, others in [
            (cam_train_transform(32), ()),
            (seg_train_transform(48, short_side=50), (mask,)),
        ]:
            views = []
            for own in (tv_tensors.Image(image), interleaved(image)):
                torch.manual_seed(seed)
                views.append(transform(own, *others))
            first, second = (view[0] if others else view for view in views)
            assert torch.equal(first, second)
            assert first.is_contiguous() and second.is_contiguous()


def test_a_crop_keeps_nothing_of_the_image_around_it() -> None:
    image = interleaved(noise(100, 100))
    part, _ = RandomLabelCrop((20, 20), 1.0)(image, tv_tensors.Mask(image[0]))
    assert isinstance(part, tv_tensors.Image) and part.is_contiguous()
    assert part.untyped_storage().nbytes() == 3 * 20 * 20
