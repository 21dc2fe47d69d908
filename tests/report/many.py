"""Photographs that compress as real ones do, with masks of several classes."""

from __future__ import annotations

import numpy as np
from PIL import Image

from weaktr.data import Sample
from weaktr.data.masks import areas_of, write_mask
from weaktr.report.photographs import Photo


def smooth(rng, size, detail):
    """Noise without fine detail, float [h, w] in [0, 1]."""
    small = Image.fromarray(rng.random((detail, detail)).astype(np.float32))
    return np.asarray(small.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)


def many_photos(folder, count):
    """Photographs of 640 x 480, their masks of four classes, and three CAMs each."""
    photos, maps = [], {}
    for index in range(count):
        rng = np.random.default_rng(index)
        layers = [smooth(rng, (640, 480), 2**k) / 2**k for k in range(1, 8)]
        pixels = sum(layers)[..., None] * rng.random(3) + rng.normal(0, 0.02, (480, 640, 3))
        image, mask = folder / f"{index}.jpg", folder / f"{index}.png"
        Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8)).save(image, quality=90)
        labels = np.argmax([smooth(rng, (640, 480), 6) for _ in range(5)], 0).astype(np.uint8)
        write_mask(mask, labels)
        sample = Sample(str(index), image, (0, 1, 2, 3), None, "")
        areas = areas_of(labels)
        sure = dict.fromkeys(areas, 0.5)
        photos.append(Photo("label", sample, mask, (480, 640), areas, sure, is_edited=False))
        cams = [(255 * smooth(rng, (44, 33), 6)).astype(np.uint8) for _ in range(3)]
        maps[id(photos[-1])] = [*zip((1, 2, 3), cams, strict=True)]
    return photos, maps
