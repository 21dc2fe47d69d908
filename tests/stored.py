"""Goldens of labels, scores and inference."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tests.parity.recipe import GOLDEN

FACTS: dict[str, Any] = json.loads((GOLDEN / "stages.json").read_text())


def arrays(name: str) -> dict[str, np.ndarray]:
    """The stored arrays of one file."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        return dict(stored)
