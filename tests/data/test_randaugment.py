"""RandAugment: timm's, as published, with random numbers that repeat and disturb nobody."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torchvision import tv_tensors

from weaktr.data.transforms import IMAGENET, RandAugment, cam_train_transform

FILL = (124, 116, 104)


@pytest.fixture
def image() -> tv_tensors.Image:
    """A smooth scene with edges, not square; uint8 [3, 60, 90]."""
    y, x = np.mgrid[:60, :90]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)])
    pixels = (127 + 100 * waves).astype(np.uint8)
    pixels[:, 20:40, 30:60] = np.array([220, 30, 60]).reshape(3, 1, 1)
    return tv_tensors.Image(torch.from_numpy(pixels))


def drawn(image: tv_tensors.Image, seed: int) -> torch.Tensor:
    torch.manual_seed(seed)
    return RandAugment(FILL)(image)


def test_it_is_the_published_one(image: tv_tensors.Image) -> None:
    """The same pixels as the step in timm's training transform, which the published code builds.

    But for posterize at strength 10, see `test_posterize_keeps_a_bit`.
    """
    published = create_transform(
        224,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        mean=IMAGENET[0],
    )
    (theirs,) = (t for t in published.transforms if type(t).__name__ == "RandAugment")
    (ours,) = (t for t in cam_train_transform().transforms if isinstance(t, RandAugment))
    (posterize,) = (operation for operation in theirs.ops if "Posterize" in operation.name)
    posterize.magnitude_max = 9.99
    photo = Image.fromarray(image.permute(1, 2, 0).numpy())
    changed = 0
    for seed in range(300):
        random.seed(seed)
        np.random.seed(seed)
        expected = torch.from_numpy(np.array(theirs(photo))).permute(2, 0, 1)
        out = ours.transform(image, {"seed": seed})
        assert torch.equal(out, expected)
        changed += not torch.equal(out, image)
    assert changed > 150


def test_strengths(image: tv_tensors.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    augment = RandAugment(FILL)
    strengths: dict[str, list[float]] = {}

    def record(operation: Any) -> None:
        levels, argument = strengths.setdefault(operation.name, []), operation.level_fn

        def level_fn(level: float, options: dict[str, Any]) -> Any:
            levels.append(level)
            return argument(level, options) if argument else ()

        monkeypatch.setattr(operation, "level_fn", level_fn)

    for operation in augment.augment.ops:
        record(operation)
    torch.manual_seed(0)
    corner = tv_tensors.Image(image[:, :8, :8])
    for _ in range(3000):
        augment(corner)
    counts = [len(levels) for levels in strengths.values()]
    assert len(counts) == 15
    assert sum(counts) == pytest.approx(3000, rel=0.05)  # two draws, each kept with ½
    assert max(counts) < 1.6 * min(counts)
    assert max(strengths.pop("PosterizeIncreasing")) < 10
    levels = np.concatenate(list(strengths.values()))
    assert levels.max() == 10.0  # Normal(9, 0.5), clipped
    assert np.median(levels) == pytest.approx(9.0, abs=0.05)
    assert levels[levels < 10].min() > 6


def test_posterize_keeps_a_bit(image: tv_tensors.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    """At strength 10 the published one keeps 0 bits: a black image, which Pillow now refuses."""
    augment = RandAugment(FILL)
    augment.augment.ops = [o for o in augment.augment.ops if o.name == "PosterizeIncreasing"]
    monkeypatch.setattr(random, "random", lambda: 0.0)
    monkeypatch.setattr(random, "gauss", lambda mean, std: mean + 4 * std)
    assert set(augment(image).unique().tolist()) == {0, 128}


def test_images_come_out_as_they_went_in(image: tv_tensors.Image) -> None:
    views = [drawn(image, seed) for seed in range(40)]
    assert {(view.shape, view.dtype) for view in views} == {(image.shape, torch.uint8)}
    assert all(isinstance(view, tv_tensors.Image) for view in views)
    assert 1 < sum(not torch.equal(view, image) for view in views) < 40
    mask = tv_tensors.Mask(image[0])
    assert all(torch.equal(RandAugment(FILL)(image, mask)[1], mask) for _ in range(20))


def test_a_seed_repeats(image: tv_tensors.Image) -> None:
    for seed in range(20):
        view = drawn(image, seed)
        random.random()
        np.random.random()
        assert torch.equal(drawn(image, seed), view)


def test_the_callers_random_numbers_stay_as_they_were(
    image: tv_tensors.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def numbers() -> tuple[float, ...]:
        return (random.random(), random.gauss(0, 1), np.random.random(), np.random.normal())

    def fail(photo: Image.Image) -> None:
        random.random()
        np.random.random()
        raise OSError("no photo")

    random.seed(1)
    np.random.seed(1)
    states = random.getstate(), np.random.get_state()
    expected = numbers()
    augment = RandAugment(FILL)
    for stop in (False, True):
        random.setstate(states[0])
        np.random.set_state(states[1])
        if stop:
            monkeypatch.setattr(augment, "augment", fail)
            with pytest.raises(OSError, match="no photo"):
                augment(image)
        else:
            for _ in range(5):
                augment(image)
        assert numbers() == expected
