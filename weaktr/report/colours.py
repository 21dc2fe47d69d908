"""The colours of labels in the page, which differ more than VOC's: those are for mask files."""

from __future__ import annotations

from functools import cache

import numpy as np

from weaktr.data.classes import IGNORE

#: Candidates: so many steps of each channel.
STEPS = 18
#: How light (0 to 1) and how far from grey they are, so that they are seen on photographs, in a
#: bright page and in a dark one.
LIGHTNESS, LEAST_CHROMA = (0.55, 0.9), 0.09
UNDECIDED = (190, 190, 190)


@cache
def colours() -> np.ndarray:
    """uint8 [256, 3] RGB: of each label the candidate that is furthest from those before it.

    Background is black (it is drawn transparent), undecided pixels are grey.
    """
    candidates = _candidates()
    places = oklab(candidates)
    found = np.zeros((256, 3), np.uint8)
    distance = np.linalg.norm(places - oklab(np.array([UNDECIDED], np.uint8)), axis=1)
    for label in range(1, IGNORE):
        chosen = int(distance.argmax())
        found[label] = candidates[chosen]
        distance = np.minimum(distance, np.linalg.norm(places - places[chosen], axis=1))
    found[IGNORE] = UNDECIDED
    found.setflags(write=False)
    return found


def _candidates() -> np.ndarray:
    """uint8 [N, 3] RGB: clear colours that are neither dark nor pale."""
    steps = np.linspace(0, 255, STEPS).round().astype(np.uint8)
    every = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)
    lightness, *rest = oklab(every).T
    is_clear = np.hypot(*rest) >= LEAST_CHROMA
    return every[is_clear & (lightness >= LIGHTNESS[0]) & (lightness <= LIGHTNESS[1])]


def oklab(rgb: np.ndarray) -> np.ndarray:
    """uint8 [N, 3] sRGB -> float [N, 3], in which distances are about those that people see.

    Source: B. Ottosson, "A perceptual color space for image processing" (2020).
    """
    share = rgb / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(linear @ _CONES.T)
    return cones @ _LAB.T


_CONES = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
