"""CAMs and scores of images as files: ours, and those of the published code."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from weaktr.data.cls_labels import read_pickled_arrays
from weaktr.data.io import size_message
from weaktr.data.manifest import Sample
from weaktr.data.parallel import ordered_map, read_images
from weaktr.data.problems import Problem
from weaktr.files import names_in, write_bytes


class StoredCams:
    """CAMs of an earlier run, as a source for labelling (`weaktr.inference.cams.CamSource`).

    The image-level labels of the samples are ignored: the CAMs say which classes an image has. An
    image without CAMs has none.

    Args:
        folder: of NAME.npz (`write_cams`) or NAME.npy (the published code), at any depth.
        samples: the images.

    Raises:
        ValueError: there are no CAMs in the folder, or none of these images.
    """

    def __init__(self, folder: Path, samples: Sequence[Sample]) -> None:
        names, suffix = names_in(folder, ".npz", ".npy")
        known = set(names)
        self.files = {s.name: folder / f"{s.name}{suffix}" for s in samples if s.name in known}
        if not self.files:
            raise ValueError(f"{folder}: none of its {len(names)} CAMs has the name of an image")

    def shows_a_class(self, sample: Sample) -> bool:
        """Whether there are CAMs of the image."""
        return sample.name in self.files

    def cams(
        self, samples: Iterable[Sample], unreadable: list[Problem]
    ) -> Iterator[tuple[Sample, np.ndarray, np.ndarray]]:
        """See `CamSource`; the samples that come back have the labels of their CAMs."""
        for item in ordered_map(self._with_cams, read_images(samples, unreadable)):
            if isinstance(item, Problem):
                unreadable.append(item)
            else:
                yield item

    def _with_cams(
        self, item: tuple[Sample, np.ndarray]
    ) -> tuple[Sample, np.ndarray, np.ndarray] | Problem:
        sample, image = item
        path = self.files.get(sample.name)
        if path is None:
            return sample, image, np.zeros((0, *image.shape[:2]), np.float32)
        try:
            cams, classes = read_cams(path)
        except ValueError as error:
            return Problem(str(path), sample.source, str(error).removeprefix(f"{path}: "))
        if cams.shape[1:] != image.shape[:2]:
            message = size_message("CAMs", cams.shape[1:], image.shape[:2])
            return Problem(str(path), sample.source, message)
        return replace(sample, labels=tuple(classes.tolist())), image, cams


def write_cams(path: Path, cams: np.ndarray, classes: Sequence[int]) -> None:
    """Write one image's CAMs: float32 [K, H, W] in [0, 1] and the K class indices, as npz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, cams=cams, classes=np.asarray(classes, np.int64))
    write_bytes(path, buffer.getvalue(), durable=False)


def write_scores(path: Path, scores: np.ndarray) -> None:
    """Write the scores of the labels that win somewhere in an image, as npz.

    Args:
        path: the file; ``prob`` is float32 [K, H, W], ``keys`` the K labels, ascending, as in the
            files of the published code.
        scores: float32 [L, H, W].
    """
    keys = np.unique(scores.argmax(0))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, prob=scores[keys], keys=keys)
    write_bytes(path, buffer.getvalue(), durable=False)


#: What a damaged or foreign file makes NumPy raise.
_BROKEN = (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile, zlib.error)


def read_cams(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one image's CAMs.

    Args:
        path: an npz of `write_cams`, or an npy of the published code: a pickled dict of class
            index -> float32 [H, W], read without running what a pickle could run.

    Returns:
        (CAMs [K, H, W], class indices int64 [K]).

    Raises:
        ValueError: missing, corrupt, or something else; names the file.
    """
    try:
        if path.suffix == ".npy":
            maps = read_pickled_arrays(path)
            classes = np.array(list(maps), np.int64)
            cams = np.stack(list(maps.values()))
        else:
            with np.load(path, allow_pickle=False) as stored:
                cams, classes = stored["cams"], stored["classes"]
    except _BROKEN as error:
        raise ValueError(f"{path}: expected CAMs (class -> [H, W]), got: {error}") from error
    if cams.ndim != 3 or classes.shape != cams.shape[:1] or not _are_classes(classes):
        raise ValueError(
            f"{path}: expected CAMs [K, H, W] of K classes 0 to 253, "
            f"got {cams.shape} of classes {classes.tolist()}"
        )
    if not np.isfinite(cams).all():
        raise ValueError(f"{path}: expected finite CAMs, got NaN or infinity")
    return cams, classes


def _are_classes(indices: np.ndarray) -> bool:
    """Whether these are different indices that a mask has room for, beside 0 and 255."""
    listed = indices.tolist()
    return (
        bool(np.issubdtype(indices.dtype, np.integer))
        and len(set(listed)) == len(listed)
        and all(0 <= index < 254 for index in listed)
    )
