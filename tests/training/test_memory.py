"""What a training says of the memory that it needs."""

from __future__ import annotations

import re

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from tests.stages import tiny
from tests.training.test_state import loop_in
from weaktr.messages import size_in_words
from weaktr.stages.pipeline import run_recipe
from weaktr.training.memory import StepMemory

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LINE = re.compile(
    r"(train_\w+): a step keeps (\S+ [GM]iB) for its backward pass, model, gradients and "
    r"optimiser (\S+ [GM]iB)(; at most \S+ [GM]iB at a time)?"
)


def test_sizes_in_words():
    assert size_in_words(2**30 * 5 // 4) == "1.2 GiB"
    assert size_in_words(340 * 2**20) == "340 MiB"
    assert size_in_words(2**19) == "0.5 MiB"


def measured(model, forward, caplog, **settings):
    """Both sizes that are told of a step, in bytes."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **settings)
    memory = StepMemory("train_seg", model, optimizer)
    memory.log_once()
    with memory.first_pass():
        loss = forward()
    loss.backward()
    optimizer.step()
    with memory.first_pass():
        forward()  # a second pass is not measured
    with caplog.at_level("INFO", "weaktr"):
        memory.log_once()
        memory.log_once()
    (line,) = caplog.messages
    caplog.clear()
    return LINE.fullmatch(line)


def test_counts_what_is_kept_once_and_no_parameter(caplog):
    """1 MiB enters a linear layer, twice as much comes out, which the square keeps too."""
    model = torch.nn.Linear(1024, 2048, bias=False)  # 8 MiB
    x = torch.randn(256, 1024)
    found = measured(model, lambda: (model(x).relu() + model(x[:128]).sum()).square().sum(), caplog)
    assert found[1] == "train_seg"
    assert found[2] == "5 MiB"  # x; of 2 MiB each what relu gave, and the sum that is squared
    assert found[3] == "16 MiB"
    assert not found[4]
    assert measured(model, lambda: model(x).sum(), caplog, momentum=0.9)[3] == "24 MiB"
    model.requires_grad_(False)
    model.bias = torch.nn.Parameter(torch.zeros(2048))
    assert measured(model, lambda: model(x).sum(), caplog)[3] == "8.02 MiB"


def test_what_is_computed_again_is_not_kept(caplog):
    model = torch.nn.Linear(1024, 2048, bias=False)
    x = torch.randn(256, 1024, requires_grad=True)

    def forward():
        return checkpoint(lambda x: model(x).relu().square().sum(), x, use_reentrant=False)

    assert measured(model, forward, caplog)[2] == "1 MiB"


def step_sizes(caplog, recipe, folder):
    """Stage -> what is told of a step of its training."""
    caplog.clear()
    with caplog.at_level("INFO", "weaktr"):
        for stage in ("train_cam", "label", "train_seg"):
            run_recipe(recipe, folder, only=stage)
    found = [match for line in caplog.messages if (match := LINE.fullmatch(line))]
    assert [match[1] for match in found] == ["train_cam", "train_seg"]
    return {match[1]: float(match[2].split()[0]) for match in found}


def test_both_trainings_tell_it_once_and_less_where_blocks_are_computed_again(tmp_path, caplog):
    root = tiny.squares(tmp_path / "squares", count=8)
    sizes = []
    for recompute in (False, True):
        change = {"recompute": recompute, "accumulate": 2, "batch_size": 2}
        recipe = tiny.recipe(root, device=DEVICE, train_cam=change, train_seg=change)
        sizes.append(step_sizes(caplog, recipe, tmp_path / str(recompute)))
    for stage, plain in sizes[0].items():
        assert 0 < sizes[1][stage] < plain


def cpu_has_none(*_):
    torch.empty(2**62, dtype=torch.uint8)


def gpu_has_none(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


@pytest.mark.parametrize("fail", [cpu_has_none, gpu_has_none])
@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, "set S.recompute=true or S.micro_batch=32, which computes a batch in pieces"),
        ({"recompute": True, "micro_batch": 9}, "set S.micro_batch=4, which computes a batch"),
        ({"compile": True}, "set S.recompute=true or S.compile=false with S.micro_batch=32, which"),
        ({"recompute": True, "micro_batch": 1}, "take a smaller model or image"),
    ],
)
def test_too_little_memory_says_what_to_set(tmp_path, fail, settings, advice):
    loop = loop_in(tmp_path / "train_cam", **settings)
    with pytest.raises(MemoryError, match="allocate") as caught:
        loop.train(fail)
    text = str(caught.value)
    assert text.startswith("train_cam: out of memory: " + advice.replace("S.", "train_cam."))
    assert "\n" not in text


def test_other_errors_are_left_as_they_are(tmp_path):
    def fail(*_):
        raise RuntimeError("something else")

    with pytest.raises(RuntimeError, match=r"^something else$"):
        loop_in(tmp_path / "train_cam").train(fail)
