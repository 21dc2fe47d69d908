"""The colours of labels in the page, which differ more than VOC's: those are for mask files."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np

from weaktr.data.classes import IGNORE

#: Candidates: so many steps of each channel.
STEPS = 18
#: How light (0 to 1) and how far from grey they are, so that they are seen on photographs, in a
#: bright page and in a dark one.
LIGHTNESS, LEAST_CHROMA = (0.55, 0.9), 0.09
UNDECIDED = (190, 190, 190)
#: Labels that no photograph has together count as so many times as far from each other.
FAR = 3.0


def colours(together: Iterable[Collection[int]] = ()) -> np.ndarray:
    """The colours of a report.

    Labels come in turn, those of most photographs first, and each gets the candidate that is
    furthest from the colours given before, most of all from those of labels beside it.

    Args:
        together: of each photograph its labels, 1..254.

    Returns:
        uint8 [256, 3] RGB. Background is black (it is drawn transparent), undecided pixels are
        grey.
    """
    count, beside = _neighbours(together)
    candidates = _candidates()
    places = oklab(candidates)
    found = np.zeros((256, 3), np.uint8)
    found[IGNORE] = UNDECIDED
    given = [IGNORE]
    away = np.linalg.norm(places - oklab(found[[IGNORE]]), axis=1)[None]
    for label in sorted(range(1, IGNORE), key=lambda label: -count[label]):
        apart = np.where(beside[label][given], 1, FAR)
        chosen = int((away * apart[:, None]).min(0).argmax())
        found[label] = candidates[chosen]
        given.append(label)
        away = np.vstack([away, np.linalg.norm(places - places[chosen], axis=1)])
    return found


def _neighbours(together: Iterable[Collection[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Of labels their photographs, int [256], and whether two share one, bool [256, 256]."""
    count, beside = np.zeros(256, int), np.zeros((256, 256), bool)
    for labels in together:
        own = sorted(labels)
        count[own] += 1
        beside[np.ix_(own, own)] = True
    return count, beside


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
