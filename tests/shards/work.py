"""Photographs, a tiny model, and the commands on them, shard by shard."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.models import small
from weaktr import cli
from weaktr.inference.results import LabelMaps
from weaktr.inference.timeline import Timeline
from weaktr.jobs import shards as sharded
from weaktr.labelling.masks import MaskMaker
from weaktr.models import checkpoints
from weaktr.progress import console
from weaktr.shards.records import read_results
from weaktr.shards.rows import Row, rows_of

CLASSES = ("cat", "dog")
#: Let the confidence be written too.
BESIDE = ("--emit", "confidence")
#: Photographs of a folder, and options that part it into three shards.
COUNT = 12
BY_SHARDS = ("--shard-size", "5", *BESIDE)
SETTINGS = ("crf=none", "scales=[1.0]", "flip=false")
QUICK = (
    "short_side=32", "window=32", "stride=32", "ratios=[1.0]", "flip=false", "ensemble=plain",
    "crf=none",
)  # fmt: skip


def model(path: Path, seed: int = 0) -> Path:
    """A model of stage 1."""
    torch.manual_seed(seed)
    checkpoints.save(small.tiny_cam_model(), path, classes={"names": list(CLASSES)})
    return path


def segmenter(path: Path) -> Path:
    """A model of stage 2."""
    torch.manual_seed(0)
    made = small.segmenter(
        "vit_tiny_patch16_224", 3, decoder="linear", image_size=32, patch_size=16,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    ).eval()  # fmt: skip
    checkpoints.save(made, path, classes={"names": list(CLASSES)})
    return path


def photograph(seed: int, form: str = "PNG") -> bytes:
    """Noise, 40 x 50 pixels or a little more."""
    noise = np.random.default_rng(seed).integers(0, 255, (40 + seed % 3, 50, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, form)
    return buffer.getvalue()


def photographs(folder: Path, count: int, *, labels: bool = True) -> Path:
    """A folder of photographs 00.png, 01.png, ..., of cats and dogs by turns."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        (folder / f"{index:02d}.png").write_bytes(photograph(index))
    if labels:
        write_labels(folder, {f"{index:02d}.png": CLASSES[index % 2] for index in range(count)})
    return folder


def write_labels(folder: Path, labels: Mapping[str, str]) -> None:
    """The file of labels of a folder."""
    rows = "".join(f"{name},{words}\n" for name, words in labels.items())
    (folder / "labels.csv").write_text("image,labels\n" + rows, errors="surrogateescape")


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    """A tar of these files, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def tars(folder: Path, count: int, each: int) -> Path:
    """Tars 000.tar, 001.tar, ... of the photographs and labels of `photographs`, split evenly."""
    for number in range(count):
        files = {}
        for index in range(number * each, (number + 1) * each):
            files[f"{index:02d}.png"] = photograph(index)
            files[f"{index:02d}.cls"] = CLASSES[index % 2].encode()
        write_tar(folder / f"{number:03d}.tar", files)
    return folder


def said(*arguments: object) -> tuple[int, str]:
    """Exit code of ``weaktr``, and everything it printed, on one line."""
    with console.capture() as capture:
        code = cli.main([os.fspath(a) if isinstance(a, Path) else str(a) for a in arguments])
    return code, " ".join(capture.get().split())


def label(home: Path, *arguments: object, images: object = "photos", out: str = "out") -> int:
    """Label the photographs in ``HOME/photos``; the exit code."""
    chosen = [part for setting in SETTINGS for part in ("--set", setting)]
    place = home / images if isinstance(images, str) and "://" not in images else images
    return said("label", home / "cam.safetensors", place, "--out", home / out, *chosen,
                *arguments)[0]  # fmt: skip


def noted_names(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the photographs that the model will see, in order."""
    names: list[str] = []
    make = sharded.label_maker

    def label_maker(*arguments: Any) -> MaskMaker[Any]:
        maker = make(*arguments)

        def compute(batch: Sequence[Any], timeline: Timeline) -> Sequence[LabelMaps]:
            names.extend(one.sample.name for one in batch)
            return maker.compute(batch, timeline)

        return replace(maker, compute=compute)

    monkeypatch.setattr(sharded, "label_maker", label_maker)
    return names


def masks_of(out: Path, kind: str = "masks") -> dict[str, bytes]:
    """Name -> content, of loose files and of those in tars."""
    found: dict[str, bytes] = {}
    for path in sorted((out / kind).rglob("*")):
        if path.suffix == ".tar":
            found |= in_tar(path)
        elif path.is_file():
            found[path.name] = path.read_bytes()
    return found


def rows(out: Path) -> dict[str, Row]:
    """Name -> row, of all whole shards."""
    return {row.name: row for table in read_results(out).tables() for row in rows_of(table)}


def files_in(folder: Path) -> dict[str, bytes]:
    """Every file below a folder of results but the records, which hold times: path -> content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".json", ".jsonl") and path.name[0] != "."
    }


def in_tar(archive: Path) -> dict[str, bytes]:
    """The files in a tar."""
    with tarfile.open(archive) as tar:
        return {info.name: tar.extractfile(info).read() for info in tar}  # type: ignore[union-attr]


def statuses(out: Path) -> dict[str, str]:
    """Name of each photograph -> its status."""
    return {name: row.status for name, row in rows(out).items()}


def edit(mask: Path) -> bytes:
    """Change a mask by hand, as a picture editor does; returns the new content."""
    labels = np.array(Image.open(mask))
    labels[:5] = 2
    Image.fromarray(labels).save(mask)
    later(mask)
    return mask.read_bytes()


def later(path: Path) -> None:
    """Let a file be newer than all that was written up to now, whatever the clock's steps are."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 10**7))
