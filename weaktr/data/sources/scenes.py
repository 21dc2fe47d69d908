"""A generated data set of any size: drawn once, then read like any other. On disk:

ROOT/SPLIT/images/000000.png   the scenes (see `weaktr.data.sources.scene_drawing`)
ROOT/SPLIT/masks/000000.png    the label of every pixel, VOC palette
ROOT/SPLIT/labels.csv          name, labels: the image-level labels
ROOT/SPLIT/scenes.json         the arguments of the drawing; written last
"""

from __future__ import annotations

import csv
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from weaktr.data.classes import Classes, palette
from weaktr.data.manifest import Manifest, Sample, is_inside
from weaktr.data.problems import DataError, Problem
from weaktr.data.sources.scene_drawing import NAMES, render_scene
from weaktr.files import csv_bytes, is_clutter, read_json, require_file
from weaktr.messages import few

VERSION = 2  # of the drawing: raise it whenever the same seed draws another scene
STAMP = "scenes.json"
#: The most scenes of a split, and pixels of their side: they are for trying things out.
MOST_SCENES, MOST_SIDE = 100_000, 1024


def scenes(
    root: str | Path,
    count: int,
    *,
    size: int = 64,
    seed: int = 0,
    split: str = "train",
    masks: bool = True,
) -> Manifest:
    """Draw scenes of eight classes, or use those that were drawn before with the same arguments.

    Args:
        root: the data set's folder; `split` is a folder in it, replaced where its scenes were
            drawn with other arguments.
        count: number of scenes, 1 to `MOST_SCENES`. Scene i is the same whatever the count.
        size: side of the square images in pixels, 16 to `MOST_SIDE`.
        seed: of the data set, >= 0.
        split: its name; every split has scenes of its own.
        masks: whether the samples name their true masks (which are drawn in any case).

    Returns:
        The manifest, in the order of drawing.

    Raises:
        ValueError: an argument out of its range, or ``ROOT/SPLIT`` holds something that was not
            drawn here.
    """
    if not 1 <= count <= MOST_SCENES:
        raise ValueError(f"count: expected at least 1 and at most {MOST_SCENES}, got {count}")
    if size > MOST_SIDE:
        raise ValueError(f"size: expected at most {MOST_SIDE} pixels, got {size}")
    if not is_inside(split) or len(Path(split).parts) != 1:
        raise ValueError(f"split: expected the plain name of a folder, got {split!r}")
    folder = Path(os.path.abspath(root)) / split
    wanted = {"version": VERSION, "count": count, "size": size, "seed": seed, "split": split}
    stamp = _stamp(folder)
    if stamp != wanted:
        if folder.exists() and (stamp is None or stamp.keys() != wanted.keys()):
            raise ValueError(f"root: {folder} was not drawn here; name another root or remove it")
        _draw(folder, wanted)
    return _manifest(folder, wanted, masks)


def _stamp(folder: Path) -> dict[str, Any] | None:
    """The arguments a folder was drawn with, or None where they cannot be read."""
    try:
        stamp = read_json(folder / STAMP)
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) else None


def _draw(folder: Path, wanted: dict[str, Any]) -> None:
    """Draw into a temporary folder beside `folder`, then rename it to `folder`."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
        drawn = Path(temporary) / "drawn"
        (drawn / "images").mkdir(parents=True)
        (drawn / "masks").mkdir()
        rows = [("name", "labels")]
        for index in range(wanted["count"]):
            name = f"{index:06d}.png"
            image, mask, labels = render_scene(
                index, size=wanted["size"], seed=wanted["seed"], split=wanted["split"]
            )
            Image.fromarray(image).save(drawn / "images" / name, compress_level=1)
            picture = Image.fromarray(mask)
            picture.putpalette(palette().tobytes())
            picture.save(drawn / "masks" / name, compress_level=1)
            rows.append((name, " ".join(NAMES[label] for label in labels)))
        (drawn / "labels.csv").write_bytes(csv_bytes(rows))
        (drawn / STAMP).write_text(json.dumps(wanted), encoding="utf-8")
        if folder.exists():
            _require_drawn(folder)
            folder.rename(Path(temporary) / "replaced")
        drawn.rename(folder)


def _require_drawn(folder: Path) -> None:
    """Raise `ValueError` where there is more in a folder of scenes than was drawn."""
    drawn = {"images", "masks", "labels.csv", STAMP}
    others = [path.name for path in folder.iterdir() if path.name not in drawn]
    below = (path.name for path in folder.glob("*/*"))
    others += [name for name in below if not re.fullmatch(r"[0-9]+\.png", name)]
    if others := [name for name in others if not is_clutter(name)]:
        raise ValueError(
            f"{folder}: expected scenes alone, which are to be drawn anew, found {few(others)}; "
            "move it away, or choose another root"
        )


def _manifest(folder: Path, wanted: dict[str, Any], masks: bool) -> Manifest:
    """The samples that ``labels.csv`` lists.

    Raises:
        DataError: it is not as it was written.
    """
    table = folder / "labels.csv"
    try:
        require_file(table)
        with open(table, encoding="utf-8", newline="") as file:
            rows = [(row["name"], row["labels"].split()) for row in csv.DictReader(file)]
        samples = tuple(
            Sample(
                name=f"{index:06d}",
                image=folder / "images" / name,
                labels=tuple(NAMES.index(label) for label in labels),
                mask=folder / "masks" / name if masks else None,
                source=f"{table}:{index + 2}",
            )
            for index, (name, labels) in enumerate(rows)
        )
        if [name for name, _ in rows] != [f"{index:06d}.png" for index in range(wanted["count"])]:
            raise ValueError("other images")
    except (OSError, KeyError, AttributeError, ValueError, csv.Error) as error:
        message = f"not as it was drawn ({error!r:.100}): delete {folder}, and it is drawn again"
        raise DataError(Problem(str(table), "", message)) from error
    return Manifest("scenes", wanted["split"], Classes(NAMES), samples)
