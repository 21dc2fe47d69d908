"""A folder of results as ``weaktr label`` leaves it where it works a shard at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.shards.work import write_tar
from weaktr.data.masks import areas_of, png_of
from weaktr.shards.records import FORMAT, record_file, table_file
from weaktr.shards.rows import Row, table_of, write_table
from weaktr.shards.statistics import statistics_of

MADE_FROM = "f" * 32
CLASSES = ("cat", "dog", "hot dog")


def mask_of(first: int = 1, last: int = 2) -> np.ndarray:
    """A mask of 4 x 5 pixels: 10 of background, 5 of each of two labels."""
    mask = np.zeros((4, 5), np.uint8)
    mask[2], mask[3] = first, last
    return mask


def labelled(name: str, shard: str, mask: np.ndarray | None = None, **facts: Any) -> Row:
    """The row of a photograph with a mask; `pngs_of` makes the same mask of it."""
    mask = mask_of() if mask is None else mask
    content, areas = png_of(mask), areas_of(mask)
    row = Row(
        name, shard, f"{name}.jpg", "labelled",
        height=mask.shape[0], width=mask.shape[1], labels=tuple(areas), areas=areas,
        confidence={label: 0.5 for label in areas if label != 255},
        mask_digest=hashlib.sha256(content).hexdigest(), mask_bytes=len(content),
    )  # fmt: skip
    return replace(row, **facts)


def failed(name: str, shard: str, error: str = "cannot be read as an image: cut off") -> Row:
    return Row(name, shard, f"{name}.jpg", "failed", error)


def without(name: str, shard: str) -> Row:
    return Row(name, shard, f"{name}.jpg", "no class", height=4, width=5)


def results(
    out: Path,
    shards: Mapping[str, Sequence[tuple[Row, np.ndarray | None]]],
    output: str = "tar",
    *,
    in_folders: bool = False,
    missing: Sequence[str] = (),
) -> Path:
    """Write a folder of results.

    Args:
        out: the folder.
        shards: name -> rows and their masks (None = it has none).
        output: "tar" or "png".
        in_folders: whether loose PNGs lie in a folder of their shard.
        missing: further shards, which are not whole.
    """
    out.mkdir(parents=True)
    layout = {"output": output, "shards": [*shards, *missing]}
    about = {"command": "label", "classes": list(CLASSES)}
    inputs = {"made_from": MADE_FROM, "settings": {}, "about": about, "layout": layout}
    (out / "inputs.json").write_text(json.dumps(inputs))
    for shard, pairs in shards.items():
        pngs = {f"{row.name}.png": png_of(mask) for row, mask in pairs if mask is not None}
        if output == "tar":
            masks = {"file": f"masks/{shard}.tar"}
            write_tar(out / masks["file"], pngs)
        else:
            masks = {"folder": f"masks/{shard}" if in_folders else "masks"}
            for name, content in pngs.items():
                path = out / masks["folder"] / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        write_shard(out, shard, [row for row, _ in pairs], masks)
    return out


def write_shard(
    out: Path, shard: str, rows: Sequence[Row], masks: Mapping[str, str], **changes: Any
) -> None:
    """Write the rows of a shard and its record, of which `changes` are other."""
    path, table = table_file(out, shard), table_of(rows)
    size = write_table(path, table)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    index = {"file": f"index/{shard}.parquet", "bytes": size, "sha256": digest}
    record = {
        "format": FORMAT,
        "made_from": MADE_FROM,
        "shard": shard,
        "data": {},
        "outputs": {"masks": dict(masks), "index": index},
        "statistics": statistics_of(table),
        "seconds": 2.5,
        "worker": "a",
    }
    record_file(out, shard).write_text(json.dumps(record | changes))


def three_shards(out: Path, output: str = "tar", **options: Any) -> Path:
    """``a/0`` with two masks, ``a/1`` without rows, and ``b`` with one of each status."""
    dogs = mask_of(2, 255)
    shards = {
        "a/0": [(labelled("x", "a/0"), mask_of()), (labelled("y", "a/0", dogs), dogs)],
        "a/1": [],
        "b": [
            (labelled("sub/z", "b", dogs, status="edited", confidence=None), dogs),
            (without("empty", "b"), None),
            (failed("broken", "b"), None),
        ],
    }
    return results(out, shards, output, **options)
