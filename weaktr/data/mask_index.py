"""The index of a folder of masks: a line for each image that is done.

FOLDER/index.jsonl     the lines
FOLDER/index.3.jsonl   those of the fourth of several processes, while they fill the folder

Masks that were made a shard at a time have ``index/SHARD.parquet`` in place of ``index.jsonl``.
"""

from __future__ import annotations

import json
import operator
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weaktr.data.manifest import Exif, is_inside
from weaktr.data.problems import DataError, Problem
from weaktr.data.shard_tables import shard_rows
from weaktr.files import keep_lines, require_file
from weaktr.messages import brief

INDEX, JOURNAL = "index.jsonl", re.compile(r"index\.[0-9]{1,9}\.jsonl")
#: A label with a smaller share of a mask's pixels counts as not shown by it.
LEAST_SHARE = 0.001


@dataclass(frozen=True)
class MaskEntry:
    """One line of index.jsonl.

    Args:
        name: of the sample.
        file: the mask, relative to the folder of the index; None = the image shows no class, and
            therefore has no mask.
        sha256: of that file.
        size: height and width in pixels.
        labels: the values that occur, ascending.
        working_size: height and width at which it was made, where that is not `size`.
        predicted: label -> probability, where no image-level labels were given.
        exif: see `Photograph`.
        given: the class indices that were given; None = none were, or they do not matter.
        areas: label -> its share of the pixels; None = an older version did not note them.
        confidence: label -> mean over its pixels of the score that the model gave it before
            refinement; None = somebody has changed the mask, an older version did not note it, or
            it is a mask before refinement.
        agreement: label -> how well a teacher's mask agrees (`weaktr.refine.teacher`); None = there
            was no teacher, or as of `confidence`.
        inputs: SHA-256 of the files from which it was made, the photograph first; None = an older
            version did not note them.
    """

    name: str
    file: str | None
    sha256: str | None
    size: tuple[int, int]
    labels: tuple[int, ...]
    working_size: tuple[int, int] | None = None
    predicted: dict[int, float] | None = None
    exif: str | None = None
    given: tuple[int, ...] | None = None
    areas: dict[int, float] | None = None
    confidence: dict[int, float] | None = None
    agreement: dict[int, float] | None = None
    inputs: tuple[str, ...] | None = None

    @property
    def read_as(self) -> Exif | None:
        """See `read_as`."""
        return read_as(self.exif)

    @property
    def shown(self) -> frozenset[int]:
        """The labels that the mask shows, see `labels_shown`; all where areas are not known."""
        return frozenset(self.labels) if self.areas is None else labels_shown(self.areas)

    def line(self) -> str:
        """As JSON, without what is None."""
        row = {key: value for key, value in self.__dict__.items() if value is not None}
        try:
            (line := json.dumps(row, ensure_ascii=False)).encode()
        except UnicodeEncodeError:  # the name of a file that is not in UTF-8
            line = json.dumps(row)
        return line + "\n"


def read_as(noted: str | None) -> Exif | None:
    """`Sample.exif` of the photograph from which a mask was made; None = either gives the same.

    Args:
        noted: what an index notes of it, see `Photograph.exif`.
    """
    return None if noted is None else "apply" if noted == "applied" else "ignore"


def labels_shown(areas: Mapping[int, float]) -> frozenset[int]:
    """The labels that cover at least `LEAST_SHARE` of a mask, of their shares (`areas_of`)."""
    return frozenset(label for label, share in areas.items() if share >= LEAST_SHARE)


def file_of(name: str) -> str:
    """The mask of sample `name` in the folder of its index."""
    return f"masks/{name}.png"


def journals(folder: Path) -> list[Path]:
    """Where processes but the first have their lines of a folder of masks, by their numbers."""
    found = [path for path in folder.glob("index.*.jsonl") if JOURNAL.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.split(".")[1]))


def join_journals(folder: Path) -> list[MaskEntry]:
    """Add the lines of all `journals` to the index, and remove these; returns their entries."""
    joined = []
    for path in journals(folder):
        entries = list(read_index(path))
        keep_lines(folder / INDEX)
        with open(folder / INDEX, "a", encoding="utf-8") as index:
            index.writelines(entry.line() for entry in entries)
            index.flush()
            os.fsync(index.fileno())
        path.unlink()  # killed before this, the lines are there twice, which does no harm
        joined += entries
    return joined


def journal_of(folder: Path, process: int) -> Path:
    return folder / (f"index.{process}.jsonl" if process else INDEX)


def read_index(path: Path) -> Iterator[MaskEntry]:
    """The whole lines of an index.

    Raises:
        ValueError: a line is damaged, or it is no file.
    """
    if not path.exists():
        return
    require_file(path)
    content = path.read_bytes()
    lines = content[: content.rfind(b"\n") + 1].splitlines()  # of bytes: at line feeds alone
    for number, line in enumerate(lines, 1):
        try:
            yield _entry(json.loads(line))
        except (
            ArithmeticError, AttributeError, RecursionError, TypeError, ValueError
        ) as error:  # fmt: skip
            message = f"damaged ({error}): remove this line, its image is then done again"
            raise DataError(Problem(str(path), f"{path}:{number}", message)) from error


def read_shards(index: Path) -> Iterator[MaskEntry]:
    """Of the photographs in whole shards; those that could not be labelled have none.

    Raises:
        DataError: a file is damaged; names it.
    """
    for row in shard_rows(index.parent):
        if row["status"] == "failed":
            continue
        try:
            yield entry_of(row)
        except (AttributeError, TypeError, ValueError) as error:
            message = f"damaged (the row {brief(row['name'])}: {error})"
            raise DataError(Problem(str(index), "", message)) from error


def entry_of(row: Mapping[str, Any]) -> MaskEntry:
    """The entry of a photograph's row (`weaktr.shards.rows`).

    Raises:
        AttributeError, TypeError, ValueError: something is missing or of the wrong kind.
    """
    same = ("name", "exif", "given", "inputs", "predicted", "areas", "confidence", "agreement")
    line = {key: row[key] for key in same if row[key] is not None}
    for key in ("predicted", "areas", "confidence", "agreement"):
        if key in line:  # pairs in a table
            line[key] = dict(line[key])
    if row["mask_digest"] is not None:
        line |= {"file": file_of(row["name"]), "sha256": row["mask_digest"]}
    line["size"] = row["height"] or 0, row["width"] or 0
    line["labels"] = row["labels"] or ()
    if row["working_height"] is not None and row["working_width"] is not None:
        line["working_size"] = row["working_height"], row["working_width"]
    return _entry(line)


def _entry(row: dict[str, Any]) -> MaskEntry:
    """A line of an index.

    Raises:
        ArithmeticError, AttributeError, TypeError, ValueError: something is missing or of the wrong
            kind.
    """
    row = {"file": None, "sha256": None} | row
    for key in ("size", "labels", "working_size", "given"):
        if key in row:
            row[key] = tuple(map(operator.index, row[key]))
    if "inputs" in row:
        row["inputs"] = tuple(row["inputs"])
    for key in ("predicted", "areas", "confidence", "agreement"):
        if key in row:  # JSON's keys are strings
            row[key] = {int(label): float(share) for label, share in row[key].items()}
    entry = MaskEntry(**row)
    if not isinstance(entry.name, str) or not is_inside(entry.name):
        raise ValueError(f"expected the name of a sample, got {brief(entry.name)}")
    if entry.file not in (None, file_of(entry.name)):
        raise ValueError(f"expected the file {brief(file_of(entry.name))}, got {brief(entry.file)}")
    if len(entry.size) != 2 or not all(0 <= label < 256 for label in entry.labels):
        raise ValueError("expected a size of two numbers and labels 0..255")
    return entry
