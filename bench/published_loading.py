"""The published way to load and augment images: the baseline of `bench_training.py`.

Stage 1 is timm's training transform on a Pillow image. Stage 2 is mmsegmentation's pipeline, which
computes with OpenCV on BGR bytes, rebuilt here step by step from its description (reference.md 46)
with every copy that it makes; random numbers come from NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torch.utils.data import Dataset

SHORT, LONG, CROP = 520, 4160, 480
MEAN = np.array([123.68, 116.28, 103.53])
STD = np.array([58.4, 57.12, 57.38])
IGNORE, TRIES, CAT_MAX_RATIO = 255, 10, 0.75


def cam_transform(size: int) -> Callable[[Image.Image], Tensor]:
    """Pillow image -> float32 [3, size, size]; see reference.md 21."""
    transform: Any = create_transform(
        size,
        is_training=True,
        auto_augment="rand-m9-mstd0.5-inc1",
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )
    for step in transform.transforms:
        for operation in getattr(step, "ops", []):
            if operation.name == "PosterizeIncreasing":
                operation.magnitude_max = 9.99  # Pillow refuses what 10 asks for
    return transform  # type: ignore[no-any-return]


class CamImages(Dataset[tuple[Tensor, Tensor]]):
    """Stage 1: photographs and multi-hot labels.

    Args:
        photographs: image files.
        targets: float32 [N, C].
        size: side of the output in pixels.
    """

    def __init__(self, photographs: list[Path], targets: Tensor, size: int) -> None:
        self.photographs, self.targets = photographs, targets
        self.transform = cam_transform(size)

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = Image.open(self.photographs[index]).convert("RGB")
        return self.transform(image), self.targets[index]


class SegImages(Dataset[tuple[Tensor, Tensor]]):
    """Stage 2: photographs and masks -> float32 [3, 480, 480], int64 [480, 480]."""

    def __init__(self, photographs: list[Path], masks: list[Path]) -> None:
        cv2.setNumThreads(1)
        self.photographs, self.masks = photographs, masks

    def __len__(self) -> int:
        return len(self.photographs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        content = np.frombuffer(self.photographs[index].read_bytes(), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR)
        assert image is not None
        mask = np.array(Image.open(self.masks[index])).squeeze().astype(np.uint8)
        image, mask = resized(image, mask)
        image, mask = cropped(image, mask)
        if np.random.rand() < 0.5:
            image, mask = np.flip(image, 1), np.flip(mask, 1).copy()
        image, mask = padded(normalised(distorted(image)), mask)
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))
        return torch.from_numpy(planes), torch.from_numpy(mask.astype(np.int64))


def resized(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both at a random size."""
    factor = np.random.uniform(0.5, 2.0)
    height, width = mask.shape
    long, short = int(LONG * factor), int(SHORT * factor)
    scale = min(long / max(height, width), short / min(height, width))
    size = int(width * scale + 0.5), int(height * scale + 0.5)
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    return image, cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)


def cropped(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A random crop of both, drawn again where one label fills it."""
    place = drawn(mask)
    for _ in range(TRIES):
        labels, counts = np.unique(mask[place], return_counts=True)
        counts = counts[labels != IGNORE]
        if len(counts) > 1 and counts.max() / counts.sum() < CAT_MAX_RATIO:
            break
        place = drawn(mask)
    return image[place], mask[place]


def drawn(mask: np.ndarray) -> tuple[slice, slice]:
    """A random place of the crop."""
    top, left = (np.random.randint(0, max(side - CROP, 0) + 1) for side in mask.shape)
    return slice(top, top + CROP), slice(left, left + CROP)


def distorted(image: np.ndarray) -> np.ndarray:
    """Brightness, contrast, saturation and hue, rounded to bytes after each."""
    if np.random.randint(2):
        image = scaled(image, beta=np.random.uniform(-32, 32))
    contrast_last = np.random.randint(2)
    if not contrast_last and np.random.randint(2):
        image = scaled(image, np.random.uniform(0.5, 1.5))
    if np.random.randint(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 1] = scaled(hsv[..., 1], np.random.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if np.random.randint(2):
        hsv = cv2.cvtColor(image, cv2.COLOR_BGR2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + np.random.randint(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)
    if contrast_last and np.random.randint(2):
        image = scaled(image, np.random.uniform(0.5, 1.5))
    return image


def scaled(values: np.ndarray, alpha: float = 1.0, beta: float = 0.0) -> np.ndarray:
    """Bytes times alpha plus beta."""
    return np.clip(values.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)


def normalised(image: np.ndarray) -> np.ndarray:
    """BGR bytes -> RGB float32, as mmcv's `imnormalize`."""
    image = image.copy().astype(np.float32)
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
    cv2.subtract(image, MEAN.reshape(1, -1), image)
    cv2.multiply(image, 1 / STD.reshape(1, -1), image)
    return image


def padded(image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both at 480 x 480: 0, and 255 = ignore."""
    missing = 0, CROP - mask.shape[0], 0, CROP - mask.shape[1]
    image = cv2.copyMakeBorder(image, *missing, cv2.BORDER_CONSTANT, value=0)
    return image, cv2.copyMakeBorder(mask, *missing, cv2.BORDER_CONSTANT, value=IGNORE)
