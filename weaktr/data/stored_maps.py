"""CAMs and scores of images as files: ours, and those of the published code."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from weaktr.data.cls_labels import read_pickled_arrays
from weaktr.data.masks import MARK
from weaktr.files import write_bytes


def write_cams(path: Path, cams: np.ndarray, classes: Sequence[int]) -> None:
    """Write one image's CAMs: float32 [K, H, W] in [0, 1] and the K class indices, as npz."""
    _write_npz(path, cams=cams, classes=np.asarray(classes, np.int64))


def write_scores(path: Path, scores: np.ndarray) -> None:
    """Write the scores of the labels that win somewhere in an image, as npz.

    Args:
        path: the file; ``prob`` is float32 [K, H, W], ``keys`` the K labels, ascending, as in the
            files of the published code.
        scores: float32 [L, H, W].
    """
    keys = np.unique(scores.argmax(0))
    _write_npz(path, prob=scores[keys], keys=keys)


def _write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Write arrays as an npz that `weaktr.data.masks.is_marked` recognises."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type] # numpy's own stub
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.comment = MARK
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
