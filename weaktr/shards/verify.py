"""Whether the files of a folder of results are those of its index."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from weaktr import tars
from weaktr.contents import Contents
from weaktr.data.io import check_is_mask, size_message
from weaktr.data.masks import MaskFolder, areas_of
from weaktr.data.parallel import ordered_map
from weaktr.data.pngs import damage_in_data
from weaktr.data.problems import DataError, Problem
from weaktr.files import files_below
from weaktr.messages import few
from weaktr.progress import Meter
from weaktr.seals import held_seal, holds_seal, is_sealed
from weaktr.shards.index import INDEX, is_current, missing_in_words, read_checked
from weaktr.shards.records import (
    FOLDER,
    Record,
    Results,
    place_of,
    read_layout,
    read_record,
    record_file,
    rows_of_masks,
    table_file,
)
from weaktr.shards.rows import Row, rows_of

#: Kinds of problems, by which they are counted.
CHANGED, DAMAGED, MISSING = "mask changed by hand", "mask damaged", "mask missing"
UNLIKE, UNLISTED = "mask unlike its row", "file that no row lists"
NOT_TAKEN = "mask of a photograph that failed"
OF_A_SHARD, OF_THE_INDEX = "shard damaged", "index of other rows"


def verify(out: Path) -> Iterator[Problem]:
    """What is wrong in a folder of results; every file is read.

    Rows must be those of their record; each mask must be there as its row says, by its digest, size
    and labels; nothing else may lie among them, but what is of shards that are not whole yet. A
    mask that somebody has changed is a warning: weaktr keeps it.

    Args:
        out: the folder, by shards or with an ``index.jsonl``.

    Yields:
        Each problem as soon as it is known.

    Raises:
        ValueError: it is no such folder, or its ``inputs.json`` is damaged.
    """
    results = read_layout(out)
    listed: set[Path] = set()
    if results.layout is None:
        is_read = yield from _verify_folder(out, listed)
        yield from _others(out / "masks", listed, is_whole=True)
        if is_read:
            yield from _verify_index(results)
        return
    layout, records, damaged = results.layout, [], []
    shards = layout.shards
    for shard in shards:
        try:
            record = read_record(out, shard, results.made_from)
            records += [] if record is None else [record]
        except (OSError, ValueError) as error:
            damaged.append(shard)
            yield _problem(record_file(out, shard), error, OF_A_SHARD)
    results = replace(results, records=tuple(records))
    if missing := [shard for shard in results.missing if shard not in damaged]:
        message = missing_in_words(out, missing, len(shards)).removeprefix(f"{out}: ")
        yield Problem(str(out), "", message, kind="shards missing")
    is_whole = not results.missing
    with Meter("verified", sum(_masks_of(record) for record in records)) as meter:
        for record in records:
            is_whole &= yield from _verify_shard(record, listed, meter)
    if layout.output == "tar":
        listed |= {out / "masks" / f"{shard}.tar" for shard in results.missing}
    yield from _others(out / "masks", listed, is_whole=is_whole)
    own = {of(out, shard) for shard in shards for of in (record_file, table_file)}
    yield from _others(out / FOLDER, own, is_whole=True)
    if is_whole:
        yield from _verify_index(results)


def _masks_of(record: Record) -> int:
    count = record.statistics.get("masks")
    return count if isinstance(count, int) else 0


def _verify_folder(out: Path, listed: set[Path]) -> Generator[Problem, None, bool]:
    """Of a folder with an ``index.jsonl``; `listed` gets the paths of its masks.

    Returns:
        Whether its index could be read.
    """
    try:
        rows = [row for row in rows_of_masks(MaskFolder(out)) if row.mask_digest is not None]
    except DataError as error:
        yield from error.problems
        return False
    paths = [out / "masks" / f"{row.name}.png" for row in rows]
    listed.update(paths)
    with Meter("verified", len(rows)) as meter:
        yield from _verify_masks(rows, paths, meter)
    return True


def _verify_shard(
    record: Record, listed: set[Path], meter: Meter
) -> Generator[Problem, None, bool]:
    """Of a whole shard; `listed` gets the paths of its masks, or of its tar.

    Returns:
        Whether its rows could be read.
    """
    is_tar = "file" in record.outputs["masks"]
    if is_tar:
        listed.add(record.masks)
    try:
        rows = list(rows_of(read_checked(record)))
    except (AttributeError, OSError, TypeError, ValueError) as error:
        yield _problem(record.table, error, OF_A_SHARD)
        return False
    for row in rows:
        if (row.status in ("labelled", "edited")) != (row.mask_digest is not None):
            message = f"{row.name}: is {row.status}, and has {row.mask_digest or 'no mask'}"
            yield Problem(str(record.table), "", message, kind=OF_A_SHARD)
    failed = [row for row in rows if row.status == "failed"]
    rows = [row for row in rows if row.mask_digest is not None]
    paths = [record.mask(row.name) for row in rows]
    if is_tar:
        try:
            names = [member.name for member in tars.members_of(record.masks)]
        except FileNotFoundError:
            yield Problem(str(record.masks), "", "file is missing", kind=MISSING)
            return True
        except (OSError, ValueError) as error:
            yield _problem(record.masks, error, DAMAGED)
            return True
        yield from _unlisted_members(record.masks, names, rows)
    else:
        listed.update(paths)
        yield from _of_failed(record, failed, listed)
    yield from _verify_masks(rows, paths, meter)
    for name, output in record.outputs.items():
        if name not in ("masks", "index") and "file" in output:
            yield from _verify_file(record, output)
    return True


def _of_failed(record: Record, rows: Sequence[Row], listed: set[Path]) -> Iterator[Problem]:
    """Loose masks of photographs that failed, which stay; `listed` gets their paths."""
    for row in rows:
        path = record.mask(row.name)
        if path.is_file():
            listed.add(path)
            yield Problem(str(path), "", f"not taken: {row.error}", "warning", kind=NOT_TAKEN)


def _unlisted_members(
    archive: Path, names: Sequence[str], rows: Sequence[Row]
) -> Iterator[Problem]:
    """Files in a tar that no row lists, or that are in it twice."""
    listed = {f"{row.name}.png" for row in rows}
    for name, count in Counter(names).items():
        if name not in listed:
            yield Problem(str(archive / name), "", "no row of the shard lists it", kind=UNLISTED)
        elif count > 1:
            message = f"is in the archive {count} times, expected once"
            yield Problem(str(archive / name), "", message, kind=UNLISTED)


def _verify_file(record: Record, output: Mapping[str, Any]) -> Iterator[Problem]:
    """Of a further output of a shard, of which rows say nothing: by its digest."""
    path = record.out / place_of(output)
    try:
        if Contents().digest(path) != output.get("sha256"):
            message = "is not as the record of its shard says"
            yield Problem(str(path), "", message, kind=OF_A_SHARD)
    except (OSError, ValueError) as error:
        yield _problem(path, error, OF_A_SHARD)


def _verify_masks(rows: Sequence[Row], paths: Sequence[Path], meter: Meter) -> Iterator[Problem]:
    """Of each mask, which may be in a tar."""
    for problem in ordered_map(lambda pair: _verify_mask(*pair), zip(rows, paths, strict=True)):
        meter.advance()
        if problem is not None:
            yield problem


def _verify_mask(row: Row, path: Path) -> Problem | None:
    try:
        content = tars.read_bytes(path)
    except FileNotFoundError:
        return Problem(str(path), "", "file is missing", kind=MISSING)
    except (OSError, ValueError) as error:
        return _problem(path, error, DAMAGED)
    labels, fault = None, ""
    try:
        labels = _labels_in(content, path)
        fault = _difference(row, labels)
    except Exception as error:  # decoders raise errors of any kind on damaged files
        fault = f"cannot be read as a mask: {_reason(path, error)}"
    if hashlib.sha256(content).hexdigest() == row.mask_digest:
        return Problem(str(path), "", f"{fault}, in its row", kind=UNLIKE) if fault else None
    if labels is None and held_seal(content):
        return Problem(str(path), "", f"damaged: {fault}", kind=DAMAGED)
    whose = "put another mask of weaktr's in its place" if holds_seal(content) else "changed it"
    message = f"somebody has {whose}" + (f": {fault}" if fault else ", into the same labels")
    return Problem(str(path), "", message, "warning", kind=CHANGED)


def _labels_in(content: bytes, path: Path) -> np.ndarray:
    """The labels in a PNG, [H, W] of an integer type.

    Raises:
        Exception: of any kind, if it is no mask.
    """
    with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
        factor = check_is_mask(image, path, "")
        if (damage := damage_in_data(content, rows=True)) is not None:
            raise ValueError(damage)
        return np.array(image) // factor


def _difference(row: Row, labels: np.ndarray) -> str:
    """In what a mask is not what its row says; "" = in nothing."""
    size = row.height or 0, row.width or 0
    if labels.shape != size:
        return size_message("mask", labels.shape, size)
    if labels.max(initial=0) > 255:
        return f"expected labels up to 255, got {labels.max()}"
    areas = areas_of(labels.astype(np.uint8))
    if tuple(areas) != row.labels:
        return f"expected the labels {few(row.labels or ())}, got {few(tuple(areas))}"
    if row.areas is not None and areas != row.areas:
        return "expected other areas of its labels"
    return ""


def _others(folder: Path, listed: set[Path], *, is_whole: bool) -> Iterator[Problem]:
    """Files in a folder that are not listed; of weaktr's only where all shards are whole."""
    for path in sorted(files_below(folder)):
        if path not in listed and (is_whole or not is_sealed(path)):
            yield Problem(str(path), "", "no row lists it: move it away", kind=UNLISTED)


def _verify_index(results: Results) -> Iterator[Problem]:
    """Of the index of all shards, where there is one."""
    index = results.out / INDEX
    if index.exists() and not is_current(index, results.state()):
        message = "is not of the rows that are there now; weaktr index writes it again"
        yield Problem(str(index), "", message, "warning", kind=OF_THE_INDEX)


def _problem(path: Path, error: Exception, kind: str) -> Problem:
    """A problem of an error, which may name the path itself."""
    return Problem(str(path), "", _reason(path, error), kind=kind)


def _reason(path: Path, error: Exception) -> str:
    """What an error says, without the path."""
    if isinstance(error, DataError) and error.problems:
        return error.problems[0].message
    return str(error).removeprefix(f"{path}: ") or type(error).__name__
