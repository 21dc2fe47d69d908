"""What a training wrote into its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The entries of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]
