"""The log of a training: losses and scores, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from weaktr.files import keep_lines, parse_json, read_text, require_file


def entries_in(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl that this training has written.

    Raises:
        ValueError: a line is no JSON object.
    """
    lines = read_text(path).splitlines()
    entries = [parse_json(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]
    if wrong := [number for number, e in enumerate(entries, 1) if not isinstance(e, dict)]:
        raise ValueError(f"{path}:{wrong[0]}: expected a JSON object; delete the stage's folder")
    return entries


class MetricsLog:
    """metrics.jsonl: one JSON object a line, cut back to a checkpoint's position on resume.

    Args:
        path: of the file.
        is_written: whether this process writes it; else everything here does nothing.
    """

    def __init__(self, path: Path, *, is_written: bool = True) -> None:
        self.path = path
        self._file: IO[str] | None = None
        if is_written:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists():
                require_file(path)
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - held open

    def write(self, entries: Iterable[dict[str, Any]]) -> None:
        """Append a line for each entry."""
        if self._file is not None:
            self._file.writelines(json.dumps(entry) + "\n" for entry in entries)
            self._file.flush()

    def position(self) -> int:
        """Flush, and return the size of the file in bytes, for a checkpoint."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.path.stat().st_size

    def cut(self, position: int) -> None:
        """Delete everything after `position`, where there is more."""
        if self._file is not None:
            self._file.close()
            keep_lines(self.path, position)
            self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - held open

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
