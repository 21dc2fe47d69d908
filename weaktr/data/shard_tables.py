"""Rows of masks that were made a shard at a time, as `weaktr.data.masks.MaskFolder` reads them.

FOLDER/index/SHARD.parquet    a row for each photograph (`weaktr.shards.rows`)
FOLDER/index/SHARD.json       where the masks of the shard are; a shard that has it is whole
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from weaktr.data.problems import DataError, Problem
from weaktr.files import files_below, is_outside_input, read_json
from weaktr.messages import one_line

#: The columns of which a `MaskEntry` is made.
COLUMNS = (
    *("name", "status", "mask_digest", "height", "width", "working_height", "working_width"),
    *("labels", "given", "areas", "predicted", "confidence", "agreement", "exif", "inputs"),
)
#: How half a character stands in a Parquet file, which holds whole ones alone.
_HALF = re.compile(r"\\u(d[89a-f][0-9a-f]{2})")


def stored_text(text: str) -> str:
    """A text, such as a file name that is not UTF-8, as Parquet can hold it; see `named_text`."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="backslashreplace").decode()
    return text


def named_text(text: str) -> str:
    """What `stored_text` was given."""
    return _HALF.sub(lambda match: chr(int(match[1], 16)), text) if "\\ud" in text else text


def whole_shards(folder: Path) -> list[Path]:
    """The records of the whole shards of a folder of results, ascending; none of another folder."""
    records = (path for path in files_below(folder / "index") if path.suffix == ".json")
    return sorted(path for path in records if path.with_suffix(".parquet").is_file())


def shard_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """The rows of all whole shards, with the names that their masks have below ``masks/``.

    Raises:
        DataError: a file is damaged, or the masks are in tar archives; names it.
    """
    for record in whole_shards(folder):
        place = _place_of(record)
        for row in _rows(record.with_suffix(".parquet")):
            yield row | {"name": place + named_text(row["name"])}


def _place_of(record: Path) -> str:
    """What stands before the name of a photograph in the path of its mask below ``masks/``."""
    try:
        masks = read_json(record)["outputs"]["masks"]
        if "file" in masks:
            message = (
                f"its masks are in {masks['file']!r:.60}, where they cannot be read singly: make "
                "them as PNGs, in another folder (--output png)"
            )
            raise DataError(Problem(str(record), "", message))
        top, *below = str(masks["folder"]).split("/")
        if top != "masks" or ".." in below:
            raise ValueError(f"expected a folder in masks/, got {masks['folder']!r:.60}")
    except DataError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error).removeprefix(f"{record}: ")
        message = f"damaged ({reason:.200}): remove it, its shard is then made again"
        raise DataError(Problem(str(record), "", message)) from error
    return "".join(f"{part}/" for part in below)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open(path, "rb") as file:
        try:
            table = pq.ParquetFile(file, page_checksum_verification=True)
            for batch in table.iter_batches(10_000, columns=list(COLUMNS)):
                if set(batch.schema.names) != set(COLUMNS):
                    raise ValueError(f"expected the columns {', '.join(COLUMNS)}")
                yield from batch.to_pylist()
        except (pa.ArrowException, OSError, ValueError) as error:
            if is_outside_input(error):
                raise
            reason, record = one_line(str(error)), path.with_suffix(".json").name
            message = f"damaged ({reason:.200}): remove {record} beside it to make it again"
            raise DataError(Problem(str(path), "", message)) from error
