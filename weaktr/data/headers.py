"""What the headers of image files say of samples: cheap enough to be read before every run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path

from PIL import Image

from weaktr.data.io import (
    ACROSS,
    check_is_8_bit,
    check_is_mask,
    open_image,
    orientation,
    size_message,
)
from weaktr.data.manifest import Exif, Sample
from weaktr.data.parallel import ordered_map
from weaktr.data.problems import DataError, Problem
from weaktr.progress import track


class Headers:
    """Reads headers in threads, that of a photograph once however many splits it is in."""

    def __init__(self) -> None:
        self._photograph_size = cache(_photograph_size)

    def problems(self, samples: Sequence[Sample], *, masks: bool = False) -> list[Problem]:
        """Files that are missing or no images, and masks that do not fit their photographs.

        Args:
            samples: whose photographs to look at.
            masks: whether to look at their true masks too: number of channels and size.

        Returns:
            The faults in the order of the samples.
        """
        of_samples = ordered_map(partial(self._of_sample, masks=masks), samples)
        faults = track(of_samples, "looking at headers", len(samples), is_minor=True)
        return [problem for of_sample in faults for problem in of_sample]

    def _of_sample(self, sample: Sample, masks: bool) -> tuple[Problem, ...]:
        try:
            size = self._photograph_size(sample.image, sample.source, sample.exif)
            if not masks or sample.mask is None:
                return ()
            own = _mask_size(sample.mask, sample.source)
        except DataError as error:
            return error.problems
        if own == size:
            return ()
        message = size_message("mask", own, size)
        return (Problem(str(sample.mask), sample.source, message),)


def _photograph_size(path: Path, source: str, exif: Exif) -> tuple[int, int]:
    """(H, W) of a photograph as it is read."""

    def size(image: Image.Image) -> tuple[int, int]:
        check_is_8_bit(image, path, source)
        across = exif == "apply" and orientation(image) in ACROSS
        return (image.width, image.height) if across else (image.height, image.width)

    return open_image(path, source, size)


def _mask_size(path: Path, source: str) -> tuple[int, int]:
    """(H, W) of a mask."""

    def size(image: Image.Image) -> tuple[int, int]:
        check_is_mask(image, path, source)
        return image.height, image.width

    return open_image(path, source, size)
