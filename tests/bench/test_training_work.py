"""`bench/training_work.py`: all of it runs, on parts of weaktr that change without it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.rare

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def work():
    sys.path.insert(0, str(BENCH))
    import training_work

    yield training_work
    sys.path.remove(str(BENCH))
    for name in (
        "training_work",
        "cam_work",
        "turns",
        "published",
        "published_loading",
        "conftest",
    ):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(work, tmp_path_factory):
    """Two photographs, each several times."""
    folder = work.write_photographs(tmp_path_factory.mktemp("photographs"), 2)
    for number in range(2, work.PHOTOGRAPHS):
        for suffix in (".jpg", ".png"):
            shutil.copy(folder / f"{number % 2}{suffix}", folder / f"{number}{suffix}")
    return folder


@pytest.mark.parametrize("stage", ["cam", "seg"])
def test_both_ways_load_the_same_kind_of_tensors(work, folder, stage):
    """Of about the same colours and labels, though each draws random numbers of its own."""
    ours, theirs = (work.dataset_of(stage, way, folder, 6) for way in ("weaktr", "published"))
    assert len(ours) == len(theirs) == 6
    items = [(ours[index], theirs[index]) for index in range(6)]
    for own, other in items:
        assert (own[0].shape, own[0].dtype) == (other[0].shape, other[0].dtype)
        assert own[1].shape == other[1].shape
        if stage == "cam":
            assert torch.equal(own[1], other[1])
        else:
            assert {*own[1].unique().tolist()} <= {*range(9), 255} >= {*other[1].unique().tolist()}
    means = torch.tensor([[image.mean() for image, *_ in pair] for pair in items]).mean(0)
    assert abs(means[0] - means[1]) < 0.5


def test_a_program_answers(folder):
    program = str(BENCH / "training_work.py")
    command = [sys.executable, program, "loading", "cam", "weaktr", str(folder)]
    done = subprocess.run(
        command, input="first\nagain\n", capture_output=True, text=True, check=True
    )
    first, again = map(json.loads, done.stdout.splitlines())
    colours = torch.load(first["result"], weights_only=True)
    Path(first["result"]).unlink()
    assert colours.shape == (3,) and colours.isfinite().all()
    assert again["seconds"] > 0


@pytest.mark.parametrize("stage", ["cam", "seg"])
def test_every_way_of_ours_does_the_same_step(work, stage, monkeypatch):
    for side in ("CAM_SIDE", "SEG_SIDE"):
        monkeypatch.setattr(work, side, 64)
    ends = ("", work.RECOMPUTE, work.PIECES)
    losses = [float(work.step(stage, f"weaktr{end}", "cpu", "3")()) for end in ends]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


@pytest.mark.parametrize(("stage", "way"), [("cam", "published"), ("seg", "weaktr")])
def test_steps_with_loading(work, folder, stage, way, monkeypatch):
    tiny = "vit_tiny_patch16_224"
    monkeypatch.setattr(work, "BACKBONE", tiny)
    monkeypatch.setattr(sys.modules["cam_work"], "BACKBONE", tiny)
    run = work.together(stage, way, "cpu", "1", str(folder), "2", "1")
    loss = run()
    assert loss.isfinite() and loss > 0
