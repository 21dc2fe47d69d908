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
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from weaktr.data.classes import IGNORE
from weaktr.data.patch_targets import ToPatches

#: mean and standard deviation of R, G, B in 0..1
Normalization = tuple[tuple[float, float, float], tuple[float, float, float]]
IMAGENET: Normalization = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_ERASING_AREA = (0.02, 1 / 3)
_ERASING_RATIO = (0.3, 1 / 0.3)
#: Rows of an image that are distorted together, so that their values stay in a core's cache.
_ROWS = 64
#: A mask has at least one pixel of most of its labels among those that are so far apart.
_STEP = 16


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
    steps.append(Normalise(normalization))
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
    patch_size: int = 16,
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
        normalization: mean and standard deviation of R, G, B in 0..1, see `_rounded`.
        patch_size: side in pixels of the patches for which soft labels are computed.

    Returns:
        uint8 [3, h, w] image, uint8 [h, w] mask -> float32 [3, H, W], uint8 [H, W]. Padding is 0
        after normalisation (the mean colour) and 255 = ignore. A third input, a `SoftMap` of K
        labels, becomes float32 [K, patches of H, patches of W].

    Raises:
        ValueError: an argument is out of range.

    Source: reference.md 46 (mmsegmentation's training pipeline).
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
    normalise = Normalise(_rounded(normalization))
    steps += [normalise, PadTo(size), ToPatches(patch_size), v2.ToPureTensor()]
    return v2.Compose(steps)


def _rounded(normalization: Normalization) -> Normalization:
    """To two decimals of 0..255, as published in stage 2; predictions have the same."""
    mean, std = (tuple(np.round(255 * np.array(v), 2) / 255) for v in normalization)
    return mean, std


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


class Normalise(v2.Transform):
    """Images uint8 -> float32, (pixel / 255 - mean) / std.

    To the bit as by torchvision's `ToDtype` and `Normalize`, which pass through memory four times;
    here a colour stays in a core's cache.

    Args:
        normalization: mean and standard deviation of R, G, B in 0..1.
    """

    _transformed_types = (tv_tensors.Image,)

    def __init__(self, normalization: Normalization) -> None:
        super().__init__()
        self.normalization = normalization

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        pixels = inpt.as_subclass(torch.Tensor)
        result = torch.empty(pixels.shape, dtype=torch.float32)
        for colour, own, mean, std in zip(result, pixels, *self.normalization, strict=True):
            colour.copy_(own).mul_(1 / 255).sub_(mean).div_(std)
        return tv_tensors.wrap(result, like=inpt)


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
        if isinstance(inpt, tv_tensors.Mask):
            return tv_tensors.wrap(_nearest(inpt.numpy(), params["size"]), like=inpt)
        bilinear = v2.InterpolationMode.BILINEAR
        return F.resize(inpt, params["size"], interpolation=bilinear, antialias=False)


def _nearest(mask: np.ndarray, size: list[int]) -> torch.Tensor:
    """A mask [..., h, w] at (H, W), as torch resizes to the nearest; in less than half the time."""
    rows, columns = (
        interpolate(torch.arange(float(side))[None, None], length)[0, 0].long().numpy()
        for side, length in zip(mask.shape[-2:], size, strict=True)
    )
    return torch.from_numpy(mask.take(columns, axis=-1).take(rows, axis=-2))


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
        counts = _label_counts(mask.numpy()[..., rows, columns])[:IGNORE]
        is_several = np.count_nonzero(counts) > 1
        return bool(is_several and counts.max() < self.cat_max_ratio * counts.sum())

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        part = F.crop(inpt, **params)
        if not isinstance(part, tv_tensors.Image):
            return part
        # what comes next computes colour by colour; also, the whole image need not be kept
        return tv_tensors.wrap(part.contiguous(), like=part)


def _label_counts(labels: np.ndarray) -> np.ndarray:
    """How many pixels have which label: int64 [256] of uint8 [..., h, w].

    Label by label, which for a mask's few is several times faster than counting pixel by pixel.
    """
    counts = np.zeros(IGNORE + 1, np.int64)
    others = np.ones(labels.shape, bool)
    for label in np.unique(labels[..., ::_STEP, ::_STEP]):
        same = labels == label
        counts[label] = np.count_nonzero(same)
        others ^= same
    return counts + np.bincount(labels[others], minlength=IGNORE + 1)


class PhotometricDistortion(v2.Transform):
    """Change brightness, contrast, saturation and hue, each with probability ½.

    Brightness: + U(-32, 32)/255. Contrast: · U(½, 1½). Saturation: S · U(½, 1½) and hue: H + 2k°
    with k drawn uniformly from the integers -18 <= k < 18, both in HSV. Contrast comes
    before saturation and hue with probability ½, else after them. Values are clipped to the range
    of 8 bits after each step.

    torchvision's `v2.RandomPhotometricDistort` is another transform (brightness multiplies,
    contrast turns about the mean, saturation blends with grey, channels are permuted). The
    published code rounds to 8 bits between the steps; here the image is rounded once, at the end.
    Hue and saturation change in one pass, several times as fast as by torchvision's `adjust_hue`,
    from which a value differs by one of 255 where it lies half-way between two.

    Source: Liu et al., "SSD", arXiv 1512.02325, data augmentation, as in mmsegmentation.
    """

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        def drawn(low: float, high: float, otherwise: float) -> float:
            value = low + (high - low) * float(torch.rand(()))
            return value if torch.rand(()) < 0.5 else otherwise

        turn = int(torch.randint(-18, 18, ()))
        return {
            "brightness": drawn(-32, 32, 0.0),
            "contrast": drawn(0.5, 1.5, 1.0),
            "contrast_first": bool(torch.rand(()) < 0.5),
            "saturation": drawn(0.5, 1.5, 1.0),
            "hue": turn / 180 if torch.rand(()) < 0.5 else 0.0,
        }

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        if not isinstance(inpt, tv_tensors.Image):
            return inpt
        strips = inpt.as_subclass(torch.Tensor).split(_ROWS, dim=-2)
        return tv_tensors.wrap(torch.cat([_distorted(s, **params) for s in strips], -2), like=inpt)


def _distorted(
    pixels: torch.Tensor,
    brightness: float,
    contrast: float,
    contrast_first: bool,
    saturation: float,
    hue: float,
) -> torch.Tensor:
    """`PhotometricDistortion` of uint8 [3, H, W] by what it has drawn; the hue in turns."""
    image = pixels.to(torch.float32).mul_(1 / 255)
    if brightness:
        image.add_(brightness / 255).clamp_(0, 1)
    if contrast_first and contrast != 1:
        image.mul_(contrast).clamp_(0, 1)
    if saturation != 1 or hue:
        image = _with_colours(image, saturation, hue)
    if not contrast_first and contrast != 1:
        image.mul_(contrast).clamp_(0, 1)
    # NumPy's conversion is several times faster than torch's
    return torch.from_numpy(image.mul_(255).round_().numpy().astype(np.uint8))


def _with_colours(image: torch.Tensor, saturation: float, hue: float) -> torch.Tensor:
    """Scale S of HSV (clipped to 1) and turn H at the same V; float32 [3, H, W] in 0..1.

    A colour c is min + w (max - min) with w from 0 to 1, and its max - min is S · V:

        min' = max - (max - min)',  (max - min)' = min(saturation · (max - min), max)

    Without comparing colours, which takes torch longer than the arithmetic.

    Args:
        image: may be written to.
        saturation: > 0.
        hue: -½..½ turns.
    """
    red, green, blue = image
    most = torch.maximum(torch.maximum(red, green), blue)
    least = torch.minimum(torch.minimum(red, green), blue)
    spread = most - least
    weights = image.sub_(least).div_(spread.clamp_min(1e-12))
    if hue:
        weights = _turned(weights, hue)
    spread = torch.minimum(spread.mul_(saturation), most)
    return weights.mul_(spread).add_(most.sub_(spread))


def _turned(weights: torch.Tensor, hue: float) -> torch.Tensor:
    """The weights w of R, G, B (see `_with_colours`) with the hue turned; float32 [3, H, W].

    On the circle of hues, in sixths, colour c lies d = 1 + Σ w - 2 w_c away from c, towards the
    next of R, G, B (d > 0) or towards the one before, and w_c = min(1, max(0, 2 - |d|)).

    Args:
        weights: of which one is 1 and one is 0 in every pixel; where all are 0, so is what they
            are multiplied by.
        hue: -½..½ turns.
    """
    away = weights.sum(0).add_(1) - 2 * weights
    away = away.copysign_(weights.roll(-1, 0).sub_(weights.roll(1, 0))).add_(6 * hue)
    # |away| is up to 6 now, and the shorter way round the circle counts
    return away.abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)


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
        if not any(missing):
            return inpt
        fill = IGNORE if isinstance(inpt, tv_tensors.Mask) else 0
        return F.pad(inpt, missing, fill=fill)
