"""CAMs of an earlier run, or of the published code, as a source for labelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from weaktr.data import DataError, Problem, Sample
from weaktr.data.io import size_message
from weaktr.data.photographs import Photograph, read_photograph
from weaktr.data.stored_maps import read_cams
from weaktr.files import files_below, names_in
from weaktr.inference.cams import CamInputs, Cams
from weaktr.inference.pipeline import MIB
from weaktr.inference.transfer import pinned
from weaktr.ops.upload import upload

#: Photographs that are thresholded and refined together, and the most bytes that they have.
BATCH, BATCH_BYTES = 16, 256 * MIB


class StoredCams:
    """CAMs in files (`weaktr.inference.cams.CamSource`).

    The image-level labels of the samples are ignored: the CAMs say which classes an image has. An
    image without CAMs has none.

    Args:
        folder: of NAME.npz (`npz_of_cams`) or NAME.npy (the published code), at any depth.
        samples: the images, which are worked on at the size of their CAMs.
        device: where thresholds and refiners work.

    Raises:
        ValueError: there are no CAMs in the folder, or none of these images.
    """

    def __init__(
        self,
        folder: Path,
        samples: Sequence[Sample],
        device: torch.device | None = None,
    ) -> None:
        try:
            names, suffix = names_in(folder, ".npz", ".npy")
        except ValueError as error:
            if any(path.suffix in (".npz", ".npy") for path in files_below(folder)):
                raise
            advice = "a model is given by its file, as RUN/train_cam/model.safetensors"
            raise ValueError(f"{error}; {advice}") from error
        known = set(names)
        self.files_of_cams = {
            s.name: folder / f"{s.name}{suffix}" for s in samples if s.name in known
        }
        if not self.files_of_cams:
            raise ValueError(f"{folder}: none of its {len(names)} CAMs has the name of an image")
        self.num_labels: int | None = None  # the files say which classes an image has, not of which
        self.with_features = False
        self.device = device or torch.device("cpu")

    def shows_a_class(self, sample: Sample) -> bool:
        """Whether there are CAMs of the image."""
        return sample.name in self.files_of_cams

    def files(self, sample: Sample) -> tuple[Path, ...]:
        """See `CamSource`."""
        cams = self.files_of_cams.get(sample.name)
        return (sample.image,) if cams is None else (sample.image, cams)

    def read(self, sample: Sample) -> CamInputs:
        """See `CamSource`; the sample that comes back has the labels of its CAMs."""
        path = self.files_of_cams.get(sample.name)
        if path is None:
            photograph = read_photograph(sample, None)
            cams = np.zeros((0, *photograph.pixels.shape[:2]), np.float32)
            return self._inputs(replace(sample, labels=()), photograph, cams)
        try:
            cams, classes = read_cams(path)
        except ValueError as error:
            message = str(error).removeprefix(f"{path}: ")
            raise DataError(Problem(str(path), sample.source, message)) from error
        photograph = read_photograph(sample, max(cams.shape[1:]))
        if cams.shape[1:] != photograph.pixels.shape[:2]:
            message = size_message("CAMs", cams.shape[1:], photograph.size)
            raise DataError(Problem(str(path), sample.source, message))
        own = replace(sample, labels=tuple(classes.tolist()))
        return self._inputs(own, photograph, cams.astype(np.float32))

    def _inputs(self, sample: Sample, photograph: Photograph, cams: np.ndarray) -> CamInputs:
        image, maps = (pinned(array, self.device) for array in (photograph.pixels, cams))
        return CamInputs(sample, photograph, image, [maps])

    def fits(self, batch: Sequence[CamInputs], further: CamInputs) -> bool:
        """See `CamSource`."""
        size = sum(one.nbytes for one in (*batch, further))
        return len(batch) < BATCH and size <= BATCH_BYTES

    def cams(self, batch: Sequence[CamInputs]) -> list[Cams]:
        """See `CamSource`."""
        return [Cams(one.sample.labels or (), upload(one.parts[0], self.device)) for one in batch]
