"""CAMs of an earlier run, or of the published code, as a source for labelling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from weaktr.contents import Contents
from weaktr.data import DataError, Problem, Sample
from weaktr.data.io import size_message
from weaktr.data.manifest import Exif
from weaktr.data.mask_index import MaskEntry
from weaktr.data.masks import MaskFolder
from weaktr.data.photographs import Photograph, read_photograph
from weaktr.data.stored_maps import UNKNOWN, CamOrigin, read_cams_and_origin
from weaktr.files import files_below, names_in
from weaktr.inference.cams import CamInputs, Cams
from weaktr.inference.pipeline import MIB
from weaktr.inference.transfer import pinned
from weaktr.ops.upload import upload

#: The folder in which a command leaves CAMs, beside its masks.
CAMS = "cams"
#: Photographs that are thresholded and refined together, and the most bytes that they have.
BATCH, BATCH_BYTES = 16, 256 * MIB


class StoredCams:
    """CAMs in files (`weaktr.inference.cams.CamSource`).

    The image-level labels of the samples are ignored: the CAMs say which classes an image has. An
    image without CAMs has none. CAMs of a photograph that is another one now, or was turned
    otherwise, are refused, where the file or the index beside the folder says of which they are.

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
        self._contents, self._entries = Contents(), _entries_beside(folder)
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
            cams, classes, origin = read_cams_and_origin(path)
        except ValueError as error:
            message = str(error).removeprefix(f"{path}: ")
            raise DataError(Problem(str(path), sample.source, message)) from error
        photograph = read_photograph(sample, max(cams.shape[1:]))
        self._require_same(sample, photograph, path, origin)
        if cams.shape[1:] != photograph.pixels.shape[:2]:
            message = size_message("CAMs", cams.shape[1:], photograph.size)
            raise DataError(Problem(str(path), sample.source, message))
        own = replace(sample, labels=tuple(classes.tolist()))
        return self._inputs(own, photograph, cams.astype(np.float32))

    def _require_same(
        self, sample: Sample, photograph: Photograph, path: Path, origin: CamOrigin
    ) -> None:
        """Refuse the CAMs in `path` where they are of something else than this photograph.

        Raises:
            DataError: they are.
        """
        entry = self._entries.get(sample.name)
        if origin == UNKNOWN and entry is not None:
            photographs = entry.inputs or (None,)
            origin = CamOrigin(photographs[0], entry.read_as)
        message = ""
        if photograph.exif is not None and origin.exif not in (None, sample.exif):
            how = "turned as EXIF says" if origin.exif == "apply" else "as it is stored"
            message = f"CAMs of the photograph {how}; expected --exif {origin.exif}"
        elif origin.photograph not in (None, self._contents.digest(sample.image)):
            message = f"CAMs of another photograph than {sample.image} is now; make them again"
        if message:
            raise DataError(Problem(str(path), sample.source, message))

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


def _entries_beside(folder: Path) -> dict[str, MaskEntry]:
    """The index of the masks that a command has written beside its CAMs; empty = there is none."""
    if folder.name != CAMS:
        return {}
    masks = MaskFolder(folder.parent)
    return masks.without | masks.entries


def exif_of_cams(folder: Path) -> Exif | None:
    """How the photographs of CAMs were read, as the first of the files says that can be read;
    None = it does not say."""
    first = next((path for path in files_below(folder) if path.suffix == ".npz"), None)
    try:
        return None if first is None else read_cams_and_origin(first)[2].exif
    except ValueError:  # which the images are told that have such files
        return None
