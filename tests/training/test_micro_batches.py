"""A batch in pieces: the same numbers as at once, and as many pieces as the memory asks for.

That whole trainings are the same, `tests/cli/test_train_together.py` says.
"""

from __future__ import annotations

import logging
from contextlib import closing

import pytest
import torch

from tests.stages import tiny
from tests.training.lines import read_metrics
from weaktr import processes
from weaktr.config import TrainCamConfig, TrainSegConfig
from weaktr.models import CamModel, Segmenter
from weaktr.models.dropping import Part, PartDropout
from weaktr.ranges import SettingsError
from weaktr.stages.run import Run
from weaktr.stages.train_cam import train_cam
from weaktr.stages.train_seg import train_seg
from weaktr.training import loop
from weaktr.training.loss_log import METRICS
from weaktr.training.micro_batches import MicroBatches, most_that_fit

CPU = torch.device("cpu")
TRUTH = {"masks": "truth", "clip_start": 5.0}


def run(micro, batch, losses_of):
    """The losses of all pieces, and how many images each had."""
    losses, sizes = [], []
    with closing(micro.of(batch, losses_of)) as pieces:
        for piece, is_last in pieces:
            losses.append(losses_of(*piece)["loss"])
            sizes.append(len(piece[0]))
            assert is_last == (sum(sizes) == len(batch[0]))
    return torch.stack(losses).sum(), sizes


@pytest.mark.parametrize(
    ("size", "sizes"), [(9, [7]), (7, [7]), (6, [3, 4]), (3, [2, 2, 3]), (1, [1] * 7)]
)
def test_pieces_draw_and_count_for_the_whole_batch(size, sizes):
    part = Part(slice(0, 7), 7)
    drop = PartDropout(0.5, part)
    values = torch.rand(7, 5)
    known = torch.tensor([1.0, 0, 0, 1, 1, 1, 0])

    def losses_of(x, known):
        of_all = processes.total(known.sum())
        mean = processes.total((x * known[:, None]).sum()) / of_all
        return {"loss": ((drop(x) - mean) * known[:, None]).pow(2).sum() / of_all}

    torch.manual_seed(4)
    expected = losses_of(values, known)["loss"]
    after = torch.rand(3)
    torch.manual_seed(4)
    got, seen = run(MicroBatches(part, size), [values, known], losses_of)
    assert seen == sizes
    assert torch.equal(torch.rand(3), after)
    torch.testing.assert_close(got, expected)
    assert part.rows == slice(0, 7)
    assert torch.equal(processes.total(values), values)


def test_losses_that_ask_for_nothing_are_computed_once():
    calls = []

    def losses_of(x):
        calls.append((len(x), torch.is_grad_enabled()))
        return {"loss": x.sum()}

    micro = MicroBatches(Part(slice(0, 4), 4), 2)
    for _ in range(2):
        run(micro, [torch.rand(4)], losses_of)
    assert calls == [(2, False)] * 2 + [(2, True)] * 4


def test_an_error_in_a_piece_leaves_everything_as_it_was():
    part = Part(slice(2, 6), 8)  # of the second process of several
    micro = MicroBatches(part, 2)
    rows = []

    def losses_of(x):
        rows.append(part.rows)
        if len(rows) == 4:
            raise RuntimeError("no memory")
        return {"loss": processes.total(x.sum())}

    with pytest.raises(RuntimeError, match="no memory"):
        run(micro, [torch.rand(4)], losses_of)
    assert rows == [slice(2, 4), slice(4, 6)] * 2
    assert part.rows == slice(2, 6)
    values = torch.rand(2)
    assert torch.equal(processes.total(values), values)


@pytest.mark.parametrize(("most", "found"), [(16, 13), (12, 7), (3, 2), (1, 1)])
def test_as_many_images_at_once_as_the_memory_holds(most, found, caplog):
    tried = []

    def step(batch):
        tried.append(len(batch[0]))
        torch.rand(2)
        if len(batch[0]) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    item = (torch.rand(3, 4, 4), torch.tensor(1))
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    with caplog.at_level(logging.INFO, logger="weaktr"):
        assert most_that_fit("train_cam", step, item, 13, 10, CPU) == found == tried[-1]
    assert torch.equal(torch.rand(2), expected)
    said = f"holds {found} of the 13 images of a batch at a time"
    assert (said in caplog.text) == (found < 13)


@pytest.mark.parametrize(("stage", "work"), [("train_cam", train_cam), ("train_seg", train_seg)])
def test_a_training_tries_and_has_the_losses_of_a_larger_memory(
    stage, work, tmp_path, monkeypatch, caplog
):
    settings = {"epochs": 2, "clip_grad": 1.0} | ({} if stage == "train_cam" else TRUTH)
    recipe = tiny.recipe(
        tiny.squares(tmp_path / "squares", count=8),
        log_steps=1,
        cam_model={"drop_path": 0.2},
        seg_model={"drop_path": 0.2, "dropout": 0.1, "weights": None},
        **{stage: settings},
    )
    model = CamModel if stage == "train_cam" else Segmenter
    method = "forward" if stage == "train_cam" else "encode"
    run = getattr(model, method)
    seen = []

    def limited(self, images, *rest):
        seen.append(len(images))
        if len(images) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, images, *rest)

    losses, most = [], 9
    caplog.set_level(logging.INFO, logger="weaktr")
    monkeypatch.setattr(model, method, limited)
    for out in ("whole", "pieces"):
        (tmp_path / out).mkdir()
        work(Run(recipe, tmp_path), tmp_path / out)
        losses.append([entry["loss"] for entry in read_metrics(tmp_path / out / METRICS)])
        monkeypatch.setattr(loop, "is_tried", lambda *_: True)
        most = 1
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert len(losses[0]) == 4 and max(seen) == 4
    assert "holds 1 of the 4 images of a batch at a time" in caplog.text


def test_where_not_one_image_fits_no_smaller_pieces_are_advised(tmp_path, monkeypatch):
    def none(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "is_tried", lambda *_: True)
    monkeypatch.setattr(CamModel, "forward", none)
    root = tiny.squares(tmp_path / "squares", count=8)
    recipe = tiny.recipe(root, train_cam={"recompute": True})
    with pytest.raises(MemoryError, match="out of memory: take a smaller model or image"):
        train_cam(Run(recipe, tmp_path), tmp_path)


def test_what_is_no_lack_of_memory_is_not_taken_for_it():
    def step(_):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        most_that_fit("train_cam", step, (torch.rand(1),), 8, 0, CPU)


def test_one_image_that_does_not_fit_ends_the_training():
    def step(_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        most_that_fit("train_cam", step, (torch.rand(1),), 8, 0, CPU)


@pytest.mark.parametrize("settings", [TrainCamConfig, TrainSegConfig])
def test_a_graph_of_pieces_is_refused(settings):
    with pytest.raises(SettingsError, match="micro_batch: expected auto where compile is true"):
        settings(compile=True, micro_batch=2)
