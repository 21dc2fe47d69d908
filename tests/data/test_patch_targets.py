"""Soft labels on their way through the transforms of their image, against maps of every pixel."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as vision

from tests.tolerances import assert_close
from weaktr.data.patch_targets import SoftMap, shares_of_mask
from weaktr.data.transforms import seg_train_transform

PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def drawn_shares(labels: int = 3, size: tuple[int, int] = (5, 7)) -> Tensor:
    """uint8 [K, h, w] of random soft labels."""
    return (255 * torch.randn(labels, *size).mul(3).softmax(0)).round().to(torch.uint8)


def moved(image: Tensor, steps: list[tuple[str, dict[str, object]]]) -> Tensor:
    """What torchvision's transforms make of an image, a mask or soft labels."""
    for name, arguments in steps:
        image = getattr(vision, name)(image, **arguments)
    return image


def averaged(maps: Tensor, patch: int) -> Tensor:
    """Soft labels of every pixel [K, H, W] -> of patches, patch by patch."""
    rows = [
        [maps[:, y : y + patch, x : x + patch].sum((1, 2)) for x in range(0, maps.shape[2], patch)]
        for y in range(0, maps.shape[1], patch)
    ]
    sums = torch.stack([torch.stack(row, 1) for row in rows], 1)
    return torch.where(sums.sum(0) > 0, sums / sums.sum(0), 0)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [("resize", {"size": [61, 83], "antialias": False})],
        [("resize", {"size": [20, 25], "antialias": False})],
        [("crop", {"top": 3, "left": 8, "height": 24, "width": 16})],
        [("horizontal_flip", {})],
        [("pad", {"padding": [0, 0, 9, 21]})],
        [
            ("resize", {"size": [61, 83], "antialias": False}),
            ("crop", {"top": 11, "left": 30, "height": 50, "width": 41}),
            ("horizontal_flip", {}),
            ("pad", {"padding": [0, 0, 7, 14]}),
        ],
    ],
)
def test_soft_labels_move_as_their_image(steps):
    """An image whose channels are the soft labels of its pixels goes the same way."""
    shares, size = drawn_shares(), (40, 52)
    pixels = F.interpolate(shares[None].float(), size, mode="bilinear", align_corners=False)[0]
    expected = averaged(moved(tv_tensors.Image(pixels), steps).as_subclass(Tensor), 8)
    soft = moved(SoftMap.of(shares, size), steps)
    assert vision.get_size(soft) == [*moved(torch.zeros(1, *size), steps).shape[1:]]
    assert_close(soft.of_patches(8), expected, "float32")


def test_patches_of_padding_have_no_target():
    soft = moved(SoftMap.of(drawn_shares(), (16, 16)), [("pad", {"padding": [0, 0, 12, 8]})])
    totals = soft.of_patches(8).sum(0)
    expected = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert_close(totals, torch.tensor(expected).float(), "float32")


def painted(height: int = 60, width: int = 84) -> tuple[tv_tensors.Image, tv_tensors.Mask]:
    """Four rectangles, each of a label and a grey of its own; and their labels."""
    mask = torch.zeros(height, width, dtype=torch.uint8)
    mask[height // 3 :, : width // 2] = 1
    mask[: height // 2, 2 * width // 3 :] = 2
    mask[3 * height // 4 :, width // 2 :] = 3
    grey = (80 * mask).expand(3, -1, -1)
    return tv_tensors.Image(grey.contiguous()), tv_tensors.Mask(mask)


@pytest.mark.parametrize("seed", range(12))
def test_a_drawn_pattern_stays_on_its_pattern(seed):
    """Through random size, crop, flip and padding: the soft label's mean grey is the image's."""
    image, mask = painted()
    one_hot = F.one_hot(mask.long(), 4).permute(2, 0, 1)  # a cell is a pixel
    soft = SoftMap.of((255 * one_hot).to(torch.uint8), (60, 84))
    transform = seg_train_transform(
        64, short_side=60, photometric=False, normalization=PLAIN, patch_size=8
    )
    torch.manual_seed(seed)
    pixels, labels, shares = transform(image, mask, soft)
    assert type(shares) is torch.Tensor
    assert shares.shape == (4, 8, 8)
    inside = F.avg_pool2d((labels != 255).float()[None], 8)[0]
    grey = F.avg_pool2d(pixels[:1], 8)[0] / inside.clamp(min=1e-6)
    said = torch.einsum("khw,k->hw", shares, 80 / 255 * torch.arange(4.0))
    assert_close((shares.sum(0) > 0).float(), (inside > 0).float(), "float32")
    error = (grey - said).abs()[inside > 0]
    assert error.max() < 3 / 255  # rounding of images to 8 bits after resizing
    by_pixel = shares_of_mask(labels, 4, 8)
    assert (by_pixel - shares).abs().mean() < 0.02  # nearest against bilinear, at the borders alone


def test_the_mask_alone_gives_shares_too():
    mask = torch.randint(0, 4, (13, 18), dtype=torch.uint8)
    mask[mask == 3] = 255
    mask[:8, 8:16] = 255
    shares = shares_of_mask(mask, 3, 8)
    assert shares.shape == (3, 2, 3)
    for row in range(2):
        for column in range(3):
            part = mask[8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
            counts = torch.stack([(part == label).sum() for label in range(3)]).float()
            expected = counts / counts.sum() if counts.sum() else counts
            assert_close(shares[:, row, column], expected, "float32")
    assert shares[:, 0, 1].tolist() == [0, 0, 0]


def test_what_is_drawn_does_not_depend_on_soft_labels():
    """The pixels and masks of a seed stay what they are in a training with hard labels."""
    image, mask = painted()
    transform = seg_train_transform(48, short_side=60)
    soft = SoftMap.of(drawn_shares(4), (60, 84))
    torch.manual_seed(3)
    alone = transform(image, mask)
    torch.manual_seed(3)
    with_soft = transform(image, mask, soft)
    assert torch.equal(alone[0], with_soft[0])
    assert torch.equal(alone[1], with_soft[1])
