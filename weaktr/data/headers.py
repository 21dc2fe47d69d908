"""What the headers of image files say of samples: cheap enough to be read before every run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from weaktr.data.io import image_size, mask_size, size_message
from weaktr.data.manifest import Exif, Sample
from weaktr.data.parallel import ordered_map
from weaktr.data.problems import DataError, Problem
from weaktr.progress import track


class Headers:
    """Reads headers in threads, that of a sound photograph once however many splits it is in."""

    def __init__(self) -> None:
        self._sizes: dict[tuple[Path, Exif], tuple[int, int]] = {}

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
        key = sample.image, sample.exif
        try:
            if key not in self._sizes:
                self._sizes[key] = image_size(sample.image, sample.source, sample.exif)
            if not masks or sample.mask is None:
                return ()
            own = mask_size(sample.mask, sample.source)
        except DataError as error:
            return error.problems
        if own == self._sizes[key]:
            return ()
        message = size_message("mask", own, self._sizes[key])
        return (Problem(str(sample.mask), sample.source, message),)
