"""Loading processes of a training: how many, by what, and that they end."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace

import pytest
import torch

from tests.stages import tiny
from weaktr.data import parallel
from weaktr.data.datasets import SeededDataset
from weaktr.data.parallel import cores_of_this_process
from weaktr.inference.pipeline import limits_for
from weaktr.stages.pipeline import run_recipe
from weaktr.training import workers
from weaktr.training.loop import TrainingLoop
from weaktr.training.loss_log import METRICS
from weaktr.training.workers import Speed, choose_processes, processes_for

CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize(
    ("loading", "model", "where", "cores", "expected"),
    [
        (10.0, 2.0, GPU, 16, 7),  # 5 on average, and a quarter more
        (10.0, 0.1, GPU, 16, 15),  # one core for what feeds the GPU
        (0.1, 10.0, GPU, 16, 1),  # the model never waits for all of an image
        (10.0, 2.0, GPU, 1, 1),
        (10.0, 100.0, CPU, 2, 1),
        (10.0, 100.0, CPU, 16, 1),
        (10.0, 1.0, CPU, 8, 5),  # an image takes 1 + 10 / 8 ms, loading 10
        (10.0, 0.0, CPU, 4, 3),
        (10.0, 100.0, CPU, 1, 0),
    ],
)
def test_enough_processes_for_the_model(loading, model, where, cores, expected):
    assert processes_for(Speed(loading / 1000, model / 1000), where, cores) == expected


def test_processes_of_a_training_share_the_cores_of_a_machine(monkeypatch):
    """Those that load images, and the threads beside a GPU that labels."""
    monkeypatch.setattr(parallel, "usable_cores", lambda: 16)
    threads = {16: (12, 8), 4: (2, 2), 1: (2, 2)}
    for processes, expected in [(None, 16), ("4", 4), ("32", 1), ("many", 16), ("0", 16)]:
        monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
        if processes is not None:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert cores_of_this_process() == expected
        limits = limits_for(torch.device("cuda"), 64)
        assert (limits.readers, limits.writers) == threads[expected]


class Numbers(SeededDataset):
    """Ten numbers, as images; notes the ones that were loaded."""

    def __init__(self):
        super().__init__(range(10), lambda number: torch.rand(()) + number, seed=0)
        self.loaded = []

    def __getitem__(self, index):
        self.loaded.append((index, torch.get_num_threads()))
        return self._transformed(index, torch.tensor(float(index))), torch.tensor(index)


def test_few_images_are_loaded_and_two_steps_done_with_them():
    dataset, batches = Numbers(), []
    threads = torch.get_num_threads()
    torch.manual_seed(1)
    expected = torch.rand(2)
    torch.manual_seed(1)

    def step(batch):
        torch.rand(1)
        batches.append(batch)

    speed = workers.measured(dataset, step, 8, CPU)
    assert torch.equal(torch.rand(2), expected)  # the random numbers are as they were
    assert torch.get_num_threads() == threads
    assert dataset.loaded == [(index, 1) for index in (0, 1, 3, 5, 6, 8)]
    assert [len(batch[0]) for batch in batches] == [8, 8]
    assert batches[0][1].tolist() == [0, 1, 3, 5, 6, 8, 0, 1]
    assert min(speed) > 0


@pytest.mark.parametrize(
    ("speed", "where", "line"),
    [
        (Speed(0.017, 0.004), GPU, "6 processes load images (17 ms an image on a core, the model "
         "takes 4 ms)"),
        (Speed(0.017, 0.0021), GPU, "7 processes load images (17 ms an image on a core, the model "
         "takes 2.1 ms, which 11 could keep up with, if there were the cores)"),
        (Speed(0.017, 0.4), CPU, "1 process loads images (17 ms an image on a core, the model "
         "takes 400 ms)"),
    ],
)  # fmt: skip
def test_the_log_says_how_many_and_why(monkeypatch, caplog, speed, where, line):
    monkeypatch.setattr(workers, "measured", lambda *_: speed)
    monkeypatch.setattr(workers, "cores_of_this_process", lambda: 8)
    with caplog.at_level("INFO", "weaktr"):
        choose_processes("train_cam", Numbers(), print, 4, where, 100)
    assert caplog.messages == [f"train_cam: {line}"]


def test_processes_that_train_together_all_measure(monkeypatch, caplog):
    """Or one that has few cores would not take part in the steps of the others."""
    measurements = []
    monkeypatch.setattr(workers.processes, "count", lambda: 2)
    monkeypatch.setattr(workers, "cores_of_this_process", lambda: 1)
    monkeypatch.setattr(workers, "measured", lambda *_: measurements.append(1) or Speed(0.01, 1.0))
    with caplog.at_level("INFO", "weaktr"):
        assert choose_processes("train_seg", Numbers(), print, 4, CPU, 100) == 0
    assert measurements and "no further process loads images (10 ms" in caplog.text


def test_a_process_for_each_batch_of_an_epoch_is_enough(monkeypatch, caplog):
    monkeypatch.setattr(workers, "measured", lambda *_: Speed(0.1, 0.001))
    monkeypatch.setattr(workers, "cores_of_this_process", lambda: 8)
    with caplog.at_level("INFO", "weaktr"):
        assert choose_processes("train_cam", Numbers(), print, 4, GPU, 2) == 2
    assert caplog.messages[0].startswith("train_cam: 2 processes load images (100 ms an image")
    assert "could keep up" not in caplog.text


@pytest.mark.parametrize(
    ("where", "cores", "line"),
    [
        (CPU, 1, "no further process loads images (1 core)"),
        (CPU, 2, "1 process loads images (2 cores)"),
        (GPU, 1, "1 process loads images (1 core)"),
    ],
)
def test_nothing_is_measured_where_there_is_no_choice(monkeypatch, caplog, where, cores, line):
    monkeypatch.setattr(workers, "cores_of_this_process", lambda: cores)
    monkeypatch.setattr(workers, "measured", None)
    with caplog.at_level("INFO", "weaktr"):
        count = choose_processes("train_seg", Numbers(), print, 4, where, 100)
    assert count == min(1, cores - (where == CPU))
    assert caplog.messages == [f"train_seg: {line}"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.squares(tmp_path_factory.mktemp("workers") / "squares")


def test_a_measured_number_changes_no_result_and_leaves_no_process(
    root, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(workers, "cores_of_this_process", lambda: 8)
    monkeypatch.setattr(workers, "processes_for", lambda *_: 2)
    recipe = tiny.recipe(root, stages=["train_cam", "label", "train_seg"])
    run_recipe(recipe, tmp_path / "none")
    with caplog.at_level("INFO", "weaktr"):
        run_recipe(replace(recipe, num_workers="auto"), tmp_path / "auto")
    assert not multiprocessing.active_children()
    for training in ("train_cam", "train_seg"):
        assert f"{training}: 2 processes load images" in caplog.text
        for name in (METRICS, "model.safetensors"):
            alone, measured = (tmp_path / run / training / name for run in ("none", "auto"))
            assert alone.read_bytes() == measured.read_bytes()


def test_a_training_that_fails_leaves_no_process(root, tmp_path, monkeypatch):
    running = []

    def fail(self):
        running.extend(multiprocessing.active_children())
        raise RuntimeError("no memory")

    monkeypatch.setattr(TrainingLoop, "_step", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        run_recipe(replace(tiny.recipe(root), num_workers=2), tmp_path, only="train_cam")
    assert len(running) == 2
    assert not multiprocessing.active_children()
