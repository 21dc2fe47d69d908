"""The only reader and writer of files between the stages (of CAMs and scores: `stored_maps`).

Layout of a run::

    RUN/recipe.yaml                  the recipe with every default written out
    RUN/train_cam/                   state.pt while training, model.safetensors + model.json
    RUN/label/                       masks/NAME.png, before_crf/NAME.png, cams/NAME.npz, index.jsonl
    RUN/train_seg/                   as train_cam
    RUN/predict/                     as label, scores/NAME.npz in place of CAMs
    RUN/evaluate/                    metrics.json with every number and where it comes from, charts
    RUN/STAGE/finished.json          the fingerprint of what the stage was made from
    RUN/metrics.json                 the scores in one flat table
    RUN/pictures/                    what `weaktr show` drew

A file appears under its name only when it is whole: it is written under a temporary name in the
same folder, flushed to the disk and renamed.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image

from weaktr.data.classes import palette

STAGES = ("train_cam", "label", "train_seg", "predict", "evaluate")


# ---------------------------------------------------------------- whole files


def write_bytes(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        path: its folder is made where it is missing.
        content: what the file will hold.
        durable: flush file and folder to the disk. Without it a power cut (not a kill) may lose
            the file; whoever reads must then check a digest.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    with open(temporary, "wb") as file:
        file.write(content)
        if durable:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
    if durable:
        _flush_folder(path.parent)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: there is no such file or it is not JSON; names the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got: {error}") from error


def _flush_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# ---------------------------------------------------------------- finished stages


def fingerprint(*parts: Any) -> str:
    """32 hexadecimal digits of the JSON of `parts` (key order does not matter)."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def mark_finished(folder: Path, made_from: str) -> None:
    """Note that the stage in `folder` is complete, made from inputs of fingerprint `made_from`."""
    write_json(folder / "finished.json", {"made_from": made_from})


def is_finished(folder: Path, made_from: str) -> bool:
    """Whether the stage in `folder` is complete and was made from exactly these inputs."""
    marker = folder / "finished.json"
    return marker.is_file() and read_json(marker).get("made_from") == made_from


def begin(
    folder: Path, made_from: str, settings: dict[str, Any] | None = None, *, force: bool = False
) -> None:
    """Prepare the folder of a stage: keep what is there only if it comes from the same inputs.

    Args:
        folder: the stage's; made where it is missing.
        made_from: fingerprint of the stage's inputs.
        settings: of the stage, noted for whoever looks at the results.
        force: throw away what is there in any case.
    """
    note = folder / "inputs.json"
    same = note.is_file() and read_json(note).get("made_from") == made_from
    if folder.exists() and (force or not same):
        shutil.rmtree(folder)
    write_json(note, {"made_from": made_from, "settings": settings or {}})


# ---------------------------------------------------------------- masks


def write_mask(path: Path, labels: np.ndarray, *, durable: bool = True) -> str:
    """Write labels as an 8-bit PNG in the VOC palette.

    Args:
        path: the PNG.
        labels: uint8 [H, W], 0 = background, k + 1 = class index k, 255 = ignore.
        durable: see `write_bytes`.

    Returns:
        SHA-256 of the file.

    Raises:
        ValueError: `labels` is not uint8 [H, W].
    """
    if labels.dtype != np.uint8 or labels.ndim != 2:
        raise ValueError(f"labels: expected uint8 [H, W], got {labels.dtype} {labels.shape}")
    picture = Image.fromarray(labels)
    picture.putpalette(palette().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue(), durable=durable)
    return hashlib.sha256(buffer.getvalue()).hexdigest()


def read_mask_file(path: Path) -> np.ndarray:
    """Read what `write_mask` wrote: uint8 [H, W].

    Raises:
        ValueError: missing, corrupt, or not a single-channel 8-bit image; names the file.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode not in ("P", "L"):
                raise ValueError(f"{path}: expected an 8-bit palette mask, got mode {picture.mode}")
            return np.array(picture, dtype=np.uint8)
    except OSError as error:
        raise ValueError(f"{path}: cannot read this mask: {error}") from error


@dataclass(frozen=True)
class MaskEntry:
    """One line of index.jsonl.

    Args:
        name: of the sample.
        file: the mask, relative to the folder of the index.
        sha256: of that file.
        size: height and width in pixels.
        labels: the values that occur, ascending.
    """

    name: str
    file: str
    sha256: str
    size: tuple[int, int]
    labels: tuple[int, ...]


class MaskFolder:
    """A folder of masks with an index that survives a kill at any moment.

    A mask counts once its line stands in the index and its digest agrees. A line is written after
    the mask; a half-written last line is cut off when the folder is opened again.

    Args:
        folder: holds ``masks/`` and ``index.jsonl``.
        verify: check digests when opening (entries that disagree are dropped).
    """

    def __init__(self, folder: Path, *, verify: bool = False) -> None:
        self.folder = folder
        self.index = folder / "index.jsonl"
        self.entries = {entry.name: entry for entry in _read_index(self.index)}
        if verify:
            self.entries = {n: e for n, e in self.entries.items() if self._is_whole(e)}

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, name: str, labels: np.ndarray) -> None:
        """Write one mask (uint8 [H, W]) and its line."""
        file = f"masks/{name}.png"
        digest = write_mask(self.folder / file, labels, durable=False)
        height, width = labels.shape
        present = tuple(int(label) for label in np.unique(labels))
        entry = MaskEntry(name, file, digest, (height, width), present)
        with open(self.index, "a", encoding="utf-8") as index:
            index.write(json.dumps(entry.__dict__, ensure_ascii=False) + "\n")
        self.entries[name] = entry

    def read(self, name: str) -> np.ndarray:
        """The mask of sample `name`, uint8 [H, W].

        Raises:
            ValueError: there is none; names the folder.
        """
        if name not in self.entries:
            raise ValueError(f"{self.index}: no mask of {name!r}")
        return read_mask_file(self.path(name))

    def path(self, name: str) -> Path:
        """Where the mask of sample `name` is."""
        return self.folder / self.entries[name].file

    def fingerprint(self) -> str:
        """Changes when any mask does."""
        return fingerprint(sorted((entry.name, entry.sha256) for entry in self.entries.values()))

    def flush(self) -> None:
        """Bring the index to the disk (call at the end)."""
        if self.index.exists():
            with open(self.index, "rb") as index:
                os.fsync(index.fileno())

    def _is_whole(self, entry: MaskEntry) -> bool:
        path = self.folder / entry.file
        return path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == entry.sha256


def _read_index(path: Path) -> list[MaskEntry]:
    """The whole lines of an index; cuts off a half-written last one."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    entries = []
    for line in content[:whole].decode("utf-8").splitlines():
        row = json.loads(line)
        row["size"], row["labels"] = tuple(row["size"]), tuple(row["labels"])
        entries.append(MaskEntry(**row))
    return entries


def names_in(folder: Path, *suffixes: str) -> tuple[list[str], str]:
    """Names of the files of a folder with the first of these suffixes that occurs, and which.

    Raises:
        ValueError: none; says what was looked for.
    """
    for suffix in suffixes:
        paths = folder.rglob(f"*{suffix}") if folder.is_dir() else ()
        if names := [p.relative_to(folder).with_suffix("").as_posix() for p in paths]:
            return sorted(names), suffix
    kinds = {".png": "PNG", ".npz": "NPZ", ".npy": "NPY"}
    wanted = " or ".join(kinds[suffix] for suffix in suffixes)
    raise ValueError(f"no {wanted} in {folder}")


# ---------------------------------------------------------------- training


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors and plain values only)."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def load_state(path: Path) -> dict[str, Any] | None:
    """Read what `save_state` wrote, or None where there is nothing."""
    if not path.is_file():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def random_state() -> dict[str, Any]:
    """The states of all random number generators, as tensors and plain values."""
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached),
        "python": random.getstate(),
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set what `random_state` noted."""
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    random.setstate(state["python"])
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


class MetricsLog:
    """metrics.jsonl: one JSON object a line, cut back to a checkpoint's position on resume."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file: IO[str] = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held open

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append rows."""
        self._file.writelines(json.dumps(row) + "\n" for row in rows)
        self._file.flush()

    def position(self) -> int:
        """Bytes on the disk, flushed: what a checkpoint remembers."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.path.stat().st_size

    def cut(self, position: int) -> None:
        """Forget everything after `position`."""
        self._file.flush()
        os.truncate(self.path, position)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics.jsonl."""
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
