"""The log of a training: losses and scores, one JSON object a line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any


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
