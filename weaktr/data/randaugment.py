"""RandAugment as the published recipes use it: ``rand-m9-mstd0.5-inc1``.

torchvision's `v2.RandAugment` is another variant: fixed strength, every operation applied, other
operations, and ranges that do not all grow with strength. This one has the recipe's list and
numbers, on v2 functionals and torch's random numbers, so a draw repeats from a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

MAX_MAGNITUDE = 10.0
_ROTATE_DEGREES = 30.0
_SHEAR_TAN = 0.3
_TRANSLATE_SHARE = 0.45
_ENHANCE_SPAN = 0.9
_SOLARIZE_ADD = 110
_SOLARIZE_ADD_BELOW = 128


class RandAugment(v2.Transform):
    """Apply some of 15 operations of random strength to uint8 images.

    `num_ops` times: draw one operation, evenly and with repetition; with probability `p` apply it
    at strength m = clip(Normal(`magnitude`, `magnitude_std`), 0, 10); signs are drawn evenly.

    ==================================  =====================================================
    autocontrast, equalize, invert      no strength
    rotate                              ± 30° m/10
    shear x, y                          tangent ± 0.3 m/10, about the upper left corner
    translate x, y                      ± 0.45 m/10 of width, height
    color, contrast, brightness,        factor 1 ± 0.9 m/10, at least 0.1
    sharpness
    posterize                           keep 4 - floor(4 m/10) bits, at least 1
    solarize                            invert values >= 256 - floor(256 m/10)
    solarize-add                        add floor(110 m/10) to values < 128
    ==================================  =====================================================

    Rotate, shear and translate sample bilinearly (the published code: bicubic, which torchvision
    has not for tensors).

    Args:
        magnitude: mean strength, 0..10.
        magnitude_std: standard deviation of the strength.
        num_ops: draws per image.
        p: probability that a drawn operation is applied.
        fill: RGB 0..255 for pixels that come from outside the image.

    Raises:
        ValueError: an argument is out of range.

    Source: Cubuk et al., "RandAugment", arXiv 1909.13719, for the method; operations and ranges of
    timm's ``rand-m9-mstd0.5-inc1``, which DeiT and WeakTr train with.
    """

    def __init__(
        self,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        num_ops: int = 2,
        p: float = 0.5,
        fill: tuple[int, int, int] = (124, 116, 104),
    ) -> None:
        super().__init__()
        if not 0 <= magnitude <= MAX_MAGNITUDE:
            raise ValueError(f"magnitude: expected 0..{MAX_MAGNITUDE:g}, got {magnitude}")
        if magnitude_std < 0:
            raise ValueError(f"magnitude_std: expected >= 0, got {magnitude_std}")
        if num_ops < 0:
            raise ValueError(f"num_ops: expected >= 0, got {num_ops}")
        if not 0 <= p <= 1:
            raise ValueError(f"p: expected 0..1, got {p}")
        self.magnitude, self.magnitude_std = magnitude, magnitude_std
        self.num_ops, self.p, self.fill = num_ops, p, list(fill)

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        names = list(OPERATIONS)
        chosen = []
        for _ in range(self.num_ops):
            name = names[int(torch.randint(len(names), ()))]
            applied = bool(torch.rand(()) < self.p)
            strength = self.magnitude + self.magnitude_std * float(torch.randn(()))
            sign = 1 if torch.rand(()) < 0.5 else -1
            if applied:
                chosen.append((name, min(max(strength, 0.0), MAX_MAGNITUDE), sign))
        return {"chosen": chosen}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        for name, strength, sign in params["chosen"]:
            inpt = OPERATIONS[name](inpt, strength / MAX_MAGNITUDE, sign, self.fill)
        return inpt


#: image, strength 0..1, sign +1 or -1, fill colour -> image
Operation = Callable[[Any, float, int, list[int]], Any]


def _affine(image: Any, fill: list[int], **moves: Any) -> Any:
    still: dict[str, Any] = {
        "angle": 0.0,
        "translate": [0.0, 0.0],
        "scale": 1.0,
        "shear": [0.0, 0.0],
    }
    bilinear = v2.InterpolationMode.BILINEAR
    return F.affine(image, **{**still, **moves}, interpolation=bilinear, fill=fill)


def _rotate(image: Any, strength: float, sign: int, fill: list[int]) -> Any:
    return _affine(image, fill, angle=sign * strength * _ROTATE_DEGREES)


def _shear(axis: int) -> Operation:
    def apply(image: Any, strength: float, sign: int, fill: list[int]) -> Any:
        shear = [0.0, 0.0]
        tangent = torch.tensor(sign * strength * _SHEAR_TAN)
        shear[axis] = float(torch.rad2deg(torch.atan(tangent)))
        return _affine(image, fill, shear=shear, center=[0.0, 0.0])

    return apply


def _translate(axis: int) -> Operation:
    def apply(image: Any, strength: float, sign: int, fill: list[int]) -> Any:
        height, width = F.get_size(image)
        move = [0.0, 0.0]
        move[axis] = sign * strength * _TRANSLATE_SHARE * (width, height)[axis]
        return _affine(image, fill, translate=move)

    return apply


def _enhance(adjust: Callable[[Any, float], Any]) -> Operation:
    def apply(image: Any, strength: float, sign: int, fill: list[int]) -> Any:
        return adjust(image, max(0.1, 1.0 + sign * strength * _ENHANCE_SPAN))

    return apply


def _posterize(image: Any, strength: float, sign: int, fill: list[int]) -> Any:
    return F.posterize(image, max(1, 4 - int(4 * strength)))


def _solarize(image: Any, strength: float, sign: int, fill: list[int]) -> Any:
    threshold = 256 - int(256 * strength)
    return image if threshold > 255 else F.solarize(image, threshold)


def _solarize_add(image: Any, strength: float, sign: int, fill: list[int]) -> Any:
    added = (image.to(torch.int16) + int(_SOLARIZE_ADD * strength)).clamp(max=255).to(torch.uint8)
    return tv_tensors.wrap(torch.where(image < _SOLARIZE_ADD_BELOW, added, image), like=image)


def _plain(function: Callable[[Any], Any]) -> Operation:
    def apply(image: Any, strength: float, sign: int, fill: list[int]) -> Any:
        return function(image)

    return apply


OPERATIONS: dict[str, Operation] = {
    "autocontrast": _plain(F.autocontrast),
    "equalize": _plain(F.equalize),
    "invert": _plain(F.invert),
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": _solarize,
    "solarize_add": _solarize_add,
    "color": _enhance(F.adjust_saturation),
    "contrast": _enhance(F.adjust_contrast),
    "brightness": _enhance(F.adjust_brightness),
    "sharpness": _enhance(F.adjust_sharpness),
    "shear_x": _shear(0),
    "shear_y": _shear(1),
    "translate_x": _translate(0),
    "translate_y": _translate(1),
}
