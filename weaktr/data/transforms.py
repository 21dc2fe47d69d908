"""Training and validation transforms of both stages, on torchvision v2 and tv_tensors.

All random numbers come from torch's generator. Images enter as uint8 `tv_tensors.Image`, masks as
uint8 `tv_tensors.Mask`; plain tensors come out.
"""

from __future__ import annotations

import math
import random
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from weaktr.data.classes import IGNORE

#: mean and standard deviation of R, G, B in 0..1
Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Share of the short side that validation crops away around the centre: 256 -> 224.
_VAL_RESIZE = 256 / 224
_ERASING_AREA = (0.02, 1 / 3)
_ERASING_RATIO = (0.3, 1 / 0.3)


def cam_train_transform(
    size: int | tuple[int, int] = 224,
    *,
    normalization: Normalization = IMAGENET,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: float = 0.5,
    randaugment: bool = True,
    erasing: float = 0.25,
) -> v2.Compose:
    """Stage 1, training: random resized crop, flip, RandAugment, normalise, random erasing.

    Args:
        size: output H = W, or (H, W), in pixels.
        normalization: mean and standard deviation of R, G, B in 0..1.
        scale: share of the image's area that the crop covers, from, to.
        ratio: width / height of the crop, from, to.
        flip: probability of mirroring left and right.
        randaugment: whether `RandAugment` runs.
        erasing: probability that a rectangle is replaced by normal noise, drawn for each pixel.

    Returns:
        uint8 [3, h, w] image -> float32 [3, H, W].

    Raises:
        ValueError: an argument is out of range.

    Source: the published recipe (timm's training transform with ``rand-m9-mstd0.5-inc1``).
    """
    _require_pair("scale", scale, most=1)
    _require_pair("ratio", ratio)
    _require_share("flip", flip)
    _require_share("erasing", erasing)
    steps: list[torch.nn.Module] = [
        v2.RandomResizedCrop(_pair(size), scale, ratio, v2.InterpolationMode.BICUBIC),
        v2.RandomHorizontalFlip(flip),
    ]
    if randaugment:
        red, green, blue = (min(255, round(255 * value)) for value in normalization[0])
        steps.append(RandAugment(fill=(red, green, blue)))
    steps += _normalise(normalization)
    if erasing > 0:
        steps.append(v2.RandomErasing(erasing, _ERASING_AREA, _ERASING_RATIO, value="random"))
    return v2.Compose([*steps, v2.ToPureTensor()])


class Crop(NamedTuple):
    """What `cam_train_transform` shows of a photograph, where nothing else is augmented."""

    top: int
    left: int
    height: int
    width: int
    flipped: bool

    @staticmethod
    def draw(
        size: tuple[int, int],
        scale: tuple[float, float],
        ratio: tuple[float, float],
        flip: float,
    ) -> Crop:
        """What `cam_train_transform` would draw now for a photograph of `size` (H, W)."""
        photograph = tv_tensors.Image(torch.empty(()).expand(3, *size))  # of no memory
        params = v2.RandomResizedCrop(1, scale, ratio).make_params([photograph])
        return Crop(**params, flipped=bool(torch.rand(1) < flip))

    def of(self, image: tv_tensors.Image, size: int | tuple[int, int]) -> torch.Tensor:
        """The crop of a photograph uint8 [3, h, w], resized: uint8 [3, H, W]."""
        box = self.top, self.left, self.height, self.width
        resized = F.resized_crop(image, *box, [*_pair(size)], v2.InterpolationMode.BICUBIC)
        shown = F.horizontal_flip(resized) if self.flipped else resized
        return shown.as_subclass(torch.Tensor)


def cam_val_transform(
    size: int | tuple[int, int] = 224, *, normalization: Normalization = IMAGENET
) -> v2.Compose:
    """Stage 1, validation: resize the short side to 8/7 of `size` (224: 256), crop the centre.

    Args:
        size: output H = W, or (H, W), in pixels.
        normalization: mean and standard deviation of R, G, B in 0..1.

    Returns:
        uint8 [3, h, w] image -> float32 [3, H, W].
    """
    height, width = _pair(size)
    short = int(_VAL_RESIZE * max(height, width))
    return v2.Compose(
        [
            v2.Resize(short, v2.InterpolationMode.BICUBIC),
            v2.CenterCrop([height, width]),
            *_normalise(normalization),
            v2.ToPureTensor(),
        ]
    )


def seg_train_transform(
    crop: int | tuple[int, int] = 480,
    *,
    short_side: int = 520,
    ratio: tuple[float, float] = (0.5, 2.0),
    max_ratio: float = 8.0,
    cat_max_ratio: float = 0.75,
    flip: float = 0.5,
    photometric: bool = True,
    normalization: Normalization = IMAGENET,
) -> v2.Compose:
    """Stage 2, training: random size, random crop, flip, photometric distortion, normalise, pad.

    Args:
        crop: output H = W, or (H, W), in pixels.
        short_side: short side of the image after resizing at ratio 1.
        ratio: factor on `short_side`, drawn uniformly between the two.
        max_ratio: the long side stays below `max_ratio` times the wanted short side.
        cat_max_ratio: see `RandomLabelCrop`.
        flip: probability of mirroring left and right.
        photometric: whether `PhotometricDistortion` runs.
        normalization: mean and standard deviation of R, G, B in 0..1.

    Returns:
        uint8 [3, h, w] image, uint8 [h, w] mask -> float32 [3, H, W], uint8 [H, W]. Padding is 0
        after normalisation (the mean colour) and 255 = ignore.

    Raises:
        ValueError: an argument is out of range.

    Source: the published recipe (mmsegmentation's training pipeline).
    """
    size = _pair(crop)
    _require_share("flip", flip)
    steps: list[torch.nn.Module] = [
        RandomKeepRatioResize(short_side, ratio, max_ratio),
        RandomLabelCrop(size, cat_max_ratio),
        v2.RandomHorizontalFlip(flip),
    ]
    if photometric:
        steps.append(PhotometricDistortion())
    return v2.Compose([*steps, *_normalise(normalization), PadTo(size), v2.ToPureTensor()])


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or any(not isinstance(side, int) or side < 1 for side in sides):
        raise ValueError(f"size: expected pixels >= 1, one number or (H, W), got {size}")
    return sides[0], sides[1]


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}: expected 0..1, got {value}")


def _require_pair(name: str, pair: tuple[float, float], most: float = math.inf) -> None:
    if len(pair) != 2 or not 0 < pair[0] <= pair[1] <= most:
        bound = "" if math.isinf(most) else f" <= {most}"
        raise ValueError(f"{name}: expected 0 < from <= to{bound}, got {pair}")


def _normalise(normalization: Normalization) -> list[torch.nn.Module]:
    mean, std = normalization
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(mean), list(std))]


class RandAugment(v2.Transform):
    """timm's ``rand-m9-mstd0.5-inc1``, the published one, on uint8 images; masks stay as they are.

    Two of 15 operations are drawn, each is applied with probability ½ at strength Normal(9, 0.5)
    of 10. timm draws from Python's and NumPy's generators: for each image they are seeded from
    torch's, and afterwards their former state is restored.

    Args:
        fill: RGB 0..255 for pixels that come from outside the image.

    Source: Cubuk et al., "RandAugment", arXiv 1909.13719; reference.md 21.
    """

    def __init__(self, fill: tuple[int, int, int]) -> None:
        from timm.data.auto_augment import rand_augment_transform

        super().__init__()
        options = {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
        self.augment = rand_augment_transform("rand-m9-mstd0.5-inc1", options)
        for operation in self.augment.ops:
            if operation.name == "PosterizeIncreasing":
                operation.magnitude_max = 9.99  # keeps 1 bit; 10 keeps 0, which Pillow refuses

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"seed": int(torch.randint(2**32, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        # colour by colour: three times faster than to_pil_image and pil_to_tensor
        image = Image.merge("RGB", [Image.fromarray(colour) for colour in inpt.numpy()])
        python_state, numpy_state = random.getstate(), np.random.get_state()
        random.seed(params["seed"])
        np.random.seed(params["seed"])
        try:
            image = self.augment(image)
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
        return tv_tensors.Image(torch.from_numpy(np.stack(image.split())))


class RandomKeepRatioResize(v2.Transform):
    """Resize so that the image fits (`max_ratio`·s, s) with s = `short_side` · U(ratio).

    f = min(long / max(h, w), s / min(h, w)) with long = floor(max_ratio · short_side · u), then
    (h, w) -> floor(f·h + ½), floor(f·w + ½). Images are bilinear without antialiasing, as published
    (OpenCV); masks nearest.

    Args:
        short_side: pixels.
        ratio: 0 < from <= to; ``short_side * from`` is at least 2 (torch cannot make 1 x 1 pixel).
        max_ratio: >= 1.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self, short_side: int = 520, ratio: tuple[float, float] = (0.5, 2.0), max_ratio: float = 8.0
    ) -> None:
        super().__init__()
        _require_pair("ratio", ratio)
        if not short_side * ratio[0] >= 2:
            raise ValueError(
                f"short_side: expected at least 2 pixels at the least ratio, got {short_side} * "
                f"{ratio[0]:g}"
            )
        if not max_ratio >= 1:
            raise ValueError(f"max_ratio: expected >= 1, got {max_ratio}")
        self.short_side, self.ratio, self.max_ratio = short_side, ratio, max_ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        height, width = v2.query_size(flat_inputs)
        low, high = self.ratio
        factor = low + (high - low) * float(torch.rand((), dtype=torch.float64))
        short = int(self.short_side * factor)
        long = int(self.short_side * self.max_ratio * factor)
        scale = min(long / max(height, width), short / min(height, width))
        return {"size": [max(1, int(side * scale + 0.5)) for side in (height, width)]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        bilinear = v2.InterpolationMode.BILINEAR
        return F.resize(inpt, params["size"], interpolation=bilinear, antialias=False)


class RandomLabelCrop(v2.Transform):
    """Crop at random; redraw crops that one label fills.

    A crop is kept if its mask holds more than one label and the largest has a share below
    `cat_max_ratio` of the labelled pixels (255 counts for neither). After ten such tries an
    eleventh crop is used without a test. Images smaller than the crop are left whole (see `PadTo`).

    Args:
        size: (H, W) of the crop in pixels.
        cat_max_ratio: 0..1; 1 switches the test off.

    Raises:
        ValueError: `cat_max_ratio` is out of range; on use: there is no mask in the input.
    """

    TRIES = 10

    def __init__(self, size: tuple[int, int], cat_max_ratio: float = 0.75) -> None:
        super().__init__()
        if not 0 < cat_max_ratio <= 1:
            raise ValueError(f"cat_max_ratio: expected 0 < ratio <= 1, got {cat_max_ratio}")
        self.size, self.cat_max_ratio = size, cat_max_ratio

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        masks = [item for item in flat_inputs if isinstance(item, tv_tensors.Mask)]
        if len(masks) != 1:
            raise ValueError(f"input: expected an image and one mask, got {len(masks)} masks")
        height, width = v2.query_size(flat_inputs)
        box = self._draw(height, width)
        if self.cat_max_ratio < 1:
            for _ in range(self.TRIES):
                if self._is_mixed(masks[0], box):
                    break
                box = self._draw(height, width)
        return box

    def _draw(self, height: int, width: int) -> dict[str, int]:
        crop_height, crop_width = min(height, self.size[0]), min(width, self.size[1])
        return {
            "top": int(torch.randint(height - crop_height + 1, ())),
            "left": int(torch.randint(width - crop_width + 1, ())),
            "height": crop_height,
            "width": crop_width,
        }

    def _is_mixed(self, mask: torch.Tensor, box: dict[str, int]) -> bool:
        rows = slice(box["top"], box["top"] + box["height"])
        columns = slice(box["left"], box["left"] + box["width"])
        pixels = mask.as_subclass(torch.Tensor)[..., rows, columns].reshape(-1)
        counts = torch.bincount(pixels.int(), minlength=IGNORE + 1)[:IGNORE]
        counts = counts[counts > 0]
        return len(counts) > 1 and bool(counts.max() < self.cat_max_ratio * counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return F.crop(inpt, **params)


class PhotometricDistortion(v2.Transform):
    """Change brightness, contrast, saturation and hue, each with probability ½.

    Brightness: + U(-b, b)/255. Contrast: · U(contrast). Saturation: S · U(saturation) and hue:
    H + 2k° with k drawn uniformly from the integers -h <= k < h, both in HSV. Contrast comes
    before saturation and hue with probability ½, else after them. Values are clipped to the range
    of 8 bits after each step.

    torchvision's `v2.RandomPhotometricDistort` is another transform (brightness multiplies,
    contrast turns about the mean, saturation blends with grey, channels are permuted). The
    published code rounds to 8 bits between the steps; here the image is rounded once, at the end.

    Args:
        brightness: b, 0..255.
        contrast: 0 < from <= to.
        saturation: 0 < from <= to.
        hue: h in OpenCV's units of 2°, 0..90.

    Raises:
        ValueError: an argument is out of range.

    Source: Liu et al., "SSD", arXiv 1512.02325, data augmentation, as in mmsegmentation.
    """

    def __init__(
        self,
        brightness: float = 32,
        contrast: tuple[float, float] = (0.5, 1.5),
        saturation: tuple[float, float] = (0.5, 1.5),
        hue: int = 18,
    ) -> None:
        super().__init__()
        if not 0 <= brightness <= 255:
            raise ValueError(f"brightness: expected 0..255, got {brightness}")
        _require_pair("contrast", contrast)
        _require_pair("saturation", saturation)
        if not 0 <= hue <= 90:
            raise ValueError(f"hue: expected 0..90 units of 2°, got {hue}")
        self.brightness, self.contrast = brightness, contrast
        self.saturation, self.hue = saturation, hue

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        def drawn(low: float, high: float, otherwise: float) -> float:
            value = low + (high - low) * float(torch.rand(()))
            return value if torch.rand(()) < 0.5 else otherwise

        turn = int(torch.randint(-self.hue, self.hue, ())) if self.hue else 0
        return {
            "brightness": drawn(-self.brightness, self.brightness, 0.0),
            "contrast": drawn(*self.contrast, 1.0),
            "contrast_first": bool(torch.rand(()) < 0.5),
            "saturation": drawn(*self.saturation, 1.0),
            "hue": turn / 180 if torch.rand(()) < 0.5 else 0.0,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        image = F.to_dtype(inpt, torch.float32, scale=True).as_subclass(torch.Tensor)
        image = (image + params["brightness"] / 255).clamp(0, 1)
        if params["contrast_first"]:
            image = (image * params["contrast"]).clamp(0, 1)
        image = _scale_saturation(image, params["saturation"])
        if params["hue"]:
            image = F.adjust_hue(image, params["hue"])
        if not params["contrast_first"]:
            image = (image * params["contrast"]).clamp(0, 1)
        return tv_tensors.wrap((image * 255).round().to(torch.uint8), like=inpt)


def _scale_saturation(image: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply S of HSV by `factor` (clipped to 1) at the same H and V; [3, H, W] in 0..1.

    With V = max and S = 1 - min/V, a channel c becomes V - (V - c)·S'/S.
    """
    if factor == 1.0:
        return image
    value = image.amax(dim=-3, keepdim=True)
    spread = value - image.amin(dim=-3, keepdim=True)
    most = torch.where(spread > 0, value / spread.clamp(min=1e-12), torch.ones_like(value))
    return value - (value - image) * most.clamp(max=factor)


class PadTo(v2.Transform):
    """Pad right and bottom to at least (H, W): images with 0, masks with 255 = ignore.

    Args:
        size: (H, W) in pixels.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        height, width = F.get_size(inpt)
        missing = [0, 0, max(0, self.size[1] - width), max(0, self.size[0] - height)]
        fill = IGNORE if isinstance(inpt, tv_tensors.Mask) else 0
        return F.pad(inpt, missing, fill=fill)
