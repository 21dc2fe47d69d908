"""RandAugment against the operations of timm, whose recipe it is."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from torchvision import tv_tensors

from weaktr.data.randaugment import OPERATIONS, RandAugment

FILL = (124, 116, 104)
TIMM = {
    "autocontrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
#: Their signs are drawn evenly, so it does not matter that the two count them the other way round.
MIRRORED = ("rotate", "translate_x", "translate_y")


@pytest.fixture
def photo() -> Image.Image:
    """A smooth scene with edges, not square."""
    y, x = np.mgrid[:60, :90]
    waves = np.stack([np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 11)], -1)
    pixels = (127 + 100 * waves).astype(np.uint8)
    pixels[20:40, 30:60] = (220, 30, 60)
    return Image.fromarray(pixels)


def as_tensor(image: Image.Image) -> tv_tensors.Image:
    return tv_tensors.Image(torch.from_numpy(np.array(image)).permute(2, 0, 1))


def test_the_same_operations() -> None:
    assert sorted(TIMM.values()) == sorted(auto_augment._RAND_INCREASING_TRANSFORMS)
    assert list(TIMM) == list(OPERATIONS)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("level", [3.0, 9.0, 9.9])
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation_is_timms(
    photo: Image.Image, monkeypatch: pytest.MonkeyPatch, name: str, level: float, sign: int
) -> None:
    theirs = -sign if name in MIRRORED else sign
    monkeypatch.setattr(auto_augment, "_randomly_negate", lambda value: theirs * value)
    to_argument = auto_augment.LEVEL_TO_ARG[TIMM[name]]
    arguments = to_argument(level, {"translate_pct": 0.45}) if to_argument else ()
    expected = auto_augment.NAME_TO_OP[TIMM[name]](
        photo, *arguments, fillcolor=FILL, resample=Image.BILINEAR
    )
    out = OPERATIONS[name](as_tensor(photo), level / 10, sign, list(FILL))
    difference = np.abs(out.permute(1, 2, 0).numpy().astype(int) - np.array(expected).astype(int))
    if name in (*MIRRORED, "shear_x", "shear_y"):
        assert np.mean(difference > 2) < 0.03  # only where image meets fill
    else:
        assert difference.max() <= 1


def test_posterize_keeps_a_bit(photo: Image.Image) -> None:
    """At strength 10 the recipe says 0 bits: a black image, which today's Pillow refuses."""
    out = OPERATIONS["posterize"](as_tensor(photo), 1.0, 1, list(FILL))
    assert set(out.unique().tolist()) == {0, 128}


def test_draws() -> None:
    augment = RandAugment()
    chosen = [augment.make_params([])["chosen"] for _ in range(6000)]
    numbers = Counter(map(len, chosen))
    assert numbers.keys() == {0, 1, 2}
    assert numbers[1] / 6000 == pytest.approx(0.5, abs=0.03)  # two draws, each kept with 1/2
    flat = [draw for draws in chosen for draw in draws]
    counts = Counter(name for name, _, _ in flat)
    assert set(counts) == set(OPERATIONS)
    assert max(counts.values()) < 1.3 * min(counts.values())
    strengths = np.array([strength for _, strength, _ in flat])
    assert strengths.max() == 10.0  # Normal(9, 0.5), clipped
    assert np.median(strengths) == pytest.approx(9.0, abs=0.05)
    assert strengths[strengths < 10].min() > 6
    assert np.mean([sign for _, _, sign in flat]) == pytest.approx(0, abs=0.05)


def test_images_come_out_as_they_went_in(photo: Image.Image) -> None:
    image = as_tensor(photo)
    views = [RandAugment()(image) for _ in range(40)]
    assert {(view.shape, view.dtype) for view in views} == {(image.shape, torch.uint8)}
    assert all(isinstance(view, tv_tensors.Image) for view in views)
    assert 1 < sum(not torch.equal(view, image) for view in views) < 40
    assert torch.equal(RandAugment(p=0.0)(image), image)
    assert torch.equal(RandAugment(num_ops=0)(image), image)


def test_a_seed_repeats(photo: Image.Image) -> None:
    views = []
    for _ in range(2):
        torch.manual_seed(3)
        views.append(RandAugment(num_ops=4, p=1.0)(as_tensor(photo)))
    assert torch.equal(*views)


@pytest.mark.parametrize(
    "bad", [{"magnitude": 11.0}, {"magnitude_std": -1.0}, {"num_ops": -1}, {"p": 1.5}]
)
def test_bad_arguments(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        RandAugment(**bad)  # type: ignore[arg-type]
