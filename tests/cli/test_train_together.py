"""``weaktr-train`` in several processes, stopped, killed, gone on with: the numbers of one."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import Training, train
from tests.stages import tiny
from tests.training.lines import read_metrics
from weaktr.inference.threshold import read_choice
from weaktr.recipes import dump_recipe

ROOT = Path(__file__).parents[2]
TRAININGS = ("train_cam", "train_seg")
STEPS = 36
#: How often a training is killed; set it to 10 or more for a longer look.
KILLS = int(os.environ.get("WEAKTR_TEST_KILLS", "1"))
#: Relative, of the losses of several processes against those of one.
ROUNDING = 1e-5


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with all that draws random numbers, and the run of one process, ``one``."""
    home = tmp_path_factory.mktemp("together")
    recipe = tiny.recipe(
        tiny.squares(home / "data"),
        data={"train_split": "labels", "val_split": "labels"},
        log_steps=1,
        checkpoint_steps=4,
        cam_model={"drop_path": 0.2},
        train_cam={
            "epochs": 6,
            "lr": 3e-4,
            "ema_decay": 0.9,
            "validate_every": 4,
            "augment": {"erasing": 0.5},
        },
        label={"threshold": 0.3, "crf": "voc_cam"},
        seg_model={"drop_path": 0.2, "dropout": 0.1},
        train_seg={"epochs": 12, "accumulate": 2, "clip_start": 5.0, "clip_grad": 1.0},
    )
    (home / "recipe.yaml").write_text(dump_recipe(recipe))
    train(arguments(home, "one"), 1, home / "said")
    return home


def arguments(home: Path, out: str) -> list[str]:
    return [str(home / "recipe.yaml"), "--out", str(home / out), "--no-report"]


def losses(run: Path, stage: str) -> list[float]:
    return [
        entry["loss"] for entry in read_metrics(run / stage / "metrics.jsonl") if "loss" in entry
    ]


def steps(run: Path, stage: str) -> int:
    """How many steps are logged so far, also while the training writes."""
    path = run / stage / "metrics.jsonl"
    return path.read_bytes().count(b'"loss"') if path.is_file() else 0


def assert_same(home: Path, out: str) -> None:
    """Both trainings have the losses of one process, and every mask is there once."""
    for stage in TRAININGS:
        expected = losses(home / "one", stage)
        assert len(expected) == STEPS
        assert losses(home / out, stage) == pytest.approx(expected, rel=ROUNDING)
        assert not (home / out / stage / "state.pt").exists()
    for stage in ("label", "predict"):
        one, many = (
            [json.loads(line)["name"] for line in (home / run / stage / "index.jsonl").open()]
            for run in ("one", out)
        )
        assert sorted(many) == sorted(one)
        assert not list((home / out / stage).rglob("index.*.jsonl"))
    scores, expected = (
        json.loads((home / run / "metrics.json").read_text()) for run in (out, "one")
    )
    assert scores.keys() == expected.keys()
    for name in (name for name in expected if name.endswith("miou")):
        assert scores[name] == pytest.approx(expected[name], abs=0.2)


def test_two_processes_have_the_losses_of_one(home):
    training = train(arguments(home, "two"), 2, home / "said" / "two")
    assert_same(home, "two")
    said = training.outputs[0].read_text()
    assert (
        "2 processes; images of a batch in the first: train_cam 2 of 4 and train_seg 2 of 4" in said
    )
    assert not training.outputs[1].read_text()


@pytest.mark.rare
@pytest.mark.parametrize(("processes", "size"), [(1, 3), (3, 1)])  # of 3 the last has 2 images
def test_a_batch_in_pieces_has_the_losses_of_a_whole_one(home, processes, size):
    out = f"pieces{processes}"
    pieces = [f"--set={stage}.micro_batch={size}" for stage in TRAININGS]
    train([*arguments(home, out), *pieces], processes, home / "said" / out)
    assert_same(home, out)


FROZEN = {
    "cam_model": {"drop_path": 0.0},
    "train_cam": {
        "backbone_lr": 0.0, "class_tokens": "frozen", "epochs": 3, "validate_every": 1,
        "choose": "fisher", "augment": {
            "scale": [1.0, 1.0], "ratio": [1.0, 1.0], "randaugment": False, "erasing": 0.0,
        },
    },
    "label": {"threshold": "auto", "soft": True, "soft_stride": 4},
    "seg_model": {"image_head": True, "decoder": "linear", "drop_path": 0.2},
    "train_seg": {
        "labels": "soft", "loss": "soft_ce", "balance": 0.5, "optimizer": "adamw", "lr": 1e-3,
        "start": "discriminant", "epochs": 3, "validate_every": 2,
    },
}  # fmt: skip
PATCHES = FROZEN | {
    "cam_model": {"kind": "patches", "patches": {"short_side": 40, "layers": [-1]}},
    "train_cam": {"patches": {"rounds": 2, "folds": 3}},
    "train_seg": FROZEN["train_seg"]
    | {"loss": "collision", "balance": 0.0, "epochs": 1, "crops": 2, "validate_every": 1},
}


@pytest.mark.parametrize("settings", [FROZEN, PATCHES], ids=["frozen", "patches"])
def test_recipes_for_few_photographs_have_the_numbers_of_one_process(home, tmp_path, settings):
    recipe = tiny.recipe(
        home / "data",
        data={"train_split": "labels", "val_split": "labels"},
        log_steps=1,
        **settings,
    )
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    for processes in (1, 2):
        out = f"of{processes}"
        train(arguments(tmp_path, out), processes, tmp_path / "said" / out)
    one, two = tmp_path / "of1", tmp_path / "of2"
    for stage in TRAININGS:
        logs = [read_metrics(run / stage / "metrics.jsonl") for run in (one, two)]
        for own, other in zip(*logs, strict=True):
            assert own.keys() == other.keys()
            for name, value in own.items():
                tolerance = {"abs": 0.2} if name.endswith("miou") else {"rel": 1e-4, "abs": 1e-7}
                assert other[name] == pytest.approx(value, **tolerance), (stage, name)
    assert read_choice(two / "label").threshold == read_choice(one / "label").threshold
    soft = [sorted(p.name for p in (run / "label" / "soft").iterdir()) for run in (one, two)]
    assert soft[0] == soft[1] and len(soft[0]) == 24


def stopped(home: Path, out: str, processes: int, stage: str, after: int, number: int) -> str:
    """Send a signal to a run after some steps of a stage; what it says."""
    training = Training(arguments(home, out), processes, home / "said" / out)
    training.until(lambda: steps(home / out, stage) >= after)
    training.send(number)
    assert training.wait() == [128 + number] * processes, training.said()
    return training.said()


def test_a_signal_ends_a_training_after_its_step_and_any_number_of_processes_goes_on(home):
    said = stopped(home, "stopped", 2, "train_cam", 13, signal.SIGTERM)
    (line,) = [line for line in said.splitlines() if "stopped by" in line]
    assert "is saved: stopped by SIGTERM; start the same command again to go on" in line
    assert f"train_cam: epoch {(steps(home / 'stopped', 'train_cam') - 1) // 6 + 1}, step" in line
    before = steps(home / "stopped", "train_cam")
    said = stopped(home, "stopped", 1, "train_seg", 20, signal.SIGUSR1)
    epochs = {(before - 1) // 6 + 1, before // 6 + 1}  # after its last step an epoch may have ended
    assert any(f"train_cam: going on from epoch {epoch}, step {before}" in said for epoch in epochs)
    assert steps(home / "stopped", "train_seg") < STEPS
    assert "train_seg: epoch" in said and "stopped by SIGUSR1" in said
    train(arguments(home, "stopped"), 3, home / "said" / "stopped")
    assert_same(home, "stopped")


def test_a_process_that_dies_ends_all_with_one_line(home):
    training = Training(arguments(home, "died"), 2, home / "said" / "died")
    training.until(lambda: steps(home / "died", "train_cam") >= 10)
    training.send(signal.SIGKILL, 1)
    assert training.wait() == [1, -signal.SIGKILL]
    last = training.said().splitlines()[-1]
    assert "process 0 of 0..1: another process of the run has ended without a word" in last
    assert "Traceback" not in training.said()
    train(arguments(home, "died"), 1, home / "said" / "died")
    assert_same(home, "died")


def test_an_error_of_one_process_is_said_once_and_ends_all(home):
    other = [*arguments(home, "differ"), "--set", "train_cam.lr=0.5"]
    training = Training([arguments(home, "differ"), other], 2, home / "said" / "differ")
    assert sorted(training.wait()) == [1, 2]
    (line,) = [line for line in training.said().splitlines() if line]
    assert "process 1: expected the recipe and options of process 0" in line
    assert "train_cam.lr" in line
    assert not (home / "differ").exists()


def test_a_batch_with_fewer_images_than_processes_is_told_before_anything_runs(home):
    few = [*arguments(home, "few"), "--set", "train_seg.batch_size=1"]
    training = Training(few, 2, home / "said" / "few")
    assert sorted(training.wait()) == [1, 2]
    said = training.said()
    assert "train_seg.batch_size: expected at least 2, one for each process, got 1" in said
    assert "without a word" not in said
    assert not (home / "few").exists()


def test_a_photograph_that_one_process_cannot_read_is_said_once(home, tmp_path):
    """The others, whose exchange breaks off, do not say that it was killed."""
    shutil.copytree(home / "data", tmp_path / "data")
    recipe = (home / "recipe.yaml").read_text().replace(str(home / "data"), str(tmp_path / "data"))
    (tmp_path / "recipe.yaml").write_text(recipe)
    damaged = tmp_path / "data" / "images" / "3.png"
    damaged.write_bytes(damaged.read_bytes()[: damaged.stat().st_size // 2])
    training = Training(arguments(tmp_path, "out"), 2, tmp_path / "said")
    assert sorted(training.wait()) == [1, 2]
    said = training.said()
    assert said.count("3.png") == 1 and "without a word" not in said, said


@pytest.mark.parametrize("processes", [pytest.param(1, marks=pytest.mark.rare), 2])
def test_killed_at_random_moments_it_goes_on_as_if_it_had_not_been(home, processes):
    draw, out = random.Random(processes), f"killed{processes}"
    for moment in sorted(draw.sample(range(1, 2 * STEPS), KILLS)):
        training = Training(arguments(home, out), processes, home / "said" / out)
        training.until(lambda moment=moment: sum(steps(home / out, s) for s in TRAININGS) >= moment)
        time.sleep(draw.uniform(0, 0.2))
        training.send(signal.SIGKILL)
        training.wait()
    train(arguments(home, out), processes, home / "said" / out)
    assert_same(home, out)
    if processes == 1:  # with as many processes nothing is rounded in another way
        for stage in TRAININGS:
            for file in ("metrics.jsonl", "model.safetensors"):
                one, killed = ((home / run / stage / file).read_bytes() for run in ("one", out))
                assert killed == one


@pytest.mark.rare
@pytest.mark.slow
def test_torchrun_starts_it_again_when_a_process_dies(home):
    out = home / "torchrun"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--max-restarts", "1", Path(sys.executable).with_name("weaktr-train"),
        *arguments(home, out.name), "--only", "train_cam",
    ]  # fmt: skip
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    with (home / "torchrun.txt").open("w") as said:
        launcher = subprocess.Popen(
            list(map(str, command)), env=os.environ | own, stdout=said, stderr=said
        )
    while steps(out, "train_cam") < 10:
        assert launcher.poll() is None, (home / "torchrun.txt").read_text()
        time.sleep(0.01)
    os.kill(process_of(launcher.pid, 1), signal.SIGKILL)
    assert launcher.wait() == 0, (home / "torchrun.txt").read_text()
    assert "train_cam: going on from epoch" in (home / "torchrun.txt").read_text()
    assert losses(out, "train_cam") == pytest.approx(
        losses(home / "one", "train_cam"), rel=ROUNDING
    )


def process_of(launcher: int, rank: int) -> int:
    """The process with a number of those that torchrun has started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    (found,) = (
        child for child in children
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
    )  # fmt: skip
    return int(found)
