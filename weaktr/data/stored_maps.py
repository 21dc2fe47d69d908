"""CAMs, scores and soft labels of images as files: ours, and those of the published code."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from weaktr.data.arrays import read_npz, read_pickled_arrays
from weaktr.data.classes import MAX_CLASSES
from weaktr.data.manifest import Exif
from weaktr.data.masks import was_cut_off
from weaktr.data.problems import DataError, Problem
from weaktr.files import is_outside_input
from weaktr.seals import sealed_zip

#: CAMs may leave 0 to 1 by so much: half precision rounds them.
ROUNDING = 1e-3
#: The first bytes of a zip archive, which an npz is.
ZIP = b"PK\x03\x04"


class CamOrigin(NamedTuple):
    """Of which photograph CAMs are; None = not known."""

    photograph: str | None = None  #: the SHA-256 of its file
    exif: Exif | None = None  #: how it was read, see `Sample`


#: Of CAMs of older versions and of other tools.
UNKNOWN = CamOrigin()


def npz_of_cams(cams: np.ndarray, classes: Sequence[int], origin: CamOrigin = UNKNOWN) -> bytes:
    """One image's CAMs as npz.

    Args:
        cams: float32 [K, H, W] in [0, 1].
        classes: the K class indices.
        origin: the photograph.
    """
    known: dict[str, np.ndarray] = {}
    if origin.photograph is not None:
        known["photograph"] = np.frombuffer(bytes.fromhex(origin.photograph), np.uint8)
    if origin.exif is not None:
        known["is_turned"] = np.asarray(origin.exif == "apply", np.uint8)
    return _npz(cams=cams, classes=np.asarray(classes, np.int64), **known)


def npz_of_scores(scores: np.ndarray) -> bytes:
    """The scores of the labels that win somewhere in an image, as npz.

    Args:
        scores: float32 [L, H, W].

    Returns:
        An npz with ``prob``, float32 [K, H, W], and ``keys``, the K labels, ascending, as in the
        files of the published code.
    """
    keys = np.unique(scores.argmax(0))
    return _npz(prob=scores[keys], keys=keys)


class SoftLabels(NamedTuple):
    """Which share of each cell of an image has which label.

    The cells divide height and width of the image evenly, whatever its size.
    """

    #: uint8 [K, h, w], 255 = all of the cell; they sum to 255, in older files to about that
    shares: np.ndarray
    labels: tuple[int, ...]  #: the K labels, background 0 first


def npz_of_soft_labels(soft: SoftLabels, size: tuple[int, int]) -> bytes:
    """The soft labels of one image of `size` (H, W) pixels, as npz."""
    labels = np.asarray(soft.labels, np.uint8)
    return _npz(soft=soft.shares, labels=labels, size=np.asarray(size, np.int32))


def read_soft_labels(path: Path, num_labels: int, size: tuple[int, int]) -> SoftLabels:
    """Read the soft labels of one image.

    Args:
        path: an npz of `npz_of_soft_labels`.
        num_labels: L, background included.
        size: (H, W) of the image in pixels.

    Raises:
        DataError: missing, corrupt, something else, or of an image of another size; names the file.
    """
    try:
        stored = read_npz(path, "soft", "labels", "size")
        shares, labels = stored["soft"], stored["labels"].tolist()
        if shares.dtype != np.uint8 or shares.ndim != 3 or not shares.size:
            raise ValueError(f"an array {shares.shape} of {shares.dtype}")
        if len(labels) != len(shares) or len(set(labels)) != len(labels):
            raise ValueError(f"the labels {labels[:9]} for {len(shares)} maps")
        if not all(type(label) is int and 0 <= label < num_labels for label in labels):
            raise ValueError(f"the labels {labels[:9]}, expected 0..{num_labels - 1}")
        if not shares.any(0).all():
            raise ValueError("cells without any label")
        if stored["size"].tolist() != [*size]:
            raise ValueError(f"those of an image of {stored['size'].tolist()} pixels, not {size}")
    except (OSError, ValueError) as error:
        message = f"no soft labels [K, h, w] of the image: {error}; delete it and run label again"
        is_outside = is_outside_input(error)
        raise DataError(Problem(str(path), "", message, is_outside=is_outside)) from error
    return SoftLabels(shares, tuple(labels))


def is_damaged(path: Path) -> bool:
    """Whether an npz was cut off, or is an archive of which bytes have changed, or empty; or a PNG
    was cut off that weaktr wrote.

    A whole archive is not, whatever is in it; nor is a file of another kind.
    """
    if path.suffix == ".png":
        return was_cut_off(path)
    content = path.read_bytes()
    if not content.strip(b"\0"):
        return True
    if not content.startswith(ZIP[: len(content)]):
        return False
    try:
        read_npz(path)
    except ValueError:
        return True
    return False


def _npz(**arrays: np.ndarray) -> bytes:
    """Arrays as a sealed npz; the same ones give the same bytes at any time."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array, allow_pickle=False)
            undated = zipfile.ZipInfo(f"{name}.npy")
            archive.writestr(undated, content.getvalue(), zipfile.ZIP_DEFLATED)
    return sealed_zip(buffer.getvalue())


def read_cams(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read one image's CAMs.

    Args:
        path: an npz of `npz_of_cams`, or an npy of the published code: a pickled dict of class
            index -> float32 [H, W], read without running what a pickle could run.

    Returns:
        (CAMs [K, H, W], class indices int64 [K]).

    Raises:
        ValueError: missing, corrupt, or something else, such as CAMs before they were normalised;
            names the file.
    """
    return read_cams_and_origin(path)[:2]


def read_cams_and_origin(path: Path) -> tuple[np.ndarray, np.ndarray, CamOrigin]:
    """Read one image's CAMs, and of which photograph they are, as far as the file says.

    Arguments and errors are those of `read_cams`.
    """
    origin = UNKNOWN
    try:
        if path.suffix == ".npy":
            cams, classes = _from_dict(read_pickled_arrays(path))
        else:
            stored = read_npz(path, "cams", "classes", optional=("photograph", "is_turned"))
            cams, classes, origin = stored["cams"], stored["classes"], _origin_in(stored)
        if cams.ndim != 3 or classes.shape != cams.shape[:1] or not _are_classes(classes):
            raise ValueError(f"{cams.shape} of classes {classes[:9].tolist()}")
        _require_shares(cams)
    except (OSError, ValueError) as error:
        if is_outside_input(error):
            raise DataError(Problem(str(path), "", "cannot be read", is_outside=True)) from error
        raise ValueError(
            f"{path}: expected CAMs [K, H, W] from 0 to 1 of K classes 0 to 253, got: {error}"
        ) from error
    return cams, classes, origin


def _origin_in(stored: Mapping[str, np.ndarray]) -> CamOrigin:
    """The origin in the arrays of a file of CAMs."""
    photograph, is_turned = stored.get("photograph"), stored.get("is_turned")
    return CamOrigin(
        None if photograph is None else photograph.tobytes().hex(),
        None if is_turned is None else "apply" if is_turned.any() else "ignore",
    )


def _require_shares(cams: np.ndarray) -> None:
    """Raise ValueError unless all values are from 0 to 1, as thresholds are."""
    if not cams.size:
        return
    low, high = float(cams.min()), float(cams.max())
    if not math.isfinite(low + high):
        raise ValueError("NaN or infinity")
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise ValueError(
            f"values from {low:.4g} to {high:.4g}; give each class's CAM as "
            "(cam - min) / (max - min)"
        )


def _from_dict(maps: dict[Any, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(CAMs [K, H, W], class indices [K]) from class index -> [H, W].

    Raises:
        ValueError: keys that are no class indices, or values that are no arrays of one shape; or
            there are none, so that nothing says how large the image is.
    """
    if not maps:
        raise ValueError("an empty dict")
    if not all(isinstance(key, int) and 0 <= key < MAX_CLASSES for key in maps):
        raise ValueError(f"a dict with the keys {list(maps)[:9]!s:.60}")
    if not all(isinstance(value, np.ndarray) for value in maps.values()):
        raise ValueError("a dict of something else than arrays")
    return np.stack(list(maps.values())), np.array(list(maps), np.int64)


def _are_classes(indices: np.ndarray) -> bool:
    """Whether these are different class indices."""
    if indices.dtype.kind not in "iu" or indices.ndim != 1 or len(indices) > MAX_CLASSES:
        return False
    inside = ((indices >= 0) & (indices < MAX_CLASSES)).all()
    return bool(inside) and len(np.unique(indices)) == len(indices)
