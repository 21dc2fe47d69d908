"""`bench/label_work.py` calls weaktr's own parts, which change without it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.trees import write_image

SCRIPT = Path(__file__).parents[2] / "bench" / "label_work.py"


@pytest.mark.rare
@pytest.mark.parametrize("work", ["parts", "label", "predict"])
def test_one_photograph(tmp_path, work):
    write_image(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("a.png,0;3\n")
    command = [sys.executable, str(SCRIPT), work, "weaktr", "cpu", "1", str(tmp_path)]
    done = subprocess.run(
        command,
        input="all\n",
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert (Path(answer["masks"]) / "masks/a.png").is_file()
    assert set(answer["parts"] or ()) == (
        {"read and resize", "CAMs", "threshold", "CRF", "PNG and digest"}
        if work == "parts"
        else set()
    )
