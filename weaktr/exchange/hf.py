"""Hugging Face ``datasets``: Parquet files as the Hub has them, photographs and masks inside.

Source: https://huggingface.co/docs/datasets, Image and ClassLabel; docs/hub/datasets-image.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weaktr.data import Classes
from weaktr.data.classes import IGNORE
from weaktr.data.masks import png_of
from weaktr.exchange.items import Item, Options, Report
from weaktr.messages import printable

#: Rows of a Parquet file that are written, and read, together.
ROWS = 100


def write(
    items: Iterable[Item], classes: Classes, folder: Path, options: Options, report: Report
) -> None:
    """Write ``data/SPLIT-00000-of-00001.parquet`` and ``id2label.json``.

    Rows have name, image, annotation (the mask, 255 = ignore), labels and the confidence of each
    label; see `weaktr.exchange.Format`.
    """
    from datasets import ClassLabel, Features, Image, List, Value

    features = Features(
        name=Value("string"),
        image=Image(),
        annotation=Image(),
        labels=List(ClassLabel(names=list(classes.names))),
        confidence=List(Value("float32")),
    )
    files: dict[str, _Rows] = {}
    for item in items:
        split = "validation" if item.source.is_held_out else "train"
        if split not in files:
            files[split] = _Rows(folder / "data" / f"{split}-00000-of-00001.parquet", features)
        files[split].add(_row(item))
    for rows in files.values():
        rows.close()
    names = {str(label): name for label, name in enumerate(classes.label_names)}
    text = json.dumps(names | {str(IGNORE): "ignore"}, indent=1)
    (folder / "id2label.json").write_text(text + "\n")


class _Rows:
    """A Parquet file that gets its rows in groups of `ROWS`."""

    def __init__(self, path: Path, features: Any) -> None:
        from pyarrow.parquet import ParquetWriter

        path.parent.mkdir(parents=True, exist_ok=True)
        self._schema = features.arrow_schema
        self._writer = ParquetWriter(path, self._schema)
        self._waiting: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._waiting.append(row)
        if len(self._waiting) == ROWS:
            self._flush()

    def close(self) -> None:
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        from pyarrow import Table

        if self._waiting:
            self._writer.write_table(Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting = []


def _row(item: Item) -> dict[str, Any]:
    known = [item.confidence.get(index + 1) for index in item.shown or ()]
    return {
        "name": printable(item.name),
        "image": {"bytes": item.content, "path": printable(item.file)},
        "annotation": {"bytes": png_of(item.mask), "path": f"{printable(item.name)}.png"},
        "labels": None if item.shown is None else list(item.shown),
        "confidence": known if any(score is not None for score in known) else None,
    }
