"""What a training needs to be resumed."""

from __future__ import annotations

import copy
import pickle
import random

import numpy as np
import pytest
import torch

from tests.models import small
from tests.tolerances import assert_close
from tests.training.lines import read_metrics
from tests.training.loops import Numbers, loop_in
from weaktr.training.loader import EpochLoader
from weaktr.training.optimizers import segmenter_optimizer
from weaktr.training.state import (
    load_state,
    random_state,
    restore_optimizer,
    restore_random_state,
    save_state,
)


def test_state_restores_all_random_numbers(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(2).tolist()

    np.random.randn()  # leaves a cached normal number behind
    save_state(tmp_path / "state.pt", {"random": random_state(), "step": 3})
    first = draw()
    state = load_state(tmp_path / "state.pt")
    restore_random_state(state["random"])
    assert draw() == first
    assert state["step"] == 3
    assert load_state(tmp_path / "none.pt") is None


@pytest.mark.parametrize(("current", "kept"), [(0, 1), (3, 1), (0, 8), (3, 8), (5, 2)])
def test_random_numbers_of_a_gpu_go_on_with_any_number_of_gpus(monkeypatch, current, kept):
    restored = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: torch.tensor([7]))
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state: restored.append(int(state)))
    state = random_state()
    assert state["cuda"] == [torch.tensor([7])]
    state["cuda"] = [torch.tensor([number]) for number in range(kept)]  # 8: an older version's
    restore_random_state(state)
    assert restored == [min(current, kept - 1)]


def test_a_training_on_a_cpu_leaves_gpus_alone(monkeypatch):
    """Also one that was begun on a GPU; others may use them, or all of their memory."""

    def used(*_):
        pytest.fail("a GPU was used")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name in ("get_rng_state", "set_rng_state", "current_device"):
        monkeypatch.setattr(torch.cuda, name, used)
    state = random_state()
    assert state["cuda"] == []
    restore_random_state(state | {"cuda": [torch.tensor([7])]})
    pinned = []
    monkeypatch.setattr(
        "weaktr.training.loader.DataLoader", lambda *_, **x: pinned.append(x["pin_memory"]) or []
    )
    for device in ("cpu", "cuda"):
        EpochLoader(Numbers(), 2, 0, device=device).epoch(0)
    assert pinned == [False, True]


def stopped(folder):
    """The state of a training that made two steps; the path of its file."""
    loop = loop_in(folder)
    for _ in range(2):
        loop.learn([torch.ones(1, 3)], lambda x: {"loss": loop.model(x).sum()})
    loop.save()
    return loop, folder / "state.pt"


def test_a_training_goes_on_in_fp16_that_began_without(tmp_path, monkeypatch):
    """As from a GPU that multiplies bf16, or a CPU, to one that does not."""
    loop, _ = stopped(tmp_path)
    scaler = torch.amp.GradScaler("cpu")
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: scaler)
    again = loop_in(tmp_path)
    assert again.step == loop.step == 2 and again.scaler.get_scale() == 2.0**16


def test_a_whole_state_is_taken_over(tmp_path):
    loop, _ = stopped(tmp_path)
    again = loop_in(tmp_path)
    assert again.step == 2 and torch.equal(again.model.weight, loop.model.weight)
    (own,) = {tuple(group["betas"]) for group in again.optimizer.param_groups}
    assert own == (0.9, 0.999)
    assert torch.equal(again.average.module.weight, loop.average.module.weight)


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("former", [None, False])
def test_the_state_of_an_unfused_optimiser_goes_on_fused(momentum, former):
    """As older versions left it; the weights are the same to rounding."""
    results = []
    for fused in (former, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(40, 30)
        settings = {"lr": 0.1, "momentum": momentum, "nesterov": momentum > 0, "weight_decay": 0.01}
        optimizer = torch.optim.SGD(model.parameters(), fused=former, **settings)
        for index in range(4):
            if index == 2:  # resumed
                state = copy.deepcopy(optimizer.state_dict())
                optimizer = torch.optim.SGD(model.parameters(), fused=fused, **settings)
                restore_optimizer(optimizer, state)
                assert optimizer.param_groups[0]["fused"] is fused
            optimizer.zero_grad()
            model(torch.randn(5, 40)).square().sum().backward()
            optimizer.step()
        results.append(model.weight.detach())
    assert_close(*results, "float32")


def test_stage_2_steps_are_fused():
    model = small.segmenter(
        "vit_tiny_patch16_224", 3, decoder="linear", image_size=32,
        backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
    )  # fmt: skip
    for kind in ("sgd", "adamw"):
        groups = segmenter_optimizer(model, 0.1, kind=kind).param_groups
        assert all(group["fused"] is True for group in groups)


def test_processes_that_see_different_states_do_not_train(tmp_path, monkeypatch):
    stopped(tmp_path)
    first = {list: [0, 0, 0], int: 1}
    monkeypatch.setattr("weaktr.processes.of_each", lambda own: [own, own, first[type(own)]])
    told = r"from epoch 1, step 2, process 2 from epoch 1, step 0: expected one file on storage"
    with pytest.raises(ValueError, match=told):
        loop_in(tmp_path)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_first_step_that_fp16_skips_leaves_nothing_behind(kind, monkeypatch):
    """torch's fused SGD makes its momentum of unset memory, and a skipped step does not fill it."""
    unset = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: unset(*a, **k).fill_(1e9))
    results = []
    for overflows in (True, False):
        torch.manual_seed(0)
        model = small.segmenter(
            "vit_tiny_patch16_224", 3, decoder="linear", image_size=32, drop_path=0.0,
            backbone_args={"embed_dim": 16, "depth": 1, "num_heads": 2},
        )  # fmt: skip
        optimizer = segmenter_optimizer(model, 0.1, kind=kind)
        scaler = torch.amp.GradScaler("cpu")
        for factor in (1e38, 1.0) if overflows else (1.0,):
            optimizer.zero_grad()
            loss = sum(p.square().sum() for p in model.parameters())
            scaler.scale(factor * loss).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("model"),
        lambda state: state.pop("average"),
        lambda state: state.pop("optimizer"),
        lambda state: state.pop("position"),
        lambda state: state.pop("random"),
        lambda state: state.update(position=[1, 2]),
        lambda state: state.update(position=[1, 2, 3, -4]),
        lambda state: state.update(position="3"),
        lambda state: state.update(position=[10**12, 0, 0, 0]),
        lambda state: state.update(position=[0, 10**12, 0, 0]),
        lambda state: state["optimizer"]["param_groups"][0].update(betas=None),
        lambda state: state["optimizer"]["param_groups"][0].update(betas=(0.1, 0.2, 0.3)),
        lambda state: state["optimizer"]["param_groups"][0].update(maximize="yes"),
        lambda state: state["optimizer"]["param_groups"][0].update(weight_decay="x"),
        lambda state: state["optimizer"]["state"][0].update(exp_avg=None),
        lambda state: state.update(model=[]),
        lambda state: state["model"].update(weight=torch.ones(7)),
        lambda state: state["model"].update(weight=torch.full((2, 3), float("nan"))),
        lambda state: state["model"].update(other=torch.ones(7)),
        lambda state: state["optimizer"]["state"][0].update(exp_avg=torch.ones(7)),
        lambda state: state["optimizer"].update(param_groups=[]),
        lambda state: state.update(optimizer=3),
        lambda state: state["random"].update(torch=torch.zeros(3, dtype=torch.uint8)),
        lambda state: state["random"].update(python=(3, (1, 2), None)),
        lambda state: state["random"].update(python=(3, (1 << 99,) * 625, None)),
        lambda state: state["random"].update(numpy=None),
        lambda state: state["random"].update(numpy=(torch.ones(624), 1 << 99, 0, 0.0)),
    ],
)
def test_a_damaged_state_says_what_to_do(tmp_path, damage):
    _, path = stopped(tmp_path)
    state = torch.load(path)
    log = (tmp_path / "metrics.jsonl").read_bytes()
    damage(state)
    torch.save(state, path)
    with pytest.raises(ValueError, match=f"^{path}: .*delete this file to begin") as caught:
        loop_in(tmp_path)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "metrics.jsonl").read_bytes() == log


def with_a_changed_bit(path):
    """The file's content with another number in its first tensor."""
    content = bytearray(path.read_bytes())
    weight = torch.load(path)["model"]["weight"].numpy().tobytes()
    content[content.index(weight) + 1] ^= 1
    return content


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("text"),
        lambda path: path.write_bytes(pickle.dumps({"model": 1})),
        lambda path: path.write_bytes(with_a_changed_bit(path)),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"model": torch.nn.Linear(1, 1)}, path),
        lambda path: torch.save({}, path),
    ],
)
def test_another_file_says_what_to_do(tmp_path, write):
    _, path = stopped(tmp_path)
    write(path)
    with pytest.raises(ValueError, match=f"^{path}: .*delete this file to begin") as caught:
        loop_in(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_in_the_place_of_a_state_is_refused(tmp_path):
    (tmp_path / "state.pt").mkdir()
    with pytest.raises(ValueError, match=r"state.pt: expected a file, got a folder"):
        loop_in(tmp_path)


def test_the_state_of_another_model_is_refused(tmp_path):
    stopped(tmp_path)
    with pytest.raises(ValueError, match=r"weight \(expected \(2, 4\), got \(2, 3\)\)"):
        loop_in(tmp_path, width=4)


def test_a_log_shorter_than_the_state_says_is_not_filled(tmp_path):
    loop, _ = stopped(tmp_path)
    loop.losses.close()
    (tmp_path / "metrics.jsonl").write_text("")
    loop_in(tmp_path)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_state_with_blocks_that_are_no_longer_trained_goes_on(kind):
    """Older versions also trained the blocks behind the last of the layers."""
    results = []
    for was_trained in (True, False):
        torch.manual_seed(0)
        model = small.segmenter(
            "vit_tiny_patch16_224", 3, image_size=32, patch_size=8, layers=(0,), decoder="linear",
            drop_path=0.0, backbone_args={"embed_dim": 16, "depth": 2, "num_heads": 2},
        ).train()  # fmt: skip
        images, labels = torch.randn(2, 3, 32, 32), torch.randint(3, (2, 32, 32))
        model.vit.blocks[1].requires_grad_(was_trained)
        optimizer = segmenter_optimizer(model, 0.1, layer_decay=0.5, kind=kind)
        for index in range(4):
            if index == 2 and was_trained:
                state = copy.deepcopy(optimizer.state_dict())
                model.vit.blocks[1].requires_grad_(False)
                optimizer = segmenter_optimizer(model, 0.1, layer_decay=0.5, kind=kind)
                restore_optimizer(optimizer, state)
            optimizer.zero_grad()
            model.loss(images, labels).loss.backward()
            optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*results)
