"""Options that would do nothing beside the others are refused before any work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.cli.test_train import said
from tests.data.trees import write_image, write_mask
from weaktr import cli
from weaktr.cli import WRONG_INPUT


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("predict MODEL PHOTOS --split nonsense", "--split: expected with --dataset alone"),
        ("label MODEL PHOTOS --split train", "--split: expected with --dataset alone"),
        ("label MODEL PHOTOS --split val --shard-size 5", "--split: expected with --dataset"),
        ("predict MODEL PHOTOS --comp comp5", "--comp: expected with --archive alone"),
        ("label MODEL PHOTOS --workers 2", "--workers: of --engine ray"),
        ("predict MODEL PHOTOS --workers 2 --shard-size 5", "--workers: of --engine ray"),
        ("eval MASKS TRUTH --num-labels 3 --thresholds 0.4", "--thresholds: expected with CAMs"),
        (
            "eval CAMS TRUTH --num-labels 3 --without-crf MASKS",
            "--without-crf: expected with masks",
        ),
        ("show RUN --count 2 --names a", "--count: expected without --names"),
        (
            "train demo --val-masks 5 --set label.threshold=0.4",
            "--val-masks: expected it or --set label.threshold, got both",
        ),
        ("train demo --data-root a --set data.root=b", "--data-root: expected it or --set"),
        ("init PHOTOS --out-run run", "--out-run: expected with --try alone"),
        ("init PHOTOS --try --out a.yaml", "--out: expected without --try"),
        ("data check folder PHOTOS --root MASKS", "--root: expected one folder, got "),
        ("data check manifest a.json --split val", "--split: expected without source manifest"),
        ("data stats manifest a.json --option exif=apply", "--option: expected without source"),
    ],
)
def test_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_image(tmp_path / "PHOTOS/a.png")
    for folder in ("MASKS", "TRUTH"):
        write_mask(tmp_path / folder / "a.png", [1])
    (tmp_path / "CAMS").mkdir()
    np.savez(tmp_path / "CAMS/a.npz", cams=np.zeros((1, 4, 4), np.float32))
    code, text = said(cli.main, *arguments.split())
    assert code == WRONG_INPUT
    assert told in " ".join(text.split())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CAMS", "MASKS", "PHOTOS", "TRUTH"]
